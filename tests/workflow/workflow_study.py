"""Run the real workflow in a separate folder, on a frozen copy of the sources."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from nullsae import paths
from nullsae.config.corpora import BuiltinSource
from nullsae.corpus.sources import documents
from nullsae.jobs.of_models import NUMBER
from warm_start import ONE_THREAD

REPOSITORY = Path(__file__).parents[2]
N_DOCUMENTS = 60
TIMEOUT_SECONDS = 1200
CONFIG: dict[str, Any] = {
    "seed": 0,
    # Jobs of one thread, so that two fit at a time.
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
            "source": {"kind": "train", "n_layers": 2, "d_model": 16, "n_heads": 2, "steps": 120},
            "sites": ["resid_post.0"],
        }
    },
    "variants": ["trained", "rerandomized"],
    "activations": {"sae_train_tokens": 16_384, "shard_tokens": 8_192},
    "saes": {
        "topk": {"k": 4, "n_latents": 32, "lr": 5.0e-3, "batch_tokens": 512, "seeds": [0]},
    },
    "evaluation": {"fidelity_tokens": 1_024},
    "latents": {"n_sampled": 4, "min_firings": 20, "min_pool_windows": 4, "window_tokens": 8},
    "explainers": {
        "lexical": {"kind": "lexical"},
        "swapped": {"kind": "swapped", "of": "lexical"},
    },
    "scorers": {"detection": {"kind": "detection"}, "fuzzing": {"kind": "fuzzing"}},
    "statistics": {"n_resamples": 200},
    "report": {"title": "Workflow test", "figure_formats": ["svg"]},
}
WARM_COMMANDS: list[str] = []
"""The folder of commands that start warm (`warm_start.py`), once it is there."""
Edit = Callable[[dict[str, Any]], object]


def edited(*edits: Edit) -> dict[str, Any]:
    """Return the config of the study, changed in place by each edit."""
    config = copy.deepcopy(CONFIG)
    for edit in edits:
        edit(config)
    return config


@dataclass(frozen=True)
class Study:
    """A folder with a config, and the sources that run it."""

    folder: Path
    tree: Path
    """Copy of the repository: edits of the sources must not reach a running study."""
    cold: bool = field(default=False, kw_only=True)
    """Whether Snakemake and jobs load their libraries themselves, as for a user."""

    @property
    def warm_commands(self) -> list[str]:
        """The folder that goes to the front of PATH, if any does."""
        return [] if self.cold else WARM_COMMANDS

    @property
    def environment(self) -> dict[str, str]:
        folders = [*self.warm_commands, str(Path(sys.executable).parent), os.environ["PATH"]]
        path, threads = os.pathsep.join(folders), ONE_THREAD if self.warm_commands else {}
        return {**os.environ, **threads, "PATH": path, "PYTHONPATH": str(self.tree / "src")}

    def as_a_user(self) -> Study:
        """Return the same study, started cold."""
        return dataclasses.replace(self, cold=True)

    def configure(self, *edits: Edit) -> Study:
        text = yaml.safe_dump(edited(*edits), sort_keys=False)
        replace(self.folder / "config.yaml", text)
        return self

    def command(self, *arguments: str, cores: int = 2, gpu: int = 1) -> list[str]:
        tree = self.tree
        return [
            *(["snakemake"] if self.warm_commands else [sys.executable, "-m", "snakemake"]),
            *arguments,
            *("-s", f"{tree}/Snakefile", "--directory", str(self.folder)),
            *("--workflow-profile", f"{tree}/profiles/default"),
            *("--cores", str(cores), "--resources", f"gpu={gpu}"),
        ]

    def snakemake(self, *arguments: str, gpu: int = 1) -> subprocess.CompletedProcess[str]:
        """Run Snakemake; return its output and errors together, as a user sees them."""
        return self.run(self.command(*arguments, gpu=gpu))

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_SECONDS,
        )

    def make(self, *arguments: str, gpu: int = 1) -> str:
        """Run Snakemake and insist that it succeeds."""
        result = self.snakemake(*arguments, gpu=gpu)
        assert result.returncode == 0, result.stdout[-6000:]
        return result.stdout

    def jobs(self, *arguments: str) -> dict[str, int]:
        """Return what a dry run would run: jobs per rule, without `all`.

        Rules whose names differ in a number at the end count as one.
        """
        output = self.make(*arguments, "--dry-run", "--quiet", "rules")
        table = re.search(r"^Job stats:\njob +count\n[- ]+\n(.*?)^total", output, re.M | re.S)
        if table is None:
            assert "Nothing to be done" in output, output
            return {}
        found: dict[str, int] = {}
        for name, n in map(str.split, table[1].splitlines()):
            rule = name.partition(NUMBER)[0]
            found[rule] = found.get(rule, 0) + int(n)
        return {rule: n for rule, n in found.items() if rule != "all"}

    def verb(self, name: str, /, **options: object) -> subprocess.CompletedProcess[str]:
        """Run one verb by hand in the study's folder."""
        pairs = [(f"--{key.replace('_', '-')}", str(value)) for key, value in options.items()]
        return self.run(["nullsae", name, *itertools.chain(*pairs)])


def replace(path: Path, text: str) -> None:
    """Replace a file, which may be a hard link into another study."""
    path.unlink(missing_ok=True)
    path.write_text(text, encoding="utf-8")


def freeze(tree: Path) -> Path:
    """Copy all that a run reads from the repository."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "workflow", "profiles", "envs"):
        shutil.copytree(REPOSITORY / name, tree / name, ignore=ignore)
    for name in ("Snakefile", "config.yaml"):
        shutil.copy2(REPOSITORY / name, tree / name)
    return tree


def new_study(folder: Path, tree: Path, *, cold: bool = False) -> Study:
    """Make a folder with a config and a corpus of the standard library's help topics."""
    folder.mkdir(parents=True)
    source = BuiltinSource(kind="builtin", name="stdlib")
    texts = itertools.islice(documents(source), N_DOCUMENTS)
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (folder / "docs.jsonl").write_text("".join(lines), encoding="utf-8")
    return Study(folder, tree, cold=cold).configure()


def copy_of(study: Study, folder: Path, *, linked: bool = False, tree: Path | None = None) -> Study:
    """Copy a study with times and Snakemake's records; `linked` shares bytes (for dry runs)."""
    copy_function = os.link if linked else shutil.copy2
    shutil.copytree(study.folder, folder, copy_function=copy_function)
    return Study(folder, tree or study.tree)


def cell(pattern: str, **keys: str) -> str:
    """Return a path of the study's only cell of variant `trained`, or of another by `keys`."""
    first = {
        "subject": "small",
        "variant": "trained",
        "draw": "0",
        "site": "resid_post.0",
        "sae": "topk",
        "seed": "0",
        "explainer": "lexical",
        "scorer": "detection",
    }
    return pattern.format(**{**first, **keys})


def table(study: Study, name: str) -> pd.DataFrame:
    return pd.read_parquet(study.folder / paths.TABLE.format(table=name))
