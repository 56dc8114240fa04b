"""The figures of the toy models: what SAEs keep against how sparse they are, and what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import cycle, islice
from statistics import fmean
from typing import Any

import altair as alt

from nullsae.config.toy import DATA
from nullsae.report import style
from nullsae.report.charts import by_look

Row = dict[str, Any]
LABELS = {
    "data": "input",
    "gaussian": "Gaussian input",
    "mlp_of_data": "random MLP of input",
    "mlp_of_gaussian": "random MLP of Gaussian",
}
# The look of a variant of the main report, for its colours in both modes, shape and dash.
_LOOK_OF = {
    "data": "trained",
    "gaussian": "noise_embeddings",
    "mlp_of_data": "step0",
    "mlp_of_gaussian": "rerandomized_keep_embeddings",
}
_LOOKS_OF_WIDTHS = ("trained", "step0", "rerandomized", "rerandomized_keep_embeddings", "cascade")
MEASURE_TITLES = {"l0": "L0", "l1": "L1", "l1_over_sqrt_l2": "L1 / √L2", "hoyer": "Hoyer"}
VARIANCES = {
    "explained_variance": "about the mean of the samples",
    "explained_variance_about_scalar": "about one scalar (the paper's)",
}
LOGARITHMIC = ("l0", "l1", "l1_over_sqrt_l2")
LOWEST = -0.1
"""Points with a lower explained variance are not drawn."""
PANEL_WIDTH, PANEL_HEIGHT = 185, 190


def averages(rows: Iterable[Row], columns: Iterable[str]) -> list[Row]:
    """Average columns over seeds, a row per data, expansion and coefficient, in their order.

    A column without a value in some seed has none.
    """
    keys, columns = ("data", "expansion", "l1_coefficient"), list(columns)
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    found = []
    for place, group in groups.items():
        values = {column: [row[column] for row in group] for column in columns}
        means = {name: None if None in own else fmean(own) for name, own in values.items()}
        found.append(dict(zip(keys, place, strict=True)) | means)
    return found


def pareto(rows: list[Row], variance: str, *, title: str) -> alt.VConcatChart:
    """Plot explained variance against each measure of sparsity, a line of panels per width.

    Rows are those of the table `toy` for one source; `variance` is a key of `VARIANCES`.
    """
    n_seeds = len({row["seed"] for row in rows})
    true_l0 = [row["true_l0"] for row in rows if row["true_l0"] is not None]
    mean_true_l0 = fmean(true_l0) if true_l0 else None
    mean = [{**row, "y": row[variance]} for row in averages(rows, (*MEASURE_TITLES, variance))]
    lines = []
    for expansion, width in {row["expansion"]: row["n_latents"] for row in rows}.items():
        own = [row for row in mean if row["expansion"] == expansion]
        panels = [_pareto_panel(own, measure, mean_true_l0) for measure in MEASURE_TITLES]
        heading = alt.Title(f"{width} latents", fontSize=13, offset=4)
        lines.append(alt.hconcat(*panels, spacing=22).properties(title=heading))
    subtitle = (
        f"explained variance {VARIANCES[variance]} against the sparsity of the codes; "
        f"mean of {n_seeds} seed{'' if n_seeds == 1 else 's'}"
    )
    return alt.vconcat(*lines, spacing=26).properties(title=alt.Title(title, subtitle=subtitle))


def _pareto_panel(rows: list[Row], measure: str, true_l0: float | None) -> alt.LayerChart:
    log = measure in LOGARITHMIC
    drawn = [
        {"data": LABELS[row["data"]], "x": x, "y": y, "c": row["l1_coefficient"]}
        for row in rows
        for x, y in ((row[measure], row["y"]),)
        if x is not None and y is not None and y >= LOWEST and (x > 0 or not log)
    ]
    first = measure == next(iter(MEASURE_TITLES))
    scale = alt.Scale(type="log" if log else "linear", zero=False, nice=False, padding=6)
    axis = alt.Axis(tickCount=4, labelFlush=False, labelOverlap=True, format="~g", grid=False)
    y_title = "Explained variance" if first else None
    base = alt.Chart(alt.InlineData(values=drawn)).encode(
        x=alt.X("x:Q", title=MEASURE_TITLES[measure], scale=scale, axis=axis),
        y=alt.Y("y:Q", title=y_title, scale=alt.Scale(domain=[LOWEST, 1])),
        color=_by_look(alt.Color, style.colour, legend=True),
    )
    dash = _by_look(alt.StrokeDash, style.dash, legend=False)
    shape = _by_look(alt.Shape, style.shape, legend=True)
    layers: list[Any] = [
        base.mark_line(strokeWidth=1.6).encode(order=alt.Order("c:Q"), strokeDash=dash),
        base.mark_point(filled=True, size=26, opacity=1).encode(shape=shape),
    ]
    if measure == "l0" and true_l0 is not None:
        rule = alt.Chart(alt.InlineData(values=[{"x": true_l0}]))
        layers.insert(0, rule.mark_rule(strokeDash=[3, 3]).encode(x=alt.X("x:Q")))
    return alt.LayerChart(layer=layers, width=PANEL_WIDTH, height=PANEL_HEIGHT)


def _by_look(channel: type[Any], look: Callable[[str], Any], *, legend: bool) -> Any:
    names, looks = [LABELS[data] for data in DATA], [_LOOK_OF[data] for data in DATA]
    shown = alt.Legend(title=None, orient="top", columns=4, symbolOpacity=1, symbolStrokeWidth=0)
    drawn = shown if legend else None
    return by_look(channel, look, names, field="data", looks=looks, legend=drawn)


RECOVERY = {
    "data": ("mmcs", "mmcs_at_start", "true features, SAEs on input"),
    "mlp_of_data": ("image_mmcs", "image_mmcs_at_start", "their images, SAEs on random MLP"),
}


def recovery(rows: list[Row], *, title: str) -> alt.HConcatChart:
    """Plot mean max cosine to true features, and to their images, against the coefficient.

    Rows are those of the table `toy` for one source with true features.
    """
    panels = []
    names = [str(width) for width in sorted({row["n_latents"] for row in rows})]
    looks = list(islice(cycle(_LOOKS_OF_WIDTHS), len(names)))
    axis = alt.Axis(tickCount=5, format="~g", labelOverlap=True, grid=False)
    scale = alt.Scale(type="log", nice=False, padding=6)
    legend = alt.Legend(title="latents", orient="top", symbolOpacity=1)
    colour = by_look(alt.Color, style.colour, names, field="latents", looks=looks, legend=legend)
    for data, (column, at_start, name) in RECOVERY.items():
        own = [row for row in rows if row["data"] == data]
        latents = {row["expansion"]: row["n_latents"] for row in own}
        drawn = [
            {
                "latents": str(latents[row["expansion"]]),
                "x": row["l1_coefficient"],
                "y": row[key],
                "trained": key == column,
            }
            for row in averages(own, (column, at_start))
            for key in (column, at_start)
        ]
        y_title = "Mean max cosine" if data == "data" else None
        base = alt.Chart(alt.InlineData(values=drawn)).encode(
            x=alt.X("x:Q", title="L1 coefficient", scale=scale, axis=axis),
            y=alt.Y("y:Q", title=y_title, scale=alt.Scale(domain=[0, 1])),
            color=colour,
        )
        layers: list[Any] = [
            base.transform_filter("datum.trained").mark_line(strokeWidth=1.8, point=True),
            base.transform_filter("!datum.trained").mark_line(strokeWidth=1.4, strokeDash=[3, 3]),
        ]
        heading = alt.Title(name, fontSize=13, offset=4)
        panels.append(alt.LayerChart(layer=layers, width=360, height=230, title=heading))
    subtitle = "mean over seeds; dashed: the decoder before training"
    return alt.hconcat(*panels, spacing=28).properties(title=alt.Title(title, subtitle=subtitle))
