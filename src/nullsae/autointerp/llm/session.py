"""Asking endpoints from inside a job: settings in, answers and their cost out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nullsae.autointerp.llm.messages import Usage
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm
from nullsae.core.files import write_json
from nullsae.core.locking import alone_at

if TYPE_CHECKING:
    from nullsae.autointerp.llm.client import LanguageModel

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Session:
    """How a job asks endpoints, and what it has asked so far."""

    settings: Callable[[], Llm] = Llm
    """Called when something is asked: most jobs of a study ask nobody."""
    root: Path = Path()
    """The folder of the study: the cache's path is relative to it."""
    progress: Callable[[int, int, str], None] | None = None
    """Called with (questions done, questions in all, calls, tokens, money and failures so far)."""
    costs: Path | None = None
    """Where to write what it cost: the columns of the table `costs` that say what was asked."""

    def all(
        self,
        endpoint: Endpoint,
        work: Callable[[LanguageModel], Sequence[Coroutine[Any, Any, T]]],
        n_questions: int,
    ) -> list[T]:
        """Results of the `n_questions` coroutines that `work` makes, in order; writes their cost.

        A `UserError` says that the endpoint cannot be used, that the budget is spent, or that
        another process has been asking the same for a minute.
        """
        if not n_questions:
            return []
        # Lazy: most jobs ask nobody.
        from nullsae.autointerp.llm.client import ask_all

        done = 0

        async def counted(model: LanguageModel, one: Coroutine[Any, Any, T]) -> T:
            nonlocal done
            result = await one
            done += 1
            if self.progress is not None:
                self.progress(done, n_questions, describe(model.usage))
            return result

        # The same questions from two processes at once are paid for twice.
        locks = [] if self.costs is None else [self.costs.with_name(f".{self.costs.name}.lock")]
        with alone_at(locks):
            results, usage = ask_all(
                endpoint,
                self.settings(),
                lambda model: [counted(model, one) for one in work(model)],
                root=self.root,
            )
        if usage.cut:
            log.warning(
                "%d answers were cut and asked for again with more tokens; a larger "
                "max_completion_tokens would have paid for them once",
                usage.cut,
            )
        if self.costs is not None:
            own = ("calls", "cached_calls", "attempts_failed", "prompt_tokens", "completion_tokens")
            row = {name: getattr(usage, name) for name in own} | {
                "model": endpoint.model,
                "failed_calls": usage.failed,
                "cost_usd": usage.cost_usd + usage.cached_cost_usd,
                "paid_usd": usage.cost_usd + usage.lost_usd,
                "estimated_calls": usage.estimated,
            }
            write_json(self.costs, row)
        return results


def describe(usage: Usage) -> str:
    """What was asked so far, in a few words."""
    tokens = usage.prompt_tokens + usage.completion_tokens
    text = f"{usage.calls:,} calls, {usage.cached_calls:,} cached, {tokens:,} tokens"
    if paid := usage.cost_usd + usage.lost_usd:
        text += f", ${paid:.2f}"
    if usage.attempts_failed:
        text += f", {usage.attempts_failed} asked again, {usage.failed} failed"
    return text
