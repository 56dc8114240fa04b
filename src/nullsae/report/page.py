"""How a page is written: templates, numbers as text, and figures in it and beside it."""

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

    The template is looked for in `folders`, then among the report's own. It shows the context,
    `version` and the colours of the dark mode; imported macros may name `in_macros` too.
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
    # Whatever it shows, and whoever wrote that.
    write_text(path, visible(page))


def write_figures(root: Path, name: str, formats: Iterable[str], svg: str) -> None:
    """Write one figure to `paths.FIGURE` below `root`, in each of these formats."""
    for suffix in formats:
        write_figure(root / paths.FIGURE.format(figure=name, format=suffix), svg)


def in_page(svg: str, name: str, title: str) -> Markup:
    """A figure as part of a page; screen readers read out its `title`."""
    # Vega escapes text itself; the label is the only thing that enters here.
    return Markup(inline_svg(svg, name, str(escape(title))))


def json_text(value: Any) -> Markup:
    """A value as JSON that can stand in a `script` element: no text in it ends the element."""
    return htmlsafe_json_dumps(value, dumps=_dumps)


def source_hash(script: str) -> str:
    """What a content security policy calls an inline script, so that no other one runs."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _dumps(value: Any, **_options: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def signed(value: float | None, digits: int = 3) -> str:
    """A difference: always with its sign."""
    return number(value, digits, sign="+")


def number(value: float | None, digits: int = 3, sign: str = "") -> str:
    """A number with a true minus; an en dash where there is none."""
    if value is None:
        return NONE
    # Fewer decimals for large values: 0.123, 12.3, 123.
    size = abs(value)
    decimals = digits if size < 10 else max(0, digits - 2) if size < 100 else 0
    return f"{value:{sign}.{decimals}f}".replace("-", "\u2212")


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent."""
    return NONE if share is None else f"{100 * share:.{digits}f} %"


def p_value(p: float | None) -> str:
    """A p-value, no smaller than what the page can show."""
    if p is None:
        return NONE
    return "<0.001" if p < 0.001 else f"{p:.3f}"
