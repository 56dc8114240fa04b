"""A wrong profile gets one line, and nothing is submitted or half done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from slurm_study import SlurmStudy, queue
from workflow_study import Study, cell

from nullsae import paths

pytestmark = pytest.mark.slurm


def edit(study: SlurmStudy, name: str, **changes: Any) -> Path:
    """Change keys of a file of the profile; None removes one."""
    file = study.profile / name
    content = {**yaml.safe_load(file.read_text()), **changes}
    kept = {key: value for key, value in content.items() if value is not None}
    file.write_text(yaml.safe_dump(kept))
    return file


def check(study: SlurmStudy) -> tuple[int, list[str]]:
    found = study.verb("check_cluster", profile=study.profile)
    return found.returncode, found.stdout.splitlines()


def test_a_profile_that_fits_passes(study: SlurmStudy) -> None:
    assert check(study) == (
        0,
        ["main: 2,880 minutes, 64,000 MB", "gpu: 1,440 minutes, 64,000 MB, GPUs"],
    )


def test_an_unknown_partition_gets_one_line(study: SlurmStudy, local: Study) -> None:
    file = edit(study, "partitions.yaml", partitions={"nowhere": {}, "gpu": {"max_gpu": 1}})
    code, lines = check(study)
    assert code == 2
    assert lines[0] == (
        f"{file}: partitions.nowhere: no partition 'nowhere' on this cluster; it has gpu, main"
    )
    target = cell(paths.SCORES)
    ran = study.snakemake("--forcerun", "explain_and_score", "--retries", "0", "--", target)
    assert ran.returncode != 0
    assert "sbatch: error: invalid partition specified: nowhere" in ran.stdout
    assert study.started() == []
    assert queue() == []
    # Snakemake deletes the outputs of a job before it submits it; all else stays.
    for name in (cell(paths.WINDOWS), cell(paths.LATENTS), cell(paths.SAE_WEIGHTS)):
        assert (study.folder / name).read_bytes() == (local.folder / name).read_bytes()


def test_a_gpu_where_there_is_none_gets_one_line(study: SlurmStudy) -> None:
    file = edit(study, "partitions.yaml", partitions={"main": {"max_gpu": 2}})
    code, lines = check(study)
    assert code == 2
    assert lines[0] == (
        f"{file}: partitions.main.max_gpu: 2, but no node of it has a GPU (sinfo -p main -o %G)"
    )
    target = cell(paths.LATENTS)
    ran = study.snakemake("--forcerun", "collect_latents", "--retries", "0", "--", target)
    assert ran.returncode != 0
    assert "Requested node configuration is not available" in ran.stdout
    assert study.started() == []


def test_what_would_wait_forever_is_named(study: SlurmStudy) -> None:
    limits = {"mem_mb": 1000, "max_mem_mb": 100_000, "max_runtime": 2_000}
    file = edit(
        study, "profile.yaml", **{"slurm-status-command": None, "default-resources": limits}
    )
    code, lines = check(study)
    assert code == 2
    assert lines[:4] == [
        f"{file}: slurm-status-command: missing: this cluster has no accounting for sacct to read; "
        f"write slurm-status-command: squeue",
        f"{file}: default-resources.max_mem_mb: 100000: jobs without a GPU get at most 64000 MB "
        f"here (main, gpu); write 64000 or less",
        f"{file}: default-resources.max_runtime: 2000: jobs with a GPU get at most 1440 minutes "
        f"here (gpu); write 1440 or less",
        f"{file}: default-resources.max_mem_mb: 100000: jobs with a GPU get at most 64000 MB here "
        f"(gpu); write 64000 or less",
    ]


def test_a_queue_that_forgets_too_soon_is_named(study: SlurmStudy) -> None:
    file = edit(study, "profile.yaml", **{"slurm-init-seconds-before-status-checks": 2_000})
    code, lines = check(study)
    assert code == 2
    assert lines[0] == (
        f"{file}: slurm-init-seconds-before-status-checks: 2000: this cluster forgets jobs after "
        f"3600 s (MinJobAge) and has no accounting; write 1200 or less"
    )
