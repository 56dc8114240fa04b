"""Dictionaries by themselves: how their directions lie, and how many they share."""

from __future__ import annotations

from typing import Any

from nullsae.report import charts, compact, panels
from nullsae.report.kinds import FigureKind
from nullsae.report.study import Row, Study

SHAPES = {"decoder rows": "circle", "random directions": "diamond"}
COSINE_STEP = 0.05
"""A difference of cosines that is drawn as none."""


class _BesideRandom(FigureKind):
    """A cosine of each variant beside that of random directions, averaged over its rows."""

    section = "dictionaries"
    columns: tuple[str, str]
    """Of the decoder rows, and of random directions."""
    subtitle: str

    def rows(self, study: Study, subject: str) -> list[Row]:
        """Rows of a table, each with the `variant` that it is shown as."""
        raise NotImplementedError

    def draw(self, study: Study, subject: str) -> tuple[Any, str]:
        """Chart and caption: the two on one scale, or a matrix of SAEs."""
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
            caption=f"Each column is one SAE. The ground is the distance from random directions, "
            f"in steps of {COSINE_STEP:g}.",
        )


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
    columns = ("nearest_cosine_mean", "random_nearest_cosine_mean")
    subtitle = "mean cosine of a decoder row to its nearest other one"

    def rows(self, study: Study, subject: str) -> list[Row]:
        """Rows of `geometry`."""
        return study.rows("geometry", subject=subject)


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
    columns = ("mean_cosine", "mean_cosine_random")
    subtitle = "mean cosine of decoder rows matched one to one with those of trained"

    def rows(self, study: Study, subject: str) -> list[Row]:
        """Rows of `overlap` that compare with trained."""
        rows = []
        for row in study.rows("overlap", subject=subject):
            others = [v for v in (row["variant_a"], row["variant_b"]) if v != "trained"]
            if row["kind"] == "variants":
                rows.append({**row, "variant": others[0] if others else "trained"})
            elif row["kind"] == "seeds" and row["variant_a"] == "trained":
                # Trained against itself with another seed: what a variant could reach.
                rows.append({**row, "variant": "trained"})
        return [row for row in rows if row["variant"] in study.variants]
