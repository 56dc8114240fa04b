"""`benchmarks/gpu_check.py`: its time limits, and what it says a machine lacks."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import shutil
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from script_files import script_module


@pytest.fixture(scope="module")
def script() -> Any:
    return script_module("benchmarks/gpu_check.py")


def test_a_part_may_take_the_time_that_earlier_ones_left(script: Any) -> None:
    limits = script.LIMITS
    parts = list(limits)
    assert sum(limits.values()) < 480
    taken = 0.0
    for at, name in enumerate(parts):
        assert script.seconds_for(parts, at, taken) == limits[name] + at * 20.0
        taken += limits[name] - 20.0
    assert script.seconds_for(["study"], 0, 0.0) == limits["study"]


def test_a_machine_with_triton_and_no_compiler_is_told_so(
    script: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = importlib.machinery.ModuleSpec("any", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sysconfig, "get_path", lambda *_: str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert script.lacking("steps", "cuda") == ["a C compiler (gcc)", "Python.h (python3-dev)"]
    assert script.lacking("steps", "cpu") == []
    (tmp_path / "Python.h").touch()
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert script.lacking("steps", "cuda") == []
