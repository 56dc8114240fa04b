from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.corpus.ngram import fit_ngram, ngram_losses


def slow_bigram(tokens: list[int], v: int, history: int, token: int) -> float:
    """Compute interpolated Kneser-Ney with dictionaries and loops, directly from the formula."""

    def discount(counts: list[int]) -> float:
        n1, n2 = counts.count(1), counts.count(2)
        return n1 / (n1 + 2 * n2) if n1 and n2 else 0.75

    bigrams = Counter(pairwise(tokens))
    types_before = Counter(w for _, w in bigrams)
    if not bigrams:
        return 1 / v
    d_low = discount(list(types_before.values()))
    n_types = len(bigrams)
    low = max(types_before[token] - d_low, 0) / n_types + d_low * len(types_before) / n_types / v
    total = sum(c for (h, _), c in bigrams.items() if h == history)
    if total == 0:
        return low
    d = discount(list(bigrams.values()))
    followers = sum(1 for h, _ in bigrams if h == history)
    return max(bigrams[history, token] - d, 0) / total + d * followers / total * low


sequences = st.lists(st.integers(0, 5), min_size=1, max_size=80)


@settings(max_examples=60, deadline=None)
@given(sequences)
def test_kneser_ney_equals_a_slow_implementation(tokens: list[int]) -> None:
    v = 7  # token 6 is never seen
    ngram = fit_ngram(np.array(tokens), v)
    history, token = np.divmod(np.arange(v * v), v)
    fast = ngram.bigram_probability(history, token)
    slow = [slow_bigram(tokens, v, h, t) for h, t in zip(history, token, strict=True)]
    np.testing.assert_allclose(fast, slow, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(sequences)
def test_every_distribution_sums_to_one_and_has_no_zero(tokens: list[int]) -> None:
    v = 7
    ngram = fit_ngram(np.array(tokens), v)
    table = ngram.bigram_probability(np.arange(v)[:, None], np.arange(v)[None, :])
    np.testing.assert_allclose(table.sum(1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(ngram.unigram.sum(), 1.0, rtol=1e-12)
    np.testing.assert_allclose(ngram.continuation.sum(), 1.0, rtol=1e-12)
    assert table.min() > 0
    assert ngram.unigram.min() > 0


def test_losses_are_over_the_tokens_that_a_causal_model_predicts() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 11, size=400)
    contexts = rng.integers(0, 11, size=(5, 9))
    ngram = fit_ngram(tokens, 11)
    unigram_loss, bigram_loss, n_predicted = ngram_losses(ngram, contexts)
    counts = Counter(tokens.tolist())
    unigram, bigram = [], []
    for context in contexts.tolist():
        for i in range(1, len(context)):
            unigram.append(-math.log((counts[context[i]] + 1) / (400 + 11)))
            bigram.append(-math.log(slow_bigram(tokens.tolist(), 11, context[i - 1], context[i])))
    assert n_predicted == len(unigram) == 5 * 8
    assert unigram_loss == pytest.approx(sum(unigram) / 40, rel=1e-12)
    assert bigram_loss == pytest.approx(sum(bigram) / 40, rel=1e-12)


def test_a_bigram_learns_a_deterministic_chain() -> None:
    # 0 1 2 0 1 2 ...: the next token is certain up to the discount, 0.75 per seen pair.
    tokens = np.tile([0, 1, 2], 1000)
    ngram = fit_ngram(tokens, 3)
    # c(0 1) = 1000 = c(0), Pc = 1/3 for all.
    expected = (1000 - 0.75) / 1000 + 0.75 / 1000 / 3
    assert ngram.bigram_probability(np.array(0), np.array(1)) == pytest.approx(expected, rel=1e-12)
