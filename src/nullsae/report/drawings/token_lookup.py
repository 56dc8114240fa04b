"""The SAE next to a table of token means."""

from __future__ import annotations

from typing import Any

from nullsae.config.variants import GAUSSIAN, floor_name
from nullsae.report import charts, compact, panels
from nullsae.report.kinds import FigureKind
from nullsae.report.study import Row, Study, mean

LOOKUP = {"SAE": "circle", "token lookup": "diamond", "Gaussian floor": "triangle-down"}
COLUMN = "token means"


class TokenLookup(FigureKind):
    """Explained variance of the SAEs next to that of a mean per token id."""

    name = "token_lookup"
    section, place = "tokens", 55
    title = "SAE and token lookup"
    definition = (
        "Explained variance of the SAE next to that of a table that predicts the mean activation "
        "of each token id."
    )
    reading = (
        "If the table comes close to the SAE, or beats it, the activations contain little more "
        "than token identity."
    )

    def draw(self, study: Study, subject: str) -> tuple[Any, str]:
        """Return the chart, both on one scale or a matrix of SAEs, and its caption."""
        config, subtitle = study.config, "explained variance, mean over draws and seeds"
        if not study.compact:
            columns = {"SAE": "explained_variance", "token lookup": "token_lookup_r2"}
            rows = study.rows("reconstruction", subject=subject)
            rows = panels.averages(study, subject, rows, columns) + _floors(study, subject)
            there = {row["quantity"] for row in rows}
            shapes = {name: shape for name, shape in LOOKUP.items() if name in there}
            frame = charts.Frame(panels.columns(study, subject), self.title, subtitle)
            return charts.ranges(rows, study.variants, frame, quantities=shapes), self.caption

        def explained(site: str, variant: str) -> dict[str, float | None]:
            rows = study.rows("reconstruction", subject=subject, site=site, variant=variant)
            return {
                sae: mean(row["explained_variance"] for row in rows if row["sae"] == sae)
                for sae in config.saes
            }

        def in_row(site: str, variant: str) -> compact.Cells:
            rows = study.rows("reconstruction", subject=subject, site=site, variant=variant)
            floor = mean(row["token_lookup_r2"] for row in rows)
            margins = {
                sae: 0.0 if own is None else config.statistics.margin("explained_variance", own)
                for sae, own in explained(site, "trained").items()
            }
            return {COLUMN: (floor, None)} | {
                sae: (value, compact.distance(value, floor, margins[sae]))
                for sae, value in explained(site, variant).items()
            }

        return compact.draw(
            *(study, subject, self, in_row),
            subtitle=subtitle,
            ground="minus token means, in margins",
            caption="The colour shows the SAE minus the token means of the same row, in margins of "
            f"explained variance ({config.statistics.margin_rule('explained_variance')}).",
            first_columns=(COLUMN,),
        )


def _floors(study: Study, subject: str) -> list[Row]:
    """Return the explained variance of each variant's Gaussian floor, if any."""
    found = []
    for variant in study.variants if study.config.evaluation.gaussian_floors else ():
        rows = [row for row in study.floors if row["variant"] == floor_name(variant)]
        if variant == "trained" and GAUSSIAN in study.variants:
            rows = study.rows("reconstruction", variant=GAUSSIAN)
        own = [{**row, "variant": variant} for row in rows if row["subject"] == subject]
        found += panels.averages(study, subject, own, {"Gaussian floor": "explained_variance"})
    return found
