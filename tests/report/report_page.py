"""What tests ask of a page: its elements, and how a browser renders it."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

VOID = ("meta", "br", "wbr", "link", "img", "hr", "input")


class Elements(HTMLParser):
    """Every start tag with its attributes, the text outside scripts, and whether tags are balanced.

    The end tag of a `td` may be missing, as HTML allows.
    """

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "td":
            self._end_cell()
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag == "tr":
            self._end_cell()
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["script"]:
            self.text.append(data)

    def _end_cell(self) -> None:
        if self.open[-1:] == ["td"]:
            self.open.pop()


def ask(page: str, width: int, folder: Path, javascript: str) -> Any:
    """Return the result of a function with these statements in a window of `width` by 800 pixels.

    `d` is the page's document, `w` its window. Skips the test without Chromium.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on PATH")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    flags += "--disable-background-networking --disable-component-update --disable-sync"
    # A window cannot be as narrow as a phone, but a frame can, and srcdoc gives the script access.
    wrapper = folder / "wrapper.html"
    wrapper.write_text(
        '<meta charset="utf-8">'
        f'<iframe style="border:0;width:{width}px;height:800px" srcdoc="{html.escape(page)}">'
        "</iframe><script>onload = () => {"
        "const w = document.querySelector('iframe').contentWindow;"
        f"const d = w.document; let found; try {{ found = (() => {{ {javascript} }})(); }}"
        "catch (error) { found = String(error); }"
        "document.title = JSON.stringify(found); document.body.remove(); }</script>",
        encoding="utf-8",
    )
    command = [program, *flags.split(), f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=1400,900", "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", check=True, timeout=60)
    found = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(found[1]))


def scroll_width(page: str, width: int, folder: Path) -> int:
    """Return the width in pixels that an unfolded page needs in a window of `width`."""
    unfold = "d.querySelectorAll('details').forEach(one => one.open = true);"
    found = ask(page, width, folder, f"{unfold} return d.documentElement.scrollWidth")
    assert isinstance(found, int), found
    return found


def height_in_screens(page: str, folder: Path) -> float:
    """Return the height of a page, as it opens, in screens of 1280 by 800 pixels."""
    found = ask(page, 1280, folder, "return d.documentElement.scrollHeight")
    assert isinstance(found, int), found
    return found / 800
