"""The matrix: a printed value in each cell, on a colour that shows its distance from another.

A chart form like those of `charts`, for studies with too many SAEs for one panel each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from nullsae.core.registry import lazy
from nullsae.report import style
from nullsae.report.charts import Frame, facet
from nullsae.report.study import Row
from nullsae.report.text import NONE

if TYPE_CHECKING:
    import altair as alt

    A = TypeVar("A", alt.X, alt.Y)
else:  # listing the names of figures draws none
    alt = lazy("altair")

Grid = dict[tuple[str, str, str], tuple[float | None, float | None]]
"""(panel, row, column) to the printed value and the value shown by the colour."""

WIDTH = 740
"""Pixels shared by the panels of one row, without the labels on their left."""
SPACING = 18
MIN_CELL, MAX_CELL = 29, 52
"""Bounds on the width of a cell, in pixels."""
MAX_COLUMNS = 3


@dataclass(frozen=True)
class Steps:
    """A scale of a few steps with colours that are distinct in both modes of the page."""

    title: str
    bounds: tuple[float, ...]
    """Boundaries of the steps, ascending."""
    labels: tuple[str, ...]
    colours: tuple[str, ...]

    def label(self, value: float) -> str:
        """Return the step of a value; a value on a bound belongs to the step below."""
        return self.labels[sum(value > bound for bound in self.bounds)]


def differences(title: str) -> Steps:
    """Return steps for a difference in units of the largest negligible one, cut at 1, 2 and 4."""
    labels = (
        *("< \u22124", "\u22124 to \u22122", "\u22122 to \u22121", "within \u00b11"),
        *("1 to 2", "2 to 4", "> 4"),
    )
    return Steps(title, (-4, -2, -1, 1, 2, 4), labels, style.STEPS)


def shares(title: str) -> Steps:
    """Return steps for a share between 0 (or less) and 1."""
    labels = ("0 or less", "0 to 0.25", "0.25 to 0.5", "0.5 to 0.75", "> 0.75")
    return Steps(title, (0, 0.25, 0.5, 0.75), labels, (style.STEPS[3], *style.SHARES))


def columns_for(n_panels_wanted: int, n_cells: int) -> int:
    """Return the number of panels side by side that leaves cells wide enough for their numbers.

    Args:
        n_panels_wanted: panels that belong together, such as the sites of one comparison.
        n_cells: columns of a panel.
    """
    columns = 2 if n_panels_wanted == 4 else min(MAX_COLUMNS, n_panels_wanted)
    while columns > 1 and _cell_width(columns, n_cells) < MIN_CELL:
        columns -= 1
    return columns


def _cell_width(columns: int, n_cells: int) -> int:
    return min(MAX_CELL, (WIDTH - SPACING * (columns - 1)) // columns // n_cells)


def cells(grid: Grid, steps: Steps) -> Iterator[Row]:
    """Yield rows of `matrix`."""
    for (panel, row, column), (value, shade) in grid.items():
        step = None if shade is None else steps.label(shade)
        names = {"panel": panel, "row": row, "column": column}
        yield {**names, "text": short(value), "step": step}


def matrix(
    rows: list[Row],
    row_names: Sequence[str],
    column_names: Sequence[str],
    steps: Steps,
    frame: Frame,
    *,
    row_title: str | None = None,
    column_title: str | None = None,
    second: bool = False,
) -> alt.FacetChart:
    """Draw one cell for each row of data, a panel for each `panel`.

    Args:
        rows: `panel`, `row`, `column`, `text`, `step` (a label of `steps` or None), and, with
            `second`, `second` (text) and `own` (whether the cell is framed).
        row_names: all rows of a panel, top to bottom.
        column_names: all columns of a panel.
        steps: colours and legend.
        frame: of the figure.
        row_title: what the rows are, if they need a title.
        column_title: the same for columns.
        second: whether a cell has a second, smaller line.
    """
    # If columns do not fit, the figure becomes wider and its numbers stay readable.
    width = max(MIN_CELL, _cell_width(frame.columns, len(column_names)))
    above: dict[str, Any] = {
        **{"orient": "top", "domain": False, "ticks": False, "labelAngle": -35},
        **{"labelAlign": "left", "labelBaseline": "bottom", "labelOffset": -2},
        **{"labelPadding": 3, "labelFontSize": 11},
    }
    base = alt.Chart().encode(
        x=_axis(alt.X, "column", column_names, column_title, **above),
        y=_axis(alt.Y, "row", row_names, row_title),
    )
    size = {"width": width * len(column_names), "height": (30 if second else 21) * len(row_names)}
    layers = _layers(base, steps, width, second=second)
    chart = facet(layers, rows, frame, **size, spacing=SPACING)
    # Each panel labels its columns, because the figure can be taller than a screen.
    independent: alt.FacetChart = chart.resolve_axis(x="independent")
    return independent


def _axis(
    channel: type[A], field: str, names: Sequence[str], title: str | None, **options: Any
) -> A:
    scale = alt.Scale(domain=list(names), padding=0)
    is_trained = {"test": "datum.value === 'trained'", "value": style.colour("trained")}
    colour: Any = {"condition": is_trained, "value": style.INK}
    axis = alt.Axis(grid=False, labelColor=colour, **options)
    return channel(f"{field}:N", sort=list(names), title=title, scale=scale, axis=axis)


def _layers(base: alt.Chart, steps: Steps, width: int, *, second: bool) -> list[Any]:
    """Return cell colours and numbers and, with `second`, frames and second lines."""
    legend = alt.Legend(
        title=steps.title,
        orient="top",
        columns=len(steps.labels),
        symbolType="square",
        symbolOpacity=1,
        symbolStrokeColor=style.GRID,
        values=list(steps.labels),
    )
    scale = alt.Scale(domain=list(steps.labels), range=list(steps.colours))
    ground = (
        base.transform_filter("isValid(datum.step)")
        .mark_rect(xOffset=0.5, yOffset=0.5, x2Offset=-0.5, y2Offset=-0.5)
        .encode(fill=alt.Fill("step:N", scale=scale, legend=legend))
    )
    size, lift = 11 if width >= 36 else 10, -5 if second else 0
    layers: list[Any] = [
        ground,
        base.mark_text(fontSize=size, dy=lift).encode(text=alt.Text("text:N")),
    ]
    if second:
        framed = base.transform_filter("datum.own")
        layers.append(framed.mark_rect(filled=False, stroke=style.INK, strokeWidth=1.2))
        layers.append(base.mark_text(fontSize=9, dy=8).encode(text=alt.Text("second:N")))
    return layers


def short(value: float | None) -> str:
    """Format a number in at most five characters, for a narrow cell."""
    if value is None:
        return NONE
    size = abs(value)
    if size < 99.95:
        text = f"{value:.{2 if size < 9.995 else 1}f}"
    elif size < 999_500:
        text = f"{value:.0f}" if size < 9999.5 else f"{value / 1e3:.0f}k"
    else:
        text = f"{value / 1e6:.{1 if size < 9.95e6 else 0}f}M"
    return "0.00" if text == "-0.00" else text.replace("-", "\u2212")
