"""A running verb: the head of its log, its progress, and the provenance of its outputs."""

from __future__ import annotations

import glob
import json
import logging
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nullsae.core.errors import UserError

if TYPE_CHECKING:
    from nullsae.config.section import Section
    from nullsae.core.progress import Bar

log = logging.getLogger(__name__)


@contextmanager
def job(
    verb: str,
    unit: str,
    params: Section | None = None,
    *,
    reads: Iterable[Path | None] = (),
    makes: Iterable[Path | str] = (),
    parts: Iterable[Path] = (),
    on_cpu: bool = False,
    about: str = "",
) -> Iterator[Bar]:
    """Log what runs on what, yield a progress bar, and record provenance of the outputs.

    Enter it after the stage is imported: the head of the log names torch only if it is loaded.

    Args:
        verb: its name.
        unit: what the bar counts.
        params: params of the job; the log names their `compute` and `dtype`.
        reads: inputs; the log gives their sizes.
        makes: outputs; the folder of each gets a `provenance.json` at the end of the block. Stages
            whose jobs resume others' work record it themselves instead. A pattern such as
            `results/sae={sae}/a.parquet` stands for those matching folders or files that the
            block wrote.
        parts: outputs of other jobs, if this one only joins them.
        on_cpu: whether the job uses only the CPU, despite `compute`.
        about: further sizes, in words, that no input has.
    """
    # Imported here, because listing the verbs needs none of it.
    from nullsae.config.compute import precision_on
    from nullsae.core import provenance
    from nullsae.core.progress import bar

    compute = getattr(params, "compute", None)
    device = "cpu" if compute is None or on_cpu else _picked(compute.device)
    threads = None if compute is None else compute.threads
    precision = getattr(params, "precision", None)
    made_with: dict[str, Any] = {"device": device, "dtype": _dtype(params), "threads": threads}
    made_with["precision"] = precision and precision_on(precision, device.partition(":")[0])
    with provenance.at_work(verb, **made_with):
        log.info("%s", provenance.described(provenance.this_job()))
        if sizes := [*filter(None, (about, *(size_of(file) for file in reads if file)))]:
            log.info("%s: %s", verb, "; ".join(sizes))
        one = [Path(made) for made in makes if not _is_pattern(made)]
        many = [str(made) for made in makes if _is_pattern(made)]
        before = _stamps(many)
        with bar(verb, unit) as progress:
            yield progress
        one += [file for file, stamp in _stamps(many).items() if before.get(file) != stamp]
        joined = [file.parent / provenance.FILE for file in parts]
        for folder in dict.fromkeys(made.parent if made.is_file() else made for made in one):
            provenance.record(folder, parts=joined, own=not joined)


def _is_pattern(made: Path | str) -> bool:
    return "{" in str(made)


def _stamps(patterns: Iterable[str]) -> dict[Path, int]:
    """Return the time of each file that matches a pattern, or lies in a folder that does."""
    from nullsae.core.provenance import FILE

    found: dict[Path, int] = {}
    for pattern in patterns:
        anywhere = "*".join(glob.escape(part) for part in re.split(r"\{\w+\}", pattern))
        for path in map(Path, sorted(glob.glob(anywhere))):
            files = path.iterdir() if path.is_dir() else [path]
            found |= {f: f.stat().st_mtime_ns for f in files if f.name != FILE}
    return found


def _picked(device: str) -> str:
    """Return the device that `compute.device` means; the stage reports one that is missing."""
    from nullsae.core.devices import device_of

    try:
        return str(device_of(device))
    except UserError:
        return "cpu"


def _dtype(params: Section | None) -> str | None:
    """Return the dtype that a job stores or computes in; None if it does not use torch."""
    for section in (params, getattr(params, "source", None)):
        if found := getattr(section, "dtype", None):
            return str(found)
    return "float32" if "torch" in sys.modules else None


def size_of(file: Path) -> str:
    """Describe an input's size in words; empty if the size is unknown or the file is missing."""
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            return f"{file.name}: {pq.read_metadata(file).num_rows:,} rows"
        if file.suffix != ".json":
            return ""
        if file.name == "recipe.json":
            return _of_model(file)
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if "n_contexts" in found:
            return (
                f"{found['corpus']} {found['split']}: {found['n_tokens']:,} tokens in "
                f"{found['n_contexts']:,} contexts, {found['n_documents']:,} documents"
            )
        if "sites" in found:
            return _of_activations(file, found)
        if "n_latents" in found:
            return (
                f"{found['architecture']} SAE: {found['n_latents']:,} latents of "
                f"{found['d_model']:,} dimensions"
            )
    except Exception:  # a damaged file may raise anything; the stage reports it
        return ""
    return ""


def _of_model(file: Path) -> str:
    import pyarrow.parquet as pq

    row = pq.read_table(file.with_name("model.parquet")).to_pylist()[0]
    return f"model: {row['n_parameters']:,} parameters"


def _of_activations(file: Path, found: dict[str, Any]) -> str:
    """Describe the size of a captured split."""
    tokens = sorted({site["n_tokens"] for site in found["sites"].values()})
    widths = sorted(
        {
            json.loads((file.parent / f"site={site}" / "manifest.json").read_text())["d_model"]
            for site in found["sites"]
        }
    )
    n_tokens, d_model = (
        " to ".join(f"{n:,}" for n in dict.fromkeys((found[0], found[-1])))
        for found in (tokens, widths)
    )
    n_sites = len(found["sites"])
    return (
        f"activations {found['split']}: {n_tokens} tokens of {d_model} dimensions, "
        f"{n_sites} site{'s' * (n_sites != 1)}"
    )
