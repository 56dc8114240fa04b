"""Colours and type of figures and page: one place, so that a variant looks the same everywhere."""

from __future__ import annotations

from typing import Any, get_args

from nullsae.config import VariantName

# vl-convert ships Liberation Sans: with it first, bitmaps do not depend on the machine's fonts.
# One weight only: with two, vl-convert's PDFs list their fonts in an order that changes per run.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
WEIGHT = "normal"

# Light value to dark value. Figures are drawn in the light ones; in dark mode the page maps each
# to its dark partner by CSS, because inline SVG can be restyled and a bitmap cannot.
INK, MUTED, GRID, BAND = "#1b2027", "#59616d", "#e2e5ea", "#f6e3e6"
DARK = {INK: "#e8ebf0", MUTED: "#a2abb8", GRID: "#2c323c", BAND: "#3a2529"}

# `trained` is the only warm strong colour. Pairwise CIE76 distance is above 15 for normal sight
# and simulated protanopia, deuteranopia and tritanopia; contrast with the ground is above 3.
_LIGHT_VARIANTS = ("#c8102e", "#0072b2", "#009e73", "#b07a00", "#555b66")
_DARK_VARIANTS = ("#ff6b57", "#4f9cf5", "#2fc9a5", "#e8c14a", "#7f8794")
DARK |= dict(zip(_LIGHT_VARIANTS, _DARK_VARIANTS, strict=True))
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross")
_DASHES = ([1, 0], [6, 2], [2, 2], [8, 2, 2, 2], [4, 4])

_KNOWN: tuple[str, ...] = get_args(VariantName)


def _slot(variant: str) -> int:
    return _KNOWN.index(variant) % len(_LIGHT_VARIANTS)


def colour(variant: str) -> str:
    """The light-mode colour of a variant, whatever other variants the study has."""
    return _LIGHT_VARIANTS[_slot(variant)]


def shape(variant: str) -> str:
    """The Vega symbol of a variant in scatter plots."""
    return _SHAPES[_slot(variant)]


def dash(variant: str) -> list[int]:
    """The stroke dash of a variant in line plots."""
    return _DASHES[_slot(variant)]


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
