"""The profiles of a command line; the rest is seen by running the commands that messages show."""

from __future__ import annotations

import pytest

from nullsae.core.files import STARTED_WITH, rebuild_command
from nullsae.jobs.started import _profiles


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
