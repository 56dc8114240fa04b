"""The paper's grid, its sweeps and what its critics asked for, as offline dry runs.

The counts of plans are compared with the jobs that Snakemake would run.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from workflow_study import REPOSITORY, freeze

from nullsae.config.read import read_merged_config
from nullsae.jobs.shared_training import rule_of
from nullsae.planning.show import make_plan

pytestmark = pytest.mark.workflow
GRID = "config/paper.yaml"
# Sites of each subject, hidden states after every block, every second, every fourth.
SITES = {"70m": 6, "160m": 12, "410m": 24, "1b": 8, "6.9b": 8}
N_VARIANTS = 5


def expected(sites: int, saes_per_site: int, *, explainers: int = 3, models: int) -> dict[str, int]:
    """Return the jobs per rule of a study like the paper's, counted by hand.

    Besides `lexical`, a model explains; a third explainer exchanges its explanations.
    """
    saes = sites * N_VARIANTS * saes_per_site
    return {
        "prepare_corpus": 1,
        "randomize_model": models * N_VARIANTS,
        "cache_activations": models * N_VARIANTS * 2,
        "train_sae": sites * N_VARIANTS,
        "evaluate_sae": models * N_VARIANTS,
        # All SAEs of a site share the passes over `eval`.
        "collect_latents": sites * N_VARIANTS,
        "match_dictionaries": sites * saes_per_site,
        "explain_latents": saes,
        "score_latents": saes * (explainers - 1) * 2,
        # One for `lexical`, one for the placebo that waits for the model.
        "explain_and_score": models * N_VARIANTS * (explainers - 1),
        "aggregate": 1,
        "report": 1,
    }


STUDIES: dict[str, tuple[list[str], dict[str, int]]] = {
    "grid": ([GRID], expected(sum(SITES.values()), 1, models=5)),
    "r-by-k": (
        [GRID, "config/paper/r-by-k-on-160m.yaml"],
        expected(SITES["160m"], 8, explainers=2, models=1),
    ),
    "seeds": (
        [GRID, "config/paper/seeds-on-70m.yaml"],
        # One comparison of dictionaries for the five seeds.
        {**expected(SITES["70m"], 5, models=1), "match_dictionaries": SITES["70m"]},
    ),
    "r2-k4": ([GRID, "config/paper/r2-k4-on-1b.yaml"], expected(SITES["1b"], 2, models=1)),
    "1m tokens": ([GRID, "config/paper/1m-tokens-on-1b.yaml"], expected(SITES["1b"], 1, models=1)),
    "1b tokens": ([GRID, "config/paper/1b-tokens-on-1b.yaml"], expected(SITES["1b"], 1, models=1)),
    "1b tokens, small": (
        [GRID, "config/paper/1b-tokens-on-70m-410m.yaml"],
        expected(SITES["70m"] + SITES["410m"], 1, models=2),
    ),
    # Four sizes; trained, step0 and three draws, and three sizes trained again: 23 models; three
    # widths and two more architectures with three seeds each, and six dictionary nulls: 5 x 3 + 6
    # SAEs at the one site of each.
    "plus": (
        ["config/paper-plus.yaml"],
        {
            "prepare_corpus": 1,
            "randomize_model": 4 * 5,
            "retrain_subject": 3,
            "cache_activations": 23 * 2,
            # Gaussian floors of all but `token_lookup`.
            "sample_gaussian": 23 * 2,
            "train_sae": 2 * 23,
            # A job has all 21 SAEs of a model, and their 20 floors.
            "evaluate_sae": 23,
            "collect_latents": 23,
            "match_dictionaries": 4 * 11,
            "explain_latents": 23 * 21,
            "score_latents": 23 * 21 * 2,
            "explain_and_score": 23 * 2,
            "aggregate": 1,
            "report": 1,
        },
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources, frozen, with their configs."""
    tree = freeze(tmp_path_factory.mktemp("paper"))
    shutil.copytree(REPOSITORY / "config", tree / "config")
    return tree


@pytest.fixture(scope="module")
def nowhere() -> Iterator[str]:
    """The address of a hub that refuses connections: a bound port without a listener."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def dry_run(folder: Path, overlays: list[str], hub: str) -> tuple[dict[str, int], str]:
    """Return jobs per rule, and the whole output."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder / "src"),
        "HF_ENDPOINT": hub,
        "HF_HOME": str(folder / "hub"),
        "HF_HUB_OFFLINE": "0",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-m", "snakemake", "--dry-run", "--quiet", "rules", "--cores", "1"),
            *("--configfile", *overlays),
        ],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    table = re.search(r"^Job stats:\njob +count\n[- ]+\n(.*?)^total", done.stdout, re.M | re.S)
    assert table is not None, done.stdout[-4000:]
    jobs: dict[str, int] = {}
    for line in table[1].splitlines():
        rule, count = line.split()
        name = rule_of(rule)
        jobs[name] = jobs.get(name, 0) + int(count)
    del jobs["all"]
    return jobs, done.stdout


def slow(names: Iterable[str], *, but_weekly: Container[str] = ()) -> list[Any]:
    """Mark the long ones for `make test-slow` or `make test-weekly`."""
    marks = {name: pytest.mark.weekly if name in but_weekly else pytest.mark.slow for name in names}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


@pytest.mark.parametrize("name", slow(STUDIES, but_weekly={*STUDIES} - {"seeds"}))
def test_a_grid_has_the_jobs_counted_by_hand_and_needs_no_hub(
    name: str, folder: Path, nowhere: str
) -> None:
    overlays, counted = STUDIES[name]
    jobs, printed = dry_run(folder, overlays, nowhere)
    assert jobs == counted
    assert "Ambiguous" not in printed
    assert "ambiguous" not in printed


@pytest.mark.parametrize("name", ["seeds", *slow(["plus"], but_weekly=["plus"])])
def test_a_plan_of_a_grid_has_the_jobs_counted_by_hand(name: str, tmp_path: Path) -> None:
    overlays, counted = STUDIES[name]
    config = read_merged_config([REPOSITORY / f for f in ("config.yaml", *overlays)])
    plan = make_plan(config, tmp_path, device="a100", gpus=8)
    assert {row.rule: row.jobs for row in plan.rows} == counted


CHECKPOINTS = "saes: {topk: {checkpoints: [0.1, 0.5], seeds: [0, 1]}}\ndraws: 2\n"
ASKED = "autointerp: {latents_per_job: 7}\nevaluation: {gaussian_floors: false}\n"
STREAM = "activations: {mode: stream, fitted_tokens: 100_000}\n"
ON_THIS_MACHINE = {
    "default": ([], CHECKPOINTS + "evaluation: {cross_tokens: 4096, gaussian_floors: true}\n"),
    "all controls": (["config/all-controls.yaml"], "{}"),
    "replicated": (["config/replicated.yaml"], "{}"),
    "chunks": (["config/llm.yaml"], ASKED + "activations: {chunks: 3}\n"),
    "shared": (["config/quick.yaml"], "activations: {shared_pass: true}\n" + CHECKPOINTS),
    "stream": (["config/quick.yaml"], STREAM + "variants: [trained, gaussian]\n"),
}


@pytest.mark.parametrize("name", slow(ON_THIS_MACHINE, but_weekly=["all controls", "replicated"]))
def test_a_plan_has_the_jobs_that_snakemake_would_run(
    name: str, folder: Path, nowhere: str, tmp_path: Path
) -> None:
    overlays, more = ON_THIS_MACHINE[name]
    (tmp_path / "more.yaml").write_text(more)
    files = [*overlays, str(tmp_path / "more.yaml")]
    config = read_merged_config([REPOSITORY / f for f in ("config.yaml", *files)])
    plan = make_plan(config, tmp_path)
    jobs, _ = dry_run(folder, files, nowhere)
    assert {row.rule: row.jobs for row in plan.rows} == jobs
