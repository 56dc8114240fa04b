"""From an Altair chart to bytes: SVG once, the other formats from that SVG."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert
from altair.utils.schemapi import debug_mode

from nullsae.core.files import atomic_path
from nullsae.core.visible import visible
from nullsae.report import style

PIXEL_RATIO = 2.0
"""Bitmap pixels per CSS pixel."""
PLACES = re.compile(r'\b(?:d|transform|x|y|x1|x2|y1|y2|width|height)="[^"]*"')
"""Attributes that contain only pixels; other attributes carry the chart's content."""


def unvalidated() -> AbstractContextManager[None]:
    """Return a context in which parts of charts are not validated, which takes as long as drawing.

    Tests validate charts of each form.
    """
    return debug_mode(False)


def to_svg(chart: alt.TopLevelMixin) -> str:
    """Draw a chart in the house style, offline: vl-convert includes the fonts and Vega.

    The chart is not validated; make it within `unvalidated`, too.
    """
    spec: dict[str, Any] = chart.to_dict(validate=False)
    spec["config"] = style.vega_config()
    spec["padding"] = 8
    version = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])
    svg = str(vl_convert.vegalite_to_svg(spec, vl_version=version))
    return _renumber_clips(_rounded(visible(svg)))


def write_figure(path: Path, svg: str) -> None:
    """Write a figure in the format of the suffix (svg, png or pdf), on a white background."""
    head, _, body = svg.partition(">")
    solid = f'{head}><rect width="100%" height="100%" fill="#ffffff"/>{body}'
    if path.suffix == ".svg":
        content = solid.encode()
    elif path.suffix == ".png":
        content = vl_convert.svg_to_png(solid, scale=PIXEL_RATIO)
    else:
        content = _sort_resources(vl_convert.svg_to_pdf(solid))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def inline_svg(svg: str, name: str, label: str) -> str:
    """Return an SVG that can be placed in a page with others.

    Ids become unique (all Vega figures name their clip paths alike), the fixed size is replaced by
    the view box, and the whole drawing gets one label. The font, which Vega repeats in each text,
    is named once.
    """
    prefix = re.sub(r"[^A-Za-z0-9_-]", "-", name)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}-\1)", svg)
    svg = re.sub(r'((?:xlink:)?href)="#([^"]+)"', rf'\1="#{prefix}-\2"', svg)
    svg = svg.replace(f' font-family="{style.FONT}"', "")
    head, _, body = svg.partition(">")
    view_box = re.search(r'viewBox="([^"]+)"', head)
    if view_box is None:
        raise ValueError(f"{name}: the SVG has no viewBox")
    width = float(view_box[1].split()[2])
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view_box[1]}" role="img" '
        f'aria-label="{label}" font-family="{style.FONT}" style="--natural:{width:.0f}px">{body}'
    )


def _rounded(svg: str) -> str:
    """Round positions to a thousandth of a pixel; Vega's 14 more digits are a tenth of the file."""
    return PLACES.sub(lambda place: re.sub(r"(\.\d{3})\d+", r"\1", place[0]), svg)


def _renumber_clips(svg: str) -> str:
    """Number clip paths from 0 in each figure; Vega counts them through the process."""
    numbers: dict[str, str] = {}

    def renumber(match: re.Match[str]) -> str:
        return match[1] + numbers.setdefault(match[2], f"clip{len(numbers)}")

    return re.sub(r'(\bid="|url\(#)(clip\d+)', renumber, svg)


def _sort_resources(pdf: bytes) -> bytes:
    """Sort the entries of a PDF's resource dictionaries, whose order varies between runs.

    The length of each dictionary, and thus every byte offset in the file, is preserved.
    """
    return re.sub(
        rb"(?:^ +/\w+ \d+ 0 R\n){2,}",
        lambda match: b"".join(sorted(match[0].splitlines(keepends=True))),
        pdf,
        flags=re.MULTILINE,
    )
