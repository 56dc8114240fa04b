"""Who made an artifact, across kills, shared work, machines and checkouts."""

from __future__ import annotations

import json
import platform
import socket
import subprocess
from pathlib import Path

import pytest
import torch

from nullsae import __version__
from nullsae.core import provenance


def made_on(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)


def hosts(file: Path) -> list[str]:
    found = provenance.read(file)
    assert found is not None
    return [job.host for job in found.jobs]


def test_a_job_names_its_versions_device_and_host(tmp_path: Path) -> None:
    with provenance.at_work("train_sae", device="cpu", dtype="float32", threads=3):
        provenance.note_revision("model someone/model", "c" * 40)
        provenance.note_revision("dataset local", None)
        provenance.record(tmp_path, tokens_seen=512)
    found = provenance.read(tmp_path / provenance.FILE)
    assert found is not None
    assert found.tokens_seen == 512
    assert found.revisions == {"model someone/model": "c" * 40}
    (job,) = found.jobs
    assert (job.verb, job.nullsae, job.dtype, job.threads) == (
        *("train_sae", __version__),
        *("float32", 3),
    )
    assert (job.python, job.torch, job.host) == (
        *(platform.python_version(), torch.__version__),
        socket.gethostname(),
    )
    assert job.device_kind == "cpu"
    assert len(job.device) > 2
    # Afterwards the process runs another job.
    assert provenance.this_job().verb == ""


def test_resuming_jobs_are_listed_once_and_other_makers_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / provenance.FILE
    for host, key, resumes, wanted in (
        ("a", "one", False, ["a"]),
        ("a", "one", True, ["a"]),
        ("b", "one", True, ["a", "b"]),
        ("a", "one", True, ["a", "b"]),
        ("c", "one", False, ["c"]),
        ("d", "another", True, ["d"]),
    ):
        made_on(host, monkeypatch)
        provenance.record(tmp_path, key=key, resumes=resumes)
        assert hosts(file) == wanted


def test_joining_parts_lists_the_makers_of_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [tmp_path / name for name in ("0", "1", "2")]
    for folder, host in zip(folders, ("a", "b", "a"), strict=True):
        made_on(host, monkeypatch)
        provenance.record(folder)
    made_on("joiner", monkeypatch)
    parts = [folder / provenance.FILE for folder in folders]
    provenance.record(tmp_path, parts=parts, own=False)
    assert hosts(tmp_path / provenance.FILE) == ["a", "b"]
    for part in parts:
        part.unlink()
    provenance.record(tmp_path, parts=parts, own=False)
    assert not (tmp_path / provenance.FILE).exists(), "the makers of earlier parts stay named"


def test_a_file_from_before_precision_was_recorded_is_read(tmp_path: Path) -> None:
    for precision in ("bfloat16", None):
        with provenance.at_work("train_sae", precision=precision):
            provenance.record(tmp_path, key=str(precision))
        found = provenance.read(tmp_path / provenance.FILE)
        assert found is not None
        assert found.jobs[0].precision == precision
    data = json.loads((tmp_path / provenance.FILE).read_text())
    del data["jobs"][0]["precision"]
    (tmp_path / provenance.FILE).write_text(json.dumps(data))
    assert provenance.read(tmp_path / provenance.FILE) == found


@pytest.mark.parametrize("text", ["", "[]", '{"jobs": [{"host": "a"}]}', '{"jobs": 3}', "\0"])
def test_a_damaged_file_is_ignored(tmp_path: Path, text: str) -> None:
    (tmp_path / provenance.FILE).write_text(text)
    assert provenance.read(tmp_path / provenance.FILE) is None
    provenance.record(tmp_path, resumes=True)
    assert hosts(tmp_path / provenance.FILE) == [socket.gethostname()]


def git(folder: Path, *arguments: str) -> str:
    name = ("-c", "user.name=n", "-c", "user.email=e@e", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", "-C", str(folder), *name, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_the_commit_is_the_last_one_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "src/nullsae"
    package.mkdir(parents=True)
    monkeypatch.setattr(provenance, "PACKAGE", package)
    commit = provenance.package_commit.__wrapped__
    assert commit() is None, "a folder without a repository has a commit"
    git(tmp_path, "init", "-q")
    module = package / "module.py"
    module.write_text("a = 1\n")
    # As if pip had installed it into an environment inside another repository.
    assert commit() is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "package")
    first = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert commit() == first
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "another config")
    assert commit() == first
    module.write_text("a = 2\n")
    assert commit() == f"{first}+"
    git(tmp_path, "commit", "-qam", "another package")
    assert commit() == git(tmp_path, "rev-parse", "HEAD")[:12] != first
    monkeypatch.setenv("PATH", "")
    assert commit() is None
