"""Check whether kills leave a trace: `python benchmarks/kills.py --folder DIR`.

A small study runs once undisturbed. Then it runs again and again, from nothing, and is killed at
random moments by SIGKILL, SIGTERM or SIGINT, sent to a job, to Snakemake, or to both and everything
else, as Ctrl-C and a power cut do. After each kill the same command is run again; if Snakemake was
killed, its jobs keep running meanwhile. After `--kills-per-study` kills the study is left to
finish. Its tables must equal those of the undisturbed run, byte for byte, and so must everything
else below `results/` that does not depend on a clock.

`--seed` decides which kills come; the exact moment also depends on the machine. `--config` takes a
config of yours as an overlay on the default study; the default is a study of a minute. After
`--seconds` or Ctrl-C, the same command resumes after the last kill. Exits with 1 if a table
differs, or if a run fails that was not killed.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import io
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from compare_results import compare, difference, files

REPOSITORY = Path(__file__).parents[1]
TIMEOUT_SECONDS = 1800
LOOK_SECONDS = 0.05
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
TARGETS = ("job", "snakemake", "all")
# Up to a job or two later, somewhere within a job.
MAX_DELAY_SECONDS = 4.0
STUDY: dict[str, Any] = {
    "compute": {"threads": 1, "device": "cpu"},
    "corpora": {
        "docs": {
            "source": {"kind": "files", "paths": ["docs.jsonl"]},
            "tokenizer": {"kind": "train", "vocab_size": 300},
            "context_tokens": 32,
            "eval_share": 0.3,
            "sae_train_tokens": 16_384,
            "eval_tokens": 8_192,
        }
    },
    "subjects": {
        "small": {
            "corpus": "docs",
            "source": {"kind": "train", "n_layers": 2, "d_model": 16, "n_heads": 2, "steps": 200},
            "sites": ["resid_post.0"],
        }
    },
    "variants": ["trained", "rerandomized"],
    "activations": {"sae_train_tokens": 16_384, "shard_tokens": 4_096},
    "saes": {
        "topk": {
            **{"k": 4, "n_latents": 32, "lr": 5.0e-3, "batch_tokens": 64, "seeds": [0]},
            **{"epochs": 12, "checkpoint_every_steps": 50, "checkpoints": [0.3]},
        }
    },
    "evaluation": {"fidelity_tokens": 1_024, "gaussian_floors": False},
    "latents": {"n_sampled": 4, "min_firings": 20, "min_pool_windows": 4, "window_tokens": 8},
    "explainers": {
        "lexical": {"kind": "lexical"},
        "swapped": {"kind": "swapped", "of": "lexical"},
    },
    "scorers": {"detection": {"kind": "detection"}},
    "statistics": {"n_resamples": 200},
    "report": {"title": "Kills", "figure_formats": ["png"]},
}
N_DOCUMENTS = 60


@dataclass(frozen=True)
class Kill:
    """One kill, as planned and as it happened."""

    number: int
    signal: str
    whom: str
    after_jobs: int
    """Jobs of this run that finish first."""
    delay_seconds: float
    """Seconds to wait after that."""
    study: int = 0
    rule: str = ""
    """The rule that was running."""
    seconds: float = 0.0
    """Run time until the kill."""
    identical: bool | None = None
    """Whether the study ended with the same tables; None until it has ended."""

    @classmethod
    def planned(cls, seed: int, number: int, max_jobs: int) -> Kill:
        """Plan the kill of a number, which depends only on the seed."""
        random = np.random.default_rng((seed, number))
        # Each pair of a signal and a target is equally frequent.
        pairs = list(itertools.product(SIGNALS, TARGETS))
        order = np.random.default_rng((seed, number // len(pairs), 1)).permutation(len(pairs))
        name, whom = pairs[int(order[number % len(pairs)])]
        jobs, delay = int(random.integers(0, max_jobs + 1)), random.uniform(0, MAX_DELAY_SECONDS)
        return cls(number, name, whom, jobs, round(float(delay), 2))


class Study:
    """A folder in which the study runs."""

    def __init__(self, folder: Path, tree: Path, config: Path | None) -> None:
        self.folder, self.tree, self.config = folder, tree, config

    def make(self) -> None:
        """Write what the study reads, replacing what was there."""
        from pydoc_data.topics import topics

        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        lines = [json.dumps({"text": text}) + "\n" for _, text in sorted(topics.items())]
        (self.folder / "docs.jsonl").write_text("".join(lines[:N_DOCUMENTS]))
        if self.config is None:
            (self.folder / "config.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
        else:
            shutil.copy2(REPOSITORY / "config.yaml", self.folder)

    def start(self, *arguments: str) -> Run:
        """Start the command, which is always the same."""
        command = [
            *(sys.executable, "-m", "snakemake", "-s", str(self.tree / "Snakefile")),
            *("--directory", str(self.folder), "--cores", "2", "--resources", "gpu=1"),
            *("--workflow-profile", str(self.tree / "profiles/default")),
            *(() if self.config is None else ("--configfile", str(self.config.resolve()))),
            *arguments,
        ]
        return Run(command, self.folder, self.tree)

    def start_again(self) -> Run:
        """Start the command again, after unlocking as Snakemake says if it was killed."""
        locked = any((self.folder / ".snakemake/locks").glob("*"))
        if locked and self.start("--unlock").wait():
            sys.exit("--unlock failed")
        return self.start()


class Run:
    """A running Snakemake."""

    def __init__(self, command: list[str], folder: Path, tree: Path) -> None:
        self.log = folder / "snakemake.log"
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.started = time.monotonic()
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "PATH": path, "PYTHONPATH": str(tree / "src")},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        atexit.register(self.end)

    def end(self) -> None:
        """Leave nothing running if this script stops early."""
        if not self.ended:
            os.killpg(self.process.pid, signal.SIGKILL)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def wait(self) -> int:
        return self.process.wait(TIMEOUT_SECONDS)

    def n_finished(self) -> int:
        return len(re.findall(r"^Finished jobid", self.log.read_text(), re.M))

    def jobs(self) -> dict[psutil.Process, str]:
        """Return the verbs that are running, by their processes."""
        found = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    line = child.cmdline()
                    if len(line) > 2 and Path(line[1]).name == "nullsae":
                        found[child] = line[2]
        return found

    def strike(self, kill: Kill) -> str | None:
        """Wait for the moment and send the signal; return the rules that ran, or None if it
        finished first.
        """
        due: float | None = None
        while not self.ended:
            if due is None and self.n_finished() >= kill.after_jobs:
                due = self.seconds + kill.delay_seconds
            if due is not None and self.seconds >= due and (jobs := self.jobs()):
                number = signal.Signals[kill.signal]
                with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
                    if kill.whom == "job":
                        job = list(jobs)[kill.number % len(jobs)]
                        job.send_signal(number)
                        return jobs[job]
                    if kill.whom == "snakemake":
                        self.process.send_signal(number)
                    else:
                        os.killpg(self.process.pid, number)
                    return ", ".join(sorted(jobs.values()))
            time.sleep(LOOK_SECONDS)
        return None


class Series:
    """All kills so far, on disk, so that the same command resumes after the last one."""

    def __init__(self, folder: Path, config: Path | None) -> None:
        self.folder, self.config, self.file = folder, config, folder / "kills.json"
        self.tree, self.faults = folder / "tree", list[str]()
        self.kills: list[Kill] = []
        if self.file.exists():
            self.kills = [Kill(**row) for row in json.loads(self.file.read_text())]
        else:
            shutil.rmtree(folder, ignore_errors=True)
            freeze(self.tree)
        self.undisturbed = self.study("undisturbed")

    def study(self, name: object) -> Study:
        return Study(self.folder / str(name), self.tree, self.config)

    def save(self) -> None:
        self.file.write_text(json.dumps([asdict(kill) for kill in self.kills], indent=1))

    def run_undisturbed(self) -> int:
        """Run the study undisturbed, to compare with; return its number of jobs."""
        done = self.folder / "undisturbed.json"
        if not done.exists():
            self.undisturbed.make()
            run = self.undisturbed.start()
            if run.wait():
                sys.exit(f"the undisturbed run fails: {run.log}")
            done.write_text(json.dumps({"n_jobs": run.n_finished(), "seconds": run.seconds}))
            self.save()
        found = json.loads(done.read_text())
        print(f"undisturbed: {found['n_jobs']} jobs, {found['seconds']:.0f} s", flush=True)
        return int(found["n_jobs"])

    def next_study(self) -> tuple[int, int]:
        """Return which study comes next, and how many kills it has had."""
        if not self.kills:
            return 0, 0
        last = self.kills[-1]
        if last.identical is not None:
            return last.study + 1, 0
        return last.study, sum(kill.study == last.study for kill in self.kills)

    def disturb(self, n_kills: int, per_study: int, seed: int, max_jobs: int, until: float) -> None:
        """Run one study, kill it until it has had its kills or finishes, and compare it."""
        number, n_had = self.next_study()
        study = self.study(f"study-{number}")
        if not n_had:
            study.make()
        while n_had < per_study and len(self.kills) < n_kills:
            if time.monotonic() > until:
                return
            planned = Kill.planned(seed, len(self.kills), max_jobs)
            run = study.start_again()
            rule = run.strike(planned)
            seconds = run.seconds
            if rule is None:
                self.check(run, number)
                break
            run.wait()
            came = {"study": number, "rule": rule, "seconds": round(seconds, 1)}
            self.kills.append(Kill(**{**asdict(planned), **came}))
            self.save()
            print(line(self.kills[-1]), flush=True)
            n_had += 1
        self.finish(study, number)

    def check(self, run: Run, number: int) -> bool:
        """Check that a run that was not killed succeeds."""
        if not run.wait():
            return True
        kept = run.log.with_name(f"failed-{len(self.faults)}.log")
        shutil.copy2(run.log, kept)
        self.faults.append(f"study {number}: a run failed that nobody killed: {kept}")
        print(self.faults[-1], flush=True)
        return False

    def finish(self, study: Study, number: int) -> None:
        """Let a study finish, and compare it."""
        for _ in range(3):
            if self.check(study.start_again(), number):
                break
        said = io.StringIO()
        results = [folder / "results" for folder in (self.undisturbed.folder, study.folder)]
        with contextlib.redirect_stdout(said):
            same = compare(results[0], results[1], set())
        left = sorted(p for p in results[1].rglob(".*") if p.is_file())
        others = {f: difference(results[0] / f, results[1] / f, set()) for f in _both(*results)}
        differing = [name for name, lines in others.items() if lines]
        print(
            f"study {number}: tables {'identical' if same else 'DIFFER'}; of {len(others)} other "
            f"files {len(differing)} differ; left over: {len(left)} files",
            *(f"  {path.relative_to(results[1])}" for path in left),
            sep="\n",
            flush=True,
        )
        if not same or differing:
            print(said.getvalue(), flush=True)
        self.kills = [
            Kill(**{**asdict(kill), "identical": same}) if kill.study == number else kill
            for kill in self.kills
        ]
        self.save()
        if same and not differing:
            shutil.rmtree(study.folder)


def _both(old: Path, new: Path) -> list[str]:
    return sorted(name for name in files(old) & files(new) if not name.startswith("tables/"))


def freeze(tree: Path) -> None:
    """Copy all that a run reads from the repository, so that edits meanwhile rerun nothing."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "workflow", "profiles", "envs"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=ignore)
    for name in ("Snakefile", "config.yaml"):
        shutil.copy2(REPOSITORY / name, tree / name)


def line(kill: Kill) -> str:
    """Format a row of the table."""
    said = {None: "", True: "yes", False: "NO"}[kill.identical]
    return (
        f"{kill.number + 1:>4}  {kill.signal:<8} {kill.whom:<10} {kill.seconds:>7.1f}  "
        f"{said:<10} {kill.rule}"
    )


def main() -> None:
    """Read the arguments, kill, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="for all files; kept")
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--kills-per-study", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, help="overlay on the default study")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="stop then; run again to resume"
    )
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    until = time.monotonic() + options.seconds
    series = Series(options.folder.resolve(), options.config)
    max_jobs = max(1, 2 * series.run_undisturbed() // (options.kills_per_study + 1))
    unfinished = lambda: bool(series.kills) and series.kills[-1].identical is None  # noqa: E731
    while len(series.kills) < options.kills or unfinished():
        if time.monotonic() > until:
            break
        series.disturb(options.kills, options.kills_per_study, options.seed, max_jobs, until)
    print(f"\nkill  {'signal':<8} {'whom':<10} {'seconds':>7}  {'identical':<10} rule at work")
    print(*map(line, series.kills), sep="\n")
    counts = [
        sum(kill.identical is state for kill in series.kills) for state in (True, False, None)
    ]
    print(f"\n{counts[0]} identical, {counts[1]} not, {counts[2]} in an unfinished study")
    sys.exit(1 if counts[1] or series.faults else 0)


if __name__ == "__main__":
    main()
