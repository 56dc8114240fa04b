"""The HTTP client of the batch API: limited responses, and secret headers for one host only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx2

from nullsae.autointerp.llm.addresses import proxy_of
from nullsae.autointerp.llm.pieces import ENCODINGS, SPARE_BYTES, Pieces
from nullsae.autointerp.llm.secrets import Secrets

# Files of answers are read line by line, with a limit for each line.
MOST_OF_FILE = 1 << 40


def bounded_client(url: str, secrets: Secrets, verify: object) -> httpx2.AsyncClient:
    """Create a client with limited responses whose secrets are only sent to `url`."""
    inner = httpx2.AsyncHTTPTransport(
        verify=verify,  # type: ignore[arg-type]
        proxy=proxy_of(url),
        trust_env=False,
    )
    return httpx2.AsyncClient(
        auth=_Headers(url, secrets),
        transport=_Bounded(inner),
        trust_env=False,
        follow_redirects=True,
    )


class _Headers(httpx2.Auth):
    """Adds headers that the package must not see, but not after a redirect to another host."""

    def __init__(self, url: str, secrets: Secrets) -> None:
        self._origin, self._headers = _origin(httpx2.URL(url)), secrets.headers

    def auth_flow(self, request: httpx2.Request) -> Iterator[httpx2.Request]:  # type: ignore[override]
        request.headers.pop("Authorization", None)
        if _origin(request.url) == self._origin:
            request.headers.update(self._headers)
        request.extensions = {**request.extensions, "secrets": (self._origin, [*self._headers])}
        yield request


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


class _Bounded(httpx2.AsyncBaseTransport):
    """Decompresses responses itself, so that their true size is counted."""

    def __init__(self, inner: httpx2.AsyncHTTPTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        origin, names = request.extensions.get("secrets", (None, []))
        if _origin(request.url) != origin:
            for name in names:
                request.headers.pop(name, None)
        request.headers["Accept-Encoding"] = ENCODINGS
        response = await self._inner.handle_async_request(request)
        encoding = response.headers.pop("Content-Encoding", None)
        response.headers.pop("Content-Length", None)
        is_file = request.url.path.endswith("/content") and response.status_code == 200
        pieces = Pieces(encoding, MOST_OF_FILE if is_file else SPARE_BYTES)
        response.stream = _Unpacked(response.stream, pieces)  # type: ignore[arg-type]
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()


class _Unpacked(httpx2.AsyncByteStream):
    def __init__(self, packed: httpx2.AsyncByteStream, pieces: Pieces) -> None:
        self._packed, self._pieces = packed, pieces

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._packed:
            for part in self._pieces.unpacked(piece):
                yield part

    async def aclose(self) -> None:
        await self._packed.aclose()


async def lines_of(
    pieces: AsyncIterator[bytes], most: int, most_lines: int
) -> AsyncIterator[bytes]:
    """Yield the first lines of a stream of pieces, skipping those longer than `most` bytes."""
    held, n, is_skipping = b"", 0, False
    async for piece in pieces:
        held += piece
        *whole, held = held.split(b"\n")
        for line in whole:
            if not is_skipping and len(line) <= most:
                yield line
            is_skipping = False
            n += 1
        if n > most_lines:
            return
        if len(held) > most:
            held, is_skipping = b"", True
    if held and not is_skipping:
        yield held
