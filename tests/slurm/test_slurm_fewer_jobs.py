"""Several jobs of the workflow in one SLURM job."""

from __future__ import annotations

import re

import pytest
from slurm_study import SlurmStudy
from workflow_study import Study, cell

from nullsae import paths

pytestmark = pytest.mark.slurm
SCORES = [cell(paths.SCORES, variant=variant) for variant in ("trained", "rerandomized")]
AGAIN = ("collect_latents", "explain_and_score")


def differing(study: Study, local: Study) -> list[str]:
    return [
        name
        for name in SCORES
        if (study.folder / name).read_bytes() != (local.folder / name).read_bytes()
    ]


def test_array_jobs_give_the_same_scores(study: SlurmStudy, local: Study) -> None:
    said = study.make("--forcerun", AGAIN[0], "--slurm-array-jobs", "all", "--", *SCORES)
    # The two jobs that wait for nothing. Whether later ones are ready together depends on timing.
    assert re.search(r"Submitted array job with .*task IDs are 1-2\.", said)
    started = study.started()
    assert sorted(s.verb for s in started) == sorted(AGAIN * 2)
    devices = [s.device for s in started if s.verb == "collect_latents"]
    assert sorted(devices) == ["0", "1"]
    assert differing(study, local) == []


def test_jobs_of_a_group_give_the_same_scores_on_one_gpu(study: SlurmStudy, local: Study) -> None:
    groups = [f"{rule}=cell" for rule in AGAIN]
    said = study.make(
        *("--forcerun", AGAIN[0], "--groups", *groups, "--group-components", "cell=2"),
        *("--resources", "gpu=1", "--set-resource-scopes", "gpu=local", "--", *SCORES),
    )
    assert len(re.findall("has been submitted with SLURM jobid", said)) == 1
    (job,) = study.ended()
    assert (job.state, job.partition) == ("COMPLETED", "gpu")
    started = study.started()
    assert sorted(s.verb for s in started) == sorted(AGAIN * 2)
    assert {(s.job, s.device) for s in started} == {(job.job, "0")}
    assert differing(study, local) == []
