"""`nullsae report --bundle`: what a bug report needs, in one file without secrets."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import traceback
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from nullsae import __version__, paths
from nullsae.cli.redaction import Redaction
from nullsae.config.plain import read_yaml
from nullsae.config.read import read_merged_config, study_files
from nullsae.core import provenance
from nullsae.core.errors import UserError
from nullsae.core.files import atomic_path

LOG_BYTES, SNAKEMAKE_LOG_BYTES, LOGS_BYTES = 32 << 10, 128 << 10, 4 << 20
CONFIG_BYTES = 256 << 10
SNAKEMAKE_LOGS = 3
MOST_FILES = 50_000
# The earliest date of the zip format: the same study gives the same bytes.
DATE = (1980, 1, 1, 0, 0, 0)
_FAILED = re.compile(
    r"^Error in (?:group job|rule) .*?^ +log: ([^\n]+?)(?: \(check log|$)", re.M | re.S
)
_ERROR = re.compile(r"^(nullsae \w+: error: |Traceback \(most recent call last\))", re.M)


@dataclass(frozen=True)
class Log:
    """The end of a job's log."""

    path: str
    """Relative to the study's folder."""
    end: str
    has_failed: bool


def write_bundle(study: Path, overlays: Sequence[Path], output: Path) -> None:
    """Write versions, config, logs, names and sizes of results, and provenance; print a line.

    Below `results/` only logs, `provenance.json` and `run_config.yaml` are read, so a bundle has
    no text of a corpus, no window and no reply. An unreadable file is named in its place.

    Args:
        study: the folder with the config; it need not have run.
        overlays: config files merged over the study's.
        output: the .zip file.

    Raises:
        UserError: the file's name does not end in .zip.
    """
    if output.suffix != ".zip":
        raise UserError(f"--bundle: {output}: not a .zip file, which GitHub issues accept")
    files = [*study_files(study, overlays)]
    run = study / paths.RUN_CONFIG
    redact = Redaction(_parsed([*files, run]), os.environ, Path.home())
    texts = {f"config/given/{n}-{file.name}": _text(file) for n, file in enumerate(files)}
    texts["config/resolved.yaml"] = _resolved(files)
    if run.is_file():
        texts["config/last_run.yaml"] = _text(run)
    snakemake = sorted((study / ".snakemake/log").glob("*.snakemake.log"))[-SNAKEMAKE_LOGS:]
    for file in snakemake:
        texts[f"logs/snakemake/{file.name}"] = _end(file, SNAKEMAKE_LOG_BYTES)
    named = {path for text in texts.values() for path in _failed(text)}
    logs, n_logs = _logs(study, named)
    for log in logs:
        folder = "failed" if log.has_failed else "others"
        texts[f"logs/{folder}/{log.path.removeprefix('results/logs/')}"] = log.end
    texts["results.txt"], n_files = _listing(study, output)
    texts["provenance.json"] = _json(_makers(study))
    # Versions are no secrets, even if a package is called SecretStorage.
    safe = {"versions.json": _json(versions())}
    _write(output, safe | {redact(name): redact(text) for name, text in texts.items()})
    n_failed = sum(log.has_failed for log in logs)
    print(
        f"{output}: {output.stat().st_size / 1024:,.0f} KB: versions; {len(files)} config "
        f"file{'s' * (len(files) != 1)}, as given and resolved; the ends of {len(logs):,} of "
        f"{n_logs:,} logs ({n_failed:,} of failed jobs); names and sizes of {n_files:,} results; "
        f"provenance. Keys are blanked, texts and replies left out; look through it before you "
        f"send it."
    )


def versions() -> dict[str, Any]:
    """Return what the study would run on here: packages, platform, devices."""
    import torch

    memory = {n: torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())}
    gpus = [f"{one.name}, {one.total_memory >> 20:,} MB" for one in memory.values()]
    installed = {str(one.metadata["Name"]): one.version for one in metadata.distributions()}
    return {
        "nullsae": __version__,
        "commit": provenance.package_commit(),
        "python": sys.version,
        "platform": platform.platform(),
        "cpu": provenance.device_name("cpu"),
        "n_cpus": os.cpu_count(),
        "gpus": gpus,
        "has_mps": torch.backends.mps.is_available(),
        "cuda": torch.version.cuda,
        "packages": dict(sorted(installed.items(), key=lambda pair: pair[0].lower())),
    }


def _parsed(files: Sequence[Path]) -> Iterator[Any]:
    for file in files:
        try:
            yield read_yaml(file)
        except UserError:
            continue  # `config/resolved.yaml` says what is wrong with it


def _text(file: Path) -> str:
    try:
        with open(file, "rb") as stream:
            found = stream.read(CONFIG_BYTES + 1)
    except OSError as error:
        return f"# cannot be read: {error.strerror}\n"
    if len(found) <= CONFIG_BYTES:
        return found.decode("utf-8", "replace")
    # The cut may be inside a key: drop the last line.
    start = found[:CONFIG_BYTES].rpartition(b"\n")[0]
    return start.decode("utf-8", "replace") + f"\n# longer than {CONFIG_BYTES:,} bytes\n"


def _resolved(files: list[Path]) -> str:
    """Return the current config as the rules see it, or why it is not valid."""
    try:
        config = read_merged_config(files)
        return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    except UserError as error:
        return f"# {error}\n"
    except Exception:  # the bug may be in what checks a config
        return "".join(f"# {line}\n" for line in traceback.format_exc().splitlines())


def _end(file: Path, most_bytes: int) -> str:
    """Return the last whole lines of a log."""
    try:
        with open(file, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - most_bytes))
            data = stream.read()
    except OSError as error:
        return f"cannot be read: {error.strerror}\n"
    if size <= most_bytes:
        return data.decode("utf-8", "replace")
    # The rest of a key that begins before the cut would not be recognized: drop its line.
    whole = data.partition(b"\n")[2]
    return f"... {size - len(whole):,} bytes before\n" + whole.decode("utf-8", "replace")


def _failed(text: str) -> Iterator[str]:
    """Yield the logs of jobs that failed according to Snakemake's log."""
    for found in _FAILED.finditer(text):
        yield from found[1].split(", ")


def _logs(study: Path, named: set[str]) -> tuple[list[Log], int]:
    """Return the ends of logs, failed jobs first, then the newest, and the number of logs."""
    found = sorted(
        (file for file in (study / "results/logs").rglob("*.log") if file.is_file()),
        key=lambda file: (-file.stat().st_mtime_ns, file),
    )
    logs = []
    for file in found:
        path, end = file.relative_to(study).as_posix(), _end(file, LOG_BYTES)
        logs.append(Log(path, end, path in named or _ERROR.search(end) is not None))
    kept, room = [], LOGS_BYTES
    for log in sorted(logs, key=lambda log: not log.has_failed):
        room -= len(log.end.encode())
        if room < 0:
            break
        kept.append(log)
    return kept, len(logs)


def _listing(study: Path, output: Path) -> tuple[str, int]:
    """Return a list of size in bytes and path of the files below `results/`, and their number."""
    found = sorted(
        (file.relative_to(study).as_posix(), file.lstat().st_size)
        for file in (study / "results").rglob("*")
        if not file.is_dir() and file.absolute() != output.absolute()
    )
    lines = [f"{size:>14,}  {path}" for path, size in found[:MOST_FILES]]
    if rest := found[MOST_FILES:]:
        lines.append(f"{sum(size for _, size in rest):>14,}  in {len(rest):,} more files")
    lines.append(f"{sum(size for _, size in found):>14,}  in total")
    return "\n".join(lines) + "\n", len(found)


def _makers(study: Path) -> list[dict[str, Any]]:
    """Return the provenance of all results: each record once, with its files."""
    made: dict[str, list[str]] = {}
    for file in sorted((study / "results").rglob("provenance*.json")):
        found = provenance.read(file)
        said: dict[str, Any] = {"jobs": "not readable"}
        if found is not None:
            read = sorted(f"{what}@{commit}" for what, commit in found.revisions.items())
            said = {"jobs": [asdict(job) for job in found.jobs], "revisions": read}
            said["tokens_seen"] = found.tokens_seen
        made.setdefault(json.dumps(said, sort_keys=True), []).append(
            file.relative_to(study).as_posix()
        )
    return [{**json.loads(said), "files": files} for said, files in made.items()]


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _write(output: Path, texts: dict[str, str]) -> None:
    with (
        atomic_path(output) as temporary,
        zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
    ):
        for name, text in texts.items():
            member = zipfile.ZipInfo(name, DATE)
            member.compress_type = zipfile.ZIP_DEFLATED
            member.external_attr = 0o644 << 16
            archive.writestr(member, text)
