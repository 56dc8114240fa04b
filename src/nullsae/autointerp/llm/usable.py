"""Checks whether a job's answers are usable: it ends if most are truncated or empty."""

from __future__ import annotations

from nullsae.autointerp.llm.messages import Reply
from nullsae.config.addresses import shown_address
from nullsae.config.endpoints import Endpoint

# A job ends before its last question only after this many answers. Below this number, empty answers
# do not count: a few latents about which a model says nothing must not end a study.
MANY_ANSWERS = 20
REFUSED = ("refusal", "content_filter")


class Answers:
    """Counts answers that are truncated by the token limit, empty, or refused."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._n = self._n_cut = self._n_empty = self._n_refused = 0

    def count(self, reply: Reply) -> None:
        """Count the final reply to a request."""
        self._n += 1
        if reply.is_cut:
            self._n_cut += 1
        elif reply.finish_reason in REFUSED:
            self._n_refused += 1
        elif not reply.content.strip():
            self._n_empty += 1

    def problem(self, least: int) -> str | None:
        """Return what is wrong with most of at least `least` answers, with the key to change."""
        counts = self._n >= MANY_ANSWERS
        n_empty, n_refused = (self._n_empty, self._n_refused) if counts else (0, 0)
        n_bad = self._n_cut + n_empty + n_refused
        if self._n < least or 2 * n_bad <= self._n:
            return None
        endpoint, of = self._endpoint, f"of {self._n} answers of {self._endpoint.model}"
        if endpoint.base_url is not None:
            of += f" at {shown_address(endpoint.base_url)}"
        if self._n_cut >= max(n_empty, n_refused):
            return (
                f"completion_tokens_cap, max_completion_tokens: {self._n_cut} {of} are cut at the "
                f"most tokens allowed (completion_tokens_cap: {endpoint.completion_tokens_cap}, or "
                f"what the endpoint has room for); raise it, or have the model reason less through "
                f"extra_body"
            )
        if n_empty >= n_refused:
            return (
                f"extra_body, model: {n_empty} {of} are empty; a model may put all it says "
                f"into its reasoning: turn that off by extra_body (reasoning_effort: none, "
                f"chat_template_kwargs: {{enable_thinking: false}}), or take another model"
            )
        return f"model: {n_refused} {of} are refusals; take another model, or another prompt"
