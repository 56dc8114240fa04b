"""The chart forms that figures are made of. Each takes plain rows and knows no table.

Rows have `variant`, `panel` (the panel's title) and, for depth profiles, `block`; `low` and `high`
may be None. `variants` lists all variants in the order of the legend, or top to bottom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from nullsae.core.registry import lazy
from nullsae.report import style
from nullsae.report.study import Row

if TYPE_CHECKING:
    import altair as alt

    C = TypeVar("C", alt.Color, alt.Fill, alt.Shape, alt.StrokeDash)
else:  # listing the names of figures draws none
    alt = lazy("altair")

PLOT_WIDTH = 700
"""Pixels shared by the panels of one row, without the labels on their left."""
NAME_WIDTH = 150
SPACING = 28
ROW_HEIGHT = 28
"""Pixels per variant in a dot plot."""
MAX_COLUMNS = 4
MAX_BANDS = 6
"""With more variants, depth profiles shade the interval of trained only."""


class Frame(NamedTuple):
    """What surrounds the panels of a figure."""

    columns: int
    """Panels side by side."""
    title: str
    subtitle: str


def by_look(
    channel: type[C],
    look: Callable[[str], Any],
    names: Sequence[str],
    *,
    field: str = "variant",
    looks: Sequence[str] | None = None,
    legend: alt.Legend | None = None,
) -> C:
    """Return a channel that distinguishes the values of a field as `style` does.

    Args:
        channel: `alt.Color`, `alt.Fill`, `alt.Shape` or `alt.StrokeDash`.
        look: the function of `style` that returns a variant's look in this channel.
        names: all values of the field, in the order of the legend.
        field: of the rows.
        looks: the variant whose look each value has; by default its own.
        legend: of the channel; none by default.
    """
    scale = alt.Scale(domain=list(names), range=[look(name) for name in looks or names])
    return channel(f"{field}:N", scale=scale, legend=legend)


def _legend(variants: Sequence[str]) -> alt.Legend:
    n_columns = 5 if len(variants) <= 5 else 4
    return alt.Legend(title=None, orient="top", columns=n_columns, symbolOpacity=1)


def _y(variants: Sequence[str]) -> alt.Y:
    return alt.Y("variant:N", sort=list(variants), title=None, axis=alt.Axis(grid=False))


def facet(
    layers: list[Any],
    rows: list[Row],
    frame: Frame,
    *,
    width: int | None = None,
    height: int,
    spacing: int = SPACING,
) -> alt.FacetChart:
    """Draw these layers in one panel per `panel` of the rows, in their order, under one title.

    Width, height and spacing are in pixels; panels without labels on their left need no width.
    """
    panels = list(dict.fromkeys(row["panel"] for row in rows))
    width = width or _panel_width(frame.columns, labelled=False)
    chart: alt.FacetChart = alt.LayerChart(layer=layers, width=width, height=height).facet(
        alt.Facet("panel:N", sort=panels, title=None, header=alt.Header(labelPadding=6)),
        data=alt.InlineData(values=rows),
        columns=min(frame.columns, len(panels)),
        spacing=spacing,
        title=alt.Title(frame.title, subtitle=frame.subtitle),
    )
    return chart


def _panel_width(columns: int, *, labelled: bool = True) -> int:
    # Some charts have variant names on the left; the others use that room.
    total = PLOT_WIDTH if labelled else PLOT_WIDTH + NAME_WIDTH
    return min(480, (total - SPACING * (columns - 1)) // columns)


def _across(axis: Literal["x", "y"], reference: float | None) -> list[Any]:
    """Return a dashed line, drawn once per panel; with the full data it would repeat per row."""
    if reference is None:
        return []
    rule = alt.Chart().transform_aggregate(n="count()").mark_rule(strokeDash=[3, 3])
    return [rule.encode(alt.XDatum(reference) if axis == "x" else alt.YDatum(reference))]


def _x_axis() -> alt.Axis:
    # Flush labels at the ends of a short axis would overlap those of its neighbours.
    return alt.Axis(labelFlush=False, tickCount=5)


def dot_whisker(
    rows: list[Row],
    variants: Sequence[str],
    frame: Frame,
    *,
    reference: float | None = None,
    shared_scale: bool = True,
) -> alt.FacetChart:
    """Plot `value` of each variant with its interval from `low` to `high`.

    A dashed line marks the reference; panels that differ in unit do not share a scale.
    """
    x = alt.X("value:Q", title=None, axis=_x_axis(), scale=alt.Scale(zero=False, padding=24))
    base = alt.Chart().encode(y=_y(variants), color=by_look(alt.Color, style.colour, variants))
    band = (
        alt.Chart()
        .transform_filter("datum.variant === 'trained' && isValid(datum.low)")
        .mark_rect(color=style.BAND, opacity=1)
        .encode(x=alt.X("low:Q", title=None), x2=alt.X2("high:Q"))
    )
    whisker = (
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=2)
        .encode(x=alt.X("low:Q", title=None), x2=alt.X2("high:Q"))
    )
    dot = base.mark_point(filled=True, size=75, opacity=1).encode(x=x)
    text = alt.Text("value:Q", format=".3r")
    number = (
        alt.Chart()
        .transform_calculate(end="isValid(datum.high) ? datum.high : datum.value")
        .mark_text(dx=7, align="left", fontSize=11)
        .encode(y=_y(variants), x=alt.X("end:Q", title=None), text=text)
    )
    layers = [band, *_across("x", reference), whisker, dot, number]
    width, height = _panel_width(frame.columns), ROW_HEIGHT * len(variants)
    chart = facet(layers, rows, frame, width=width, height=height)
    return chart if shared_scale else chart.resolve_scale(x="independent")


def depth_profile(
    rows: list[Row],
    variants: Sequence[str],
    frame: Frame,
    *,
    axis_title: str,
    reference: float | None,
) -> alt.FacetChart:
    """Plot value and interval of each variant by `block`, a form of `dot_whisker` for many sites.

    All sites of a panel must be of one kind, because a line joins them.
    """
    axis = alt.Axis(tickMinStep=1, format="d")
    scale = alt.Scale(zero=False, nice=False, padding=8)
    x = alt.X("block:Q", title=axis_title, axis=axis, scale=scale)
    return facet(_lines(x, variants, reference), rows, frame, height=210)


def _lines(x: alt.X, variants: Sequence[str], reference: float | None) -> list[Any]:
    """Plot value and interval of each variant along `x`, joined by a line; a dashed line across."""
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))
    legend = _legend(variants)
    colour = by_look(alt.Color, style.colour, variants, legend=legend)
    base = alt.Chart().encode(x=x, color=colour)
    # The bands of many variants would hide the lines, so only trained has one then.
    many = len(variants) > MAX_BANDS
    banded = "isValid(datum.low)" + (" && datum.variant === 'trained'" if many else "")
    band = (
        base.transform_filter(banded)
        .mark_area(opacity=0.15)
        .encode(y=alt.Y("low:Q", title=None), y2=alt.Y2("high:Q"))
    )
    line = base.mark_line(strokeWidth=2).encode(y=y)
    if many:
        dash = by_look(alt.StrokeDash, style.dash, variants, legend=legend)
        line = line.encode(strokeDash=dash)
    shape = by_look(alt.Shape, style.shape, variants, legend=legend)
    point = base.mark_point(filled=True, size=45, opacity=1).encode(y=y, shape=shape, color=colour)
    return [*_across("y", reference), band, line, point]


def along_training(
    rows: list[Row],
    variants: Sequence[str],
    frame: Frame,
    *,
    references: dict[str, float],
    log: bool,
) -> alt.VConcatChart:
    """Plot several metrics of each variant along training, one below the other.

    Rows have `tokens` and the metric's `title`, `value`, `low` and `high`; metrics and panels come
    in display order. `references` are keyed by title; `log` makes the token axis logarithmic.
    """
    names = list(dict.fromkeys(row["title"] for row in rows))
    axis = alt.Axis(format="~s", tickCount=5, labelFlush=False, labelOverlap=True, grid=not log)
    scale = alt.Scale(type="log" if log else "linear", nice=False, zero=False, padding=8)
    parts = []
    for name in names:
        title = "Training tokens" if name == names[-1] else None
        x = alt.X("tokens:Q", title=title, axis=axis, scale=scale)
        layers = _lines(x, variants, references.get(name))
        own = [row for row in rows if row["title"] == name]
        heading = alt.Title(name, fontSize=14, offset=6, frame="group")
        parts.append(facet(layers, own, frame, height=150).properties(title=heading))
    heading = alt.Title(frame.title, subtitle=frame.subtitle)
    return alt.vconcat(*parts, spacing=SPACING).properties(title=heading)


def ranges(
    rows: list[Row], variants: Sequence[str], frame: Frame, *, quantities: dict[str, str]
) -> alt.FacetChart:
    """Plot several quantities of each variant on one scale, distinguished by shape.

    Rows have `quantity` and `value`. Each quantity has a Vega symbol, in the order of the legend.
    """
    base = alt.Chart().encode(y=_y(variants), color=by_look(alt.Color, style.colour, variants))
    span = (
        base.transform_aggregate(low="min(value)", high="max(value)", groupby=["panel", "variant"])
        .mark_rule(strokeWidth=1, opacity=0.55)
        .encode(x=alt.X("low:Q", title=None), x2=alt.X2("high:Q"))
    )
    scale = alt.Scale(domain=list(quantities), range=list(quantities.values()))
    legend = alt.Legend(title=None, orient="top", symbolStrokeColor=style.INK)
    mark = base.mark_point(size=85, strokeWidth=2, opacity=1).encode(
        x=alt.X("value:Q", title=None, axis=_x_axis(), scale=alt.Scale(zero=False, padding=14)),
        shape=alt.Shape("quantity:N", scale=scale, legend=legend),
    )
    width, height = _panel_width(frame.columns), ROW_HEIGHT * len(variants)
    return facet([span, mark], rows, frame, width=width, height=height)


def curves(
    rows: list[Row], variants: Sequence[str], frame: Frame, *, height: int
) -> alt.FacetChart:
    """Plot lines along training: rows have `run` (one line each), `tokens` and `value`."""
    axis, legend = alt.Axis(format="~s", tickCount=5, labelFlush=False), _legend(variants)
    line = alt.Chart().mark_line(strokeWidth=2)
    line = line.encode(
        x=alt.X("tokens:Q", title="Training tokens", axis=axis),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        color=by_look(alt.Color, style.colour, variants, legend=legend),
        strokeDash=by_look(alt.StrokeDash, style.dash, variants, legend=legend),
        detail=alt.Detail("run:N"),
    )
    return facet([line], rows, frame, height=height)


def scatter(
    rows: list[Row],
    variants: Sequence[str],
    frame: Frame,
    *,
    x_title: str,
    reference: float | None,
    height: int,
    with_legend: bool,
) -> alt.FacetChart:
    """Plot one mark per latent: rows have `x` and `value`.

    No legend is needed if the titles of the panels name the variants.
    """
    legend = _legend(variants) if with_legend else None
    mark = alt.Chart().mark_point(filled=True, size=38, opacity=0.75)
    mark = mark.encode(
        x=alt.X("x:Q", title=x_title, axis=_x_axis()),
        y=alt.Y("value:Q", title=None, scale=alt.Scale(zero=False)),
        color=by_look(alt.Color, style.colour, variants, legend=legend),
        shape=by_look(alt.Shape, style.shape, variants, legend=legend),
    )
    return facet([*_across("y", reference), mark], rows, frame, height=height)


def nothing(title: str, reason: str) -> alt.Chart:
    """Return a figure that says why it is empty, because the workflow promises each file."""
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=[{"text": reason}]))
        .mark_text(fontSize=13, color=style.MUTED)
        .encode(text=alt.Text("text:N"))
        .properties(width=PLOT_WIDTH, height=80, title=alt.Title(title))
    )
    return chart
