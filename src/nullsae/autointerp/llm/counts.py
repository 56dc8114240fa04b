"""Tokens that an endpoint says it has counted: believed as far as they can be true."""

from __future__ import annotations

from dataclasses import dataclass

from nullsae.autointerp.llm.answers import Valid

# An estimate, of the tokens of a text that an endpoint does not count. No token has less than a
# byte, so that a request has at most as many as its JSON has bytes: what is set aside for it.
BYTES_PER_TOKEN = 3
# No text of more than a few words has fewer tokens than a token per so many bytes.
MOST_BYTES_PER_TOKEN = 64
# Servers pass over limits that they do not know, and templates add to a prompt. Beyond so many
# times what was asked for, and some, a count is none.
MOST_TIMES, SPARE_TOKENS = 4, 1024


@dataclass(frozen=True)
class Counts:
    """Tokens of a request and of its reply."""

    prompt_tokens: int
    completion_tokens: int
    are_counted: bool
    """By the endpoint; else one or both are estimates."""


def counts(valid: Valid, n_bytes: int, max_completion_tokens: int) -> Counts:
    """The tokens of a request of so many bytes and of its reply, estimated where no count is true.

    A count is not believed that is negative or no whole number, or far beyond what was asked for
    or below what was sent.
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
