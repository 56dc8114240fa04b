"""What jobs hold in memory, beside their formulas: `python benchmarks/memory.py [RULE...]`.

For each rule that can need much (all by default), jobs of four sizes are run as Snakemake would run
them, each by itself, and watched: what a process holds is its anonymous memory (RssAnon and
RssShmem of /proc), at its highest, less that of an interpreter which has imported the same. Pages
of mapped files are left out: the kernel drops them when memory is short. Printed are, in MB,

    planned   `held_bytes` of the rule's formula in `nullsae.jobs.work`
    found     what the job held
    ratio     planned to found; the exit status is 1 if one is not within 1/1.3 and 1.3
    asked     `mem_mb` that the job asks for, with the libraries and the margin
    VmHWM     the most that was resident, mapped files included; 1 is the exit status if that is
              more than was asked for

Sizes are blocks, width and vocabulary of the subject, sites, tokens of `sae_train`, latents. A
rule takes some minutes of one core; 4 GB of memory and of disk are enough. Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import chdir
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from scaling import snakemake

from nullsae import paths
from nullsae.config.read import read_merged_config
from nullsae.core.files import content_key
from nullsae.jobs.resources import Needs
from nullsae.jobs.work import job_work
from nullsae.planning.devices import STARTS

MAIN = [sys.executable, "-m", "nullsae.cli.main"]
TOLERANCE = 1.3
LOOK_SECONDS = 0.003
# Words of a text in which each has one successor, and how many make a document.
N_WORDS, DOCUMENT_WORDS = 500, 200
CONTEXT, SITE, EVAL_TOKENS = 64, "resid_post.0", 2**15
CELL = {
    **{"corpus": "words", "subject": "made", "variant": "trained", "draw": "0"},
    **{"site": SITE, "seed": "0"},
}


@dataclass(frozen=True)
class Study:
    """A subject and a text that are made here; jobs of several sizes share what they make."""

    shape: tuple[int, int, int] = (1, 64, 1_024)
    """Blocks, width and vocabulary of the subject."""
    tokens: int = 2**15
    """Of `sae_train`."""
    shard_tokens: int = 2**14
    sites: tuple[str, ...] = (SITE,)
    """The SAE is at the first."""
    trained_tokenizer: bool = False

    def config(self, n_latents: int) -> dict[str, Any]:
        """Of the study, with one SAE of so many latents."""
        words = {"kind": "pretrained", "path": "model"}
        trained = {"kind": "train", "vocab_size": 700}
        n_eval = EVAL_TOKENS
        return {
            "seed": 0,
            "compute": {"threads": 1, "device": "cpu"},
            "corpora": {
                "words": {
                    "source": {"kind": "files", "paths": ["text.jsonl"]},
                    "tokenizer": trained if self.trained_tokenizer else words,
                    "context_tokens": CONTEXT,
                    "eval_share": max(0.05, 1.3 * n_eval / (self.tokens + n_eval)),
                    "sae_train_tokens": self.tokens,
                    "eval_tokens": n_eval,
                }
            },
            "subjects": {
                "made": {
                    "corpus": "words",
                    "source": {"kind": "pretrained", "path": "model"},
                    "sites": list(self.sites),
                }
            },
            "variants": ["trained", "rerandomized"],
            "activations": {
                **{"sae_train_tokens": self.tokens, "shard_tokens": self.shard_tokens},
                **{"mode": "cache"},
            },
            "saes": {
                f"topk-{n_latents}": {
                    **{"k": 16, "n_latents": n_latents, "batch_tokens": 4_096, "seeds": [0]},
                    # Soon enough for steps that revive latents, which hold more.
                    **{"heldout_tokens": 1_024, "dead_after_tokens": 8_192},
                }
            },
            "latents": {
                **{"n_sampled": 10, "min_firings": 20, "min_pool_windows": 4},
                **{"window_tokens": 16},
            },
            "explainers": {"lexical": {"kind": "lexical"}},
            "scorers": {"detection": {"kind": "detection"}},
        }

    def folder(self, work: Path) -> Path:
        """Its folder, with text and model."""
        folder = work / f"study-{content_key(asdict(self))[:12]}"
        if not (folder / "model").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "text.jsonl", self.tokens + EVAL_TOKENS)
            write_model(folder / "model", *self.shape)
        return folder


@dataclass(frozen=True)
class Size:
    """One job."""

    study: Study
    n_latents: int = 1_024


@dataclass(frozen=True)
class Rule:
    """Jobs of one rule, the cheapest first."""

    target: str
    """A file that the job writes."""
    sizes: tuple[Size, ...]
    keys: Mapping[str, str] = field(default_factory=dict)
    """That differ from `CELL`."""


@dataclass(frozen=True)
class Seen:
    """What one process held at its highest, in bytes."""

    own: int
    """Anonymous."""
    resident: int
    """With mapped files."""


NARROW, WIDE, MANY_TOKENS = (
    Study(shape=shape) for shape in ((1, 256, 1_024), (1, 1_024, 2_048), (1, 256, 40_000))
)
SAES = (Size(NARROW, 24_576), Size(NARROW, 65_536), Size(MANY_TOKENS, 16_384), Size(WIDE, 24_576))
RULES = {
    "prepare_corpus": Rule(
        paths.CORPUS_MANIFEST.format(corpus="words", split="eval"),
        tuple(
            Size(Study(tokens=n, trained_tokenizer=True))
            for n in (10**6, 2 * 10**6, 4 * 10**6, 10**7)
        ),
    ),
    "randomize_model": Rule(
        paths.RECIPE,
        tuple(
            Size(Study(shape=shape))
            for shape in ((4, 512, 2_048), (1, 1_024, 2_048), (1, 256, 40_000), (6, 1_024, 2_048))
        ),
        {"variant": "rerandomized"},
    ),
    "cache_activations": Rule(
        paths.ACTIVATIONS_MANIFEST,
        tuple(
            Size(Study((1, 256, 1_024), n, n // 2, (SITE, *sites)))
            for n, sites in (
                *((2**17, ("resid_pre.0",)), (2**17, ("resid_pre.0", "mlp_post.0"))),
                *((2**18, ("mlp_post.0",)), (2**19, ("attn_out.0",))),
            )
        ),
        {"split": "sae_train"},
    ),
    "train_sae": Rule(paths.SAE_CONFIG, SAES),
    # Nearest neighbours among the latents cost too much where those are many.
    "evaluate_sae": Rule(
        paths.RECONSTRUCTION, (SAES[0], SAES[2], Size(MANY_TOKENS, 24_576), SAES[3])
    ),
    "collect_latents": Rule(paths.LATENTS, SAES),
}


def write_text(file: Path, n_tokens: int) -> None:
    """Documents in which each word has one successor: more than n tokens, no two alike."""
    order, generator = [f"w{i}" for i in range(N_WORDS)], random.Random(0)
    cycle = order * (2 + DOCUMENT_WORDS // N_WORDS)
    with file.open("w", encoding="utf-8") as out:
        for number in range(math.ceil(1.6 * n_tokens / DOCUMENT_WORDS)):
            # One word at the start makes the document its own.
            start, own = generator.randrange(N_WORDS), f"n{number}"
            words = cycle[start : start + DOCUMENT_WORDS]
            out.write(json.dumps({"text": " ".join([own, *words])}) + "\n")


def write_model(folder: Path, n_layers: int, d_model: int, vocab_size: int) -> None:
    """A GPT-NeoX that knows each word's successor without any training, and its tokenizer.

    The blocks of a fresh model add little to the embedding, and the rows of the head are the
    embeddings of the words before.
    """
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "gpt_neox",
        **{"vocab_size": vocab_size, "hidden_size": d_model, "num_hidden_layers": n_layers},
        **{"num_attention_heads": 4, "intermediate_size": 4 * d_model, "bos_token_id": None},
        **{"tie_word_embeddings": False, "max_position_embeddings": 2 * CONTEXT, "eos_token_id": 0},
    )
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        embedding = torch.randn(vocab_size, d_model)
        model.get_input_embeddings().weight.copy_(embedding)
        ids = 2 + torch.arange(N_WORDS)
        model.get_output_embeddings().weight[ids.roll(-1)] = embedding[ids] * (8 / d_model)
    model.save_pretrained(folder)
    vocabulary = {"</s>": 0, "<unk>": 1} | {f"w{i}": 2 + i for i in range(N_WORDS)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>").save_pretrained(folder)


def commands(folder: Path, config: Path, target: str) -> Iterator[list[str]]:
    """The verbs that make a file, in an order in which they can run, as a dry run prints them."""
    printed = snakemake(
        folder, "--configfile", str(config), "--dry-run", "--printshellcmds", target
    )
    for line in re.findall(r"^Shell command: nullsae (.*?) > results/logs", printed, re.M):
        yield shlex.split(line)


def watched(command: list[str], folder: Path) -> Seen:
    """Run a process to its end; what it held."""
    log = folder / "log.txt"
    own = resident = 0
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                found = held(process.pid)
                own, resident = max(own, found.own), max(resident, found.resident)
                time.sleep(LOOK_SECONDS)
        finally:  # stopped from outside, it leaves nothing at work
            process.kill()
    if process.returncode:
        sys.exit(f"{shlex.join(command)[:300]}: {log.read_text()[-2000:]}")
    return Seen(own, resident)


def held(pid: int) -> Seen:
    """What a process holds now, and the most that was resident; nothing once it has ended."""
    try:
        return seen_in(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return Seen(0, 0)


def seen_in(status: str) -> Seen:
    """The same from the text of /proc/PID/status."""
    found = {n: 1024 * int(kb) for n, kb in re.findall(r"^(\w+):\s+(\d+) kB", status, re.M)}
    return Seen(found.get("RssAnon", 0) + found.get("RssShmem", 0), found.get("VmHWM", 0))


def bare(imports: str) -> int:
    """Bytes of an interpreter that has imported what a job of these imports does."""
    parts = ("optimizer", "transformers") if imports == "all" else (imports,)
    look = "import sys; sys.stdout.write(open('/proc/self/status').read())"
    code = "; ".join([*(STARTS[name] for name in parts), look])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return seen_in(done.stdout).own


def measure(name: str, size: Size, work: Path) -> bool:
    """Run one job and what it waits for; print its figures; whether the formula holds."""
    rule, folder, sae = RULES[name], size.study.folder(work), f"topk-{size.n_latents}"
    config = folder / f"{sae}.yaml"
    config.write_text(yaml.safe_dump(size.study.config(size.n_latents)), encoding="utf-8")
    cell = {**CELL, "sae": sae, **rule.keys}
    target = rule.target.format(**cell)

    def run() -> dict[str, int]:
        for command in commands(folder, config, target):
            # The last one writes the target.
            found = watched([*MAIN, *command], folder)
        return asdict(found)

    seen = Seen(**kept(folder, target, run))
    with chdir(folder):  # files of the config are relative to it
        needs = Needs(read_merged_config([config]))
    asked, planned = needs.asked(name, [cell]), job_work(needs._study, name, [cell])
    own = seen.own - kept(work, planned.imports, lambda: bare(planned.imports))
    ratio = planned.held_bytes / own
    study = size.study
    print(
        f"{name:18} {planned.held_bytes / 1e6:8.0f} {own / 1e6:8.0f} {ratio:6.2f} "
        f"{asked.megabytes:8} {seen.resident / 1e6:8.0f}   {study.shape} {len(study.sites)} "
        f"{study.tokens:,} {size.n_latents:,}",
        flush=True,
    )
    return 1 / TOLERANCE < ratio < TOLERANCE and seen.resident <= asked.megabytes * 1e6


def kept(folder: Path, name: str, find: Callable[[], Any]) -> Any:
    """What was measured before, else what `find` says."""
    file = folder / "measured.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    if name not in found:
        found[name] = find()
        file.write_text(json.dumps(found, indent=1))
    return found[name]


def main() -> None:
    """Measure the rules that are named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("rules", nargs="*", choices=[*RULES, []])
    parser.add_argument("--sizes", type=int, default=4, help="how many of each rule")
    parser.add_argument("--work", type=Path, help="folder that keeps the studies, to go on there")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print(f"{'rule':18} {'planned':>8} {'found':>8} {'ratio':>6} {'asked':>8} {'VmHWM':>8}   size")
    with tempfile.TemporaryDirectory() as folder:
        jobs = [(n, size) for n in given.rules or RULES for size in RULES[n].sizes[: given.sizes]]
        good = [measure(name, size, (given.work or Path(folder)).absolute()) for name, size in jobs]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
