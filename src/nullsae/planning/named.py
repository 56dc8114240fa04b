"""All that a config names below `results/`, by Snakemake's jobs.

It runs as a module in a process of its own and prints the answer, since Snakemake changes the
working folder and much else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from nullsae import paths
from nullsae.config.read import read_merged_config
from nullsae.config.study import Config
from nullsae.config.subjects import TrainSource
from nullsae.config.variants import is_positive_control
from nullsae.core.errors import UserError
from nullsae.jobs.corpus import prepare_corpus
from nullsae.jobs.grid import floor_cells, model_cells, of_model, sae_cells
from nullsae.jobs.saes import train_sae
from nullsae.jobs.shared_training import rule_of
from nullsae.jobs.subjects import retrain_subject, train_subject, training_key
from nullsae.planning.dag import ask_snakemake, opened_dag

# A study's own target does not include the toy models.
TARGETS = ("all", "toy")


@dataclass(frozen=True)
class Named:
    """What a config names."""

    files: frozenset[str]
    """Outputs, logs and benchmark files of all jobs, relative to the folder of the study."""
    rules: frozenset[str]
    """All rules of the workflow."""
    work: frozenset[str]
    """Names in `results/work` of checkpoints that trainings and corpora resume from."""


def named_by(config: Config, root: Path) -> Named:
    """Return what a config names in a study's folder, whether or not it exists.

    Raises:
        UserError: Snakemake finds a mistake.
    """
    found = ask_snakemake(config, root, "nullsae.planning.named")
    return Named(**{name: frozenset(each) for name, each in found.items()})


def print_named(snakefile: Path, root: Path, file: Path) -> None:
    """Print `Named` as JSON."""
    with opened_dag(snakefile, root, file, TARGETS) as dag:
        files = {str(file) for job in dag.jobs for file in _files(job)}
        rules = {rule_of(rule.name) for rule in dag.workflow.rules}
        work = set(_work(read_merged_config([file])))
    found = Named(frozenset(files), frozenset(rules), frozenset(work))
    print(json.dumps({name: sorted(each) for name, each in asdict(found).items()}))


def _files(job: Any) -> Iterator[str]:
    yield from (*job.output, *job.log)
    if job.benchmark:
        yield job.benchmark


def _work(config: Config) -> Iterator[str]:
    """Yield the names below `results/work`, without suffixes, that jobs may resume from."""
    from nullsae.corpus.prepare import preparation_key

    for name in config.corpora:
        yield f"prepare_corpus-{preparation_key(name, prepare_corpus(config, {'corpus': name}))}"
    for name, subject in config.subjects.items():
        if isinstance(subject.source, TrainSource):
            tokens = paths.CORPUS_MANIFEST.format(corpus=subject.corpus, split="sae_train")
            try:
                manifest = json.loads(Path(tokens).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue  # nothing was trained on missing tokens
            params = train_subject(config, {"subject": name})
            yield f"train_subject-{training_key(params, manifest)}"
            for keys in model_cells(config):
                if keys["subject"] == name and is_positive_control(keys["variant"]):
                    again = retrain_subject(config, keys)
                    yield f"retrain_subject-{training_key(again, manifest)}"
    groups = {
        tuple(of_model(cell).items()) for cell in chain(sae_cells(config), floor_cells(config))
    }
    for group in sorted(groups):
        saes = train_sae(config, dict(group))
        for cell in saes.cells:
            yield f"train_sae-{saes.cell_key(cell, saes.code(cell))}"


if __name__ == "__main__":
    try:
        print_named(*map(Path, sys.argv[1:]))
    except UserError as error:
        sys.exit(str(error))
