"""Limits on the sizes that a model's `config.json` may state, and the length of its contexts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from nullsae.core.errors import UserError

# Families' names of the longest context; the unsure ones mean something else if a sure one exists.
UNSURE_LIMITS = ("seq_len", "sequence_len", "sequence_length", "block_size", "context_size")
CONTEXT_LIMITS = (
    *("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_seq_length"),
    *("max_sequence_length", "seq_length", "context_length", "max_target_positions", "ctx_len"),
    *("max_context_length", "context_len", "context_window", "n_context", "model_max_length"),
    *("max_ctx", *UNSURE_LIMITS),
)
# The smallest and largest numbers that a config.json may state, by patterns of their names; the
# largest are several times those of any existing model. A model is built from these numbers before
# its weights are checked. -1 means "no limit", for contexts and some kinds of layers.
MOST = (
    (re.compile(r"^(?:num_hidden_layers|n_layers?|num_layers)$"), 1, 2_000),
    (re.compile(r"(?:^|_)(?:layers|blocks)$"), -1, 2_000),
    (re.compile(r"(?:^|_)heads?$|experts$"), -1, 20_000),
    (re.compile(r"^(?:hidden_size|d_model|model_dim|n_embe?d)$"), 1, 200_000),
    (re.compile(r"^(?:intermediate_size|n_inner|ffn_dim|d_ff)$"), 0, 2_000_000),
    (re.compile(r"_dim$|^d_kv$"), -1, 200_000),
    (re.compile(r"(?:^|_)vocab_size"), 0, 20_000_000),
    (re.compile(rf"^(?:{'|'.join(CONTEXT_LIMITS[:5])})$"), -1, 100_000_000),
)


def longest_context(described: Mapping[str, Any]) -> int | None:
    """Return the longest context that a model's config states; None for no limit."""
    given = {name: described.get(name) for name in CONTEXT_LIMITS}
    stated = {n: v for n, v in given.items() if type(v) is int and v > 0}
    sure = {n: v for n, v in stated.items() if n not in UNSURE_LIMITS}
    return min((sure or stated).values(), default=None)


def check_sizes(described: Mapping[str, Any], where: str) -> None:
    """Check the sizes that a `config.json` states, including nested parts.

    Args:
        described: its content.
        where: the file, for messages.

    Raises:
        UserError: a size is larger than that of any model.
    """
    for key, value in _numbers(described):
        for least, most in [limits for names, *limits in MOST if names.search(key)][:1]:
            if not least <= value <= most:
                raise UserError(f"{where}: {key}: {_short(value)} is not from {least} to {most:,}")


def _numbers(described: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield the numbers in a config and its parts, with their keys."""
    waiting: list[Any] = [described]
    while waiting:
        one = waiting.pop()
        if isinstance(one, Mapping):
            yield from ((str(k), v) for k, v in one.items() if isinstance(v, int | float))
            waiting += one.values()


def _short(value: float) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return f"{value:,}" if abs(value) < 10**15 else f"a number of {len(str(abs(value)))} digits"
