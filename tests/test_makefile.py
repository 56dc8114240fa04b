"""`make` takes the PyTorch that fits the machine, or the one that is named."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def wheel(folder: Path, version: str) -> None:
    """A package `torch` of this version, as pip installs it."""
    info = f"torch-{version}.dist-info"
    files = {
        "torch.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        lines.append(f"{name},sha256={digest.decode()},{len(text)}")
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,", ""])
    with zipfile.ZipFile(folder / f"torch-{version}-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


@pytest.mark.slow
@pytest.mark.skipif(os.uname().sysname != "Linux", reason="only Linux has two kinds of PyTorch")
def test_the_cpu_s_pytorch_comes_first_and_goes_where_a_driver_is(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "Makefile", tmp_path)
    (tmp_path / "requirements.lock").write_text("torch==9.9.9\n")
    found = tmp_path / "found"
    found.mkdir()
    for version in ("9.9.9", "9.9.9+cpu"):
        wheel(found, version)
    environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(found)}
    environment["PIP_CONFIG_FILE"] = os.devnull

    def make(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["make", "--silent", *words]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )

    def torch() -> list[str]:
        freeze = [tmp_path / ".venv/bin/python", "-m", "pip", "freeze"]
        done = subprocess.run(freeze, capture_output=True, text=True, check=True)
        return done.stdout.split()

    told = "PyTorch 9.9.9 for cpu; TORCH=cpu or TORCH=cuda takes the other\n"
    assert make(".venv/torch-cpu", "TORCH=cpu").stdout == told
    assert torch() == ["torch==9.9.9+cpu"]
    assert make(".venv/torch-cpu", "TORCH=cpu").stdout == ""  # done
    # What the lock then installs is PyPI's.
    make(".venv/torch-cuda", "TORCH=cuda")
    assert torch() == []
    # Without an answer from PyTorch's own index the lock is all there is, as ever.
    (found / "torch-9.9.9+cpu-py3-none-any.whl").unlink()
    done = make(".venv/torch-cpu", "TORCH=cpu")
    assert (done.returncode, done.stderr) == (0, "")
    assert "no answer from https://download.pytorch.org/whl/cpu" in done.stdout
    assert torch() == []
    wrong = make("run", "TORCH=gpu")
    assert wrong.returncode == 2
    assert 'TORCH: "gpu" is not one of cpu, cuda' in wrong.stderr
