"""The batch API of an OpenAI-compatible endpoint: a file of requests in, a file of answers out.

Uses `files` and `batches` of the `openai` package: https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, TypeGuard, TypeVar
from urllib.parse import parse_qsl, urlsplit

from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI
from openai.types import Batch

from nullsae.autointerp.llm.addresses import without_path
from nullsae.autointerp.llm.answers import Answer, AttemptError, read_answer
from nullsae.autointerp.llm.bounded import bounded_client, lines_of
from nullsae.autointerp.llm.messages import parse_json
from nullsae.autointerp.llm.pieces import most_bytes
from nullsae.autointerp.llm.refusals import CHAT, Asked, RefusedError, shortened
from nullsae.autointerp.llm.secrets import Secrets
from nullsae.autointerp.llm.transport import ssl_context
from nullsae.core.errors import UserError, first_line

log = logging.getLogger(__name__)

ENDED = ("completed", "failed", "expired", "cancelled")
# The key in a batch's metadata for the name by which a killed job finds it again.
NAME = "nullsae"
# How many of an account's batches are searched for one, newest first.
MOST_LISTED = 2000
# Attempts at any call except the start of a batch, with growing waits in between.
MOST_TRIES = 5
# Time limits for a call and for the download of a file of answers, even if it trickles.
CALL_SECONDS, DOWNLOAD_SECONDS = 600.0, 3600.0
# Lines allowed in a file beyond those expected.
SPARE_LINES = 1000
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,200}")

T = TypeVar("T")


class BatchApi:
    """Starts batches, checks their state and reads their answers."""

    def __init__(self, url: str, secrets: Secrets, asked: Asked, timeout_seconds: float) -> None:
        """Send the headers of `secrets`, and blank out their values in everything shown."""
        self._asked, self._secrets = asked, secrets
        parts = urlsplit(url)
        self._client = AsyncOpenAI(
            # The package never sees a key, so that none of its errors or logs can contain it.
            api_key="none",
            base_url=without_path(parts._replace(query="").geturl(), CHAT),
            default_query=dict(parse_qsl(parts.query, keep_blank_values=True)),
            # A file of requests is long, so an upload needs more time than a request.
            timeout=max(timeout_seconds, CALL_SECONDS),
            max_retries=0,
            http_client=bounded_client(url, secrets, ssl_context(parts.scheme)),
        )
        self._call_seconds = max(timeout_seconds, CALL_SECONDS)

    async def close(self) -> None:
        await self._client.close()

    async def upload(self, lines: bytes) -> str:
        """Upload a file of requests; return its id."""
        file = ("requests.jsonl", lines, "application/jsonl")

        async def uploaded() -> str:
            return self._id_of(await self._client.files.create(file=file, purpose="batch"))

        return await self._patiently(uploaded)

    async def start(self, file: str, name: str) -> str:
        """Start a batch of a file's requests; return its id.

        If no answer comes, the batch may exist anyway, and a second one would be paid twice: so it
        is searched for before it is started again.
        """

        async def created() -> str:
            made = await self._client.batches.create(
                input_file_id=file,
                endpoint="/v1/chat/completions",
                completion_window="24h",
                metadata={NAME: name},
            )
            return self._id_of(made)

        for attempt in range(1, MOST_TRIES + 1):
            try:
                return await self._once(created)
            except AttemptError as error:
                await asyncio.sleep(error.pause or 0.5 * 2**attempt)
                if (found := await self.find(name)) is not None:
                    return found
                if attempt == MOST_TRIES:
                    raise UserError(f"llm.batch: {self._asked}: {error}") from None
        raise AssertionError

    async def find(self, name: str) -> str | None:
        """Return the id of the batch with this name; None if not found or batches not listed."""

        async def among() -> str | None:
            n = 0
            async for batch in self._client.batches.list(limit=100):
                metadata = getattr(batch, "metadata", None)
                if isinstance(metadata, dict) and metadata.get(NAME) == name:
                    return self._id_of(batch)
                n += 1
                if n == MOST_LISTED:
                    break
            return None

        try:
            return await self._patiently(among)
        except RefusedError as error:
            if error.status in (401, 403):
                raise
            return None

    async def look(self, batch: str) -> Batch | None:
        """Return the state of a batch; None if the endpoint does not know it.

        Raises:
            AttemptError: the endpoint does not answer at present.
        """
        try:
            return await self._once(lambda: self._client.batches.retrieve(batch))
        except RefusedError as error:
            if error.status == 404:
                return None
            raise

    async def take_answers(
        self,
        batch: Batch,
        limits: Iterable[int],
        take: Callable[[str, Answer | AttemptError], None],
    ) -> None:
        """Pass on the answer to each request, by its `custom_id`; some may be missing.

        `limits` are the token limits of the requests. A line may come more than once.
        """
        limits = [*limits]
        most, most_lines = most_bytes(max(limits, default=0)), 2 * len(limits) + SPARE_LINES
        for file in (batch.output_file_id, batch.error_file_id):
            if not is_id(file):
                continue

            async def read(file: str = str(file)) -> None:
                content = self._client.files.with_streaming_response.content(file)
                async with content as response:
                    async for line in lines_of(response.iter_bytes(), most, most_lines):
                        if (found := read_line(self._secrets.blank_bytes(line))) is not None:
                            take(*found)

            await self._patiently(read, DOWNLOAD_SECONDS)

    async def delete(self, *files: str | None) -> None:
        """Ask the endpoint to delete files that are no longer needed."""

        async def deleted(file: str) -> None:
            await self._client.files.delete(file)

        for file in filter(is_id, files):
            with suppress(AttemptError, RefusedError):
                await self._once(partial(deleted, file))

    async def _patiently(self, call: Callable[[], Awaitable[T]], seconds: float | None = None) -> T:
        for attempt in range(1, MOST_TRIES + 1):
            try:
                return await self._once(call, seconds)
            except AttemptError as error:
                if attempt == MOST_TRIES:
                    raise UserError(f"llm.batch: {self._asked}: {error}") from None
                await asyncio.sleep(error.pause or 0.5 * 2**attempt)
        raise AssertionError

    def _id_of(self, made: Any) -> str:
        """Return the id of a created object, which becomes part of addresses, files and logs."""
        found = getattr(made, "id", None)
        if not is_id(found) or self._secrets.is_in(found):
            raise ValueError("without an id")
        return found

    async def _once(self, call: Callable[[], Awaitable[T]], seconds: float | None = None) -> T:
        """Return the result of a call of the package.

        Raises:
            AttemptError: it may be tried again.
            RefusedError: it may not; the message starts with the key to change.
        """
        try:
            async with asyncio.timeout(seconds or self._call_seconds):
                return await call()
        except APIStatusError as error:
            response = error.response
            content = self._secrets.blank_bytes(response.content)
            answer = Answer(response.status_code, response.headers.get("retry-after"), content)
        except (APITimeoutError, TimeoutError):
            raise AttemptError("no answer in time") from None
        except APIConnectionError as error:
            said = self._secrets.blank(first_line(error.__cause__ or error))
            raise AttemptError(shortened(said)) from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            said = shortened(self._secrets.blank(first_line(error)))
            raise AttemptError(f"an invalid answer: {said}") from None
        try:
            read_answer(answer, self._asked, self._secrets)
        except RefusedError as error:
            if error.status in (404, 405) or error.status == 501:
                text = (
                    f"llm.batch: {self._asked} does not know the batch or file, or has no batch "
                    f"interface ({error.status}: {shortened(error.said)}); in the latter case set "
                    f"llm.batch: false"
                )
                raise RefusedError(text, status=error.status, said=error.said) from None
            raise
        raise AttemptError(f"{answer.status}: an invalid answer")


def request_line(name: str, body: bytes) -> bytes:
    """Return a request's line in a file, with line end; `name` is its `custom_id`."""
    head = json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions"})
    return head[:-1].encode() + b', "body": ' + body + b"}\n"


def is_id(value: object) -> TypeGuard[str]:
    """Return whether a value is a possible id of a file or batch."""
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def read_line(line: bytes) -> tuple[str, Answer | AttemptError] | None:
    """Parse a line of a file of answers: `custom_id` and answer; None if invalid."""
    if not line.strip():
        return None
    try:
        value = parse_json(line)
        name, response, error = (value.get(n) for n in ("custom_id", "response", "error"))
        if not isinstance(name, str):
            return None
        if isinstance(response, dict) and isinstance(response.get("body"), dict | list | str):
            status = response.get("status_code", 200)
            content = json.dumps(response["body"]).encode()
            return name, Answer(status if type(status) is int else 200, None, content)
    except (ValueError, AttributeError, RecursionError):
        log.warning("a line of a batch's answers cannot be read")
        return None
    said = error if isinstance(error, dict) else {}
    texts = (said.get("message"), said.get("code"), "no answer")
    text = next(text for text in texts if isinstance(text, str) and text)
    return name, AttemptError(shortened(text))
