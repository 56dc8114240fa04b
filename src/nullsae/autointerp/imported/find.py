"""Detects the layout at a path."""

from __future__ import annotations

from pathlib import Path

from nullsae.autointerp.imported.delphi import Delphi
from nullsae.autointerp.imported.layout import Layout
from nullsae.autointerp.imported.neuronpedia import NAMES, Neuronpedia, row_files
from nullsae.autointerp.imported.tabular import SUFFIXES, Tabular
from nullsae.core.errors import UserError


def layout_at(path: Path) -> Layout:
    """Return the reader for the files at a path.

    Raises:
        UserError: the layout is unknown; lists the known ones.
    """
    if path.is_dir():
        if row_files(path):
            return Neuronpedia()
        if (path / "scores").is_dir() or (path / "explanations").is_dir():
            return Delphi()
    elif path.suffix in SUFFIXES:
        return Tabular()
    elif any(path.match(pattern) for pattern in NAMES):
        return Neuronpedia()
    raise UserError(
        f"{path}: neither a folder with explanations or scores of delphi, nor JSON lines of "
        f"Neuronpedia (.jsonl, .jsonl.gz, .json), nor a .csv or .parquet file"
    )
