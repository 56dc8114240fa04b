"""A few latents of each cell with their strongest windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nullsae import paths, tables
from nullsae.report.names import shown_explainer
from nullsae.report.study import Row, Study, thin
from nullsae.report.text import Piece, TokenText

MAX_SAES = 2
"""Number of SAEs with examples on the page: the first ones of the config."""
MAX_CELLS = 96
"""Variants, sites and SAEs with examples; with more, fewer sites are shown."""
RULE = (
    "Latents are not picked by hand: the sampled latents of a cell are ranked by their largest "
    "activation and cut into equal slices, and the middle one of each slice is shown."
)


@dataclass(frozen=True)
class Example:
    """One latent as the page shows it."""

    latent: int
    statistics: Row
    """Its row of `latents`."""
    peak_token: str | None
    explanation: str | None
    source_latent: int | None
    scores: list[tuple[str, float | None]]
    """Scorer and AUROC."""
    windows: list[list[Piece]]


@dataclass(frozen=True)
class ExampleCell:
    """The examples of one variant at one site."""

    variant: str
    sae: str
    examples: list[Example]


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

    Args:
        windows: rows of the table `windows`, of any pool; a window may stand in two of them.
        latents: the latents wanted.
        n: windows per latent; ties go to the window that stands first in the split.
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


def example_cells(study: Study, subject: str, site: str, text: TokenText) -> list[ExampleCell]:
    """Examples of each variant and shown SAE at a site: draw 0, first seed, first explainer.

    Raises:
        UserError: a cell's windows are missing or damaged.
    """
    config = study.config
    cells = []
    for variant in study.variants:
        for name in shown_saes(study):
            keys: dict[str, Any] = {
                **{"subject": subject, "variant": variant, "draw": 0},
                **{"site": site, "sae": name, "seed": config.saes[name].seeds[0]},
            }
            cells.append(ExampleCell(variant, name, _examples(study, keys, text)))
    return cells


def _examples(study: Study, keys: dict[str, Any], text: TokenText) -> list[Example]:
    report, config = study.config.report, study.config
    chosen = pick(study.rows("latents", **keys), report.n_example_latents)
    if not chosen:
        return []
    table = tables.read_table(
        study.root / paths.WINDOWS.format(**keys),
        tables.cell_schema("windows"),
        columns=("latent", "window", "active", "token_ids", "activations"),
    )
    ids = [row["latent"] for row in chosen]
    windows = strongest(table, ids, report.n_example_windows)
    explainer = shown_explainer(config)
    explanations = {
        row["latent"]: row for row in study.rows("explanations", **keys, explainer=explainer)
    }
    scores = {
        scorer: {
            row["latent"]: row["auroc"]
            for row in study.rows("scores", **keys, explainer=explainer, scorer=scorer)
        }
        for name, scorer in config.scored_pairs()
        if name == explainer
    }
    found = []
    for row in chosen:
        latent, explained = row["latent"], explanations.get(row["latent"], {})
        peak = row["peak_token"]
        found.append(
            Example(
                latent=latent,
                statistics=row,
                peak_token=text.one(peak) if peak is not None else None,
                explanation=explained.get("explanation"),
                source_latent=explained.get("source_latent"),
                scores=[(name, of.get(latent)) for name, of in scores.items()],
                windows=[
                    text.pieces(w["token_ids"], w["activations"], row["max_activation"])
                    for w in windows[latent]
                ],
            )
        )
    return found
