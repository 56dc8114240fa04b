"""A server that a job starts for itself, and that never outlives it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import IO

import aiohttp

from nullsae.autointerp.llm import guard
from nullsae.autointerp.llm.answers import shortened
from nullsae.config.endpoints import ManagedServer
from nullsae.core.errors import UserError

POLL_SECONDS = 0.1


class RunningServer:
    """A started server; `stop` ends it with its whole process group.

    A guard process holds a pipe from this one and ends the group when the pipe closes, so that
    the server ends with this process whatever ends that: SIGKILL leaves no chance to do it here.
    """

    def __init__(self, settings: ManagedServer, root: Path) -> None:
        self._settings = settings
        self._root = root
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - until `stop`
        self._guard: asyncio.subprocess.Process | None = None
        self._group: int | None = None
        self.address = ""
        """Without a path; known as soon as it starts."""

    @property
    def ended(self) -> bool:
        """Whether it ended by itself."""
        return self._guard is not None and self._guard.returncode is not None

    def last_line(self) -> str:
        """What it printed last, as ` (...)`; empty if it printed nothing."""
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - 4096))
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        return f" ({shortened(lines[-1])})" if lines else ""

    async def start(self) -> None:
        """Start it and wait until it is ready; a `UserError` where it never gets ready."""
        with socket.socket() as probe:  # a free port
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        self.address = f"http://127.0.0.1:{port}"
        words = [word.replace("{port}", port) for word in self._settings.command]
        if shutil.which(words[0]) is None and not (self._root / words[0]).is_file():
            raise UserError(
                f"server.command: no program {words[0]!r}; install it, or write its whole path"
            )
        try:
            await self._launch(words)
            await self._wait()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """End its process group and wait for that."""
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        try:
            await asyncio.wait_for(self._guard.wait(), 2 * guard.GRACE_SECONDS)
        except TimeoutError:
            self._guard.kill()
        if self._guard.returncode == -signal.SIGKILL and self._group is not None:
            # Someone killed the guard, and so its work falls to this process.
            await asyncio.to_thread(guard.end_group, self._group)
        self._output.close()

    async def _launch(self, words: list[str]) -> None:
        self._guard = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", guard.__file__, *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._output,
            cwd=self._root,
            # Ctrl-C in a terminal goes to the whole foreground group.
            start_new_session=True,
        )
        assert self._guard.stdout is not None
        line = (await self._guard.stdout.readline()).decode()
        word, _, rest = line.strip().partition(" ")
        if word != "pid":
            raise UserError(f"server.command: {words[0]!r} cannot be started ({rest or line})")
        self._group = int(rest)

    async def _wait(self) -> None:
        seconds, program = self._settings.ready_seconds, self._settings.command[0]
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        timeout = aiohttp.ClientTimeout(total=max(1.0, min(5.0, seconds)))
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while loop.time() < deadline:
                if self.ended:
                    assert self._guard is not None
                    raise UserError(
                        f"server.command: {program!r} ended with {self._guard.returncode} before "
                        f"it was ready{self.last_line()}"
                    )
                with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                    async with session.get(self.address + self._settings.health) as response:
                        if response.status == 200:
                            return
                await asyncio.sleep(POLL_SECONDS)
        raise UserError(
            f"server.ready_seconds: {program!r} did not answer {self._settings.health} with 200 "
            f"within {seconds:g} s{self.last_line()}; give it longer, or mend server.health"
        )
