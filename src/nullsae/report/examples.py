"""A few latents of each cell with their strongest windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nullsae import paths, tables
from nullsae.report.names import shown_explainer
from nullsae.report.study import Row, Study, thin
from nullsae.report.text import TokenText

MAX_SAES = 2
"""Number of SAEs with examples on the page: the first ones of the config."""
MAX_CELLS = 96
"""Variants, sites and SAEs with examples; with more, fewer sites are shown."""
RULE = (
    "Latents are not picked by hand: the sampled latents of a cell are ranked by their largest "
    "activation and cut into equal slices, and the middle one of each slice is shown."
)


def pick(sampled: Sequence[Row], n: int) -> list[Row]:
    """The middle latent of each of `n` equal slices of a ranking by largest activation.

    Ties are broken by the latent's index. All latents where there are at most `n`.
    """
    ranked = sorted(sampled, key=lambda row: (-row["max_activation"], row["latent"]))
    if len(ranked) <= n:
        return ranked
    return [ranked[(2 * i + 1) * len(ranked) // (2 * n)] for i in range(n)]


def strongest(windows: pa.Table, latents: Sequence[int], n: int) -> dict[int, list[Row]]:
    """The `n` active windows of each latent with the largest activations, strongest first.

    `windows` are rows of that table, of any pool; a window may stand in two of them. Ties go to
    the window that stands first in the split.
    """
    wanted = windows.filter(
        pc.field("active") & pc.field("latent").isin(pa.array(latents, type=pa.int64()))
    )
    found: dict[int, dict[int, Row]] = {latent: {} for latent in latents}
    for row in wanted.to_pylist():
        found[row["latent"]][row["window"]] = row
    return {
        latent: sorted(rows.values(), key=lambda row: (-max(row["activations"]), row["window"]))[:n]
        for latent, rows in found.items()
    }


def shown_saes(study: Study) -> list[str]:
    """The SAEs whose latents are shown."""
    return list(study.config.saes)[:MAX_SAES]


def shown_sites(study: Study, subject: str) -> list[str]:
    """The sites whose latents are shown: all that the page has room for, evenly spread."""
    cells_per_site = len(study.variants) * len(shown_saes(study))
    return thin(study.config.subjects[subject].sites, max(1, MAX_CELLS // cells_per_site))


def example_cells(study: Study, subject: str, site: str, text: TokenText) -> list[Row]:
    """Examples of each variant and shown SAE at a site: draw 0, first seed, first explainer.

    Each has `variant`, `sae` and `examples`: for each latent `latent`, `statistics` (its row of
    `latents`), `peak_token`, `explanation`, `source_latent`, `scores` (scorer, AUROC, number
    of windows without an answer), `windows` (their pieces), `promoted` and `suppressed` (text and
    effect of tokens; empty without effects) and `no_effects` (why).

    Raises:
        UserError: a cell's windows are missing or damaged.
    """
    cells: list[Row] = []
    for variant in study.variants:
        for name in shown_saes(study):
            keys: dict[str, Any] = {
                **{"subject": subject, "variant": variant, "draw": 0},
                **{"site": site, "sae": name, "seed": study.config.saes[name].seeds[0]},
            }
            examples = _examples(study, keys, text)
            cells.append({"variant": variant, "sae": name, "examples": examples})
    return cells


def _examples(study: Study, keys: dict[str, Any], text: TokenText) -> list[Row]:
    config = study.config
    chosen = pick(study.rows("latents", **keys), config.report.n_example_latents)
    if not chosen:
        return []
    table = tables.read_table(
        study.root / paths.WINDOWS.format(**keys),
        tables.cell_schema("windows"),
        columns=("latent", "window", "active", "token_ids", "activations"),
    )
    windows = strongest(table, [row["latent"] for row in chosen], config.report.n_example_windows)
    explainer = shown_explainer(config)
    explained = study.rows("explanations", **keys, explainer=explainer)
    explanations = {row["latent"]: row for row in explained}
    scores = study.rows("scores", **keys, explainer=explainer)
    found = {(row["scorer"], row["latent"]): row for row in scores}
    (covered,) = study.rows("coverage", **keys)
    scorers = [scorer for name, scorer in config.scored_pairs() if name == explainer]
    return [
        {
            "latent": latent,
            "statistics": row,
            "peak_token": None if row["peak_token"] is None else text.one(row["peak_token"]),
            "explanation": explanations.get(latent, {}).get("explanation"),
            "source_latent": explanations.get(latent, {}).get("source_latent"),
            "scores": [
                (scorer, score.get("auroc"), score.get("n_failed"))
                for scorer in scorers
                for score in (found.get((scorer, latent), {}),)
            ],
            "windows": [
                text.pieces(w["token_ids"], w["activations"], row["max_activation"])
                for w in windows[latent]
            ],
            **{end: _named(row, end, text) for end in ("promoted", "suppressed")},
            "no_effects": covered["no_effects"],
        }
        for row in chosen
        for latent in (row["latent"],)
    ]


def _named(row: Row, end: str, text: TokenText) -> list[tuple[str, float]]:
    """Text and effect of the tokens that a latent promotes or suppresses most."""
    tokens, effects = (row[f"{end}_{what}"] or [] for what in ("tokens", "effects"))
    return [(text.one(token), effect) for token, effect in zip(tokens, effects, strict=True)]
