"""Profiles of a command line; other tests run the commands that messages show."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest
from snakemake.api import ResourceSettings, SnakemakeApi

from nullsae.core.files import STARTED_WITH, rebuild_command
from nullsae.jobs.started import _profiles, remember_options, study_options


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("snakemake --cores 2 all", ""),
        ("snakemake --profile profiles/slurm --cores 2", "--profile profiles/slurm"),
        ("snakemake --profile a b --cores 2", "--profile a b"),
        ("snakemake -n --workflow-profile=none -- all", "--workflow-profile=none"),
        ("snakemake --profile=a --quiet --workflow-profile b", "--profile=a --workflow-profile b"),
    ],
)
def test_profiles_of_the_command_line_are_kept(line: str, kept: str) -> None:
    assert list(_profiles(line.split())) == kept.split()


def test_a_shown_command_names_the_study_that_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STARTED_WITH, "--configfile 'my overlay.yaml'")
    assert rebuild_command("results/o'brien.json") == (
        "snakemake --cores all --resources gpu=1 --configfile 'my overlay.yaml' "
        "--forcerun 'results/o'\"'\"'brien.json' -- 'results/o'\"'\"'brien.json'"
    )


def test_a_folder_that_was_named_from_elsewhere_is_named_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a study").mkdir()
    (tmp_path / "Snakefile").write_text("rule all:\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(STARTED_WITH, "")
    with SnakemakeApi() as snakemake:
        made = snakemake.workflow(
            ResourceSettings(cores=1), snakefile=Path("Snakefile"), workdir=Path("a study")
        )
        workflow = made._workflow
        remember_options(workflow, [])
        named = [*shlex.split(study_options(workflow)), *shlex.split(os.environ[STARTED_WITH])]
    whole = str(tmp_path / "a study")
    assert [named[named.index(option) + 1] for option in ("--root", "--directory")] == [whole] * 2
