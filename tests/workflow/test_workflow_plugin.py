"""A package with one thing of each kind runs to the report without an edit of nullsae."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from workflow_study import REPOSITORY, Study, new_study, replace

from nullsae import paths

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
PLUGIN = REPOSITORY / "tests/plugin"


@dataclass(frozen=True)
class Extended(Study):
    """A study that also sees the packages of another folder."""

    packages: Path = Path()

    @property
    def environment(self) -> dict[str, str]:
        found = super().environment
        return {**found, "PYTHONPATH": f"{found['PYTHONPATH']}{os.pathsep}{self.packages}"}


def with_all_five(config: dict[str, Any]) -> None:
    config["variants"] = ["trained", "uniform_weights"]
    config["saes"]["elastic"] = {
        **{"architecture": "elastic", "n_latents": 32, "batch_tokens": 512, "lr": 5.0e-3},
        **{"l1_coefficient": 0.1, "ridge_coefficient": 0.05},
    }
    config["explainers"]["one_token"] = {"kind": "one_token"}
    config["scorers"]["coin"] = {"kind": "coin"}
    config["latents"]["min_firings"] = 10


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Extended:
    """A finished study with all five things, installed next to it."""
    packages = tmp_path_factory.mktemp("packages")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
    install += ["--no-build-isolation", "--disable-pip-version-check", "--target", packages]
    source = packages.parent / f"{packages.name}-source"
    subprocess.run(["cp", "-r", PLUGIN, source], check=True)  # pip builds in the source's folder
    subprocess.run([*install, source], check=True)
    made = new_study(tmp_path_factory.mktemp("plugin") / "study", tree)
    study = Extended(made.folder, made.tree, packages=packages)
    study.configure(with_all_five)
    study.make()
    return study


def column(study: Study, table: str, name: str) -> set[Any]:
    return set(pq.read_table(study.folder / paths.TABLE.format(table=table))[name].to_pylist())


def test_tables_hold_all_five(extended: Extended) -> None:
    # Besides those within the trained subject.
    assert column(extended, "verdicts", "variant") == {"uniform_weights", "trained"}
    assert column(extended, "verdicts", "null") > {"uniform_weights", "foreign_direction"}
    assert "elastic" in column(extended, "reconstruction", "sae")
    assert "activation_skewness" in column(extended, "verdicts", "metric")
    assert column(extended, "latents", "activation_skewness") > {None}
    assert "one_token" in column(extended, "explanations", "explainer")
    assert "coin" in column(extended, "scores", "scorer")


def test_figures_captions_and_controls_name_all_five(extended: Extended) -> None:
    figures = {path.name for path in (extended.folder / "results/figures").iterdir()}
    assert "small.activation_skewness.svg" in figures
    page = (extended.folder / paths.REPORT).read_text(encoding="utf-8")
    for text in (
        "Each tensor is redrawn from a uniform distribution",
        "a few very strong firings make it large",
        "The judge knows the likeliest token of the latent alone.",
        "The judge throws a coin",
        "elastic",
    ):
        assert text in page


def test_the_schema_of_the_config_has_all_five(extended: Extended) -> None:
    schema = extended.run([sys.executable, "-m", "nullsae.config.parse"]).stdout
    names = ("uniform_weights", "elastic", "ridge_coefficient", "one_token", "coin")
    for name in (*names, "activation_skewness"):
        assert f'"{name}"' in schema


@pytest.mark.parametrize(
    ("module", "rules"),
    [
        ("variant", {"randomize_model"}),
        ("architecture", {"train_sae"}),
        ("metric", {"collect_latents", "aggregate"}),
        ("explainer", {"explain_and_score"}),
        ("scorer", {"explain_and_score"}),
    ],
)
def test_an_edit_of_a_module_runs_again_what_uses_it(
    extended: Extended, module: str, rules: set[str]
) -> None:
    file = extended.packages / f"nullsae_example/{module}.py"
    before = file.read_text(encoding="utf-8")
    assert extended.jobs() == {}
    replace(file, before + "\nEDITED = 1\n")
    jobs = extended.jobs("--rerun-triggers", "params")
    replace(file, before)
    assert rules <= jobs.keys()
    if module == "architecture":
        assert jobs["train_sae"] == 2  # of two variants; `topk` is left alone
