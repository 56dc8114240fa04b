"""Plan studies of 70m to 70b: `python benchmarks/scale_on_paper.py`.

Fills the tables of docs/scaling.md, with one plan for each row, in some minutes. Every figure comes
from `nullsae plan`; this script only chooses the studies and lays out the numbers.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study_numbers import filled, markdown_table

from nullsae.config.read import read_merged_config, study_files
from nullsae.config.study import Config
from nullsae.jobs.grid import sae_cells
from nullsae.jobs.resources import Needs
from nullsae.jobs.work.making import TEXT_BYTES
from nullsae.planning.show import Plan, _amount, _hours, make_plan, time_text
from nullsae.planning.sizes import corpus_sizes, subject_sizes

REPOSITORY = Path(__file__).parent.parent
PAGE = REPOSITORY / "docs/scaling.md"
# The config.json of Llama 3 70B, as far as sizes go: Pythia ends at 12b.
LLAMA_70B = {
    **{"model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192, "vocab_size": 128_256},
    **{"num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28_672},
    "tie_word_embeddings": False,
}
BLOCKS = {
    **{"pythia-70m": 6, "pythia-410m": 24, "pythia-1.4b": 24, "pythia-6.9b": 32},
    **{"pythia-12b": 36, "llama-3-70b": 80},
}
DEVICE, DEVICE_BYTES = "h100", 80e9
# The rules whose jobs use most GPU memory: an SAE in training, and a loss.
MEMORY_OF = ("train_sae", "evaluate_sae")
MILLION, BILLION = 10**6, 10**9


@dataclass(frozen=True)
class Case:
    """A study: four models of a subject, four sites, a TopK SAE of 16 times its width at each."""

    subject: str
    tokens: int
    """Tokens that SAEs are trained on."""
    gpus: int = 8


@dataclass(frozen=True)
class Figures:
    """What a study takes."""

    plan: Plan
    download_bytes: float
    reading_bytes: float
    """The most that jobs read of models on a shared disk."""
    gpu_bytes: dict[str, float]
    """For a job of each of these rules."""


BY_SIZE = [Case(subject, 100 * MILLION) for subject in BLOCKS]
BY_TOKENS = [
    Case("pythia-6.9b", n)
    for n in (MILLION, 10 * MILLION, 100 * MILLION, BILLION, 4 * BILLION, 16 * BILLION)
]
BY_GPUS = [Case("pythia-6.9b", BILLION, gpus) for gpus in (1, 8, 16, 64, 512)]


def study(case: Case, folder: Path) -> Config:
    """Return the config of a case: the paper's, cut down; `folder` takes a model's config.json."""
    path = f"EleutherAI/{case.subject}"
    if case.subject.startswith("llama"):
        path = str(folder / case.subject)
        Path(path).mkdir(exist_ok=True)
        text = json.dumps(LLAMA_70B)
        (Path(path) / "config.json").write_text(text, encoding="utf-8")
    paper = REPOSITORY / "config/paper.yaml"
    others = ("70m", "160m", "410m", "1b", "6.9b")
    last = BLOCKS[case.subject] - 1
    sites = [f"resid_post.{round(last * share)}" for share in (0.2, 0.4, 0.6, 0.8)]
    overlay: dict[str, Any] = {
        "corpora": {"fineweb": {"sae_train_tokens": case.tokens}},
        "subjects": {f"pythia-{size}": None for size in others}
        | {
            "scaled": {
                "corpus": "fineweb",
                "source": {"kind": "pretrained", "path": path, "dtype": "bfloat16"},
                "sites": sites,
            }
        },
        "variants": ["trained", "rerandomized", "rerandomized_keep_embeddings", "noise_embeddings"],
        "activations": {"sae_train_tokens": case.tokens},
        "saes": {"r64_k32": None, "topk": {"recipe": "paper", "expansion_factor": 16, "k": 32}},
        "explainers": {"llama": None, "llama_swapped": None},
    }
    return read_merged_config(study_files(REPOSITORY, [paper]), overlay)


def figures(case: Case) -> Figures:
    """Plan a case on an idle machine with data-sheet speeds, ignoring calibration."""
    with tempfile.TemporaryDirectory() as name:
        folder, before = Path(name), os.environ.get("XDG_CACHE_HOME")
        os.environ["XDG_CACHE_HOME"] = name
        try:
            config = study(case, folder)
            plan = make_plan(config, folder, device=DEVICE, gpus=case.gpus)
        finally:
            os.environ.pop("XDG_CACHE_HOME")
            os.environ |= {} if before is None else {"XDG_CACHE_HOME": before}
        [size] = subject_sizes(config).values()
        [corpus] = corpus_sizes(config, folder).values()
        needs, sae = Needs(config), next(sae_cells(config))
        asked = {rule: needs.asked(rule, [sae]) for rule in MEMORY_OF}
    on_gpu = sum(row.jobs for row in plan.rows if row.gpu_seconds)
    return Figures(
        plan,
        download_bytes=size.weight_bytes + TEXT_BYTES * corpus.read_tokens,
        reading_bytes=float(on_gpu * size.weight_bytes),
        gpu_bytes={rule: 1e6 * each.gpu_megabytes for rule, each in asked.items()},
    )


def row(name: str, found: Figures) -> list[str]:
    """Return the cells of a row of the first two tables."""
    plan = found.plan
    most = max(plan.rows, key=lambda each: each.gpu_seconds)
    share = most.gpu_seconds / plan.total("gpu_seconds")
    memory = [
        f"{_amount(found.gpu_bytes[rule])}B"
        + (f" ({math.ceil(n)} GPUs)" if (n := found.gpu_bytes[rule] / DEVICE_BYTES) > 1 else "")
        for rule in MEMORY_OF
    ]
    return [
        name,
        _hours(plan.total("gpu_seconds")),
        time_text(plan.seconds),
        time_text(plan.longest_chain_seconds),
        f"{_amount(plan.disk_bytes)}B",
        f"{_amount(found.download_bytes)}B",
        f"{_amount(found.reading_bytes)}B",
        f"`{most.rule}` {share:.0%}",
        *memory,
    ]


HEAD = [
    *("H100 hours", "on 8 H100s", "longest chain", "disk at most", "download", "models read"),
    *("dominates", "GPU memory, `train_sae`", "`evaluate_sae`"),
]


def gpu_rows(cases: Iterable[Case]) -> Iterator[list[str]]:
    """Return the rows of one study on more and more GPUs."""
    for case in cases:
        plan = figures(case).plan
        busy = plan.total("gpu_seconds") / (plan.seconds * case.gpus)
        yield [str(case.gpus), time_text(plan.seconds), f"{busy:.0%}"]


def tokens_text(tokens: int) -> str:
    """Format a number of tokens, such as 1M or 16B."""
    return _amount(float(tokens)).replace("G", "B").replace(" ", "")


def main() -> None:
    """Fill the marks of the page."""
    by_size = [row(case.subject, figures(case)) for case in BY_SIZE]
    by_tokens = [row(tokens_text(case.tokens), figures(case)) for case in BY_TOKENS]
    texts = {
        "by_size": markdown_table(["subject", *HEAD], by_size),
        "by_tokens": markdown_table(["tokens", *HEAD], by_tokens),
        "by_gpus": markdown_table(["GPUs", "start to end", "GPUs busy"], [*gpu_rows(BY_GPUS)]),
    }
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), texts), encoding="utf-8")


if __name__ == "__main__":
    main()
