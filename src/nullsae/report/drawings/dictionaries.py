"""Dictionaries on their own: how their directions are spread, and how many they share."""

from __future__ import annotations

from typing import Any

from nullsae.report import charts, compact, panels
from nullsae.report.kinds import FigureKind
from nullsae.report.study import Row, Study

SHAPES = {"decoder rows": "circle", "random directions": "diamond"}
COSINE_STEP = 0.05
"""A difference of cosines that is drawn as none."""


class _BesideRandom(FigureKind):
    """A cosine of each variant next to that of random directions, averaged over its rows."""

    section = "dictionaries"
    columns: tuple[str, str]
    """Of the decoder rows, and of random directions."""
    subtitle: str

    def rows(self, study: Study, subject: str) -> list[Row]:
        """Return rows of a table, each with the `variant` under which it is shown."""
        raise NotImplementedError

    def draw(self, study: Study, subject: str) -> tuple[Any, str]:
        """Return the chart, both cosines on one scale or a matrix of SAEs, and its caption."""
        rows, saes = self.rows(study, subject), study.config.saes
        if not rows:
            return charts.nothing(self.title, "No pair of SAEs"), self.caption
        data = panels.averages(study, subject, rows, dict(zip(SHAPES, self.columns, strict=True)))
        if not study.compact:
            n_sites = len(study.config.subjects[subject].sites)
            frame = charts.Frame(min(charts.MAX_COLUMNS, n_sites), self.title, self.subtitle)
            return charts.ranges(data, study.variants, frame, quantities=SHAPES), self.caption
        values = {(row["panel"], row["variant"], row["quantity"]): row["value"] for row in data}

        def cell(place: str, variant: str) -> tuple[float | None, float | None]:
            own, floor = (values.get((place, variant, quantity)) for quantity in SHAPES)
            return own, compact.distance(own, floor, COSINE_STEP)

        return compact.draw(
            *(study, subject, self),
            lambda site, v: {s: cell(panels.panel(study, {"sae": s}, site), v) for s in saes},
            subtitle=self.subtitle,
            ground=f"minus random, in {COSINE_STEP:g}",
            caption=f"Each column is one SAE. The colour shows the distance from random "
            f"directions, in steps of {COSINE_STEP:g}.",
        )


class Geometry(_BesideRandom):
    """How close decoder rows are to each other, next to random directions."""

    name = "geometry"
    place = 10
    title = "Decoder geometry"
    definition = (
        "Cosine of each decoder row with its nearest other row, mean over rows, next to that of as "
        "many random directions."
    )
    reading = (
        "Above random, directions cluster. Compare variants by their distance from the floor, "
        "which falls with the width of the site."
    )
    columns = ("nearest_cosine_mean", "random_nearest_cosine_mean")
    subtitle = "mean cosine of a decoder row with its nearest other row"

    def rows(self, study: Study, subject: str) -> list[Row]:
        """Return rows of `geometry`."""
        return study.rows("geometry", subject=subject)


class Overlap(_BesideRandom):
    """How much of a dictionary recurs in trained's, and in that of another seed or draw."""

    name = "overlap"
    place = 20
    title = "Overlap with trained's dictionary"
    definition = (
        "Decoder rows matched one to one with those of trained's SAE (the best assignment), "
        "mean cosine of the pairs, next to that of random directions. For trained: its SAEs of "
        "different seeds, if there are several."
    )
    reading = (
        "A null far above random shares directions with trained that training did not create. "
        "Trained against itself is the upper limit."
    )
    columns = ("mean_cosine", "mean_cosine_random")
    subtitle = "mean cosine of decoder rows matched one to one with those of trained"

    def rows(self, study: Study, subject: str) -> list[Row]:
        """Return rows of `overlap` that compare with trained."""
        rows = []
        for row in study.rows("overlap", subject=subject):
            others = [v for v in (row["variant_a"], row["variant_b"]) if v != "trained"]
            if row["kind"] == "variants":
                rows.append({**row, "variant": others[0] if others else "trained"})
            elif row["kind"] == "seeds" and row["variant_a"] == "trained":
                # Trained against itself with another seed: the most that a variant can reach.
                rows.append({**row, "variant": "trained"})
        return [row for row in rows if row["variant"] in study.variants]
