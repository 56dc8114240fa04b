"""Sends many requests at once through the endpoint's batch API, at its lower price.

All questions that do not need earlier answers go into one batch. Before the batch is started, its
record is written and its money is reserved, until all replies are in the cache. So a job that is
killed at any moment pays nothing twice: the next one finds the batch.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nullsae import paths
from nullsae.autointerp.llm.answers import Answer, AttemptError
from nullsae.autointerp.llm.batch_record import Asked, BatchRecord, records
from nullsae.autointerp.llm.cache import ReplyCache
from nullsae.autointerp.llm.kept_replies import Kept
from nullsae.autointerp.llm.refusals import RefusedError, shortened
from nullsae.autointerp.llm.sending import Sending
from nullsae.config.llm import Llm
from nullsae.core.errors import UserError

if TYPE_CHECKING:
    from openai.types import Batch

    from nullsae.autointerp.llm.batch_api import BatchApi

log = logging.getLogger(__name__)

# A batch is sent this long after the last request: by then, all tasks are waiting for answers.
QUIET_SECONDS = 0.2
# OpenAI accepts files of up to 200 MB.
MOST_BYTES = 190_000_000
# Consecutive batches without a single reply after which a job gives up.
MOST_IN_VAIN = 3


@dataclass
class _Line:
    """A request waiting for its answer."""

    body: bytes
    asked: Asked
    answer: asyncio.Future[Kept | AttemptError]


class Batches:
    """Gets replies into the cache by batches, until one error stops everything."""

    def __init__(
        self, sending: Sending, settings: Llm, cache: ReplyCache, address: str, root: Path
    ) -> None:
        self._sending, self._settings, self._cache = sending, settings, cache
        self._address, self._folder = address, root / paths.BATCHES
        self._waiting: dict[str, _Line] = {}
        self._asked_at = 0.0
        self._n_in_vain = 0
        self._held: list[BatchRecord] = []
        self._api: BatchApi | None = None
        self._task: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop waiting for batches; they continue, and another run finds them."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        for record in self._held:
            record.let_go()
        if self._api is not None:
            await self._api.close()

    async def persist(self, key: bytes, body: bytes, max_completion_tokens: int) -> Kept | None:
        """Do as `Sending.persist`, in at most `max_attempts` batches."""
        loop = asyncio.get_running_loop()
        for _ in range(self._settings.max_attempts):
            line = _Line(body, Asked(len(body), max_completion_tokens), loop.create_future())
            self._waiting[key.hex()] = line
            self._asked_at = loop.time()
            if self._task is None or self._task.done():
                self._task = asyncio.create_task(self._run())
            found = await line.answer
            if isinstance(found, Kept):
                return found
        return None

    async def _run(self) -> None:
        """Send and receive until no task is waiting."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                while (left := self._asked_at + QUIET_SECONDS - loop.time()) > 0:
                    await asyncio.sleep(left)
                await self._adopt()
                started = await self._start_all()
                await _all(self._finish(record) for record in started)
        except Exception as error:
            # Nobody awaits this task, so the tasks waiting for answers get the error.
            self._sending.stop(error)
            waiting, self._waiting = self._waiting, {}
            for line in waiting.values():
                if not line.answer.done():
                    line.answer.set_exception(error)

    async def _adopt(self) -> None:
        """Take over batches with wanted requests, from killed jobs or from a running one."""
        for record in records(self._folder, self._address):
            if not self._waiting.keys() & record.requests.keys():
                continue
            while not record.hold():
                # Another job waits for this batch; its replies will be in the cache.
                await asyncio.sleep(min(self._settings.batch_poll_seconds, 5.0))
            try:
                if not record.path.exists():
                    record.remove()
                elif await self._is_started(record):
                    log.info("batch %s, of an earlier run, is waited for", record.batch)
                    await self._finish(record)
                else:
                    self._forget(record)
            finally:
                record.let_go()
            for name in [*self._waiting]:
                if (kept := self._cache.get(bytes.fromhex(name))) is not None:
                    self._sending.count_cached(kept)
                    self._answered(name, kept)

    async def _is_started(self, record: BatchRecord) -> bool:
        """Return whether the endpoint has the batch, which the record may not know yet."""
        if record.batch is None:
            record.batch = await (await self._opened()).find(record.name)
            if record.batch is not None:
                record.write()
        return record.batch is not None

    async def _start_all(self) -> list[BatchRecord]:
        """Start batches of the waiting requests, as many as the budget allows."""
        for ended in self._held:
            ended.let_go()
        started = self._held = []
        left = [*self._waiting]
        while left:
            names: list[str] = []
            n_bytes = 0
            while left and len(names) < self._settings.max_requests_per_batch:
                n_bytes += len(self._waiting[left[0]].body) + 200
                if names and n_bytes > MOST_BYTES:
                    break
                names.append(left.pop(0))
            record = self._within_budget(names, alone=not started)
            if record is None:
                break
            started.append(record)
            await self._start(record)
            if len(record.requests) < len(names):
                break
        return started

    def _within_budget(self, names: list[str], *, alone: bool) -> BatchRecord | None:
        """Record as many of these requests as the budget allows; None if none.

        Raises a `UserError` if it allows none and no batch is in progress (`alone`).
        """
        limit = self._settings.max_cost_usd
        while True:
            requests = {name: self._waiting[name].asked for name in names}
            worst = sum(map(self._worst_usd, requests.values()))
            record = BatchRecord.new(self._folder, self._address, requests, worst)
            # Before the reservation, so that no money is reserved for an unknown batch.
            record.write()
            if limit is None or not worst:
                return record
            spent = self._cache.reserve(worst, limit, batch=record.name)
            if spent is None:
                return record
            record.remove()
            if len(names) > 1:
                names = names[: len(names) // 2]
            elif alone:
                raise self._sending.no_money(spent, worst)
            else:
                return None

    async def _start(self, record: BatchRecord) -> None:
        from nullsae.autointerp.llm.batch_api import request_line

        lines = b"".join(request_line(n, self._waiting[n].body) for n in record.requests)
        try:
            api = await self._opened()
            record.file = await api.upload(lines)
            record.write()
            record.batch = await api.start(record.file, record.name)
        except RefusedError:
            self._forget(record)
            raise
        record.write()
        log.info("batch %s has %d requests", record.batch, len(record.requests))

    async def _finish(self, record: BatchRecord) -> None:
        """Wait until a batch ends, and keep its replies."""
        from nullsae.autointerp.llm.batch_api import ENDED

        api = await self._opened()
        assert record.batch is not None
        n_failures, counts = 0, ""
        while True:
            try:
                batch = await api.look(record.batch)
                n_failures = 0
            except AttemptError as error:
                n_failures += 1
                if n_failures >= self._settings.max_failures_in_a_row:
                    raise UserError(
                        f"{self._sending.connection.asked}: {n_failures} requests for the state of "
                        f"batch {record.batch} failed in a row (llm.max_failures_in_a_row), the "
                        f"last with: {error}; run again to ask for it"
                    ) from None
            else:
                if batch is None or batch.status in ENDED:
                    break
                done = getattr(batch.request_counts, "completed", 0)
                status = shortened(self._sending.connection.secrets.blank(str(batch.status)))
                now = f"{status}, {done if type(done) is int else 0} requests done"
                if now != counts:
                    counts = now
                    log.info("batch %s: %s", record.batch, counts)
            await asyncio.sleep(self._settings.batch_poll_seconds)
        if batch is None:
            log.warning(
                "the endpoint does not know batch %s; its requests are sent again", record.batch
            )
            self._cache.release(0.0, spent_usd=record.worst_usd)
            self._forget(record)
            return
        await self._take_in(batch, record)

    async def _take_in(self, batch: Batch, record: BatchRecord) -> None:
        """Keep the replies of a finished batch; pass them, and errors, to the waiting tasks."""
        api = await self._opened()
        connection, share = self._sending.connection, self._sending.batch_share
        found: dict[str, Kept | Exception] = {}

        def take(name: str, answer: Answer | AttemptError) -> None:
            if (request := record.requests.get(name)) is None or name in found:
                return
            most = request.max_completion_tokens
            try:
                if isinstance(answer, AttemptError):
                    said = shortened(connection.secrets.blank(str(answer)))
                    raise AttemptError(said)
                valid = connection.read(answer, most)
            except (AttemptError, RefusedError) as error:
                found[name] = error
                return
            kept = found[name] = self._sending.paid(valid, request.n_bytes, most, share)
            self._cache.put(bytes.fromhex(name), kept)

        limits = (request.max_completion_tokens for request in record.requests.values())
        await api.take_answers(batch, limits, take)
        self._cache.settle(record.name)
        record.remove()
        # The files contain prompts and replies, and are read only once.
        await api.delete(record.file, batch.output_file_id, batch.error_file_id)
        n_replies = sum(isinstance(one, Kept) for one in found.values())
        log.info("batch %s %s: %d replies", record.batch, batch.status, n_replies)
        for name in record.requests:
            self._answered(name, found.get(name, AttemptError("no answer in the batch")))
        self._check(batch, str(record.batch), n_replies)

    def _check(self, batch: Batch, name: str, n_replies: int) -> None:
        """Raise a `UserError` if it makes no sense to send further batches."""
        asked = self._sending.connection.asked
        if batch.status in ("failed", "cancelled"):
            data = getattr(batch.errors, "data", None)
            data = data[:3] if isinstance(data, list) else []
            errors = [(getattr(e, "code", None), getattr(e, "message", None)) for e in data]
            said = "; ".join(f"{code}: {text}" for code, text in errors) or "no reason given"
            said = shortened(self._sending.connection.secrets.blank(said))
            advice = (
                "if too many tokens are enqueued, lower llm.max_requests_per_batch"
                if batch.status == "failed"
                else "run again to ask for the rest"
            )
            raise UserError(f"llm.batch: {asked}: batch {name} {batch.status} ({said}); {advice}")
        self._n_in_vain = 0 if n_replies else self._n_in_vain + 1
        if self._n_in_vain >= MOST_IN_VAIN:
            raise UserError(
                f"llm.batch: {asked}: {self._n_in_vain} batches in a row brought no reply, the "
                f"last with: {self._sending.last_failure}; {self._sending.kept_so_far()}"
            )

    def _answered(self, name: str, found: Kept | Exception) -> None:
        if isinstance(found, AttemptError):
            self._sending.count_failure(found)
        line = self._waiting.pop(name, None)
        if line is None or line.answer.done():
            return
        if isinstance(found, Kept | AttemptError):
            line.answer.set_result(found)
        else:
            line.answer.set_exception(found)

    def _forget(self, record: BatchRecord) -> None:
        self._cache.settle(record.name)
        record.remove()

    def _worst_usd(self, asked: Asked) -> float:
        share = self._sending.batch_share
        return share * self._sending.worst_usd(asked.n_bytes, asked.max_completion_tokens)

    async def _opened(self) -> BatchApi:
        if self._api is None:
            self._api = await self._sending.connection.batch_api()
        return self._api


async def _all(coroutines: object) -> None:
    """Run coroutines concurrently; the first error cancels the others and is raised."""
    tasks = [asyncio.ensure_future(one) for one in coroutines]  # type: ignore[attr-defined]
    if not tasks:
        return
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
