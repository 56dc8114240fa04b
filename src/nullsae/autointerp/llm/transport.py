"""A cheap way through the `openai` package: its client, without work repeated per request.

`chat.completions.create` takes more than ten times the CPU of an HTTP client alone: it checks and
copies the parameters, parses the URL several times, sends through a slow client and builds typed
objects from the answer. Here `AsyncOpenAI.post` sends JSON bytes and returns bytes; its HTTP client
shares URL and headers among all requests and sends with aiohttp.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Literal, Self

import aiohttp
import httpx2
from openai import APIConnectionError, APIStatusError, APITimeoutError, AsyncOpenAI
from yarl import URL

from nullsae.autointerp.llm.addresses import proxy_of, with_path
from nullsae.autointerp.llm.answers import Answer
from nullsae.autointerp.llm.pieces import ENCODINGS, PackingError, Pieces, TooLongError
from nullsae.autointerp.llm.refusals import CHAT
from nullsae.autointerp.llm.secrets import Secrets
from nullsae.core.errors import first_line

NO_HEADERS = httpx2.Headers()
# The limit for a response, because the package passes no options through to the HTTP client.
_MOST_BYTES: ContextVar[int] = ContextVar("most_bytes")
Check = Callable[[], Awaitable[None]]
Trouble = Literal["timeout", "dropped", "unusable", "refused", "unknown host", "certificate"]


class NoAnswerError(Exception):
    """No response came."""

    def __init__(self, trouble: Trouble, text: str) -> None:
        super().__init__(text)
        self.trouble = trouble


class Transport:
    """Posts JSON to one chat endpoint."""

    def __init__(
        self,
        base_url: str,
        secrets: Secrets,
        timeout_seconds: float,
        check: Check | None = None,
    ) -> None:
        """Send the headers of `secrets`, and blank out their values in answers. `check` is called
        on each new connection before anything is sent, and raises an `OSError` if nothing may be.
        """
        self._url = with_path(base_url, CHAT)
        # The package never sees a key, so that none of its errors or logs can contain it.
        self._client = AsyncOpenAI(
            api_key="none",
            base_url=base_url,
            max_retries=0,
            http_client=_Sender(self._url, secrets, timeout_seconds, check),
        )

    async def close(self) -> None:
        await self._client.close()

    async def post(self, body: bytes, most_bytes: int) -> Answer:
        """Send a JSON request once.

        Raises a `NoAnswerError` if no response came, or one above `most_bytes`.
        """
        _MOST_BYTES.set(most_bytes)
        try:
            response = await self._client.post(
                self._url,
                cast_to=httpx2.Response,
                content=body,
                options={"idempotency_key": "none"},  # saves drawing one that is not sent
            )
        except APIStatusError as error:
            response = error.response
        except APITimeoutError:
            raise NoAnswerError("timeout", "no answer in time") from None
        except APIConnectionError as error:
            raise _no_answer(error) from None
        retry_after = response.headers.get("retry-after")
        return Answer(response.status_code, retry_after, response.content)


class _Sender(httpx2.AsyncClient):
    """The HTTP client below the package: constant URL and headers, aiohttp's connections."""

    def __init__(
        self, url: str, secrets: Secrets, timeout_seconds: float, check: Check | None
    ) -> None:
        super().__init__(transport=httpx2.AsyncBaseTransport())
        self._check = check
        self._pattern: httpx2.Request | None = None
        self._secrets = secrets
        self._target = URL(url)
        self._patience = aiohttp.ClientTimeout(total=timeout_seconds)
        self._sent_headers: dict[str, str] = {}
        self._session: aiohttp.ClientSession | None = None
        self._proxy = proxy_of(url)

    def build_request(self, method: str, url: Any, **fields: Any) -> httpx2.Request:
        if self._pattern is None:
            self._pattern = httpx2.Request(method, url, headers=fields["headers"])
            # `x-stainless` headers are statistics that the package adds.
            taken = ("host", "content-length", "authorization", "accept-encoding", "x-stainless-")
            headers = self._pattern.headers.items()
            self._sent_headers = {n: v for n, v in headers if not n.lower().startswith(taken)}
            self._sent_headers |= {"Accept-Encoding": ENCODINGS, **self._secrets.headers}
        return _Posted(self._pattern, fields["content"])

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        assert isinstance(request, _Posted)
        if self._session is None:
            connector = _Connector(self._check, ssl_context(self._target.scheme))
            # Decompression happens here, where its output is counted.
            self._session = aiohttp.ClientSession(connector=connector, auto_decompress=False)
        try:
            async with self._session.post(
                self._target,
                headers=self._sent_headers,
                data=request.body,
                timeout=self._patience,
                allow_redirects=False,
                proxy=self._proxy,
            ) as response:
                pieces = Pieces(response.headers.get("Content-Encoding"), _MOST_BYTES.get())
                async for piece in response.content.iter_any():
                    pieces.add(piece)
                content = pieces.whole()
        except (TooLongError, PackingError) as error:
            raise httpx2.DecodingError(str(error)) from error
        except TimeoutError as error:
            raise httpx2.ReadTimeout("no answer in time") from error
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.NetworkError(first_line(error)) from error
        content = self._secrets.blank_bytes(content)
        if response.status == 200:
            return _Answered(request, content)
        # aiohttp has decoded the content already, so only this header is passed on.
        wait = response.headers.get("Retry-After")
        headers = None if wait is None else {"Retry-After": wait}
        return httpx2.Response(response.status, headers=headers, content=content, request=request)

    async def aclose(self) -> None:
        if self._session is not None:
            await self._session.close()


class _Connector(aiohttp.TCPConnector):
    """Connections that are checked before they are used."""

    def __init__(self, check: Check | None, trusted: ssl.SSLContext | bool) -> None:
        super().__init__(limit=0, ssl=trusted)
        self._check = check

    async def _create_connection(self, *arguments: Any, **options: Any) -> Any:
        made = await super()._create_connection(*arguments, **options)
        if self._check is not None:
            try:
                await self._check()
            except BaseException:
                made.close()
                raise
        return made


class _Posted(httpx2.Request):
    """A request that shares everything except its body with the first one."""

    def __init__(self, pattern: httpx2.Request, body: bytes) -> None:
        # Not the parent's, which parses the URL and copies the headers: most of its cost.
        self.method, self.url, self.body = pattern.method, pattern.url, body
        self.headers, self.extensions = pattern.headers, pattern.extensions


class _Answered(httpx2.Response):
    """A successful response: its body, without the parent's machinery for streaming."""

    def __init__(self, request: httpx2.Request, body: bytes) -> None:
        self.status_code, self.headers = 200, NO_HEADERS
        self.request, self._body = request, body

    @property
    def content(self) -> bytes:
        return self._body

    def raise_for_status(self) -> Self:
        return self


def ssl_context(scheme: str) -> ssl.SSLContext | bool:
    """Return whom to trust for addresses of a scheme; an `SSLError` if it cannot be read."""
    if scheme != "https":
        return True
    try:
        return httpx2.create_ssl_context()
    except OSError:
        named = os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
        raise ssl.SSLError(f"SSL_CERT_FILE: {named!r} cannot be read") from None


def _no_answer(error: APIConnectionError) -> NoAnswerError:
    """Classify the failure, by aiohttp's error below those of the package."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
        if isinstance(cause, aiohttp.ClientError | OSError | TooLongError | PackingError):
            break
    trouble: Trouble = "dropped"
    if isinstance(cause, TooLongError | PackingError):
        trouble = "unusable"
    certificate = aiohttp.ClientConnectorCertificateError | ssl.SSLError | aiohttp.ClientSSLError
    if isinstance(cause, certificate):
        trouble = "certificate"
    elif isinstance(cause, aiohttp.ClientConnectorDNSError):
        trouble = "unknown host"
    elif isinstance(cause, aiohttp.ClientConnectorError):
        trouble = "refused"
    return NoAnswerError(trouble, first_line(cause))
