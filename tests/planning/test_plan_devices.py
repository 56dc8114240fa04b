"""Rates of machines: the table, a calibration of this one, and damaged files."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from nullsae.core.errors import UserError
from nullsae.jobs.work.amounts import Work
from nullsae.jobs.work.rates import DATA_SHEETS, REFERENCE_CPU, REFERENCE_HOST, data_sheet_device
from nullsae.planning.devices import calibrate, calibration_file, pick_device, read_calibration


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def test_time_is_the_sum_of_what_takes_it() -> None:
    device = data_sheet_device("a100")
    work = Work(forward_flops=109.2e12, product_flops=15.6e12, moved_bytes=2.8e12, dtype="bfloat16")
    # 0.35 x 312e12, 0.8 x 19.5e12 and 0.7 x 2e12 a second.
    assert device.seconds(work) == pytest.approx(1 + 1 + 2)
    assert REFERENCE_HOST.seconds(Work(host_seconds=3.0)) == pytest.approx(
        3.0 + REFERENCE_HOST.start_seconds["light"]
    )


def test_a_device_is_picked_by_the_study_and_what_was_measured_here(cache: Path) -> None:
    assert pick_device("auto", on_cpu=True)[0] == REFERENCE_CPU
    assert pick_device("auto", on_cpu=False)[0] == data_sheet_device("a100")
    with pytest.raises(UserError, match="--calibrate on a machine with one"):
        pick_device("gpu", on_cpu=False)
    slow = {**asdict(REFERENCE_CPU), "product_flops_per_second": 1.0}
    fast = {**asdict(data_sheet_device("h100")), "name": "the one here"}
    calibration_file().parent.mkdir(parents=True)
    calibration_file().write_text(
        json.dumps({"host": asdict(REFERENCE_HOST), "cpu": slow, "gpu": fast})
    )
    assert pick_device("cpu", on_cpu=False)[0].product_flops_per_second == 1.0
    assert pick_device("auto", on_cpu=False)[0].name == "the one here"
    assert pick_device("h100", on_cpu=False)[0].name == DATA_SHEETS["h100"][0]


@pytest.mark.slow
def test_a_calibration_measures_what_a_plan_reads(cache: Path) -> None:
    lines: list[str] = []
    file = calibrate(lines.append, rounds=1)
    assert file == cache / "nullsae" / "calibration.json"
    found = read_calibration(file)
    cpu, host = found["cpu"], found["host"]
    # Between the rates of slow and fast current cores, however busy they are.
    assert 1e9 < cpu.product_flops_per_second < 1e12
    assert cpu.forward_flops_per_second["float32"] < cpu.product_flops_per_second
    assert 1e9 < cpu.bytes_per_second < 1e12
    assert 0.05 < host.speed < 20
    starts = [host.start_seconds[name] for name in ("light", "torch", "transformers", "all")]
    assert starts == sorted(starts)
    assert set(host.start_seconds) == set(REFERENCE_HOST.start_seconds)
    assert any("product flops per second" in line for line in lines)


@pytest.mark.parametrize("text", ["{", "[]", '{"host": {"speed": 1.0}}', '{"cpu": {}}'])
def test_a_damaged_calibration_is_refused(text: str, cache: Path) -> None:
    calibration_file().parent.mkdir(parents=True)
    calibration_file().write_text(text)
    with pytest.raises(UserError, match=r"not a calibration .* nullsae plan --calibrate"):
        pick_device("auto", on_cpu=True)
