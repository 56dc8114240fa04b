"""The token counts of an endpoint, accepted as far as they can be true."""

from __future__ import annotations

from dataclasses import dataclass

from nullsae.autointerp.llm.answers import Valid

# To estimate the tokens of a text if the endpoint does not count them. No token has less than one
# byte, so a request has at most as many tokens as its JSON has bytes: the amount reserved for it.
BYTES_PER_TOKEN = 3
# A text of more than a few words has at least one token per this many bytes.
MOST_BYTES_PER_TOKEN = 64
# Servers ignore limits they do not know, and templates lengthen a prompt. A count above this many
# times what was requested, plus some, is not accepted.
MOST_TIMES, SPARE_TOKENS = 4, 1024


@dataclass(frozen=True)
class Counts:
    """Tokens of a request and of its reply."""

    prompt_tokens: int
    completion_tokens: int
    are_counted: bool
    """By the endpoint; otherwise at least one is an estimate."""


def counts(valid: Valid, n_bytes: int, max_completion_tokens: int) -> Counts:
    """Return the tokens of a request of `n_bytes` and of its reply, estimating implausible counts.

    A count is implausible if it is negative or not a whole number, far above what was requested, or
    below what was sent.
    """
    if valid.is_free:
        return Counts(0, 0, are_counted=True)
    n_said = len(valid.reply.content.encode(errors="replace"))
    prompt = _believed(valid.prompt_tokens, n_bytes, n_bytes)
    completion = _believed(valid.completion_tokens, n_said, max(max_completion_tokens, n_said))
    return Counts(
        -(-n_bytes // BYTES_PER_TOKEN) if prompt is None else prompt,
        -(-n_said // BYTES_PER_TOKEN) if completion is None else completion,
        are_counted=prompt is not None and completion is not None,
    )


def _believed(count: object, n_bytes: int, most: int) -> int | None:
    if type(count) is not int:
        return None
    least = -(-n_bytes // MOST_BYTES_PER_TOKEN)
    return count if least <= count <= MOST_TIMES * most + SPARE_TOKENS else None
