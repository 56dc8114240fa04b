"""Measure how costs grow: `python benchmarks/scaling.py [jobs] [start] [tokens] [--work FOLDER]`.

    jobs    CPU seconds that Snakemake takes to work out what to run (a dry run), for studies of
            30, 330 and 2,200 SAEs
    start   CPU seconds of a verb before it works, by what it imports, and of `nullsae --help`
    tokens  CPU seconds and peak memory of each stage at 1, 4 and 16 times the tokens: a small study
            is run whole at each size, then each stage once more, alone; printed is what a further
            million tokens cost between 1 and 4 and between 4 and 16, whose ratio is 1 if a stage
            is linear, and the ratio of peak memory

The default is all three. CPU seconds count all threads (there is one) and hardly depend on other
load; `jobs` takes minutes, `tokens` a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from nullsae import paths

REPOSITORY = Path(__file__).parents[1]
VARIANTS = ["trained", "step0", "rerandomized", "rerandomized_keep_embeddings", "noise_embeddings"]
# Sites and seeds by the number of SAEs: one for each of 5 variants, sites and seeds.
GRIDS = {30: (6, 1), 330: (66, 1), 2_200: (44, 10)}
SCALES = (1, 4, 16)
EVAL_TOKENS, TRAIN_TOKENS = 40_960, 65_536


def config(**changes: Any) -> dict[str, Any]:
    """Return the config of a study on the builtin corpus; `changes` replace whole sections."""
    given = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    given["evaluation"] = {"fidelity_tokens": 8192, "gaussian_floors": False}
    return {**given, **changes}


def study_folder(work: Path, name: str, given: dict[str, Any]) -> Path:
    """Make a folder with a config, and the sources that run it."""
    folder = work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(given, sort_keys=False), encoding="utf-8")
    return folder


def snakemake(folder: Path, *arguments: str) -> str:
    """Run Snakemake in a folder."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "-s", str(REPOSITORY / "Snakefile")),
            *("--directory", str(folder), "--cores", "1", *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stdout[-3000:])
    return done.stdout


def measured(command: list[str], folder: Path) -> tuple[float, float]:
    """Run a command; return CPU seconds and peak MiB of the process and its children."""
    with open(os.devnull, "w") as null:
        process = subprocess.Popen(command, cwd=folder, stdout=null, stderr=null)
        _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{shlex.join(command)[:300]} exited with status {status}")
    return used.ru_utime + used.ru_stime, used.ru_maxrss / 1024


def time_jobs(work: Path) -> None:
    """Print what dry runs of growing studies take."""
    for n, (n_sites, n_seeds) in GRIDS.items():
        source = {"kind": "train", "n_layers": n_sites, "d_model": 64, "n_heads": 2, "steps": 10}
        sites = [f"resid_post.0..{n_sites - 1}"]
        given = config(
            subjects={"small": {"corpus": "sotu", "source": source, "sites": sites}},
            saes={"topk": {"k": 8, "n_latents": 256, "seeds": list(range(n_seeds))}},
            variants=VARIANTS,
        )
        folder = study_folder(work, f"jobs-{n}", given)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        printed = snakemake(folder, "--dry-run", "--quiet", "rules")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        found = re.search(r"^total +(\d+)", printed, re.M)
        assert found is not None
        total = int(found[1])
        print(
            f"{total:>7,} jobs: {spent:7.1f} CPU s, {1000 * spent / total:.2f} ms a job",
            flush=True,
        )


def time_start() -> None:
    """Print what verbs take before they start working."""
    from nullsae.planning.devices import _start_seconds

    rounds = [measured([sys.executable, "-m", "nullsae.cli.main", "--help"], REPOSITORY)[0]]
    for _ in range(4):
        rounds.append(measured([sys.executable, "-m", "nullsae.cli.main", "--help"], REPOSITORY)[0])
    print(f"nullsae --help: {statistics.median(rounds):.2f} CPU s")
    for name, seconds in _start_seconds(3).items():
        print(f"{name}: {seconds:.2f} CPU s")


def time_tokens(work: Path) -> None:
    """Print what each stage takes at growing numbers of tokens."""
    found: dict[str, list[tuple[float, float]]] = {}
    for scale in SCALES:
        corpus = {
            "source": {"kind": "builtin", "name": "sotu"},
            "tokenizer": {"kind": "train", "vocab_size": 1024},
            "context_tokens": 128,
            "eval_share": 0.4,
            "sae_train_tokens": TRAIN_TOKENS * scale,
            "eval_tokens": EVAL_TOKENS * scale,
        }
        source = {"kind": "train", "n_layers": 3, "d_model": 128, "n_heads": 4, "steps": 40}
        given = config(
            corpora={"sotu": corpus},
            subjects={"small": {"corpus": "sotu", "source": source, "sites": ["resid_post.2"]}},
            variants=["trained", "rerandomized"],
            activations={"sae_train_tokens": TRAIN_TOKENS * scale},
            saes={"topk": {"k": 16, "n_latents": 1024, "batch_tokens": 1024}},
            latents={"n_sampled": 20, "min_firings": 20, "min_pool_windows": 5},
        )
        given["evaluation"]["fidelity_tokens"] = 8192 * scale
        folder = study_folder(work, f"tokens-{scale}", given)
        cell = {"subject": "small", "variant": "rerandomized", "draw": 0}
        cell |= {"site": "resid_post.2", "sae": "topk", "seed": 0}
        targets = [pattern.format(**cell) for pattern in (paths.RECONSTRUCTION, paths.LATENTS)]
        printed = snakemake(folder, "--printshellcmds", *targets)
        for name, command in stages(printed, folder).items():
            found.setdefault(name, []).append(measured(command, folder))
            print(f"  {scale:>2} x: {name}: {found[name][-1][0]:.1f} CPU s", flush=True)
    unit = {"eval": EVAL_TOKENS / 1e6, "sae_train": TRAIN_TOKENS / 1e6}
    print("stage, CPU s at 1, 4, 16; CPU s per million tokens from 1 to 4, 4 to 16; ratio; memory")
    for name, figures in found.items():
        cpu, memory = zip(*figures, strict=True)
        by = unit["sae_train" if "sae_train" in name or name == "train_sae" else "eval"]
        slopes = ((cpu[1] - cpu[0]) / (3 * by), (cpu[2] - cpu[1]) / (12 * by))
        print(
            f"{name:28} {cpu[0]:6.1f} {cpu[1]:6.1f} {cpu[2]:6.1f}   {slopes[0]:6.1f} "
            f"{slopes[1]:6.1f}   {slopes[1] / slopes[0]:.2f}   {memory[2] / memory[0]:.2f}"
        )


def stages(printed: str, folder: Path) -> dict[str, list[str]]:
    """Return one command per stage, for the variant `rerandomized`, with its own output folder."""
    found: dict[str, list[str]] = {}
    for line in re.findall(r"^Shell command: (nullsae .*?) > results/logs", printed, re.M):
        command = shlex.split(line)
        verb, again = command[1], str(folder / "again")
        if verb in ("train_subject", "prepare_corpus") or "rerandomized" not in line:
            continue
        split = command[command.index("--split") + 1] if "--split" in command else ""
        command = [
            part.replace("results/", f"{again}/", 1)
            if command[i - 1] in ("--output", "--work", "--reconstruction", "--documents")
            or command[i - 1] in ("--geometry", "--latents", "--windows", "--coverage", "--firings")
            else part
            for i, part in enumerate(command)
        ]
        found[f"{verb} {split}".strip()] = [sys.executable, "-m", "nullsae.cli.main", *command[1:]]
    return found


def main() -> None:
    """Measure what the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", choices=["jobs", "start", "tokens", []])
    parser.add_argument("--work", type=Path, help="folder for the studies; by default a new one")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    what = given.what or ["jobs", "start", "tokens"]
    with tempfile.TemporaryDirectory() as folder:
        work = given.work or Path(folder)
        if "start" in what:
            time_start()
        if "tokens" in what:
            time_tokens(work)
        if "jobs" in what:
            time_jobs(work)


if __name__ == "__main__":
    main()
