"""Who made an artifact: versions, device and host, in a `provenance.json` next to it.

The file is neither an input of a job nor a declared output of a rule, because a job's outputs
depend on its params and code alone and must be the same bytes on any machine. Artifacts of older
versions without such a file stay valid; their makers are unknown.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from nullsae import __version__
from nullsae.core.files import write_json

FILE = "provenance.json"
PACKAGE = Path(__file__).parents[1]
GIT_SECONDS = 5.0


@dataclass(frozen=True)
class Maker:
    """A job that made an artifact or a part of it; None for what it did not use."""

    verb: str
    nullsae: str
    commit: str | None
    """The last commit that changed the package; `+` if files were changed since."""
    python: str
    torch: str | None
    transformers: str | None
    cuda: str | None
    """The version that torch was built for."""
    device: str
    """Name of the GPU, or of the CPU."""
    device_kind: str
    """`cpu`, `cuda` or `mps`."""
    host: str
    dtype: str | None
    threads: int | None
    precision: str | None = None
    """Of the products that choose latents in training."""


@dataclass(frozen=True)
class Provenance:
    """The content of `provenance.json`."""

    key: str = ""
    """Key of what was made, if several jobs may make it one after the other."""
    jobs: tuple[Maker, ...] = ()
    """The jobs that made it, each once, in order."""
    revisions: Mapping[str, str] = field(default_factory=dict)
    """Commits of what the jobs read from the hub, by `model ID`, `dataset ID`."""
    tokens_seen: int | None = None
    """Tokens that an SAE was trained on, every epoch counted."""

    def after(self, *earlier: Provenance) -> Provenance:
        """Return a copy that lists the jobs of earlier parts before its own."""
        jobs = dict.fromkeys(job for one in (*earlier, self) for job in one.jobs)
        revisions = {k: v for one in (*earlier, self) for k, v in one.revisions.items()}
        seen = [one.tokens_seen for one in (self, *earlier) if one.tokens_seen is not None]
        tokens = seen[0] if seen else None
        return replace(self, jobs=tuple(jobs), revisions=revisions, tokens_seen=tokens)


@dataclass
class _Process:
    """What is known about the job that this process runs."""

    verb: str = ""
    device: str = "cpu"
    dtype: str | None = None
    threads: int | None = None
    precision: str | None = None
    revisions: dict[str, str] = field(default_factory=dict)


_process = _Process()


@contextmanager
def at_work(
    verb: str,
    *,
    device: str = "cpu",
    dtype: str | None = None,
    threads: int | None = None,
    precision: str | None = None,
) -> Iterator[None]:
    """Describe this process as one job on a torch device, within the block.

    `dtype` is what it stores or computes in, `threads` how many it computes with, `precision` that
    of the products that choose latents.
    """
    global _process
    before, _process = _process, _Process(verb, device, dtype, threads, precision)
    try:
        yield
    finally:
        _process = before


def note_revision(what: str, commit: str | None) -> None:
    """Record that the job reads a commit of a repository, such as `model EleutherAI/pythia-70m`."""
    if commit:
        _process.revisions[what] = commit


def this_job() -> Maker:
    """Return the job that this process runs, with the packages loaded so far."""
    torch, transformers = map(sys.modules.get, ("torch", "transformers"))
    device = _process.device
    return Maker(
        verb=_process.verb,
        nullsae=__version__,
        commit=package_commit(),
        python=platform.python_version(),
        torch=None if torch is None else str(torch.__version__),
        transformers=None if transformers is None else str(transformers.__version__),
        cuda=None if torch is None else torch.version.cuda,
        device=device_name(device),
        device_kind=device.partition(":")[0],
        host=socket.gethostname(),
        dtype=_process.dtype,
        threads=_process.threads,
        precision=_process.precision,
    )


def record(
    folder: Path,
    *,
    key: str = "",
    resumes: bool = False,
    parts: Iterable[Path] = (),
    own: bool = True,
    tokens_seen: int | None = None,
    name: str = FILE,
) -> None:
    """Write who made the artifact in a folder.

    Args:
        folder: the artifact's folder.
        key: hash of everything that determines the artifact, if `resumes` may follow.
        resumes: whether this job continues an earlier one, which stays listed if it made something
            of the same key.
        parts: the files that this function wrote for the jobs that made parts of it; with a key,
            only those of the same key count.
        own: whether this job made any of it, instead of only joining parts.
        tokens_seen: how many tokens an SAE was trained on.
        name: of the file.
    """
    earlier = [
        found
        for file in parts
        if (found := read(file)) is not None and (not key or found.key == key)
    ]
    if resumes and (found := read(folder / name)) is not None and found.key == key:
        earlier = [found, *earlier]
    jobs, revisions = ((this_job(),), dict(_process.revisions)) if own else ((), {})
    made = Provenance(key, jobs, revisions, tokens_seen).after(*earlier)
    if made.jobs:
        if read(folder / name) != made:
            write_json(folder / name, asdict(made))
    else:  # joined from parts of unknown origin: an older file here would be wrong
        (folder / name).unlink(missing_ok=True)


def read(file: Path) -> Provenance | None:
    """Read a file; return None if it is missing or unreadable."""
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        names = [each.name for each in fields(Maker)]
        # Files of an older nullsae may lack fields with a default; others are required.
        jobs = tuple(Maker(**{n: job[n] for n in names if n in job}) for job in data.pop("jobs"))
        return Provenance(jobs=jobs, **data)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def described(job: Maker) -> str:
    """Describe a job in one line, for the head of its log."""
    versions = [
        f"nullsae {job.nullsae}" + (f" ({job.commit})" if job.commit else ""),
        f"Python {job.python}",
        *(
            f"{label} {version}"
            for label, version in (
                ("torch", job.torch),
                ("transformers", job.transformers),
                ("CUDA", job.cuda),
            )
            if version is not None
        ),
    ]
    where = f"{job.device_kind}: {job.device}"
    if job.threads is not None:
        where += f", {job.threads} thread{'s' * (job.threads != 1)}"
    if job.precision is not None:
        where += f", latents chosen in {job.precision}"
    return f"{', '.join(versions)}; {where}; host {job.host}"


@cache
def package_commit() -> str | None:
    """Return the last commit that changed the package, 12 hex digits; None outside a checkout.

    `+` follows if files of the package were changed since. Commits of anything else in the
    repository, such as a study's config, do not count.
    """
    # Installed inside an unrelated repository, the package is in none of its commits.
    found = _git("log", "-1", "--format=%H", "--", ".")
    if not found:
        return None
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".")
    return found[:12] + "+" * bool(changed)


def _git(*arguments: str) -> str | None:
    """Return what git prints in the package's folder, or None if it fails."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments],
            env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def device_name(device: str) -> str:
    """Return the name of a torch device: a GPU's as its driver reports it, else the CPU's."""
    if device.startswith("cuda"):
        import torch

        return str(torch.cuda.get_device_name(device))
    return _cpu_name()


def _cpu_name() -> str:
    try:
        if sys.platform == "darwin":
            command = ["sysctl", "-n", "machdep.cpu.brand_string"]
            text = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout
        else:
            text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
            found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
            text = found[1] if found else ""
    except (OSError, subprocess.TimeoutExpired):
        text = ""
    return " ".join(text.split()) or platform.processor() or platform.machine()
