"""What tests ask of a page: its elements, and how a browser renders it."""

from __future__ import annotations

import html
import json
import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import vl_convert

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


@contextmanager
def drawing_only(*titles: str) -> Iterator[None]:
    """Draw only the figures with these titles; the others contain what they would be drawn from."""
    to_svg = vl_convert.vegalite_to_svg

    def draw(spec: dict[str, Any], **options: Any) -> str:
        if spec["title"]["text"] in titles:
            return to_svg(spec, **options)
        return f'<svg viewBox="0 0 1 1"><desc>{html.escape(json.dumps(spec))}</desc></svg>'

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vl_convert, "vegalite_to_svg", draw)
        yield


class Chromium:
    """A headless browser that answers questions about pages, over a pipe (DevTools protocol)."""

    def __init__(self, program: str, profile: Path) -> None:
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        flags += "--disable-background-networking --disable-component-update --disable-sync "
        flags += "--window-size=1400,900 --remote-debugging-pipe"
        # Chromium reads commands from file 3 and writes answers to file 4.
        start = f'exec "$0" "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", start, program, *flags.split(), f"--user-data-dir={profile}"],
            pass_fds=(commands, answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._n_calls, self._read = 0, b""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def __enter__(self) -> Chromium:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("Browser.close")
            self._process.wait(10)
        finally:
            self._process.kill()
        os.close(self._commands)
        os.close(self._answers)

    def ask(self, page: str, width: int, javascript: str) -> Any:
        """Return the result of a function with these statements, on a fresh copy of the page.

        `d` is the page's document, `w` its window, which has `width` by 800 pixels.
        """
        # A window cannot be as narrow as a phone, but a frame can, and srcdoc gives access to it.
        style = f"border:0;width:{width}px;height:800px"
        question = (
            "(async () => { const frame = document.createElement('iframe');"
            f"frame.style = {json.dumps(style)}; frame.srcdoc = {json.dumps(page)};"
            "await new Promise(done => { frame.onload = done; document.body.append(frame); });"
            "const w = frame.contentWindow, d = w.document;"
            f"try {{ return (() => {{ {javascript} }})(); }} finally {{ frame.remove(); }} }})()"
        )
        found = self._call(
            "Runtime.evaluate",
            **{"expression": question, "awaitPromise": True, "returnByValue": True},
            of=self._session,
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def scroll_width(self, page: str, width: int) -> int:
        """Return the width in pixels that an unfolded page needs in a window of `width`."""
        unfold = "d.querySelectorAll('details').forEach(one => one.open = true);"
        found = self.ask(page, width, f"{unfold} return d.documentElement.scrollWidth")
        assert isinstance(found, int), found
        return found

    def height_in_screens(self, page: str) -> float:
        """Return the height of a page, as it opens, in screens of 1280 by 800 pixels."""
        found = self.ask(page, 1280, "return d.documentElement.scrollHeight")
        assert isinstance(found, int), found
        return found / 800

    def _call(self, method: str, *, of: dict[str, str] | None = None, **params: Any) -> Any:
        self._n_calls += 1
        call = {"id": self._n_calls, "method": method, "params": params, **(of or {})}
        with open(self._commands, "wb", closefd=False) as file:
            file.write(json.dumps(call).encode() + b"\0")
        while True:
            while b"\0" not in self._read:
                ready, _, _ = select.select([self._answers], [], [], 60)
                assert ready, f"no answer to {method}"
                part = os.read(self._answers, 1 << 16)
                assert part, "the browser ended"
                self._read += part
            answer, _, self._read = self._read.partition(b"\0")
            told = json.loads(answer)
            if told.get("id") == self._n_calls:  # the others are events
                assert "error" not in told, told
                return told["result"]
