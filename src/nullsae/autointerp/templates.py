"""Templates of prompt files, which may be untrusted, are rendered in a separate process."""

from __future__ import annotations

import atexit
import contextlib
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nullsae.autointerp import template_process

LIBRARIES = ("jinja2", "markupsafe")


class TemplateError(Exception):
    """A template that cannot be rendered."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind
        """`syntax`, `undefined`, or another kind."""


class Renderer:
    """A process that renders templates; it starts with the first one and ends with this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._one_at_a_time = threading.Lock()

    def render(self, source: str, values: Mapping[str, Any]) -> str:
        """Render a Jinja template with JSON values.

        Raises:
            TemplateError: the template is invalid, uses an unknown value or something that the
                sandbox forbids, or takes too much time, memory or space.
        """
        # Other values, above all objects with methods, fail here.
        request = json.dumps({"source": source, "values": values}).encode() + b"\n"
        with self._one_at_a_time:
            process = self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(request)
                process.stdin.flush()
                line = process.stdout.readline()
            except BrokenPipeError:
                line = b""
            if not line.endswith(b"\n"):
                self._ended()
        answer = json.loads(line)
        if "text" in answer:
            return str(answer["text"])
        said = {
            "size": f"it makes more than {template_process.MAX_CHARACTERS:,} characters",
            "memory": f"it takes more than {template_process.MEMORY_BYTES >> 20} MB of memory",
        }
        raise TemplateError(answer["kind"], said.get(answer["kind"], answer["error"]))

    def close(self) -> None:
        """Stop the process."""
        if self._process is not None:
            process, self._process = self._process, None
            process.kill()
            # Buffered input is still written on close.
            with contextlib.suppress(BrokenPipeError), process:
                pass

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            specs = [find_spec(name) for name in LIBRARIES]
            folders = {str(Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin}
            self._process = subprocess.Popen(
                # Isolated: neither the study's folder nor the environment affects what it loads.
                [sys.executable, "-I", "-S", template_process.__file__, *sorted(folders)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # It must not see the keys of endpoints.
                env={},
                start_new_session=True,
            )
        return self._process

    def _ended(self) -> None:
        assert self._process is not None
        status = self._process.wait()
        self.close()
        if status == -signal.SIGPROF:
            text = f"it takes more than {template_process.CPU_SECONDS:g} s"
        else:
            text = f"it ended the process that renders it ({status})"
        raise TemplateError("other", text)


RENDERER = Renderer()
atexit.register(RENDERER.close)
