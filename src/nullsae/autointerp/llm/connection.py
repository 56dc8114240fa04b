"""The connection to an endpoint: address, key, and the job's own server, opened on demand."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from nullsae.autointerp.llm.answers import Answer, AttemptError, Valid, read_answer
from nullsae.autointerp.llm.pieces import most_bytes
from nullsae.autointerp.llm.refusals import Asked, shortened
from nullsae.autointerp.llm.secrets import NO_SECRETS, Secrets
from nullsae.config.addresses import is_local, shown_address
from nullsae.config.endpoints import OPENAI_URL, Endpoint
from nullsae.config.llm import Llm
from nullsae.core.errors import UserError

if TYPE_CHECKING:
    from nullsae.autointerp.llm.batch_api import BatchApi
    from nullsae.autointerp.llm.server import RunningServer
    from nullsae.autointerp.llm.transport import Transport


class Connection:
    """Sends requests, once each; opens nothing before the first."""

    def __init__(self, endpoint: Endpoint, settings: Llm, root: Path) -> None:
        self._endpoint, self._settings, self._root = endpoint, settings, root
        self._server: RunningServer | None = None
        self._transport: Transport | None = None
        self._opening = asyncio.Lock()
        self._answered = False
        self.secrets = NO_SECRETS
        """The secret headers, known once it is opened."""
        address = endpoint.base_url or OPENAI_URL
        if endpoint.server is not None:
            address = f"the server {endpoint.server.command[0]!r}"
        self.asked = Asked(endpoint.model, shown_address(address.rstrip("/")), None)

    async def send(self, body: bytes, max_completion_tokens: int) -> Valid:
        """Send a request and read the answer; an `AttemptError` means it may be tried again."""
        # As in `_open`, imported here so that a fully cached run loads no HTTP client.
        from nullsae.autointerp.llm.transport import NoAnswerError

        if self._transport is None:
            async with self._opening:
                if self._transport is None:
                    self._transport = await self._open()
        try:
            answer = await self._transport.post(body, most_bytes(max_completion_tokens))
        except NoAnswerError as error:
            said = shortened(self.secrets.blank(str(error)))
            failure = self._in_vain(error.trouble, said)
            billed = error.trouble in ("timeout", "dropped", "unusable")
            raise failure or AttemptError(
                f"{error.trouble}: {said}", may_be_billed=billed
            ) from None
        valid = self.read(answer, max_completion_tokens)
        self._answered = True
        return valid

    def read(self, answer: Answer, max_completion_tokens: int) -> Valid:
        """Return the reply in a response; raises as `read_answer`."""
        return read_answer(answer, self.asked, self.secrets, max_completion_tokens)

    async def batch_api(self) -> BatchApi:
        """Create the endpoint's batch API; the caller must close it."""
        from nullsae.autointerp.llm.batch_api import BatchApi

        headers = secret_headers(self._endpoint, self._settings.insecure_hosts)
        self.secrets = Secrets(headers)
        url = self._endpoint.base_url or OPENAI_URL
        asked = asked_with(self.asked, self._endpoint, headers)
        return BatchApi(url, self.secrets, asked, self._settings.timeout_seconds)

    async def close(self) -> None:
        """Close connections; stop the job's own server."""
        try:
            if self._transport is not None:
                await self._transport.close()
        finally:
            if self._server is not None:
                await self._server.stop()

    async def _open(self) -> Transport:
        from nullsae.autointerp.llm.server import RunningServer
        from nullsae.autointerp.llm.transport import Transport

        headers = secret_headers(self._endpoint, self._settings.insecure_hosts)
        self.secrets = Secrets(headers)
        url = self._endpoint.base_url or OPENAI_URL
        self.asked = asked_with(self.asked, self._endpoint, headers)
        check = None
        if self._endpoint.server is not None:
            given = headers.get("Authorization", "").removeprefix("Bearer ")
            self._server = RunningServer(self._endpoint.server, self._root, given or None)
            await self._server.start()
            url, check = f"{self._server.address}/v1", self._server.check
            self.secrets = Secrets({"Authorization": f"Bearer {self._server.key}"} | headers)
        return Transport(url, self.secrets, self._settings.timeout_seconds, check)

    def _in_vain(self, trouble: str, text: str) -> UserError | None:
        """Return an error the user can fix, if trying again cannot help."""
        if self._server is not None and self._server.problem is not None:
            return UserError(self._server.problem)
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
            return UserError(f"base_url: the host of {address} is unknown ({text})")
        if not self._answered and trouble == "refused":
            return UserError(f"base_url: nothing answers at {address} ({text}); is it running?")
        return None


def secret_headers(endpoint: Endpoint, insecure_hosts: Collection[str] = ()) -> dict[str, str]:
    """Return the headers whose values come from the environment.

    Raises:
        UserError: a variable that a remote endpoint needs is not set, or contains what no header
            can; or keys would be sent unencrypted to a host that is neither this machine nor one of
            `insecure_hosts`.
    """
    if (problem := endpoint.sent_in_clear(insecure_hosts)) is not None:
        raise UserError(problem)
    key = _api_key(endpoint)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    for header, name in endpoint.headers_env.items():
        value = os.environ.get(name, "").strip()
        if not value:
            raise UserError(
                f"headers_env.{header}: the environment variable {name} is not set; put the "
                f"header's value there"
            )
        if not (value.isascii() and value.isprintable()):
            raise UserError(
                f"headers_env.{header}: the environment variable {name} does not hold a header; "
                f"use ASCII letters, digits and signs only"
            )
        headers[header] = value
    return headers


def asked_with(asked: Asked, endpoint: Endpoint, secrets: Mapping[str, str]) -> Asked:
    """Return `asked` with the source of the keys that are sent."""
    if endpoint.headers_env:
        variables = ", ".join(endpoint.headers_env.values())
        return replace(asked, key_variable=variables, key_from="headers_env")
    return replace(asked, key_variable=endpoint.api_key_env if secrets else None)


def _api_key(endpoint: Endpoint) -> str | None:
    name, url = endpoint.api_key_env, endpoint.base_url or OPENAI_URL
    key = os.environ.get(name, "").strip() if name else ""
    if not key:
        if name is None or endpoint.server is not None or is_local(url):
            return None
        raise UserError(
            f"api_key_env: the environment variable {name} is not set, and {endpoint.model} at "
            f"{shown_address(url)} needs a key; put it there, or set api_key_env: null"
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise UserError(
            f"api_key_env: the environment variable {name} does not hold a key; a key has ASCII "
            f"letters, digits and signs only"
        )
    return key
