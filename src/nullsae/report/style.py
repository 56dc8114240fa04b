"""Colours and type of figures and page: one place, so that a variant looks the same everywhere."""

from __future__ import annotations

from typing import Any

from nullsae.report.looks import looks

# vl-convert ships Liberation Sans: with it first, bitmaps do not depend on the machine's fonts.
# One weight only: with two, vl-convert's PDFs list their fonts in an order that changes per run.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
WEIGHT = "normal"

INK, MUTED, GRID, BAND = "#1b2027", "#59616d", "#e2e5ea", "#f6e3e6"


# Grounds of a matrix' cells, from far below to far above; `INK` is written on them.
STEPS = ("#8fb8de", "#b9d3eb", "#dfeaf5", "#f3f3f1", "#f6ead0", "#eed5a2", "#e0b763")
# Grounds for a share from 0 to 1.
SHARES = ("#e2efe9", "#bfdfd2", "#93c9b5", "#5fae95")
# Dark partners of these.
_DARK_INKS = ("#e8ebf0", "#a2abb8", "#2c323c", "#3a2529")
_DARK_STEPS = ("#2f6299", "#27486d", "#202f44", "#22252b", "#40351d", "#5f4a1c", "#7d6120")
_DARK_SHARES = ("#1d2d2a", "#21443c", "#275f51", "#2a705e")


def dark() -> dict[str, str]:
    """Light value to dark value, of all colours.

    Figures are drawn in the light ones; in dark mode the page maps each to its dark partner by CSS,
    because inline SVG can be restyled and a bitmap cannot.
    """
    return {
        **dict(zip((INK, MUTED, GRID, BAND), _DARK_INKS, strict=True)),
        **{look.light: look.dark for look in looks().values()},
        **dict(zip((*STEPS, *SHARES), (*_DARK_STEPS, *_DARK_SHARES), strict=True)),
    }


def colour(variant: str) -> str:
    """The light-mode colour of a variant, whatever other variants the study has."""
    return looks()[variant].light


def shape(variant: str) -> str:
    """The Vega symbol of a variant in scatter plots."""
    return looks()[variant].shape


def dash(variant: str) -> list[int]:
    """The stroke dash of a variant in line plots."""
    return list(looks()[variant].dash)


def vega_config() -> dict[str, Any]:
    """The Vega-Lite `config` of every figure."""
    text = {"labelColor": INK, "labelFontSize": 12, "titleColor": MUTED, "titleFontSize": 12}
    return {
        "aria": False,  # one label on the whole drawing is kinder to a screen reader than hundreds
        "background": None,
        "font": FONT,
        "axis": {
            **text,
            "titleFontWeight": WEIGHT,
            "titlePadding": 8,
            "labelLimit": 0,
            "gridColor": GRID,
            "domainColor": GRID,
            "tickColor": GRID,
        },
        "axisY": {"ticks": False, "domain": False, "labelPadding": 8},
        "header": {
            "labelColor": INK,
            "labelFontSize": 13,
            "labelFontWeight": WEIGHT,
            "labelAnchor": "start",
            "labelLimit": 0,
            "titleColor": MUTED,
        },
        "legend": {**text, "labelLimit": 0, "symbolSize": 90, "titleFontWeight": WEIGHT},
        "title": {
            "anchor": "start",
            "color": INK,
            "fontSize": 17,
            "fontWeight": WEIGHT,
            "subtitleColor": MUTED,
            "subtitleFontSize": 12,
            "subtitlePadding": 5,
            "offset": 14,
        },
        "text": {"color": INK},
        "rule": {"color": MUTED},
        "view": {"stroke": None},
    }
