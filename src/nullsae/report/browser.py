"""The latents of the page's browser: numbers, explanations, windows and tokens, cell by cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from operator import and_
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from nullsae import paths, tables
from nullsae.aggregation.ranking import ALL
from nullsae.config.metrics import METRICS
from nullsae.core.visible import visible
from nullsae.corpus.token_text import read_tokenizer
from nullsae.report import style
from nullsae.report.names import shown_explainer
from nullsae.report.study import Row, Study, thin
from nullsae.report.text import TokenText, inked

MAX_SAES = 2
"""Number of SAEs in the browser: the first ones of the config."""
MAX_CELLS = 96
"""Combinations of variant, site and SAE in it; with more, fewer sites are shown."""
MAX_LATENTS = 3000
"""Latents of all cells together, which limits the page's size."""
COLUMNS = {
    "latent": ("Latent", "its index in the dictionary", "count"),
    "firing_share": ("Fires", "share of tokens on which it fires", "percent"),
    "token_entropy_corrected_bits": ("Entropy", "of its tokens, in bits (Miller-Madow)", "number"),
    "next_token_auroc": ("Next token", "next-token AUROC by direct effect", "number"),
}
"""The columns of `latents` that are shown: title, meaning, number format."""
_READ = (
    *("subject", "variant", "draw", "site", "sae", "seed", "passes_filter", "sampled"),
    *COLUMNS,
    *("max_activation", "peak_token", "peak_token_share"),
    *("promoted_tokens", "promoted_effects", "suppressed_tokens", "suppressed_effects"),
)
_RANKED = (
    *("subject", "variant", "draw", "site", "sae", "seed"),
    *("latent", "metric", "null", "q"),
)
_DIGITS = 4
"""Significant digits of the numbers that rows are sorted by."""
_FEWER_DIGITS = 3
"""Significant digits of other numbers: activations and effects on single tokens."""


def browser(study: Study) -> dict[str, Any] | None:
    """Return what `templates/browser.js` shows as plain values; None if the config wants no
    latents.

    For each cell (draw 0, first seed, first explainer), the sampled latents come first, followed by
    others that pass the filter, spread evenly over the dictionary. Text from corpora and models is
    passed through `visible`; scripts must insert it as text.

    Raises:
        UserError: a cell's windows or a tokenizer are missing or damaged.
    """
    config = study.config
    places = [
        (subject, site, sae)
        for subject in config.subjects
        for site in shown_sites(study, subject)
        for sae in shown_saes(study)
    ]
    n = min(config.report.n_example_latents, MAX_LATENTS // (len(places) * len(study.variants)))
    if not n:
        return None
    latents, ranked = _latents(study), _ranked(study)
    metrics = set(ranked["metric"].to_pylist())
    texts = {
        name: TokenText(
            read_tokenizer(study.root / paths.TOKENIZER_FILE.format(corpus=section.corpus))
        )
        for name, section in config.subjects.items()
    }
    return {
        "variants": [{"name": name, "colour": style.colour(name)} for name in study.variants],
        "metrics": [
            {"name": name, "title": metric.title.partition(" (")[0]}
            for name, metric in METRICS.items()
            if name in metrics
        ],
        "all": ALL,
        "null": next(iter((*study.nulls, *study.compared, *study.variants))),
        "columns": [
            *([key, *told] for key, told in COLUMNS.items()),
            *(
                [scorer, scorer, f"AUROC of {scorer}, explained by {explainer}", "number"]
                for explainer, scorer in _judges(study)
            ),
        ],
        "places": [
            {
                "title": place_title(study, *place),
                "cells": {
                    variant: _cell(study, latents, ranked, n, texts[place[0]], variant, *place)
                    for variant in study.variants
                },
            }
            for place in places
        ],
    }


def browser_rule(study: Study) -> str:
    """Describe which latents the browser shows."""
    config = study.config
    saes = shown_saes(study)
    sites = {name: (shown_sites(study, name), s.sites) for name, s in config.subjects.items()}
    rule = (
        "Latents are not hand-picked: those sampled for the judges, and others that pass the "
        "filter, spread evenly over the dictionary; draw 0 and the first seed"
    )
    if judges := _judges(study):
        rule += f", with the explanations of {judges[0][0]}"
    left_out = []
    if len(saes) < len(config.saes):
        left_out.append(f"of {len(config.saes)} SAEs {' and '.join(saes)}")
    if any(len(some) < len(every) for some, every in sites.values()):
        n_shown, n_all = (sum(len(pair[i]) for pair in sites.values()) for i in (0, 1))
        left_out.append(f"{n_shown} of {n_all} sites")
    return f"{rule}." + (f" To keep the page small: {', '.join(left_out)}." if left_out else "")


def shown_saes(study: Study) -> list[str]:
    """List the SAEs whose latents are shown."""
    return list(study.config.saes)[:MAX_SAES]


def shown_sites(study: Study, subject: str) -> list[str]:
    """List the sites whose latents are shown: as many as fit, evenly spread."""
    cells_per_site = len(study.config.subjects) * len(study.variants) * len(shown_saes(study))
    return thin(study.config.subjects[subject].sites, max(1, MAX_CELLS // cells_per_site))


def strongest(windows: pa.Table, latents: Sequence[int], n: int) -> dict[int, list[Row]]:
    """Select the `n` active windows of each latent with the largest activations, strongest first.

    `windows` are rows of that table, from any pool; two pools may share a window. Ties go to the
    earlier window in the split.
    """
    found: dict[int, list[Row]] = {latent: [] for latent in latents}
    wanted = windows.filter(
        pc.field("active") & pc.field("latent").isin(pa.array(latents, type=pa.int64()))
    )
    if not wanted.num_rows:
        return found
    activations = wanted["activations"].combine_chunks()
    starts = activations.offsets.to_numpy()[:-1] - activations.offsets[0].as_py()
    peak = np.maximum.reduceat(activations.flatten().to_numpy(), starts)
    latent, window = (wanted[name].to_numpy() for name in ("latent", "window"))
    # This order puts copies of a window from two pools next to each other.
    order = np.lexsort((window, -peak, latent))
    own = np.stack([latent[order], window[order]])
    order = order[np.r_[True, (np.diff(own) != 0).any(axis=0)]]
    rank = np.arange(len(order)) - np.searchsorted(latent[order], latent[order])
    for row in wanted.take(order[rank < n]).to_pylist():
        found[row["latent"]].append(row)
    return found


def _latents(study: Study) -> pa.Table:
    """Read the rows of `latents` that pass the filter, for draw 0 and the SAEs and variants shown.

    `study.tables` has only the sampled ones.
    """
    table = tables.read_whole(study.root, "latents", columns=_READ)
    saes = pa.array(shown_saes(study), type=pa.string())
    return table.filter(
        pc.field("passes_filter") & (pc.field("draw") == 0) & pc.field("sae").isin(saes)
    )


def _ranked(study: Study) -> pa.Table:
    """Read the rows of `latents_ranked` for the same cells; empty if a study has no such table."""
    if not (study.root / paths.TABLE.format(table="latents_ranked")).is_file():
        return tables.SCHEMAS["latents_ranked"].empty_table()
    table = tables.read_whole(study.root, "latents_ranked", columns=_RANKED)
    saes = pa.array(shown_saes(study), type=pa.string())
    has_q = pc.field("q").is_valid()
    return table.filter(has_q & (pc.field("draw") == 0) & pc.field("sae").isin(saes))


def _judges(study: Study) -> list[tuple[str, str]]:
    """Return the explainer whose explanations are shown, with each of its scorers."""
    explainer = shown_explainer(study.config)
    return [pair for pair in study.config.scored_pairs() if pair[0] == explainer]


def place_title(study: Study, *place: str) -> str:
    """Return what distinguishes a subject, site and SAE from the others."""
    config = study.config
    several = (len(config.subjects) > 1, True, len(config.saes) > 1)
    told = (word for word, is_told in zip(place, several, strict=True) if is_told)
    return " · ".join(told)


def _cell(
    study: Study,
    latents: pa.Table,
    ranked: pa.Table,
    n: int,
    text: TokenText,
    variant: str,
    *place: str,
) -> dict[str, Any]:
    """Return `n` latents of a cell, `no_effects` (why none affects logits), and `q`.

    For each metric and null of `latents_ranked`, `q` lists the values of these latents in order.
    """
    subject, site, sae = place
    keys: dict[str, Any] = {
        **{"subject": subject, "variant": variant, "draw": 0},
        **{"site": site, "sae": sae, "seed": study.config.saes[sae].seeds[0]},
    }
    rows = _of_cell(latents, keys).to_pylist()
    sampled, rest = ([r for r in rows if r["sampled"] == which] for which in (True, False))
    rows = [*thin(sampled, n), *(thin(rest, n - len(sampled)) if len(sampled) < n else [])]
    covered = study.rows("coverage", **keys)
    return {
        "latents": _shown(study, keys, rows, text),
        "no_effects": next((visible(row["no_effects"] or "") for row in covered), ""),
        "q": _q(_of_cell(ranked, keys), [row["latent"] for row in rows]),
    }


def _of_cell(table: pa.Table, keys: Mapping[str, Any]) -> pa.Table:
    """Return the rows of a cell, sorted by latent."""
    own = reduce(and_, (pc.field(key) == value for key, value in keys.items()))
    return table.filter(own).sort_by("latent")


def _q(ranked: pa.Table, latents: Sequence[int]) -> dict[str, dict[str, list[float | None]]]:
    """Return the q of each of these latents, by metric and null."""
    place = {latent: i for i, latent in enumerate(latents)}
    found: dict[str, dict[str, list[float | None]]] = {}
    wanted = ranked.filter(pc.field("latent").isin(pa.array(latents, type=pa.int64())))
    for row in wanted.to_pylist():
        by_null = found.setdefault(row["metric"], {})
        column = by_null.setdefault(row["null"], [None] * len(latents))
        column[place[row["latent"]]] = _rounded(row["q"])
    return found


def _shown(
    study: Study, keys: Mapping[str, Any], rows: Sequence[Row], text: TokenText
) -> list[dict[str, Any]]:
    """Return each latent: `numbers` in the order of the columns, and its details."""
    sampled = [row["latent"] for row in rows if row["sampled"]]
    windows: dict[int, list[Row]] = {}
    if sampled:
        table = tables.read_table(
            study.root / paths.WINDOWS.format(**keys),
            tables.cell_schema("windows"),
            columns=("latent", "window", "active", "token_ids", "activations"),
        )
        windows = strongest(table, sampled, study.config.report.n_example_windows)
    explained = {row["latent"]: row for row in study.rows("explanations", **keys)}
    scores = {(row["scorer"], row["latent"]): row["auroc"] for row in study.rows("scores", **keys)}
    scorers = [scorer for _, scorer in _judges(study)]
    found = []
    for row in rows:
        latent = row["latent"]
        numbers = [row[name] for name in COLUMNS]
        numbers += [scores.get((scorer, latent)) for scorer in scorers]
        shown: dict[str, Any] = {"numbers": [_rounded(number) for number in numbers]}
        if row["peak_token"] is not None and row["peak_token_share"] is not None:
            peak = inked(text.one(row["peak_token"]))
            shown["peak"] = [peak, _rounded(row["peak_token_share"])]
        if row["sampled"]:
            shown |= _details(row, explained.get(latent), windows[latent], text)
        found.append(shown)
    return found


def _details(
    row: Row, explained: Row | None, windows: Sequence[Row], text: TokenText
) -> dict[str, Any]:
    """Return the details that only sampled latents have.

    A window is a list of stretches: text, or text and activation for an active token.
    """
    found: dict[str, Any] = {
        "max": _rounded(row["max_activation"]),
        "windows": [
            [
                [piece.text, _rounded(piece.activation, _FEWER_DIGITS)]
                if piece.activation > 0
                else piece.text
                for piece in text.pieces(w["token_ids"], w["activations"])
            ]
            for w in windows
        ],
    }
    if explained is not None and explained["explanation"] is not None:
        found["explanation"] = visible(explained["explanation"])
        if explained["source_latent"] != row["latent"]:
            found["source"] = explained["source_latent"]
    for end in ("promoted", "suppressed"):
        tokens, effects = (row[f"{end}_{what}"] or [] for what in ("tokens", "effects"))
        found[end] = [
            [inked(text.one(token)), _rounded(effect, _FEWER_DIGITS)]
            for token, effect in zip(tokens, effects, strict=True)
        ]
    return found


def _rounded(number: float | None, digits: int = _DIGITS) -> float | int | None:
    """Round a number to a few significant digits; integers stay as they are."""
    if number is None or isinstance(number, int):
        return number
    return float(f"{number:.{digits}g}")
