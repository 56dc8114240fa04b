"""Rows of Neuronpedia: JSON lines of its exports, or responses of its API as JSON.

    SOURCE/explanations/batch-0.jsonl.gz    one explanation per row
    features.jsonl                          one feature per row, with its list `explanations`

An explanation has `index`, `description`, `explanationModelName`, `layer` (the source) and perhaps
`scores`, each with `value`, `explanationScoreTypeName`, `explanationScoreModelName` and, in
`jsonDetails`, the judged windows as delphi writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nullsae.autointerp.imported.delphi import judged_windows
from nullsae.autointerp.imported.layout import About, Layout, OncePerLatent, Said, Scored, Selection
from nullsae.autointerp.imported.reading import (
    fail,
    files_in,
    json_file,
    json_value,
    latent_of,
    lines,
    share_of,
    shown,
)

Row = dict[str, Any]
WRITER = "explanationModelName"
NAMES = ("*.jsonl", "*.jsonl.gz", "*.json", "*.json.gz")
OTHER_MODELS = "keep one, or select by `model`"


class Neuronpedia(Layout):
    """A file of rows, or a folder of such files."""

    def explanations(self, path: Path, about: About) -> Mapping[int, Said]:
        found = OncePerLatent[Said](OTHER_MODELS)
        selection = Selection(source=about.source, model=about.model)
        for where, latent, row in _explanations(path, about, selection):
            said = Said(_text(row, "description", where), _text(row, WRITER, where))
            found.add(latent, said, where)
        return selection.of(found.found, path)

    def scores(self, path: Path, about: About) -> Mapping[int, Scored]:
        found = OncePerLatent[Scored]("keep one, or select by `model`, `scores` and `judge`")
        selection = Selection(
            source=about.source, model=about.model, scores=about.scores, judge=about.judge
        )
        for where, latent, row in _explanations(path, about, selection):
            scores = row.get("scores") or []
            if not isinstance(scores, list) or not all(isinstance(one, dict) for one in scores):
                fail(where, "scores is not a list of objects")
            for score in scores:
                judge = _text(score, "explanationScoreModelName", where)
                kind = _text(score, "explanationScoreTypeName", where)
                if selection.takes("scores", kind) and selection.takes("judge", judge):
                    found.add(latent, _scored(score, judge, about.metric, where), where)
        return selection.of(found.found, path)


def _scored(score: Row, judge: str | None, metric: str | None, where: str) -> Scored:
    details = score.get("jsonDetails") or "[]"
    rows = json_value(details, f"{where}, jsonDetails") if isinstance(details, str) else details
    told = {"activating", "ground_truth"}
    if isinstance(rows, list) and rows and all(isinstance(r, dict) and told & set(r) for r in rows):
        return Scored(judged_windows(rows, f"{where}, jsonDetails"), judge=judge)
    if metric is None:
        fail(
            where,
            "a score without its windows; set `metric` to what the number is, such as "
            "balanced_accuracy",
        )
    return Scored(metrics={metric: share_of(score.get("value"), "value", where)}, judge=judge)


def _explanations(path: Path, about: About, selection: Selection) -> Iterator[tuple[str, int, Row]]:
    """Yield each explanation of the requested source and model: its place, latent and row."""
    sources: dict[str, None] = {}
    for where, row in _rows(path):
        nested = row.get("explanations")
        if nested is None and "description" not in row:
            fail(where, "has neither description nor explanations, unlike rows of Neuronpedia")
        if not isinstance(nested or [], list):
            fail(where, "explanations is not a list")
        for one in [row] if nested is None else nested:
            if not isinstance(one, dict):
                fail(where, "an explanation is not an object")
            own = {**{key: row.get(key) for key in ("index", "layer")}, **one}
            source = _text(own, "layer", where)
            if source is not None:
                if not selection.takes("source", source):
                    continue
                sources[source] = None
                if len(sources) > 1:
                    names = ", ".join(map(shown, sources))
                    fail(where, f"latents of several sources ({names}); name one with `source`")
            if not selection.takes("model", _text(own, WRITER, where)):
                continue
            yield where, latent_of(own.get("index"), about.n_latents, where), own


def _rows(path: Path) -> Iterator[tuple[str, Row]]:
    for file in row_files(path):
        rows: Iterator[tuple[str, Any]]
        if ".jsonl" in file.suffixes:
            rows = ((where, json_value(line, where)) for where, line in lines(file) if line.strip())
        else:
            held = json_file(file)
            listed = held if isinstance(held, list) else [held]
            rows = ((f"{file}, entry {n}", row) for n, row in enumerate(listed, 1))
        for where, row in rows:
            if not isinstance(row, dict):
                fail(where, "not a JSON object, as each row must be")
            yield where, row


def row_files(path: Path) -> list[Path]:
    """Return the files of rows at a path; in a source's folder, those below `explanations`."""
    if not path.is_dir():
        return [path]
    inside = path / "explanations"
    folder = inside if inside.is_dir() else path
    return [file for pattern in NAMES for file in files_in(folder, pattern)]


def _text(row: Row, name: str, where: object) -> str | None:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        fail(where, f"{name} {shown(value)} is not a text")
    return value
