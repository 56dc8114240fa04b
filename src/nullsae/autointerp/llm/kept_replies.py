"""A reply with its cost, converted to a row of the cache and back."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass
from typing import Any

from nullsae.autointerp.llm.messages import AnswerToken, Reply, logprob, parse_json, without_halves

# Shorter replies do not shrink enough to be worth the time.
COMPRESS_FROM_BYTES = 512
# No reply is longer; a longer row is invalid.
MOST_BYTES = 1 << 28
MOST_INTEGER = 1 << 62


@dataclass(frozen=True)
class Kept:
    """A reply with its cost."""

    reply: Reply
    model: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float


def packed(kept: Kept) -> tuple[bytes | str, str, int, int, float]:
    """Return the columns of a reply after its key.

    Raises:
        ValueError: the reply could not be read back.
    """
    check(kept)
    reply = kept.reply
    tokens = [[token.text, token.alternatives] for token in reply.tokens]
    text = json.dumps([reply.content, reply.finish_reason, tokens], separators=(",", ":"))
    own = text if len(text) < COMPRESS_FROM_BYTES else zlib.compress(text.encode(), 1)
    return own, kept.model, kept.prompt_tokens, kept.completion_tokens, kept.cost_usd


def unpacked(row: tuple[Any, ...]) -> Kept:
    """Parse a reply from such columns.

    Raises:
        ValueError: they are invalid.
    """
    own, *others = row
    try:
        text = _unzipped(own) if isinstance(own, bytes) else own
        content, finish_reason, tokens = parse_json(text)
        made = tuple(
            AnswerToken(
                without_halves(text),
                # Older versions kept anything.
                tuple((without_halves(o), p) for o, p in others if logprob(p) is not None),
            )
            for text, others in tokens
        )
        kept = Kept(Reply(without_halves(content), made, finish_reason), *others)
    except (zlib.error, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None
    check(kept)
    return kept


def check(kept: Kept) -> None:
    """Raise a ValueError if a reply has impossible values."""
    reply = kept.reply
    texts = [reply.content, reply.finish_reason, kept.model, *(t.text for t in reply.tokens)]
    alternatives = [pair for token in reply.tokens for pair in token.alternatives]
    texts += [text for text, _ in alternatives]
    if not all(isinstance(text, str) and without_halves(text) == text for text in texts):
        raise ValueError("a text that is no valid Unicode string")
    if any(logprob(value) is None for _, value in alternatives):
        raise ValueError("an impossible log-probability")
    for count in (kept.prompt_tokens, kept.completion_tokens):
        if type(count) is not int or not 0 <= count <= MOST_INTEGER:
            raise ValueError("an impossible number of tokens")
    if not (isinstance(kept.cost_usd, int | float) and 0 <= kept.cost_usd < math.inf):
        raise ValueError("an impossible cost")


def _unzipped(data: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    text = unpacking.decompress(data, MOST_BYTES)
    if unpacking.unconsumed_tail or not unpacking.eof:
        raise ValueError("too long for a reply, or cut")
    return text
