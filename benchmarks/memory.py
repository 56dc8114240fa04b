"""Compare the memory that jobs use with what they request: `python benchmarks/memory.py [RULE...]`.

Small studies of different sizes are run job by job, each in a copy of one process that has imported
what verbs do, and watched; verbs that import little run in separate processes. The script prints,
in MB,

    asked     `mem_mb` at the first attempt, as Snakemake works it out
    found     what an interpreter with the same imports holds (VmHWM of /proc), plus `held`
    ratio     asked over found; the exit status is 1 if one is below 1 or above 1.3
    formula   `held_bytes` of the rule's formula in `nullsae.jobs.work`
    held      the most that the job held on top of that: anonymous memory, and files of the study
              that are mapped and in memory

for each job, and for each rule the lowest and the highest ratio. A copy shares pages of libraries
that only the work touches; with `--alone`, jobs of the RULEs run in separate processes, as on a
cluster. `--work FOLDER` keeps the measurements, so that a changed formula can be compared at once.
Takes some minutes on one core, and 2 GB of memory and of disk; Linux only.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import chdir, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml
from scaling import REPOSITORY

from nullsae import paths
from nullsae.config.read import read_merged_config
from nullsae.core.files import content_key
from nullsae.jobs.resources import Needs
from nullsae.jobs.shared_training import rule_of
from nullsae.jobs.work import WORK, job_work
from nullsae.paths import partition_keys
from nullsae.planning.dag import opened_dag
from nullsae.planning.devices import STARTS

AT_MOST = 1.3
LOOK_SECONDS, MAPS_EVERY = 0.003, 10
# Words of a text, how many make a document, and the share of those that follow no rule.
N_WORDS, DOCUMENT_WORDS, DRAWN_SHARE = 500, 200, 0.3
CONTEXT, SITE, EVAL_TOKENS = 64, "resid_post.0", 2**13
# One cell of all studies.
CELL = {
    **{"subject": "made", "variant": "trained", "draw": "0", "site": SITE, "sae": "topk"},
    **{"seed": "0", "explainer": "lexical", "split": "sae_train"},
}
# The files made in each study, with keys that differ from the cell's.
TARGETS: tuple[tuple[str, dict[str, str]], ...] = (
    *((paths.RECONSTRUCTION, {}), (paths.LATENTS, {}), (paths.EXPLANATIONS, {})),
    *((paths.CROSS_EVALUATION, {}), (paths.OVERLAP, {})),
    (paths.ACTIVATIONS_MANIFEST, {"variant": "gaussian"}),
)


@dataclass(frozen=True)
class Study:
    """A subject and a text made here, and the study on them."""

    shape: tuple[int, int, int]
    """Blocks, width and vocabulary of the subject."""
    corpus_tokens: int
    """Tokens of `sae_train`."""
    tokens: int
    """How many of them are captured and trained on; a shard holds half."""
    n_latents: int
    more_sites: tuple[str, ...] = ()
    """Sites of the subject `many` besides that of the SAEs; it has no SAE."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Sections of the config that replace those below."""

    def config(self) -> dict[str, Any]:
        """Return the study's config."""
        share = 1.3 * EVAL_TOKENS / (self.corpus_tokens + EVAL_TOKENS)
        source = {"kind": "pretrained", "path": "model"}
        return {
            "compute": {"threads": 1, "device": "cpu"},
            "corpora": {
                "words": {
                    "source": {"kind": "files", "paths": ["text.jsonl"]},
                    "tokenizer": source,
                    **{"context_tokens": CONTEXT, "eval_share": max(0.05, share)},
                    **{"sae_train_tokens": self.corpus_tokens, "eval_tokens": EVAL_TOKENS},
                }
            },
            "subjects": {
                name: {"corpus": "words", "source": source, "sites": sites}
                for name, sites in (("made", [SITE]), ("many", [SITE, *self.more_sites]))
            },
            "variants": ["trained", "rerandomized", "gaussian"],
            "activations": {
                **{"sae_train_tokens": self.tokens, "shard_tokens": self.tokens // 2},
                "mode": "cache",
            },
            "saes": {
                "topk": {
                    **{"k": 16, "n_latents": self.n_latents, "seeds": [0]},
                    # Soon enough for steps that revive latents, which hold more.
                    **{"batch_tokens": self.tokens // 8, "dead_after_tokens": self.tokens // 4},
                },
                "rotated": {"dictionary": "rotated", "from": "topk"},
            },
            "evaluation": {"cross_tokens": 8_192},
            "latents": {
                **{"n_sampled": 20, "min_firings": 5, "min_pool_windows": 1},
                **{"window_tokens": 16},
            },
            "explainers": {"lexical": {"kind": "lexical"}},
            "scorers": {"detection": {"kind": "detection"}},
            **self.changes,
        }

    def folder(self, work: Path) -> Path:
        """Return the study's folder, with text, model and config."""
        folder = work / f"study-{content_key([self.shape, self.config()])[:12]}"
        if not (folder / "study.yaml").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "text.jsonl", self.corpus_tokens + EVAL_TOKENS)
            # Not in this process: its copies would reuse memory that it has freed.
            model = partial(write_model, folder / "model", *self.shape)
            watched(model, folder)
            config = yaml.safe_dump(self.config(), sort_keys=False)
            (folder / "study.yaml").write_text(config, encoding="utf-8")
        return folder

    def targets(self) -> list[str]:
        """Return the files to make."""
        more = [(paths.ACTIVATIONS_MANIFEST, {"subject": "many"})] if self.more_sites else []
        return [file.format(**{**CELL, **keys}) for file, keys in (*TARGETS, *more)]


STUDIES = (
    Study((1, 256, 1_024), 2**17, 2**16, 2_048),
    Study((1, 256, 40_000), 2**19, 2**13, 12_288),
    Study((1, 1_024, 2_048), 2**18, 2**13, 4_096, ("mlp_post.0",)),
    Study((4, 512, 2_048), 2**20, 2**14, 8_192, ("resid_pre.2", "mlp_post.0")),
)


@dataclass(frozen=True)
class Job:
    """One job of a study."""

    rule: str
    log: str
    """The log of this job alone."""
    cells: list[dict[str, str]]
    """Keys of everything that it makes."""
    asked: int
    """Requested megabytes."""
    command: list[str]


def jobs_of(folder: Path, targets: Sequence[str]) -> list[Job]:
    """Return the jobs that make the targets, in an order in which they can run."""
    command = [sys.executable, __file__, "--jobs-of", str(folder), *targets]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return [Job(**job) for job in json.loads(done.stdout)]


def print_jobs(folder: Path, targets: Iterable[str]) -> None:
    """Print the jobs as JSON; Snakemake needs a separate process."""
    found = []
    with opened_dag(REPOSITORY / "Snakefile", folder, folder / "study.yaml", targets) as dag:
        for level in dag.toposorted():
            for job in sorted(level, key=lambda job: job.rule.name):
                cells = {str(file): partition_keys(file) for file in job.output}
                command, _, log = job.shellcmd.partition(" > ")
                found.append(
                    {
                        **{"rule": rule_of(job.rule.name), "log": log.split()[0]},
                        "cells": list({tuple(c.items()): c for c in cells.values()}.values()),
                        "asked": job.resources.mem_mb,
                        "command": shlex.split(command.removeprefix("nullsae ")),
                    }
                )
    print(json.dumps(found))


@dataclass(frozen=True)
class Seen:
    """The peak memory of one process, in bytes."""

    own: int
    """Anonymous memory."""
    resident: int
    """The same with mapped files."""
    now: int = 0
    """The same at this moment."""


def write_text(file: Path, n_tokens: int) -> None:
    """Write n tokens: documents in which most words follow from the last and some are random."""
    drawn = random.Random(0)
    with file.open("w", encoding="utf-8") as out:
        for number in range(math.ceil(1.6 * n_tokens / DOCUMENT_WORDS)):
            word, words = 0, [f"n{number}"]  # the document's own
            for other in drawn.choices(range(N_WORDS), k=DOCUMENT_WORDS):
                word = other if drawn.random() < DRAWN_SHARE else (word + 1) % N_WORDS
                words.append(f"w{word}")
            out.write(json.dumps({"text": " ".join(words)}) + "\n")


def write_model(folder: Path, n_layers: int, d_model: int, vocab_size: int) -> None:
    """Write a GPT-NeoX that knows each word's successor without training, and its tokenizer.

    The blocks of a fresh model add little to the embedding, and the rows of the head are the
    embeddings of the preceding words.
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


def run_verb(command: list[str], folder: Path) -> None:
    """Run a verb like the command `nullsae`."""
    from nullsae.cli.main import main as nullsae

    os.chdir(folder)
    sys.argv = ["nullsae", *command]
    nullsae()


def alone(command: list[str], folder: Path) -> Seen:
    """Run a verb in a separate process; return what it held."""
    log, resident = folder / "log.txt", 0
    with log.open("w") as out:
        whole = [sys.executable, "-m", "nullsae.cli.main", *command]
        process = subprocess.Popen(whole, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                resident = max(resident, held(process.pid).resident)
                time.sleep(LOOK_SECONDS)
        finally:  # when stopped from outside, it leaves nothing running
            process.kill()
    if process.returncode:
        sys.exit(f"{log}: {log.read_text()[-2000:]}")
    return Seen(0, resident)


def watched(work: Callable[[], object], folder: Path) -> Seen:
    """Work in a copy of this process, which has imported everything; return what it held on top."""
    log, before = folder / "log.txt", held(os.getpid()).own
    own = most = mapped = looked = 0
    if not (pid := os.fork()):
        be(work, log)
    try:
        while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
            own = held(pid).own - before
            if looked % MAPS_EVERY == 0:
                mapped = mapped_of(pid, folder)
            most, looked = max(most, own + mapped), looked + 1
            time.sleep(LOOK_SECONDS)
    except BaseException:  # when stopped from outside, it leaves nothing running
        os.kill(pid, signal.SIGKILL)
        raise
    if ended[1]:
        sys.exit(f"{log}: {log.read_text()[-2000:]}")
    return Seen(most, 0)


def mapped_of(pid: int, folder: Path) -> int:
    """Return bytes of a folder's files that a process has mapped, in memory and unchanged."""
    found, within = {"Rss": 0, "Anonymous": 0}, False
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            name, _, rest = line.partition(":")
            if "-" in name:  # the addresses of the next mapping
                within = f" {folder}/" in line
            elif within and name in found:
                found[name] += 1024 * int(rest.split()[0])
    return found["Rss"] - found["Anonymous"]


def be(work: Callable[[], object], log: Path) -> NoReturn:
    """Be a process that does this work and exits."""
    status = 1
    try:
        with log.open("w") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        work()
        status = 0
    except SystemExit as end:
        status = int(end.code not in (None, 0))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def held(pid: int) -> Seen:
    """Return what a process holds now, and its peak resident memory; nothing once it has ended."""
    try:
        return seen_in(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return Seen(0, 0)


def seen_in(status: str) -> Seen:
    """Read the same from the text of /proc/PID/status."""
    found = {n: 1024 * int(kb) for n, kb in re.findall(r"^(\w+):\s+(\d+) kB", status, re.M)}
    own = found.get("RssAnon", 0) + found.get("RssShmem", 0)
    return Seen(own, found.get("VmHWM", 0), own + found.get("RssFile", 0))


def bare(imports: str) -> Seen:
    """Start an interpreter that has imported what a job with these imports does."""
    parts = ("optimizer", "transformers") if imports == "all" else (imports,)
    look = "import sys; sys.stdout.write(open('/proc/self/status').read())"
    code = "; ".join([*(STARTS[name] for name in parts), look])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return seen_in(done.stdout)


def kept(folder: Path, name: str, find: Callable[[], Seen]) -> Seen:
    """Return what was measured before, otherwise what `find` returns."""
    file = folder / "measured.json"
    found = json.loads(file.read_text()) if file.is_file() else {}
    if name not in found:
        found[name] = asdict(find())
        file.write_text(json.dumps(found, indent=1))
    return Seen(**found[name])


def measure(
    study: Study, work: Path, rules: Sequence[str], *, apart: bool = False
) -> Iterator[tuple[str, float]]:
    """Run a study as far as the rules need; return (rule, asked over found) of each of their jobs.

    `apart` gives these jobs separate processes.
    """
    folder = study.folder(work)
    jobs = jobs_of(folder, study.targets())
    last = max((i for i, job in enumerate(jobs) if job.rule in rules), default=-1)
    with chdir(folder):  # paths in the config are relative to it
        needs = Needs(read_merged_config([folder / "study.yaml"]))
    for job in jobs[: last + 1]:
        counted = job_work(needs._study, job.rule, job.cells)
        run = partial(watched, partial(run_verb, job.command, folder), folder)
        # Verbs that import little start quickly, and import the rest late.
        own = counted.imports == "light" or (apart and job.rule in rules)
        name = job.log + " alone" * (apart and job.rule in rules)
        seen = kept(folder, name, partial(alone, job.command, folder) if own else run)
        if job.rule not in rules:
            continue
        start = kept(work, counted.imports, partial(bare, counted.imports)).resident
        found = max(seen.resident, start + seen.own)
        ratio = 1e6 * job.asked / found
        print(
            f"{job.asked:8,} {found / 1e6:8,.0f} {ratio:6.2f} {counted.held_bytes / 1e6:8,.0f} "
            f"{(found - start) / 1e6:8,.0f}   "
            f"{job.log.removeprefix('results/logs/')[:120]}",
            flush=True,
        )
        yield job.rule, ratio


def main() -> None:
    """Measure the named rules."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("rules", nargs="*", help="all by default")
    parser.add_argument("--sizes", type=int, default=len(STUDIES), help="how many studies")
    parser.add_argument("--alone", action="store_true", help="run jobs in separate processes")
    parser.add_argument("--work", type=Path, help="folder that keeps the studies, to resume")
    parser.add_argument("--jobs-of", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.jobs_of:
        print_jobs(Path(given.jobs_of[0]), given.jobs_of[1:])
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("{:>8} {:>8}  ratio {:>8} {:>8}   job".format("asked", "found", "formula", "held"))
    os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "USE_HUB_KERNELS": "NO"}
    for start in STARTS.values():
        exec(start)
    ratios: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for study in STUDIES[: given.sizes]:
            work = (given.work or Path(folder)).absolute()
            rules = given.rules or list(WORK)
            for rule, ratio in measure(study, work, rules, apart=given.alone):
                ratios.setdefault(rule, []).append(ratio)
    print("\n| rule | jobs | asked / found |\n|---|---|---|")
    for rule, found in ratios.items():
        print(f"| `{rule}` | {len(found)} | {min(found):.2f} to {max(found):.2f} |")
    sys.exit(not all(1 <= ratio <= AT_MOST for found in ratios.values() for ratio in found))


if __name__ == "__main__":
    main()
