"""Entry point: the table, figures and page of the toy models."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import yaml

from nullsae import paths
from nullsae.config.toy import DATA, SharkeySource, Toy, toy_cells
from nullsae.jobs.toy import ReportToyParams
from nullsae.report.page import in_page, write_figures, write_page
from nullsae.report.render import to_svg, unvalidated
from nullsae.tables import read_table, write_table
from nullsae.tables.toy import SWEEP, TOY
from nullsae.toy.charts import LABELS, MEASURE_TITLES, VARIANCES, Row, pareto, recovery

TEMPLATES = Path(__file__).parent / "templates"
LEVELS = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
"""L0 at which explained variances are compared, as shares of the input's dimensions."""


def report_toy(params: ReportToyParams, root: Path) -> None:
    """Join all sweeps into `paths.TOY_TABLE`, draw the figures, write `paths.TOY_PAGE`.

    Raises:
        UserError: a sweep is missing, damaged or from another version.
    """
    toy = params.toy
    rows = [
        {**cell, "expansion": int(cell["expansion"]), "seed": int(cell["seed"]), **row}
        for cell in toy_cells(toy)
        for row in read_table(root / paths.TOY_SWEEP.format(**cell), SWEEP).to_pylist()
    ]
    write_table(root / paths.TOY_TABLE, rows, TOY)
    sources = []
    for name in toy.sources:
        own = [row for row in rows if row["source"] == name]
        with unvalidated():
            figures = _figures(toy, name, own)
        for figure, (_title, svg) in figures.items():
            write_figures(root, figure, params.figure_formats, svg)
        sources.append(
            {
                "name": name,
                "kind": toy.sources[name].kind,
                "d_input": own[0]["d_input"],
                "n_samples": own[0]["n_train"] + own[0]["n_heldout"],
                "true_l0": next((row["true_l0"] for row in own if row["true_l0"]), None),
                "of_data": of_data(own),
                "at_equal_l0": [
                    (words, at_equal_l0(own, variance)) for variance, words in VARIANCES.items()
                ],
                "figures": [in_page(svg, key, title) for key, (title, svg) in figures.items()],
            }
        )
    write_page(
        root / paths.TOY_PAGE,
        "toy.html.j2",
        folders=[TEMPLATES],
        sources=sources,
        toy=toy,
        labels=LABELS,
        data=DATA,
        config_yaml=yaml.safe_dump({"toy": toy.model_dump(mode="json")}, sort_keys=False),
        compact=True,
    )


def _figures(toy: Toy, name: str, rows: list[Row]) -> dict[str, tuple[str, str]]:
    """Return title and SVG of each figure of a source, by its name in `config.toy.toy_figures`."""
    titles = (f"What SAEs keep: {name}", f"What SAEs keep, by the paper's measure: {name}")
    found = {}
    for suffix, variance, title in zip(("", "_scalar"), VARIANCES, titles, strict=True):
        found[f"toy.{name}{suffix}"] = (title, to_svg(pareto(rows, variance, title=title)))
    if isinstance(toy.sources[name], SharkeySource):
        title = f"What SAEs find: {name}"
        found[f"toy.{name}_mmcs"] = (title, to_svg(recovery(rows, title=title)))
    return found


def mean_and_sd(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Return mean and standard deviation (n - 1) of values; None if any is missing, or too few."""
    found = list(values)
    known = [value for value in found if value is not None]
    if not found or len(known) < len(found):
        return None, None
    return fmean(known), stdev(known) if len(known) > 1 else None


def of_data(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the sparsity of the vectors themselves, mean over seeds, a row per kind of data."""
    found = []
    for data in DATA:
        # One row per seed, because all of its SAEs saw the same vectors.
        by_seed = {row["seed"]: row for row in rows if row["data"] == data}
        columns = ("explained_variance_of_mean", *(f"data_{measure}" for measure in MEASURE_TITLES))
        means = {c: mean_and_sd(row[c] for row in by_seed.values())[0] for c in columns}
        found.append({"data": data, **means})
    return found


def interpolated(l0: Sequence[float], values: Sequence[float | None], at: float) -> float | None:
    """Interpolate the value at one L0, linear in log L0 between SAEs of a sweep; None outside.

    SAEs with an L0 of 0 and those without a value are left out.
    """
    points = sorted((x, y) for x, y in zip(l0, values, strict=True) if x > 0 and y is not None)
    if not points or not points[0][0] <= at <= points[-1][0]:
        return None
    x, y = zip(*points, strict=True)
    return float(np.interp(math.log(at), np.log(x), y))


def at_equal_l0(rows: Sequence[Row], variance: str) -> list[dict[str, Any]]:
    """Compare a column of explained variance at the same L0, by width and level.

    Returns means and two gaps. `gap` is input minus Gaussian input, `mlp_gap` the same for the
    random network's outputs; each is computed within a seed, with its standard deviation over
    seeds.
    """
    found = []
    for expansion in dict.fromkeys(row["expansion"] for row in rows):
        own = [row for row in rows if row["expansion"] == expansion]
        seeds = list(dict.fromkeys(row["seed"] for row in own))
        for share in LEVELS:
            level = share * own[0]["d_input"]
            at: dict[tuple[str, int], float | None] = {}
            for data, seed in itertools.product(DATA, seeds):
                of_sae = [row for row in own if (row["data"], row["seed"]) == (data, seed)]
                at[data, seed] = interpolated(
                    [row["l0"] for row in of_sae], [row[variance] for row in of_sae], level
                )
            row: dict[str, Any] = {"n_latents": own[0]["n_latents"], "l0": level}
            row |= {data: mean_and_sd(at[data, seed] for seed in seeds)[0] for data in DATA}
            for gap, one, other in (("gap", *DATA[:2]), ("mlp_gap", *DATA[2:])):
                pairs = [(at[one, seed], at[other, seed]) for seed in seeds]
                row[gap] = mean_and_sd(
                    a - b if a is not None and b is not None else None for a, b in pairs
                )
            found.append(row)
    return found
