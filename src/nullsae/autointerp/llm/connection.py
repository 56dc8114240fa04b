"""The way to an endpoint: address, key, and the job's own server, as soon as one is needed."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from nullsae.autointerp.llm.addresses import is_local, without_password
from nullsae.autointerp.llm.answers import Asked, AttemptError, Valid, read_answer
from nullsae.config.endpoints import OPENAI_URL, Endpoint
from nullsae.config.llm import Llm
from nullsae.core.errors import UserError

if TYPE_CHECKING:
    from nullsae.autointerp.llm.server import RunningServer
    from nullsae.autointerp.llm.transport import Transport


class Connection:
    """Sends requests, once each; opens nothing before the first."""

    def __init__(self, endpoint: Endpoint, settings: Llm, root: Path) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._root = root
        self._server: RunningServer | None = None
        self._transport: Transport | None = None
        self._opening = asyncio.Lock()
        self._answered = False
        address = endpoint.base_url or OPENAI_URL
        if endpoint.server is not None:
            address = f"the server {endpoint.server.command[0]!r}"
        self.asked = Asked(endpoint.model, without_password(address.rstrip("/")), None)

    async def send(self, body: bytes) -> Valid:
        """Send a request, read the answer; an `AttemptError` where it may be tried again."""
        # Lazy, as in `_open`: a run that finds all replies in the cache imports no HTTP client.
        from nullsae.autointerp.llm.transport import NoAnswerError

        if self._transport is None:
            async with self._opening:
                if self._transport is None:
                    self._transport = await self._open()
        try:
            answer = await self._transport.post(body)
        except NoAnswerError as error:
            failure = self._in_vain(error.trouble, str(error))
            raise failure or AttemptError(f"{error.trouble}: {error}") from None
        valid = read_answer(answer, self.asked)
        self._answered = True
        return valid

    async def close(self) -> None:
        """Close connections; end the job's own server."""
        try:
            if self._transport is not None:
                await self._transport.close()
        finally:
            if self._server is not None:
                await self._server.stop()

    async def _open(self) -> Transport:
        from nullsae.autointerp.llm.server import RunningServer
        from nullsae.autointerp.llm.transport import Transport

        key = api_key(self._endpoint)
        url = self._endpoint.base_url or OPENAI_URL
        if self._endpoint.server is not None:
            self._server = RunningServer(self._endpoint.server, self._root)
            await self._server.start()
            url = f"{self._server.address}/v1"
        variable = self._endpoint.api_key_env if key is not None else None
        self.asked = Asked(self._endpoint.model, self.asked.address, variable)
        return Transport(url, key, self._settings.timeout_seconds)

    def _in_vain(self, trouble: str, text: str) -> UserError | None:
        """What the user can mend, where asking again cannot help."""
        if self._server is not None and self._server.ended:
            return UserError(
                f"server.command: {self.asked.address} ended while it was in use"
                f"{self._server.last_line()}"
            )
        address = self.asked.address
        if trouble == "certificate":
            return UserError(
                f"base_url: no trusted connection to {address} ({text}); if its certificate is "
                f"your own, name the file of its authority in the environment variable "
                f"SSL_CERT_FILE"
            )
        if not self._answered and trouble == "unknown host":
            return UserError(f"base_url: no such host as in {address} ({text})")
        if not self._answered and trouble == "refused":
            return UserError(f"base_url: nothing answers at {address} ({text}); is it running?")
        return None


def api_key(endpoint: Endpoint) -> str | None:
    """The key that the environment holds; a `UserError` if another machine's endpoint has none."""
    name, url = endpoint.api_key_env, endpoint.base_url or OPENAI_URL
    key = os.environ.get(name, "").strip() if name else ""
    if not key:
        if name is None or endpoint.server is not None or is_local(url):
            return None
        raise UserError(
            f"api_key_env: the environment variable {name} is not set, and {endpoint.model} at "
            f"{without_password(url)} needs a key; put it there, or set api_key_env: null"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"api_key_env: what the environment variable {name} holds is no key; one has letters, "
            f"digits and signs only"
        )
    return key
