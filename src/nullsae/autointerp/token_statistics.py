"""The judge that is a formula: P(active | token), or of a pair, off an explanation's statistics."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nullsae.autointerp.examples import Examples, Flags, Floats, Ints


def judge_by_tokens(examples: Examples, explained: pa.Table, shown: Flags) -> Floats:
    """The largest probability of firing over the positions shown of each window.

    A position has the probability of its pair (the token before it in the window, marked or not,
    and its own token), else that of its token, else the explanation's base probability: whatever
    the explanation knows first.

    Args:
        examples: the windows.
        explained: the table `explanations`, sorted by latent; has every latent of them.
        shown: bool [n_positions]; at least one per window.

    Returns:
        float64 [n_windows].
    """
    at = np.flatnonzero(shown)
    token, previous = examples.tokens[at], examples.previous[at]
    row = np.searchsorted(explained["latent"].to_numpy(), examples.latent)
    row = np.repeat(row, examples.n_tokens)[at]
    row_of_known, known, p_token = _entries(explained, "token_ids", "token_probabilities")
    row_of_pair, second, p_pair = _entries(explained, "pair_token_ids", "pair_probabilities")
    first = explained["pair_previous_ids"].combine_chunks().flatten().to_numpy()

    # A key holds a row or a place and one id, never two ids: int64 is enough for any vocabulary.
    stride = 1 + max(int(ids.max(initial=0)) for ids in (examples.tokens, known, first, second))
    known_key, pair_head = row_of_known * stride + known, row_of_pair * stride + second
    heads = np.unique(np.concatenate([known_key, pair_head]))
    # In float32 like the statistics: a base rate and a token at that rate must tie.
    base = explained["base_probability"].to_numpy().astype(np.float32)
    of_head = base[heads // stride]
    of_head[_find(heads, known_key)] = p_token
    head = _find(heads, row * stride + token)
    probability = np.where(head >= 0, np.append(of_head, np.float32(0))[head], base[row])

    pair_key = _find(heads, pair_head) * stride + first
    order = np.argsort(pair_key, kind="stable")  # linear where they ascend, as they do by custom
    pair = _find(pair_key[order], np.where(previous < 0, -1, head * stride + previous))
    probability = np.where(pair >= 0, np.append(p_pair[order], np.float32(0))[pair], probability)

    of_position = np.full(len(shown), -np.inf, dtype=np.float32)
    of_position[at] = probability
    return np.maximum.reduceat(of_position, examples.starts[:-1]).astype(np.float64)


def _entries(explained: pa.Table, ids: str, values: str) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """Row, id and value of each entry of two columns of lists, end to end."""
    lists = explained[ids].combine_chunks()
    row = np.repeat(np.arange(explained.num_rows), lists.value_lengths().to_numpy())
    numbers = explained[values].combine_chunks().flatten().to_numpy()
    return row, lists.flatten().to_numpy().astype(np.int64), numbers


def _find(keys: Ints, wanted: Ints) -> Ints:
    """The place of each wanted key among ascending keys >= 0; -1 where it is not among them."""
    place = np.searchsorted(keys, wanted)
    closed = np.append(keys, np.iinfo(np.int64).min)  # a search past the end finds nothing
    return np.where(closed[place] == wanted, place, -1)
