"""Colours and type of figures and page: one place, so that a variant looks the same everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# vl-convert ships Liberation Sans: with it first, bitmaps do not depend on the machine's fonts.
# One weight only: with two, vl-convert's PDFs list their fonts in an order that changes per run.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
WEIGHT = "normal"

# Light value to dark value. Figures are drawn in the light ones; in dark mode the page maps each
# to its dark partner by CSS, because inline SVG can be restyled and a bitmap cannot.
INK, MUTED, GRID, BAND = "#1b2027", "#59616d", "#e2e5ea", "#f6e3e6"
DARK = {INK: "#e8ebf0", MUTED: "#a2abb8", GRID: "#2c323c", BAND: "#3a2529"}


@dataclass(frozen=True)
class Look:
    """How one variant is drawn."""

    light: str
    dark: str
    shape: str
    """A Vega symbol, or an SVG path within a box from -1 to 1."""
    dash: tuple[int, ...]


_STAR = "M0,-1L0.25,-0.3L1,-0.3L0.4,0.15L0.6,0.9L0,0.45L-0.6,0.9L-0.4,0.15L-1,-0.3L-0.25,-0.3Z"
_SALTIRE = (
    "M-0.9,-0.55L-0.55,-0.9L0,-0.35L0.55,-0.9L0.9,-0.55L0.35,0"
    "L0.9,0.55L0.55,0.9L0,0.35L-0.55,0.9L-0.9,0.55L-0.35,0Z"
)
_HOURGLASS = "M-0.85,-0.85L0.85,-0.85L-0.85,0.85L0.85,0.85Z"
_BAR = "M-1,-0.35L1,-0.35L1,0.35L-1,0.35Z"

# `trained` is the only warm strong colour. Of all twelve, pairwise CIE76 distance is above 15 for
# normal sight and simulated protanopia, deuteranopia and tritanopia, and contrast with the ground
# is above 3; no two have the same shape. The seven that follow the first five were found by a
# random search under these conditions, with a bound on their chroma.
_LOOKS = {
    "trained": Look("#c8102e", "#ff6b57", "circle", (1, 0)),
    "step0": Look("#0072b2", "#4f9cf5", "square", (6, 2)),
    "rerandomized": Look("#009e73", "#2fc9a5", "triangle-up", (2, 2)),
    "rerandomized_keep_embeddings": Look("#b07a00", "#e8c14a", "diamond", (8, 2, 2, 2)),
    "noise_embeddings": Look("#555b66", "#7f8794", "cross", (4, 4)),
    "fresh_init": Look("#0c3054", "#cce4e4", "triangle-down", (10, 3)),
    "permuted_weights": Look("#306c30", "#487860", "triangle-right", (1, 3)),
    "spectrum_matched": Look("#909054", "#84c078", "triangle-left", (12, 3, 1, 3)),
    "cascade": Look("#483c00", "#e4e490", _STAR, (3, 1)),
    "permuted_embeddings": Look("#6c3c84", "#9060a8", _SALTIRE, (6, 2, 1, 2, 1, 2)),
    "rotated_embeddings": Look("#a8789c", "#cca8d8", _HOURGLASS, (2, 5)),
    "gaussian": Look("#542424", "#906c18", _BAR, (14, 4)),
}
DARK |= {look.light: look.dark for look in _LOOKS.values()}

# Grounds of a matrix' cells, from far below to far above; `INK` is written on them.
STEPS = ("#8fb8de", "#b9d3eb", "#dfeaf5", "#f3f3f1", "#f6ead0", "#eed5a2", "#e0b763")
# Grounds for a share from 0 to 1.
SHARES = ("#e2efe9", "#bfdfd2", "#93c9b5", "#5fae95")
DARK |= dict(
    zip(
        (*STEPS, *SHARES),
        (
            *("#2f6299", "#27486d", "#202f44", "#22252b", "#40351d", "#5f4a1c", "#7d6120"),
            *("#1d2d2a", "#21443c", "#275f51", "#2a705e"),
        ),
        strict=True,
    )
)


def colour(variant: str) -> str:
    """The light-mode colour of a variant, whatever other variants the study has."""
    return _LOOKS[variant].light


def shape(variant: str) -> str:
    """The Vega symbol of a variant in scatter plots."""
    return _LOOKS[variant].shape


def dash(variant: str) -> list[int]:
    """The stroke dash of a variant in line plots."""
    return list(_LOOKS[variant].dash)


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
