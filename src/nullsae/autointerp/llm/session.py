"""Asks endpoints from inside a job: settings in, answers and their cost out."""

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
    """Called when something is asked, because most jobs of a study ask nothing."""
    root: Path = Path()
    """The folder of the study: the cache's path is relative to it."""
    progress: Callable[[int, int, str], None] | None = None
    """Called with (questions done, in total; calls, tokens, money and failures so far)."""
    costs: Path | None = None
    """Where to write the cost: the columns of the table `costs` about what was asked."""

    def all(
        self,
        endpoint: Endpoint,
        work: Callable[[LanguageModel], Sequence[Coroutine[Any, Any, T]]],
        n_questions: int,
    ) -> list[T]:
        """Return results of the `n_questions` coroutines of `work`, in order; write their cost.

        Raises a `UserError` if the endpoint cannot be used, the budget is spent, or another process
        has been asking the same for a minute.
        """
        if not n_questions:
            return []
        # Imported here because most jobs ask nothing.
        from nullsae.autointerp.llm.client import ask_all

        done = 0

        async def counted(model: LanguageModel, one: Coroutine[Any, Any, T]) -> T:
            nonlocal done
            result = await one
            done += 1
            if self.progress is not None:
                self.progress(done, n_questions, describe(model.usage))
            return result

        # Two processes with the same questions at once would pay twice.
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
                "%d answers were cut and requested again with more tokens; a larger "
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
    """Describe what was asked so far, in a few words."""
    tokens = usage.prompt_tokens + usage.completion_tokens
    text = f"{usage.calls:,} calls, {usage.cached_calls:,} cached, {tokens:,} tokens"
    if paid := usage.cost_usd + usage.lost_usd:
        text += f", ${paid:.2f}"
    if usage.attempts_failed:
        text += f", {usage.attempts_failed} asked again, {usage.failed} failed"
    return text
