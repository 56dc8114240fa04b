"""What tests ask of a page: its elements, and how wide a browser makes it."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

VOID = ("meta", "br", "wbr", "link", "img", "hr", "input")


class Elements(HTMLParser):
    """Every start tag with its attributes, the text, and whether tags are balanced.

    The end tag of a `td` may be left out, as HTML allows.
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
        self.text.append(data)

    def _end_cell(self) -> None:
        if self.open[-1:] == ["td"]:
            self.open.pop()


def scroll_width(page: str, width: int, folder: Path) -> int:
    """The width in pixels that a page needs in a window of `width`, with everything unfolded.

    Skips the test where there is no Chromium.
    """
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no chromium on PATH")
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
    flags += "--disable-background-networking --disable-component-update --disable-sync"
    # A window cannot be as narrow as a phone; a frame can, and srcdoc lets the script look inside.
    wrapper = folder / "wrapper.html"
    wrapper.write_text(
        f'<iframe style="border:0;width:{width}px;height:800px" srcdoc="{html.escape(page)}">'
        "</iframe><script>onload = () => { const d = document.querySelector('iframe')"
        ".contentDocument; d.querySelectorAll('details').forEach(e => e.open = true);"
        "document.title = 'scrollWidth=' + d.documentElement.scrollWidth + ' h1=' +"
        "d.querySelectorAll('h1').length + ' scripts=' + d.scripts.length;"
        "document.body.remove(); }</script>",
        encoding="utf-8",
    )
    command = [program, *flags.split(), f"--user-data-dir={folder / 'profile'}"]
    command += ["--window-size=1400,900", "--dump-dom", wrapper.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    found = re.search(r"<title>scrollWidth=(\d+) h1=1 scripts=0</title>", done.stdout)
    assert found is not None
    return int(found[1])
