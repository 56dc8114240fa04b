"""A server that a job starts for itself, that nobody can impersonate, and that ends with the job.

Any user of a machine can listen at any of its ports. So each run has a random key, and nothing is
sent before the server itself, or a child process of it, is seen listening at its port.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import IO

import aiohttp

from nullsae.autointerp.llm import guard
from nullsae.autointerp.llm.ports import EVERY, listeners
from nullsae.autointerp.llm.refusals import shortened
from nullsae.config.endpoints import ManagedServer
from nullsae.core.errors import UserError

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
# Variables in which servers look for their key: llama.cpp, vLLM, and scripts around others. Only
# the user can see the environment of a process; everyone can see its command line.
KEY_VARIABLES = ("LLAMA_API_KEY", "VLLM_API_KEY", "NULLSAE_SERVER_KEY")


class NotOurServerError(OSError):
    """Something else may be listening at the port, so nothing is sent there."""


class RunningServer:
    """A started server; `stop` ends it with its whole process group.

    A guard process has a pipe from this one and stops the group when the pipe closes, so that the
    server always ends with this process: after SIGKILL, this process could not stop it itself.
    """

    def __init__(self, settings: ManagedServer, root: Path, key: str | None = None) -> None:
        """`key` is what it must ask for; by default a random one."""
        self._settings, self._root = settings, root
        self.key = key or secrets.token_urlsafe(32)
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - until `stop`
        self._guard: asyncio.subprocess.Process | None = None
        self._group: int | None = None
        self.address = ""
        """Without a path; known once it starts."""
        self.problem: str | None = None
        """Why nothing more is sent to it."""
        self._port, self._warned = 0, False

    @property
    def ended(self) -> bool:
        """Whether it ended by itself."""
        return self._guard is not None and self._guard.returncode is not None

    def last_line(self) -> str:
        """Return the last line it printed, as ` (...)`; empty if it printed nothing."""
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(0, size - 4096))
        text = self._output.read().decode(errors="replace").replace(self.key, "***")
        lines = text.strip().splitlines()
        return f" ({shortened(lines[-1])})" if lines else ""

    async def start(self) -> None:
        """Start it and wait until it is ready; a `UserError` if it never is."""
        with socket.socket() as probe:  # a free port
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        words = [word.replace("{port}", str(self._port)) for word in self._settings.command]
        if shutil.which(words[0]) is None and not (self._root / words[0]).is_file():
            raise UserError(
                f"server.command: no program {words[0]!r}; install it, or give its full path"
            )
        try:
            await self._launch(words)
            await self._wait()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop its process group and wait for that."""
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        try:
            await asyncio.wait_for(self._guard.wait(), 2 * guard.GRACE_SECONDS)
        except TimeoutError:
            self._guard.kill()
        if self._guard.returncode == -signal.SIGKILL and self._group is not None:
            # Someone killed the guard, so its work falls to this process.
            await asyncio.to_thread(guard.end_group, self._group)
        self._output.close()

    async def _launch(self, words: list[str]) -> None:
        self._guard = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", guard.__file__, *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=self._output,
            cwd=self._root,
            env=os.environ | dict.fromkeys(KEY_VARIABLES, self.key),
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
        headers = {"Authorization": f"Bearer {self.key}"}
        async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
            while loop.time() < deadline:
                if self.ended:
                    assert self._guard is not None
                    raise UserError(
                        f"server.command: {program!r} ended with {self._guard.returncode} before "
                        f"it was ready{self.last_line()}"
                    )
                if await self._listens():
                    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                        async with session.get(self.address + self._settings.health) as response:
                            if response.status == 200:
                                return
                await asyncio.sleep(POLL_SECONDS)
        raise UserError(
            f"server.ready_seconds: {program!r} did not answer {self._settings.health} with 200 "
            f"within {seconds:g} s{self.last_line()}; allow more, or correct server.health"
        )

    async def check(self) -> None:
        """Raise a `NotOurServerError` unless the server listens at its port, and nobody else does.

        Call it for each new connection before sending anything: the current listener is the one
        that accepted it, because a port in use cannot be taken over.
        """
        try:
            listens = await self._listens()
        except UserError as error:
            self.problem = str(error)
            raise NotOurServerError(self.problem) from None
        if self.ended or not listens:
            raise NotOurServerError(f"{self._settings.command[0]!r} does not listen any more")

    async def _listens(self) -> bool:
        """Return whether it listens; a `UserError` if somebody else does."""
        assert self._group is not None
        found = await asyncio.to_thread(listeners, self._port, self._group)
        program = self._settings.command[0]
        if found.foreign:
            raise UserError(
                f"server.command: {found.foreign[0]} listens at port {self._port}, which was free "
                f"for {program!r}; nothing was sent to it; run again, or see whose process it is"
            )
        if open_to_all := [address for address in found.own if address in EVERY]:
            self._warn_once(open_to_all[0])
        return bool(found.own)

    def _warn_once(self, address: str) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "server.command: %r listens at %s, where other machines may reach it; have it "
                "listen at 127.0.0.1, for example by --host 127.0.0.1",
                self._settings.command[0],
                address,
            )
