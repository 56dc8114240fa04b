"""The SAE beside what a table of token means explains."""

from __future__ import annotations

from typing import Any

from nullsae.config.variants import GAUSSIAN, floor_name
from nullsae.report import charts, compact, matrix, panels
from nullsae.report.kinds import FigureKind
from nullsae.report.study import Row, Study, mean

LOOKUP = {"SAE": "circle", "token lookup": "diamond", "Gaussian floor": "triangle-down"}
COLUMN = "token means"


class TokenLookup(FigureKind):
    """Explained variance of the SAEs beside that of a mean per token id."""

    name = "token_lookup"
    section, place = "tokens", 55
    title = "SAE and token lookup"
    definition = (
        "Explained variance of the SAE beside that of a table that predicts the mean activation of "
        "each token id."
    )
    reading = (
        "Where the table comes close to the SAE, or beats it, the activations carry little more "
        "than token identity."
    )

    def draw(self, study: Study, subject: str) -> tuple[Any, str]:
        """Chart and caption: the two on one scale, or a matrix of SAEs."""
        if study.compact:
            return self._matrix(study, subject)
        columns = {"SAE": "explained_variance", "token lookup": "token_lookup_r2"}
        rows = panels.averages(study, subject, columns) + _floors(study, subject)
        there = {name: LOOKUP[name] for name in LOOKUP if any(r["quantity"] == name for r in rows)}
        chart = charts.ranges(
            rows,
            study.variants,
            there,
            columns=panels.columns(study, subject),
            title=self.title,
            subtitle="explained variance, mean over draws and seeds",
        )
        return chart, self.caption

    def _matrix(self, study: Study, subject: str) -> tuple[Any, str]:
        config = study.config
        sites = compact.drawn_sites(study, subject, len(study.variants) * (len(config.saes) + 1))
        margin = config.statistics.margin("explained_variance")
        grid: compact.CellValues = {}
        for site in sites:
            for variant in study.variants:
                rows = study.rows("reconstruction", subject=subject, site=site, variant=variant)
                floor = mean(row["token_lookup_r2"] for row in rows)
                grid[site, variant, COLUMN] = floor, None
                for sae in config.saes:
                    value = mean(row["explained_variance"] for row in rows if row["sae"] == sae)
                    grid[site, variant, sae] = value, compact.distance(value, floor, margin)
        caption = (
            f"{self.caption} The ground is the SAE minus the token means of the same "
            f"row, in equivalence margins of explained variance ({margin:g})."
            f"{compact.which_sites(study, subject, sites)}"
        )
        steps = matrix.differences("minus token means, in margins")
        subtitle = "explained variance, mean over draws and seeds"
        chart = compact.figure(study, grid, steps, self.title, subtitle, sites, [COLUMN])
        return chart, caption


def _floors(study: Study, subject: str) -> list[Row]:
    """Explained variance of each variant's Gaussian floor, where there are any."""
    if not study.config.evaluation.gaussian_floors:
        return []
    found = []
    for variant in study.variants:
        rows = [row for row in study.floors if row["variant"] == floor_name(variant)]
        if variant == "trained" and GAUSSIAN in study.variants:
            rows = study.rows("reconstruction", variant=GAUSSIAN)
        by_panel: dict[str, list[Row]] = {}
        for row in sorted(rows, key=panels.sort_key(study, subject)):
            if row["subject"] == subject:
                by_panel.setdefault(panels.panel(study, row, row["site"]), []).append(row)
        found += [
            {
                "panel": panel,
                "variant": variant,
                "quantity": "Gaussian floor",
                "value": mean(row["explained_variance"] for row in cells),
            }
            for panel, cells in by_panel.items()
        ]
    return found
