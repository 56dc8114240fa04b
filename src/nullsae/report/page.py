"""How a page is written: templates, number formats, and figures inside it and as files."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

from nullsae import __version__, paths
from nullsae.core.files import write_text
from nullsae.core.visible import visible
from nullsae.report import style
from nullsae.report.render import inline_svg, write_figure
from nullsae.report.text import NONE, inked

TEMPLATES = Path(__file__).parent / "templates"


def write_page(
    path: Path,
    template: str,
    *,
    folders: Iterable[Path] = (),
    in_macros: Mapping[str, Any] | None = None,
    **context: Any,
) -> None:
    """Render one HTML file.

    The template is looked up in `folders`, then among the report's own. It gets the context,
    `version` and the colours of the dark mode; imported macros also see `in_macros`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (number, signed, percent, p_value, inked, json_text, source_hash)
    environment.filters |= {written.__name__: written for written in filters}
    environment.globals |= in_macros or {}
    page = environment.get_template(template).render(
        version=__version__, dark=style.dark(), **context
    )
    # All text must be visible, whatever its origin.
    write_text(path, visible(page))


def write_figures(root: Path, name: str, formats: Iterable[str], svg: str) -> None:
    """Write one figure to `paths.FIGURE` below `root`, in each of these formats."""
    for suffix in formats:
        write_figure(root / paths.FIGURE.format(figure=name, format=suffix), svg)


def in_page(svg: str, name: str, title: str) -> Markup:
    """Return a figure as part of a page; screen readers read its `title`."""
    # Vega escapes text itself; only the label is added here.
    return Markup(inline_svg(svg, name, str(escape(title))))


def json_text(value: Any) -> Markup:
    """Return a value as JSON for a `script` element; no text in it can end the element."""
    return htmlsafe_json_dumps(value, dumps=_dumps)


def source_hash(script: str) -> str:
    """Return the hash of an inline script for a content security policy that blocks all others."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _dumps(value: Any, **_options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def signed(value: float | None, digits: int = 3) -> str:
    """Format a difference, always with its sign."""
    return number(value, digits, sign="+")


def number(value: float | None, digits: int = 3, sign: str = "") -> str:
    """Format a number with a true minus sign; None becomes an en dash."""
    if value is None:
        return NONE
    # Fewer decimals for large values: 0.123, 12.3, 123.
    size = abs(value)
    decimals = digits if size < 10 else max(0, digits - 2) if size < 100 else 0
    return f"{value:{sign}.{decimals}f}".replace("-", "\u2212")


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share in percent."""
    return NONE if share is None else f"{100 * share:.{digits}f} %"


def p_value(p: float | None) -> str:
    """Format a p-value, no smaller than the page can show."""
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"
