"""The figure of the answer: every metric on one scale, from its floor to trained."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from nullsae.config.metrics import METRICS
from nullsae.core.registry import lazy
from nullsae.report import charts, style
from nullsae.report.kinds import FigureKind
from nullsae.report.study import Row, Study
from nullsae.statistics.findings import APART, TIERS, Against, Finding

if TYPE_CHECKING:
    import altair as alt
else:
    alt = lazy("altair")

MAX_METRICS = 40
"""Metrics drawn, the best of each tier first."""
LOW, HIGH = -0.5, 2.0
"""Ends of the axis."""
WIDTH, ROW = 420, 20
"""Pixels of a panel, and of each metric in it."""
TICKS = {-0.5: "", 0: "floor", 0.5: "half", 1: "trained", 1.5: "", 2: "twice"}


class AnswerFigure(FigureKind):
    """What each metric says about trained against each null and retrained."""

    name = "answer"
    section, place = "answer", 0
    title = "What each metric says"
    definition = (
        "Each metric on one scale, from its floor, the value when nothing was learned, to trained. "
        "Marks are the other variants, medians over sites and SAEs: filled if told apart from "
        "trained in every comparison, hollow otherwise."
    )
    reading = (
        "A metric that measures what training created has all nulls at its floor, or at least away "
        "from trained, and a retrained model at trained. The band is the margin: marks within it "
        "count as no different from trained. Marks beyond the axis are drawn at its end."
    )

    def draw(self, study: Study, subject: str) -> tuple[Any, str]:
        """Return the chart, one panel per tier with the best metrics first, and its caption."""
        shown = drawn(study.answer.findings)
        parts: list[Any] = []
        for tier, title in TIERS.items():
            own = [one for one in shown if one.tier == tier]
            rows = [row for one in own for row in positions(study, subject, one)]
            if rows:
                names = list(dict.fromkeys(row["metric"] for row in rows))
                parts.append(_panel(study, rows, names, title, first=not parts))
        if not parts:
            return charts.nothing(self.title, "No metric has a value and a floor"), self.caption
        left = len(study.answer.findings) - len(shown)
        more = f" The tables below contain {left} more metrics." if left else ""
        chart = alt.vconcat(*parts, spacing=14).properties(title=alt.Title(self.title))
        return chart, f"{self.caption}{more}"


def drawn(findings: Sequence[Finding]) -> list[Finding]:
    """Select the findings that fit into the figure: a fair share of each tier, best first."""
    room = MAX_METRICS
    kept: set[int] = set()
    tiers = [[i for i, one in enumerate(findings) if one.tier == tier] for tier in TIERS]
    for n_left, own in zip(range(len(tiers), 0, -1), sorted(tiers, key=len), strict=True):
        kept |= {*own[: room // n_left]}
        room -= min(len(own), room // n_left)
    return [one for i, one in enumerate(findings) if i in kept]


def positions(study: Study, subject: str, finding: Finding) -> list[Row]:
    """Return the position of each variant, one per row, and the margin, for one subject.

    `x` is the median of (value - floor) / (trained - floor) over contrasts, and `margin` the median
    of their margins over |trained - floor|. Contrasts without these numbers are left out, as are
    those of SAEs that the answer does not cover.
    """
    floor = METRICS[finding.metric].floor
    keys = {name: getattr(finding, name) for name in ("metric", "explainer", "scorer")}
    found = []
    for one in finding.against:
        shares, margins = [], []
        for row in study.rows("contrasts", subject=subject, variant=one.variant, **keys):
            if row["sae"] not in study.config.answering_saes:
                continue
            reach = None if row["real_value"] is None else row["real_value"] - floor
            if reach and row["value"] is not None:
                shares.append((row["value"] - floor) / reach)
                margins.append((row["margin"] or 0.0) / abs(reach))
        if shares:
            found.append(
                {
                    "metric": finding.name,
                    "variant": one.variant,
                    "x": min(HIGH, max(LOW, median(shares))),
                    "margin": median(margins),
                    "apart": is_apart(one),
                }
            )
    return found


def is_apart(one: Against) -> bool:
    """Whether every comparison with a verdict tells the variant from trained."""
    counts = {word: n for word, n in one.verdicts.items() if word != "none"}
    return bool(counts) and counts.keys() <= set(APART)


def _panel(
    study: Study, rows: list[Row], names: Iterable[str], title: str, *, first: bool
) -> alt.LayerChart:
    names = list(names)
    axis = alt.Axis(grid=True, labelFontSize=11, labelLimit=340)
    y = alt.Y(
        "metric:N", sort=names, title=None, scale=alt.Scale(domain=names, padding=0.45), axis=axis
    )
    label = " : ".join(f"datum.value == {at} ? '{text}'" for at, text in TICKS.items()) + " : ''"
    scale = alt.Scale(domain=[LOW, HIGH], nice=False)
    x_axis = alt.Axis(values=list(TICKS), labelExpr=label, orient="top", grid=False, ticks=False)
    x = alt.X("x:Q", title=None, scale=scale, axis=x_axis if first else None)
    band = (
        alt.Chart()
        .transform_aggregate(margin="mean(margin)", groupby=["metric"])
        .transform_calculate(low=f"max({LOW}, 1 - datum.margin)")
        .transform_calculate(high=f"min({HIGH}, 1 + datum.margin)")
        .mark_bar(color=style.BAND, size=ROW - 4)
        .encode(y=y, x=alt.X("low:Q", title=None, scale=scale), x2=alt.X2("high:Q"))
    )
    legend = None
    if first:
        legend = alt.Legend(title=None, orient="top", columns=5, symbolOpacity=1)
    shown = list(study.compared)
    mark = alt.Chart().mark_point(size=50, strokeWidth=1.5, opacity=0.95)
    colour = charts.by_look(alt.Color, style.colour, shown, legend=legend)
    mark = mark.encode(
        *(y, x, colour, alt.YOffset("variant:N", sort=shown, scale=alt.Scale(domain=shown))),
        charts.by_look(alt.Shape, style.shape, shown, legend=legend),
        fill=charts.by_look(alt.Fill, style.colour, shown),
        fillOpacity=alt.condition("datum.apart", alt.value(1), alt.value(0)),
    )
    zero = alt.Chart().transform_aggregate(n="count()").mark_rule(strokeDash=[3, 3])
    lines = [zero.encode(alt.XDatum(at)) for at in (0, 1)]
    heading = alt.Title(title, fontSize=13, offset=6, frame="group")
    return alt.LayerChart(
        data=alt.InlineData(values=rows),
        layer=[band, *lines, mark],
        width=WIDTH,
        height=ROW * len(names),
        title=heading,
    )
