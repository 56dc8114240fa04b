"""A language model behind an endpoint: each request answered once, kept, and never paid twice."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Generator, Iterable, Sized
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nullsae.autointerp.llm.answers import RefusedError
from nullsae.autointerp.llm.cache import Kept, ReplyCache, reply_key
from nullsae.autointerp.llm.costs import Usage
from nullsae.autointerp.llm.endpoint import Abilities, Probe, abilities_key, find_out, request_body
from nullsae.autointerp.llm.messages import AnswerToken, Reply, Request
from nullsae.autointerp.llm.sending import Sending
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm
from nullsae.core.errors import UserError

__all__ = ["AnswerToken", "LanguageModel", "Reply", "Request", "Usage", "ask_all"]

# Coroutines at work per request in flight.
WIDTH = 4
# Statuses by which endpoints say that they do not know a field.
NOT_SUPPORTED = (400, 404, 405, 415, 422)


class LanguageModel:
    """Answers requests from the cache or the endpoint; an async context manager.

    The endpoint is asked what it can do, and a server of the job's own started, when the first
    request needs it: replies that are all kept cost no more than reading them.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: Llm,
        *,
        root: Path = Path(),
        progress: Callable[[Usage, int], None] | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            endpoint: whom to ask.
            settings: how.
            root: folder of the study; the cache and a server's program are relative to it.
            progress: called after each request with the usage so far and the number of requests
                known so far.
        """
        self.usage = Usage()
        self.expected = 0
        """Requests that are known to come, for `progress`."""
        self._endpoint = endpoint
        self._settings = settings
        self._root = root
        self._progress = progress
        self._abilities: Abilities | None = None
        self._finding_out = asyncio.Lock()
        self._asking: dict[bytes, asyncio.Future[Kept | None]] = {}
        self._asked = 0

    async def __aenter__(self) -> Self:
        self._cache = ReplyCache(self._root / self._settings.cache)
        self._sending = Sending(self._endpoint, self._settings, self._cache, self.usage, self._root)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop(UserError(f"{self._sending.connection.asked}: closed"))
        try:
            await self.drain()
        finally:
            try:
                await self._sending.connection.close()
            finally:
                self._cache.close()

    async def ask(self, request: Request) -> Reply | None:
        """The reply to a request, from the cache where it has one.

        Returns:
            None if no attempt brought a valid reply; counted in `usage.failed`.

        Raises:
            UserError: no request can be answered any more: wrong key, unknown model, endpoint
                down, budget spent, damaged cache ... All later requests get the same error.
        """
        self._asked += 1
        try:
            if self._sending.error is not None:
                raise self._sending.error
            if self._abilities is None:
                await self._find_abilities()
            assert self._abilities is not None
            body = request_body(request, self._endpoint, self._abilities)
            kept = await self._reply_to(body, request.max_completion_tokens)
        except UserError as error:
            self.stop(error)
            raise
        if kept is None:
            self.usage.failed += 1
        self._tell()
        return None if kept is None else kept.reply

    @property
    def width(self) -> int:
        """How many coroutines keep the endpoint busy, some of them between two requests."""
        most = WIDTH * self._settings.concurrency
        return min(most, self.expected) if self.expected else most

    def stop(self, error: Exception) -> None:
        """Send nothing more; what is in flight may still arrive. The first error is kept."""
        self._sending.stop(error)

    async def drain(self) -> None:
        """Wait for what was in flight at `stop`, a few seconds from then at most."""
        await self._sending.drain()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self.usage, max(self._asked, self.expected))

    async def _find_abilities(self) -> None:
        async with self._finding_out:
            if self._abilities is not None:
                return
            key = abilities_key(self._endpoint)
            known = self._cache.abilities(key)
            if known is None:
                # Jobs start side by side: one finds out, the others read what it found.
                with ExitStack() as held:
                    await asyncio.to_thread(held.enter_context, self._cache.alone(key))
                    known = self._cache.abilities(key)
                    if known is None:
                        known = asdict(await find_out(self._endpoint, self._probe))
                        self._cache.keep_abilities(key, known)
            self._abilities = Abilities(**known)

    async def _probe(self, request: Request, abilities: Abilities) -> Probe:
        self._asked += 1
        try:
            body = request_body(request, self._endpoint, abilities)
            kept = await self._reply_to(body, request.max_completion_tokens)
        except RefusedError as error:
            if error.status not in NOT_SUPPORTED:
                raise
            return Probe(None, refusal=error)
        self._tell()
        if kept is None:
            return Probe(None, failure=self._sending.last_failure)
        return Probe(kept.reply, kept.completion_tokens)

    async def _reply_to(self, body: bytes, max_completion_tokens: int) -> Kept | None:
        """What the cache has, what the same request in flight gets, or what the endpoint says."""
        key = reply_key(self._endpoint.address, body)
        kept = self._cache.get(key)
        if kept is None and key not in self._asking:
            future = asyncio.get_running_loop().create_future()
            self._asking[key] = future
            try:
                kept = await self._sending.persist(key, body, max_completion_tokens)
                future.set_result(kept)
                return kept
            finally:
                del self._asking[key]
                future.cancel()
        if kept is None:
            try:
                kept = await self._asking[key]
            except asyncio.CancelledError:
                # Either this task was cancelled or the one that had asked; that one stopped.
                if self._sending.error is not None:
                    raise self._sending.error from None
                raise
        if kept is not None:
            self._sending.count_cached(kept)
        return kept


def ask_all(
    endpoint: Endpoint,
    settings: Llm,
    work: Callable[[LanguageModel], Iterable[Coroutine[Any, Any, Any]]],
    *,
    root: Path,
    progress: Callable[[Usage, int], None] | None = None,
) -> tuple[list[Any], Usage]:
    """Run coroutines that ask a language model, in an event loop of their own.

    They start in order, a few times `concurrency` of them at once, so that a generator need not
    hold all prompts at the same time. None may wait for one that comes after it.

    Args:
        endpoint: whom to ask.
        settings: how.
        work: makes the coroutines, given the model.
        root: folder of the study.
        progress: as in `LanguageModel`.

    Returns:
        What the coroutines returned, in order, and what it cost.

    Raises:
        UserError: as `LanguageModel.ask`; what had been received is kept.
    """
    # What a job has loaded is many objects, through which the collector of cyclic garbage would go
    # again and again while thousands of requests come and go.
    gc.freeze()
    try:
        model = LanguageModel(endpoint, settings, root=root, progress=progress)
        return asyncio.run(_ask_all(model, work))
    finally:
        gc.unfreeze()


async def _ask_all(
    model: LanguageModel, work: Callable[[LanguageModel], Iterable[Coroutine[Any, Any, Any]]]
) -> tuple[list[Any], Usage]:
    results: dict[int, Any] = {}
    async with model:
        coroutines = work(model)
        if isinstance(coroutines, Sized):
            model.expected = len(coroutines)
        pending = enumerate(coroutines)

        async def worker() -> None:
            for index, coroutine in pending:
                results[index] = await coroutine

        workers = [asyncio.create_task(worker()) for _ in range(model.width)]
        try:
            await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            for task in workers:
                if task.done() and (error := task.exception()) is not None:
                    raise error
        finally:
            model.stop(UserError("stopped"))
            await model.drain()
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            if isinstance(coroutines, Generator):
                coroutines.close()
            else:
                for _, coroutine in pending:
                    coroutine.close()
    return [results[index] for index in sorted(results)], model.usage
