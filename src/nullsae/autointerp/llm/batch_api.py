"""The batch interface of an OpenAI-compatible endpoint: files of requests in, of answers out.

By the `openai` package's `files` and `batches`: https://platform.openai.com/docs/guides/batch
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import TypeVar
from urllib.parse import parse_qsl, urlsplit

import httpx2
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI
from openai.types import Batch

from nullsae.autointerp.llm.addresses import proxy_of, without_path
from nullsae.autointerp.llm.answers import (
    CHAT,
    Answer,
    Asked,
    AttemptError,
    RefusedError,
    read_answer,
    shortened,
)
from nullsae.autointerp.llm.messages import parse_json
from nullsae.autointerp.llm.transport import blanked, ssl_context
from nullsae.core.errors import UserError, first_line

log = logging.getLogger(__name__)

ENDED = ("completed", "failed", "expired", "cancelled")
# Of the metadata of a batch: the name by which a killed job finds it again.
NAME = "nullsae"
# Batches of an account that are looked through for one, the newest first.
MOST_LISTED = 2000
# Times that a call other than the start of a batch is tried, with growing waits in between.
MOST_TRIES = 5

T = TypeVar("T")


class BatchApi:
    """Starts batches, looks at them and reads what they brought."""

    def __init__(
        self, url: str, secrets: Mapping[str, str], asked: Asked, timeout_seconds: float
    ) -> None:
        """`secrets` are headers, whose values are blanked out of all that is shown."""
        self._asked, self._secrets = asked, secrets
        parts = urlsplit(url)
        self._client = AsyncOpenAI(
            # The package never sees a key, so that none of its errors or logs can hold it.
            api_key="none",
            base_url=without_path(parts._replace(query="").geturl(), CHAT),
            default_query=dict(parse_qsl(parts.query, keep_blank_values=True)),
            # A file of requests is long, and an upload is no attempt at an answer.
            timeout=max(timeout_seconds, 600.0),
            max_retries=0,
            http_client=httpx2.AsyncClient(
                auth=_Secrets(secrets),
                verify=ssl_context(parts.scheme),
                proxy=proxy_of(url),
                trust_env=False,
                follow_redirects=True,
            ),
        )

    async def close(self) -> None:
        await self._client.close()

    async def upload(self, lines: bytes) -> str:
        """The id of a new file of requests."""
        file = ("requests.jsonl", lines, "application/jsonl")
        made = await self._patiently(lambda: self._client.files.create(file=file, purpose="batch"))
        return made.id

    async def start(self, file: str, name: str) -> str:
        """The id of a new batch of a file's requests.

        Where no answer comes, the batch may have been made all the same, and would be paid twice
        if it were made again: it is looked for first.
        """
        for attempt in range(1, MOST_TRIES + 1):
            try:
                made = await self._once(
                    lambda: self._client.batches.create(
                        input_file_id=file,
                        endpoint="/v1/chat/completions",
                        completion_window="24h",
                        metadata={NAME: name},
                    )
                )
                return made.id
            except AttemptError as error:
                await asyncio.sleep(error.pause or 0.5 * 2**attempt)
                if (found := await self.find(name)) is not None:
                    return found
                if attempt == MOST_TRIES:
                    raise UserError(f"llm.batch: {self._asked}: {error}") from None
        raise AssertionError

    async def find(self, name: str) -> str | None:
        """The id of the batch of this name; None where there is none, or no list of batches."""

        async def among() -> str | None:
            n = 0
            async for batch in self._client.batches.list(limit=100):
                if (batch.metadata or {}).get(NAME) == name:
                    return batch.id
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
        """How a batch stands; None if the endpoint does not know it.

        Raises:
            AttemptError: the endpoint does not answer at present.
        """
        try:
            return await self._once(lambda: self._client.batches.retrieve(batch))
        except RefusedError as error:
            if error.status == 404:
                return None
            raise

    async def answers(self, batch: Batch) -> AsyncIterator[tuple[str, Answer | AttemptError]]:
        """What came for each request, by its `custom_id`; some may be missing."""
        for file in (batch.output_file_id, batch.error_file_id):
            if file is not None:
                content = await self._patiently(
                    lambda file=file: self._client.files.content(file)  # type: ignore[misc]
                )
                for line in _lines(blanked(content.content, self._secrets)):
                    yield line

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        for attempt in range(1, MOST_TRIES + 1):
            try:
                return await self._once(call)
            except AttemptError as error:
                if attempt == MOST_TRIES:
                    raise UserError(f"llm.batch: {self._asked}: {error}") from None
                await asyncio.sleep(error.pause or 0.5 * 2**attempt)
        raise AssertionError

    async def _once(self, call: Callable[[], Awaitable[T]]) -> T:
        """What a call of the package returns.

        Raises:
            AttemptError: it may be tried again.
            RefusedError: it may not; its line begins with the key to change.
        """
        try:
            return await call()
        except APIStatusError as error:
            response = error.response
            content = blanked(response.content, self._secrets)
            answer = Answer(response.status_code, response.headers.get("retry-after"), content)
        except APITimeoutError:
            raise AttemptError("no answer in time") from None
        except APIConnectionError as error:
            raise AttemptError(first_line(error.__cause__ or error)) from None
        except ValueError as error:
            raise AttemptError(f"an answer that is none: {first_line(error)}") from None
        try:
            read_answer(answer, self._asked)
        except RefusedError as error:
            if error.status in (404, 405) or error.status == 501:
                text = (
                    f"llm.batch: {self._asked} knows no such batch or file, or has no batch "
                    f"interface ({error.status}: {shortened(error.said)}); set llm.batch: false "
                    f"if it has none"
                )
                raise RefusedError(text, status=error.status, said=error.said) from None
            raise
        raise AttemptError(f"{answer.status}: an answer that is none")


class _Secrets(httpx2.Auth):
    """Puts in what the package does not see."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._headers = headers

    def auth_flow(self, request: httpx2.Request) -> Iterator[httpx2.Request]:  # type: ignore[override]
        del request.headers["Authorization"]
        request.headers.update(self._headers)
        yield request


def request_line(name: str, body: bytes) -> bytes:
    """The line of a request in a file, with a line's end; `name` is its `custom_id`."""
    head = json.dumps({"custom_id": name, "method": "POST", "url": "/v1/chat/completions"})
    return head[:-1].encode() + b', "body": ' + body + b"}\n"


def _lines(content: bytes) -> Iterator[tuple[str, Answer | AttemptError]]:
    for line in content.splitlines():
        if not line.strip():
            continue
        try:
            value = parse_json(line)
            name, response, error = (value.get(n) for n in ("custom_id", "response", "error"))
        except (ValueError, AttributeError):
            log.warning("a line of a batch's answers is none: %.80r", line)
            continue
        if isinstance(response, dict) and isinstance(response.get("body"), dict | list | str):
            status = response.get("status_code", 200)
            content = json.dumps(response["body"]).encode()
            yield str(name), Answer(status if type(status) is int else 200, None, content)
        else:
            said = error if isinstance(error, dict) else {}
            text = shortened(str(said.get("message") or said.get("code") or "no answer"))
            yield str(name), AttemptError(text)
