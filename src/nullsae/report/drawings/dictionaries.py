"""Dictionaries by themselves: how their directions lie, and how many they share."""

from __future__ import annotations

from typing import Any

from nullsae.report import charts, compact, matrix
from nullsae.report.kinds import FigureKind
from nullsae.report.study import Row, Study, mean

SHAPES = {"decoder rows": "circle", "random directions": "diamond"}
GEOMETRY_COLUMNS = {
    "decoder rows": "nearest_cosine_mean",
    "random directions": "random_nearest_cosine_mean",
}
OVERLAP_COLUMNS = {"decoder rows": "mean_cosine", "random directions": "mean_cosine_random"}
COSINE_STEP = 0.05
"""A difference of cosines that is drawn as none."""


class _BesideRandom(FigureKind):
    """A cosine of each variant beside that of random directions, averaged over its rows."""

    section = "dictionaries"
    columns: dict[str, str]
    subtitle: str

    def rows(self, study: Study, subject: str) -> list[Row]:
        """Rows of a table, each with the variant that it is `shown_as`."""
        raise NotImplementedError

    def draw(self, study: Study, subject: str) -> tuple[Any, str]:
        """Chart and caption: the two on one scale, or a matrix of SAEs."""
        rows = self.rows(study, subject)
        sites, saes = list(study.config.subjects[subject].sites), list(study.config.saes)
        caption = self.caption
        if not rows:
            return charts.nothing(self.title, "No pair of SAEs"), caption
        cells: dict[tuple[str, str, str], list[Row]] = {}
        for row in rows:
            cells.setdefault((row["site"], row["sae"], row["shown_as"]), []).append(row)

        def value(site: str, sae: str, variant: str, column: str) -> float | None:
            return mean(row[column] for row in cells.get((site, sae, variant), []))

        if study.compact:
            drawn = compact.drawn_sites(study, subject, len(study.variants) * len(saes))
            own, floor = self.columns.values()
            grid: compact.CellValues = {}
            for site in drawn:
                for variant in study.variants:
                    for sae in saes:
                        here, there = (value(site, sae, variant, column) for column in (own, floor))
                        grid[site, variant, sae] = here, compact.distance(here, there, COSINE_STEP)
            caption += (
                f" Each column is one SAE. The ground is the distance from random directions, "
                f"in steps of {COSINE_STEP:g}.{compact.which_sites(study, subject, drawn)}"
            )
            steps = matrix.differences(f"minus random, in {COSINE_STEP:g}")
            chart = compact.figure(study, grid, steps, self.title, self.subtitle, drawn)
            return chart, caption
        data: list[dict[str, Any]] = [
            {
                "panel": site if len(saes) == 1 else f"{site} · {sae}",
                "variant": variant,
                "quantity": quantity,
                "value": found,
            }
            for sae in saes
            for site in sites
            for variant in study.variants
            for quantity, column in self.columns.items()
            if (found := value(site, sae, variant, column)) is not None
        ]
        chart = charts.ranges(
            data,
            study.variants,
            SHAPES,
            columns=min(charts.MAX_COLUMNS, len(sites)),
            title=self.title,
            subtitle=self.subtitle,
        )
        return chart, caption


class Geometry(_BesideRandom):
    """How close decoder rows lie to each other, beside random directions."""

    name = "geometry"
    place = 10
    title = "Decoder geometry"
    definition = (
        "Cosine of each decoder row to its nearest other row, mean over rows, beside that of as "
        "many random directions."
    )
    reading = (
        "Above random, directions come in clusters; compare variants by their distance from the "
        "floor, which falls with the width of the site."
    )
    columns = GEOMETRY_COLUMNS
    subtitle = "mean cosine of a decoder row to its nearest other one"

    def rows(self, study: Study, subject: str) -> list[Row]:
        """Rows of `geometry`."""
        return [{**r, "shown_as": r["variant"]} for r in study.rows("geometry", subject=subject)]


class Overlap(_BesideRandom):
    """How much of a dictionary is found in trained's, and in that of another seed or draw."""

    name = "overlap"
    place = 20
    title = "Overlap with trained's dictionary"
    definition = (
        "Decoder rows matched one to one with those of trained's SAE (the best assignment), "
        "mean cosine of the pairs, beside that of random directions. For trained: its SAEs of "
        "different seeds, where there are several."
    )
    reading = (
        "A null far above random shares directions with trained that training did not make; "
        "trained against itself is what could be reached at most."
    )
    columns = OVERLAP_COLUMNS
    subtitle = "mean cosine of decoder rows matched one to one with those of trained"

    def rows(self, study: Study, subject: str) -> list[Row]:
        """Rows of `overlap` that compare with trained."""
        rows = []
        for row in study.rows("overlap", subject=subject):
            others = [v for v in (row["variant_a"], row["variant_b"]) if v != "trained"]
            if row["kind"] == "variants":
                rows.append({**row, "shown_as": others[0] if others else "trained"})
            elif row["kind"] == "seeds" and row["variant_a"] == "trained":
                # Trained against itself with another seed: what a variant could reach.
                rows.append({**row, "shown_as": "trained"})
        return [row for row in rows if row["shown_as"] in study.variants]
