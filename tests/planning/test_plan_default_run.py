"""The plan of the default study against one run of it: tests/data/default_run.json.

The run is recorded with its config, because tests share their machine: times measured here would
depend on how busy it is. `nullsae.jobs.work.rates.REFERENCE_CPU` is the machine of the run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nullsae.config.parse import parse_config, resolve_subjects
from nullsae.planning.show import Plan, make_plan

pytestmark = pytest.mark.usefixtures("warm")

RECORDED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data/default_run.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("study")
    config = resolve_subjects(parse_config(RECORDED["config"]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))  # no calibration of another machine
        return make_plan(config, folder, device="cpu", cores=2)


def test_the_time_of_all_jobs_is_within_a_factor_of_1_5(plan: Plan) -> None:
    planned = {row.rule: row for row in plan.rows}
    alone = RECORDED["cpu_seconds_of_one_job"]
    assert set(planned) == set(alone)
    measured = sum(alone[rule] * row.jobs for rule, row in planned.items())
    total = sum(row.core_seconds for row in planned.values())
    assert 1 / 1.5 < total / measured < 1.5
    # Snakemake's samples miss the last moments of each job, so its times are too short.
    sampled = sum(RECORDED["sampled_cpu_seconds"].values())
    assert 1 / 1.5 < total / sampled < 1.5


def test_the_time_of_each_rule_is_within_a_factor_of_1_5(plan: Plan) -> None:
    alone = RECORDED["cpu_seconds_of_one_job"]
    ratios = {row.rule: row.core_seconds / row.jobs / alone[row.rule] for row in plan.rows}
    assert {rule: r for rule, r in ratios.items() if not 1 / 1.5 < r < 1.5} == {}


def test_the_disk_is_within_a_tenth(plan: Plan) -> None:
    assert plan.disk_bytes == pytest.approx(RECORDED["all_bytes"], rel=0.1)
    written = {row.rule: row.written_bytes for row in plan.rows}
    makers = ("train_subject", "retrain_subject", "randomize_model")
    models = sum(written[rule] for rule in makers)
    assert models == pytest.approx(RECORDED["bytes"]["models"], rel=0.1)
    captured = written["cache_activations"] + written["sample_gaussian"]
    assert captured == pytest.approx(RECORDED["bytes"]["activations"], rel=0.1)
    for rule, folder in (
        ("prepare_corpus", "corpus"),
        ("train_sae", "saes"),
    ):
        assert written[rule] == pytest.approx(RECORDED["bytes"][folder], rel=0.1), rule
