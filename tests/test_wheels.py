"""What the locks pin can be installed without a compiler where nullsae is said to run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
UV = Path(sys.executable).with_name("uv")
# PyTorch asks for macOS 14 and glibc 2.28.
SYSTEMS = ("aarch64-apple-darwin", "x86_64-manylinux_2_28", "aarch64-manylinux_2_28")
# A dependency of Snakemake in Python alone, of which there never was a wheel: pip makes it.
SOURCES = ("connection-pool",)
LOCKS = ("requirements.lock", "requirements-dev.lock", "requirements-slurm.txt")


def resolve(file: Path, system: str, python: str) -> subprocess.CompletedProcess[str]:
    """Have uv look for a wheel of each line of a file."""
    words = ["--quiet", "--no-deps", "--only-binary", ":all:", "--python-platform", system]
    words += [word for name in SOURCES for word in ("--no-binary", name)]
    return subprocess.run(
        [UV, "pip", "compile", *words, "--python-version", python, file],
        env={**os.environ, "MACOSX_DEPLOYMENT_TARGET": "14.0"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def pythons() -> list[str]:
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    [(first, end)] = re.findall(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"', project, re.M)
    return [f"3.{minor}" for minor in range(int(first), int(end))]


@pytest.fixture(scope="module", autouse=True)
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """These tests ask the package index, and are skipped where none answers."""
    file = tmp_path_factory.mktemp("asked") / "requirements.txt"
    file.write_text("tabulate\n")
    answer = resolve(file, SYSTEMS[0], "3.12")
    if answer.returncode:
        pytest.skip(f"no package index answers: {answer.stderr.strip()[:200]}")


@pytest.mark.weekly
@pytest.mark.parametrize("python", pythons())
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_pin_has_a_wheel(system: str, python: str, tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    lines = "".join((REPOSITORY / name).read_text(encoding="utf-8") for name in LOCKS)
    file.write_text(lines, encoding="utf-8")
    found = resolve(file, system, python)
    assert found.returncode == 0, found.stderr


@pytest.mark.weekly
def test_a_pin_without_a_wheel_is_found(tmp_path: Path) -> None:
    file = tmp_path / "requirements.txt"
    file.write_text("torch==2.13.0\n")
    found = resolve(file, "x86_64-apple-darwin", "3.12")
    assert "torch==2.13.0 has no wheels with a matching platform tag" in found.stderr
