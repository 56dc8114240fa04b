"""A language model behind an endpoint: each request is answered once, kept, and paid once."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterable, Sized
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self, TypeAlias

from nullsae.autointerp.llm.answers import AttemptError
from nullsae.autointerp.llm.batches import Batches
from nullsae.autointerp.llm.cache import ReplyCache, reply_key
from nullsae.autointerp.llm.endpoint import (
    Abilities,
    Found,
    abilities_key,
    abilities_of,
    find_out,
    longest_answer,
    request_body,
)
from nullsae.autointerp.llm.kept_replies import Kept
from nullsae.autointerp.llm.messages import Reply, Request, Usage
from nullsae.autointerp.llm.refusals import RefusedError
from nullsae.autointerp.llm.sending import Sending
from nullsae.autointerp.llm.usable import MANY_ANSWERS, Answers
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm
from nullsae.core.errors import UserError

# Coroutines per request in flight, because some are between two requests.
WIDTH = 4
# Statuses by which endpoints reject a field or its value: 403 for a key that may only ask plain
# questions ("You are not allowed to request logprobs").
NOT_SUPPORTED = (400, 403, 404, 405, 415, 422)
# A truncated answer is requested again with this many times the tokens.
MORE_TOKENS = 4


class LanguageModel:
    """Answers requests from the cache or the endpoint; an async context manager.

    The endpoint's abilities are probed, and a job's own server is started, only when the first
    request needs it: cached replies cost no more than reading them.
    """

    def __init__(self, endpoint: Endpoint, settings: Llm, *, root: Path = Path()) -> None:
        """Open nothing yet; the cache and a server's program are relative to `root`."""
        self.usage = Usage()
        self._endpoint, self._settings, self._root = endpoint, settings, root
        self._abilities: Abilities | None = None
        self._finding_out = asyncio.Lock()
        self._asking: dict[bytes, asyncio.Future[Kept | None]] = {}
        self._answers = Answers(endpoint)
        self._batches: Batches | None = None
        self._too_long: int | None = None

    async def __aenter__(self) -> Self:
        self._cache = ReplyCache(self._root / self._settings.cache)
        self.sending = Sending(self._endpoint, self._settings, self._cache, self.usage, self._root)
        if self._settings.batch and self._endpoint.server is None:
            address, root = self._endpoint.address, self._root
            self._batches = Batches(self.sending, self._settings, self._cache, address, root)
        return self

    async def __aexit__(self, *_error: object) -> None:
        self.sending.stop(UserError(f"{self.sending.connection.asked}: closed"))
        async with AsyncExitStack() as last:
            last.callback(self._cache.close)
            last.push_async_callback(self.sending.connection.close)
            if self._batches is not None:
                last.push_async_callback(self._batches.close)
            await self.sending.drain()

    async def ask(self, request: Request) -> Reply | None:
        """Return the reply to a request, from the cache if possible; None if no attempt brought
        one, or only truncated ones.

        A `UserError` explains why no request can be answered any more: wrong key, unknown model,
        endpoint down, budget spent, damaged cache, most answers truncated or empty ... All later
        requests get the same error.
        """
        try:
            if self.sending.error is not None:
                raise self.sending.error
            if self._abilities is None:
                await self._find_abilities(request)
            assert self._abilities is not None
            kept = await self._whole_reply_to(request, self._abilities)
            if kept is not None:
                self._answers.count(kept.reply)
                self.check_answers(MANY_ANSWERS)
        except UserError as error:
            self.sending.stop(error)
            raise
        if kept is not None and kept.reply.is_cut:
            kept = None
        self.usage.failed += kept is None
        self.usage.empty += kept is not None and not kept.reply.content
        return None if kept is None else kept.reply

    def check_answers(self, least: int = 1) -> None:
        """Raise a `UserError` if at least `least` were answered, and most are cut or empty."""
        if (problem := self._answers.problem(least)) is not None:
            raise UserError(f"{problem}; {self.sending.kept_so_far()}")

    async def _find_abilities(self, request: Request) -> None:
        async with self._finding_out:
            if self._abilities is not None:
                return
            key = abilities_key(self._endpoint, longest_answer(request, self._endpoint))
            known = abilities_of(self._cache.abilities(key))
            if known is None:
                # Concurrent jobs start together: one probes, the others read its result.
                with ExitStack() as held:
                    await asyncio.to_thread(held.enter_context, self._cache.alone(key))
                    known = abilities_of(self._cache.abilities(key))
                    if known is None:
                        known = await find_out(self._endpoint, self._probe)
                        self._cache.keep_abilities(key, asdict(known))
            self._abilities = known

    async def _probe(self, request: Request, abilities: Abilities) -> Found:
        try:
            kept = await self._whole_reply_to(request, abilities, probes=True)
        except RefusedError as error:
            if error.status in NOT_SUPPORTED or error.status >= 500 or error.names_a_field:
                return error
            raise
        return kept or AttemptError(self.sending.last_failure)

    async def _whole_reply_to(
        self, request: Request, abilities: Abilities, *, probes: bool = False
    ) -> Kept | None:
        """Return a complete reply, else the longest truncated one; None if no attempt succeeds."""
        longest = longest_answer(request, self._endpoint)
        n_tokens, cut = request.max_completion_tokens, None
        while True:
            allowed = replace(request, max_completion_tokens=n_tokens)
            try:
                kept = await self._reply_to(allowed, abilities, probes=probes)
            except RefusedError as error:
                if cut is None or error.status not in NOT_SUPPORTED:
                    raise
                # More tokens than the model allows, or than its context has room for.
                self._too_long = n_tokens
                return cut
            if kept is None:
                return None
            if not kept.reply.content and kept.completion_tokens >= n_tokens:
                # Some servers report "stop" when the limit was spent on reasoning.
                kept = replace(kept, reply=replace(kept.reply, finish_reason="length"))
            if request.may_be_cut or not kept.reply.is_cut or n_tokens >= longest:
                return kept
            cut, n_tokens = kept, min(MORE_TOKENS * n_tokens, longest)
            if self._too_long is not None and n_tokens >= self._too_long:
                return cut
            self.usage.cut += 1

    async def _reply_to(
        self, request: Request, abilities: Abilities, *, probes: bool
    ) -> Kept | None:
        """Return the reply from the cache, from an identical request in flight, or a new one."""
        body = request_body(request, self._endpoint, abilities)
        key = reply_key(self._endpoint.address, body)
        kept = self._cache.get(key)
        if kept is None and key not in self._asking:
            future = asyncio.get_running_loop().create_future()
            self._asking[key] = future
            try:
                # The endpoint's abilities must be known before questions go into a batch.
                ways = self.sending if self._batches is None or probes else self._batches
                kept = await ways.persist(key, body, request.max_completion_tokens)
                future.set_result(kept)
                return kept
            finally:
                del self._asking[key]
                future.cancel()
        if kept is None:
            try:
                kept = await self._asking[key]
            except asyncio.CancelledError:
                # Either this task was cancelled, or the one that sent the request has stopped.
                if self.sending.error is not None:
                    raise self.sending.error from None
                raise
        if kept is not None:
            self.sending.count_cached(kept)
        return kept


Work: TypeAlias = Callable[[LanguageModel], Iterable[Coroutine[Any, Any, Any]]]


def ask_all(
    endpoint: Endpoint, settings: Llm, work: Work, *, root: Path
) -> tuple[list[Any], Usage]:
    """Run coroutines that ask a language model, in their own event loop.

    They start in order, a few times `concurrency` at once, so that a generator need not keep all
    prompts in memory. None may wait for a later one. Returns the coroutines' results, in order, and
    the usage; raises as `LanguageModel.ask`, keeping the replies received so far.
    """
    model = LanguageModel(endpoint, settings, root=root)
    # A batch is sent when everything that can be asked by then has been.
    width = settings.max_requests_per_batch if settings.batch else WIDTH * settings.concurrency
    # A job has loaded many objects, which the garbage collector would traverse repeatedly while
    # thousands of requests come and go.
    gc.freeze()
    try:
        return asyncio.run(_answers(model, work, width)), model.usage
    finally:
        gc.unfreeze()


async def _answers(model: LanguageModel, work: Work, width: int) -> list[Any]:
    results: dict[int, Any] = {}
    async with model:
        coroutines = work(model)
        if isinstance(coroutines, Sized):
            width = min(width, max(len(coroutines), 1))
        pending = enumerate(coroutines)

        async def worker() -> None:
            for index, coroutine in pending:
                results[index] = await coroutine

        workers = [asyncio.create_task(worker()) for _ in range(width)]
        try:
            await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
            for task in workers:
                if task.done() and (error := task.exception()) is not None:
                    raise error
            model.check_answers()
        finally:
            model.sending.stop(UserError("stopped"))
            await model.sending.drain()
            for task in workers:
                task.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
            for _, coroutine in pending:
                coroutine.close()
    return [results[index] for index in sorted(results)]
