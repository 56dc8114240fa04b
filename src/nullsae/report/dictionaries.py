"""Figures of dictionaries alone: the geometry of their directions, and their overlap."""

from __future__ import annotations

from typing import Any

from nullsae.report import charts, compact
from nullsae.report.captions import METRIC_TEXT
from nullsae.report.matrix import Steps, differences
from nullsae.report.study import Row, Study, mean

GEOMETRY = {"decoder rows": "circle", "random directions": "diamond"}
GEOMETRY_COLUMNS = {
    "decoder rows": "nearest_cosine_mean",
    "random directions": "random_nearest_cosine_mean",
}
OVERLAP_COLUMNS = {"decoder rows": "mean_cosine", "random directions": "mean_cosine_random"}
COSINE_STEP = 0.05
"""The largest difference of cosines that is drawn as zero."""


def geometry(study: Study, subject: str) -> compact.Drawn:
    """How close decoder rows lie to each other, beside random directions."""
    rows = [{**row, "shown_as": row["variant"]} for row in study.rows("geometry", subject=subject)]
    return _beside_random(
        study,
        subject,
        rows,
        GEOMETRY_COLUMNS,
        kind="geometry",
        subtitle="mean cosine of a decoder row to its nearest other one",
    )


def overlap(study: Study, subject: str) -> compact.Drawn:
    """How much of a dictionary is found in trained's, and in that of another seed or draw."""
    rows = []
    for row in study.rows("overlap", subject=subject):
        others = [v for v in (row["variant_a"], row["variant_b"]) if v != "trained"]
        if row["kind"] == "variants":
            rows.append({**row, "shown_as": others[0] if others else "trained"})
        elif row["kind"] == "seeds" and row["variant_a"] == "trained":
            # Trained against itself with another seed: what a variant could reach.
            rows.append({**row, "shown_as": "trained"})
    rows = [row for row in rows if row["shown_as"] in study.variants]
    return _beside_random(
        study,
        subject,
        rows,
        OVERLAP_COLUMNS,
        kind="overlap",
        subtitle="mean cosine of decoder rows matched one to one with those of trained",
    )


def _beside_random(
    study: Study,
    subject: str,
    rows: list[Row],
    columns: dict[str, str],
    *,
    kind: str,
    subtitle: str,
) -> compact.Drawn:
    """A cosine of each variant beside that of random directions, averaged over its rows."""
    text, config = METRIC_TEXT[kind], study.config
    sites, saes = list(config.subjects[subject].sites), list(config.saes)
    caption = f"{text.definition} {text.reading}"
    if not rows:
        return charts.nothing(text.title, "No pair of SAEs"), text.title, caption
    cells: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        cells.setdefault((row["site"], row["sae"], row["shown_as"]), []).append(row)

    def value(site: str, sae: str, variant: str, column: str) -> float | None:
        return mean(row[column] for row in cells.get((site, sae, variant), []))

    if study.compact:
        drawn = compact.drawn_sites(study, subject, len(study.variants) * len(saes))
        own, floor = columns.values()
        grid: compact.CellValues = {}
        for site in drawn:
            for variant in study.variants:
                for sae in saes:
                    here, there = (value(site, sae, variant, column) for column in (own, floor))
                    above = None if here is None or there is None else (here - there) / COSINE_STEP
                    grid[site, variant, sae] = here, above
        caption += (
            f" Each column is one SAE. The ground is the distance from random directions, in steps "
            f"of {COSINE_STEP:g}.{compact.which_sites(study, subject, drawn)}"
        )
        steps: Steps = differences(f"minus random, in {COSINE_STEP:g}")
        return compact.figure(study, grid, steps, text.title, subtitle, caption, drawn)
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
        for quantity, column in columns.items()
        if (found := value(site, sae, variant, column)) is not None
    ]
    chart = charts.ranges(
        data,
        study.variants,
        GEOMETRY,
        columns=min(charts.MAX_COLUMNS, len(sites)),
        title=text.title,
        subtitle=subtitle,
    )
    return chart, text.title, caption
