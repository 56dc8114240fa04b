"""Colours and type of figures and page; a variant looks the same everywhere."""

from __future__ import annotations

from functools import cache
from math import cos, pi, sin
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullsae.config.variants import VARIANTS, Look, Variant
from nullsae.core.randomness import numpy_generator

# vl-convert ships Liberation Sans: listed first, it makes bitmaps independent of installed fonts.
# One weight only: with two, the order of fonts in vl-convert's PDFs varies between runs.
FONT = "Liberation Sans, Arial, Helvetica, sans-serif"
WEIGHT = "normal"

INK, MUTED, GRID, BAND = "#1b2027", "#59616d", "#e2e5ea", "#f6e3e6"
# Colours of a matrix' cells, from far below to far above; `INK` is written on them.
STEPS = ("#8fb8de", "#b9d3eb", "#dfeaf5", "#f3f3f1", "#f6ead0", "#eed5a2", "#e0b763")
# Colours for a share from 0 to 1.
SHARES = ("#e2efe9", "#bfdfd2", "#93c9b5", "#5fae95")
# Dark counterparts of these.
_DARK_INKS = ("#e8ebf0", "#a2abb8", "#2c323c", "#3a2529")
_DARK_STEPS = ("#2f6299", "#27486d", "#202f44", "#22252b", "#40351d", "#5f4a1c", "#7d6120")
_DARK_SHARES = ("#1d2d2a", "#21443c", "#275f51", "#2a705e")

# Among nullsae's own variants, only `trained` has a warm strong colour. Pairwise CIE76 distance is
# above 15 for normal sight and simulated protanopia, deuteranopia and tritanopia, contrast with the
# background is above 3, and no two have the same shape. All but the first five were found by a
# random search under these conditions, with bounded chroma.
GROUNDS = ("#ffffff", "#15181e")
MIN_CONTRAST = 3.0
CANDIDATES = 500
_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def dark() -> dict[str, str]:
    """Map light to dark values of all colours.

    Figures are drawn in light colours. In dark mode the page maps each to its dark counterpart by
    CSS, because inline SVG can be restyled and a bitmap cannot.
    """
    return {
        **dict(zip((INK, MUTED, GRID, BAND), _DARK_INKS, strict=True)),
        **{look.light: look.dark for look in looks().values()},
        **dict(zip((*STEPS, *SHARES), (*_DARK_STEPS, *_DARK_SHARES), strict=True)),
    }


def colour(variant: str) -> str:
    """Return the light-mode colour of a variant, independent of the study's other variants."""
    return looks()[variant].light


def shape(variant: str) -> str:
    """Return the Vega symbol of a variant in scatter plots."""
    return looks()[variant].shape


def dash(variant: str) -> list[int]:
    """Return the stroke dash of a variant in line plots."""
    return list(looks()[variant].dash)


def vega_config() -> dict[str, Any]:
    """Return the Vega-Lite `config` of every figure."""
    text = {"labelColor": INK, "labelFontSize": 12, "titleColor": MUTED, "titleFontSize": 12}
    return {
        "aria": False,  # screen readers prefer one label for the drawing to hundreds of marks
        "background": None,
        "font": FONT,
        "axis": {
            **text,
            **{"titleFontWeight": WEIGHT, "titlePadding": 8, "labelLimit": 0},
            **{"gridColor": GRID, "domainColor": GRID, "tickColor": GRID},
        },
        "axisY": {"ticks": False, "domain": False, "labelPadding": 8},
        "header": {
            **{"labelColor": INK, "labelFontSize": 13, "labelFontWeight": WEIGHT},
            **{"labelAnchor": "start", "labelLimit": 0, "titleColor": MUTED},
        },
        "legend": {**text, "labelLimit": 0, "symbolSize": 90, "titleFontWeight": WEIGHT},
        "title": {
            **{"anchor": "start", "color": INK, "fontSize": 17, "fontWeight": WEIGHT},
            **{"subtitleColor": MUTED, "subtitleFontSize": 12, "subtitlePadding": 5},
            "offset": 14,
        },
        "text": {"color": INK},
        "rule": {"color": MUTED},
        "view": {"stroke": None},
    }


def looks() -> dict[str, Look]:
    """Return the look of each known variant, by name."""
    return _looks(tuple(VARIANTS.values()))


@cache
def _looks(variants: tuple[type[Variant], ...]) -> dict[str, Look]:
    found = {variant.name: variant.look for variant in variants if variant.look is not None}
    for variant in variants:
        if variant.look is None:
            found[variant.name] = _made(variant.name, [*found.values()])
    return found


def _made(name: str, taken: list[Look]) -> Look:
    """Make a look from the name that stays distinct from the looks taken."""
    rng = numpy_generator(0, "look", name)
    light = _colour(rng, GROUNDS[0], [look.light for look in taken])
    dark = _colour(rng, GROUNDS[1], [look.dark for look in taken])
    while True:
        shape = _star(int(rng.integers(5, 12)), float(rng.uniform(0.3, 0.8)))
        dash = tuple(int(n) for n in rng.integers(1, 15, size=4))
        if all(shape != look.shape and dash != look.dash for look in taken):
            return Look(light, dark, shape, dash)


def _colour(rng: np.random.Generator, ground: str, taken: list[str]) -> str:
    """Choose the random colour farthest from those taken that stands out from the background."""
    drawn = [f"#{int(n):06x}" for n in rng.integers(2**24, size=CANDIDATES)]
    others = np.stack([_lab(colour) for colour in taken])
    return max(
        (c for c in drawn if _contrast(c, ground) > MIN_CONTRAST),
        key=lambda colour: float(np.linalg.norm(_lab(colour) - others, axis=1).min()),
    )


def _star(points: int, inner: float) -> str:
    """Return a star as an SVG path within a box from -1 to 1."""
    corners = [
        f"{radius * sin(angle):.2f},{-radius * cos(angle):.2f}"
        for i in range(2 * points)
        for radius, angle in [(inner if i % 2 else 1.0, i * pi / points)]
    ]
    return f"M{'L'.join(corners)}Z"


def _xyz(colour: str) -> NDArray[np.float64]:
    channel = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channel <= 0.04045, channel / 12.92, ((channel + 0.055) / 1.055) ** 2.4)
    xyz: NDArray[np.float64] = _TO_XYZ @ linear
    return xyz


def _lab(colour: str) -> NDArray[np.float64]:
    x: Any = _xyz(colour) / np.array([0.9505, 1.0, 1.089])
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def _contrast(one: str, other: str) -> float:
    """Return the WCAG contrast ratio of two colours."""
    dim, bright = sorted(float(_xyz(colour)[1]) + 0.05 for colour in (one, other))
    return bright / dim
