"""Unigram and bigram baselines: the loss per token of a model that only counts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.integer]

# Used if no n-gram was seen once or none twice, so that Ney's estimate is undefined.
FALLBACK_DISCOUNT = 0.75
# Tokens whose losses are computed together.
PIECE_TOKENS = 2**20


def caution(loss: float, bigram_loss: float) -> str | None:
    """Return the warning for a trained subject that is no better than bigrams, else None.

    Both losses are held-out, in nats per token.
    """
    if loss < bigram_loss:
        return None
    return (
        f"the trained subject's held-out loss is {loss:.2f} nats, no better than that of bigrams "
        f"({bigram_loss:.2f}): what SAEs find in it says little about a trained transformer"
    )


@dataclass(frozen=True)
class Ngram:
    """Counts of a token sequence, ready for queries.

    With c the bigram counts and N1+ the numbers of distinct bigrams (Chen & Goodman 1999, eq. 26
    to 28; one discount per order, Ney's D = n1 / (n1 + 2 n2)):

        P(w | h)  = max(c(h w) - D, 0) / c(h)  + D N1+(h .) / c(h) * Pc(w)
        Pc(w)     = max(N1+(. w) - D', 0) / N1+(. .)  + D' |{w: N1+(. w) > 0}| / N1+(. .) / V
    """

    unigram: FloatArray
    """Add-one probability of each token id, [vocab_size]."""
    continuation: FloatArray
    """Pc, [vocab_size]."""
    pairs: NDArray[np.int64]
    """Seen bigrams as h * vocab_size + w, sorted, [n_pairs]."""
    pair_counts: NDArray[np.int64]
    history_counts: NDArray[np.int64]
    """c(h), [vocab_size]."""
    history_types: NDArray[np.int64]
    """N1+(h .), [vocab_size]."""
    discount: float

    def bigram_probability(self, history: IntArray, token: IntArray) -> FloatArray:
        """Return P(token | history), elementwise; float64 of the arguments' broadcast shape.

        After a history that was never seen, this is Pc(token).
        """
        history, token = np.broadcast_arrays(history, token)
        if not len(self.pairs):
            return self.continuation[token]
        keys = history.astype(np.int64) * len(self.unigram) + token
        at = np.searchsorted(self.pairs, keys).clip(max=len(self.pairs) - 1)
        counts = np.where(self.pairs[at] == keys, self.pair_counts[at], 0)
        total = self.history_counts[history]
        safe = np.maximum(total, 1)
        weight = np.where(total > 0, self.discount * self.history_types[history] / safe, 1.0)
        kept: FloatArray = np.maximum(counts - self.discount, 0.0) / safe
        return kept + weight * self.continuation[token]


def fit_ngram(tokens: IntArray, vocab_size: int) -> Ngram:
    """Count a sequence of token ids [n_tokens] below `vocab_size`, which is V."""
    tokens = tokens.astype(np.int64)
    counts = np.bincount(tokens, minlength=vocab_size)
    pairs, pair_counts = np.unique(tokens[:-1] * vocab_size + tokens[1:], return_counts=True)
    history, following = np.divmod(pairs, vocab_size)
    before = np.bincount(following, minlength=vocab_size)
    lower = _discount(before)
    continuation = np.full(vocab_size, 1.0 / vocab_size)
    if len(pairs):
        spared = lower * np.count_nonzero(before) / len(pairs)
        continuation = np.maximum(before - lower, 0.0) / len(pairs) + spared / vocab_size
    return Ngram(
        unigram=(counts + 1.0) / (len(tokens) + vocab_size),
        continuation=continuation,
        pairs=pairs,
        pair_counts=pair_counts,
        history_counts=np.bincount(tokens[:-1], minlength=vocab_size),
        history_types=np.bincount(history, minlength=vocab_size),
        discount=_discount(pair_counts),
    )


def _discount(counts: IntArray) -> float:
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return once / (once + 2 * twice) if once and twice else FALLBACK_DISCOUNT


def ngram_losses(ngram: Ngram, contexts: IntArray, first: int = 1) -> tuple[float, float, int]:
    """Return mean losses on exactly the tokens that a causal model predicts in packed contexts.

    These are the tokens from position `first` on in each of `contexts`, token ids [n_contexts,
    context_tokens] of other documents than those fitted.

    Returns:
        Unigram and bigram loss in nats per token, and the number of predicted tokens.
    """
    unigram = bigram = 0.0
    for start in range(0, len(contexts), step := max(1, PIECE_TOKENS // contexts.shape[1])):
        piece = contexts[start : start + step]
        token, before = piece[:, first:], piece[:, first - 1 : -1]
        unigram -= float(np.log(ngram.unigram[token]).sum())
        bigram -= float(np.log(ngram.bigram_probability(before, token)).sum())
    n = contexts[:, first:].size
    return unigram / n, bigram / n, n
