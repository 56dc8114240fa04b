from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from firings import sort_firings
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.latents.split import LAGS, Split
from nullsae.latents.statistics import (
    Sums,
    TokenMass,
    autocorrelation,
    entropy_bits,
    token_spread,
)
from nullsae.latents.store import Firings

N_LATENTS, CONTEXT = 6, 20
SOME = 7
"""A latent of `random_case` may have this many consecutive tokens, for lags of every length."""


def random_case(seed: int, n_contexts: int = 5) -> tuple[np.ndarray, Split]:
    """Return activations float32 [n_tokens, n_latents], mostly 0, and their tokens.

    The last latent never fires, the one before it always and equally, the first on stretches.
    """
    rng = np.random.default_rng(seed)
    n = n_contexts * CONTEXT
    dense = np.maximum(rng.normal(-0.8, 1, (n, N_LATENTS)), 0).astype(np.float32)
    dense[:, 0] *= np.repeat(rng.random(n) < 0.5, SOME)[:n]
    dense[:, -2], dense[:, -1] = 0.7, 0
    documents = np.repeat(np.arange(n), rng.integers(1, 45, n))[:n].astype(np.int32)
    ids = rng.integers(0, 7, n).astype(np.int32)
    return dense, Split(ids, documents, CONTEXT, None, Path("manifest.json"))


def firings_of(dense: np.ndarray, seed: int = 0) -> Firings:
    """Return the same firings in a random order."""
    position, latent = np.nonzero(dense)
    order = np.random.default_rng(seed).permutation(len(position))
    return sort_firings(
        latent[order],
        position[order].astype(np.uint32),
        dense[position, latent][order],
        dense.shape[1],
    )


def dense_autocorrelation(column: np.ndarray, split: Split, lag: int) -> float:
    """Compute it by a loop over all pairs of tokens; NaN without pairs or variance."""
    values = column.astype(np.float64)
    products = [
        values[t] * values[t + lag]
        for t in range(len(values) - lag)
        if t // CONTEXT == (t + lag) // CONTEXT and split.document[t] == split.document[t + lag]
    ]
    if not products or values.var() < 1e-12:
        return math.nan
    return float((np.mean(products) - values.mean() ** 2) / values.var())


def expected_columns(column: np.ndarray, split: Split) -> dict[str, float]:
    """Compute one latent's statistics from its activations [n_tokens] by other means."""
    on = column > 0
    n, n_on = len(column), int(on.sum())
    r = [dense_autocorrelation(column, split, lag) for lag in range(1, LAGS + 1)]
    in_document = np.unique(split.document[on], return_counts=True)[1]
    n_documents = len(set(split.document.tolist()))
    found = {
        "firings": n_on,
        "firing_share": n_on / n,
        "max_activation": column.max(),
        "n_documents": len(in_document),
        "document_share": len(in_document) / n_documents,
        "n_token_types": len(set(split.ids[on].tolist())),
        "autocorrelation_lag1": r[0],
        "autocorrelation": float(np.mean(r)),
    }
    names = ("mean_activation", "mean_position_tokens", "sd_position_tokens")
    names += ("first_position_share", "peak_document_share", "token_entropy_bits")
    names += ("token_entropy_corrected_bits", "peak_token_share")
    if not n_on:
        return {**found, **dict.fromkeys(names, math.nan), "peak_token": -1}
    offset = np.arange(n)[on] % CONTEXT
    mass = np.bincount(split.ids, weights=column.astype(np.float64))
    entropy = scipy.stats.entropy(mass, base=2)
    return {
        **found,
        "mean_activation": column[on].astype(np.float64).mean(),
        "mean_position_tokens": offset.mean(),
        "sd_position_tokens": offset.std(),
        "first_position_share": (offset == 0).mean(),
        "peak_document_share": in_document.max() / n_on,
        "token_entropy_bits": entropy,
        "token_entropy_corrected_bits": entropy + ((mass > 0).sum() - 1) / (2 * n_on * math.log(2)),
        "peak_token_share": mass.max() / mass.sum(),
        "peak_token": mass.argmax(),
    }


@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_every_statistic_equals_that_of_the_dense_matrix(seed: int) -> None:
    dense, split = random_case(seed)
    found = Sums.of(firings_of(dense, seed), split).columns(split, split.n_tokens)
    for latent in range(N_LATENTS):
        expected = expected_columns(dense[:, latent], split)
        assert set(expected) == set(found)
        for name, value in expected.items():
            assert found[name][latent] == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), (
                name,
                latent,
            )


@given(seed=st.integers(0, 10_000), most=st.integers(1, 40))
@settings(max_examples=25, deadline=None)
def test_no_statistic_depends_on_the_pieces_that_it_is_added_up_from(seed: int, most: int) -> None:
    dense, split = random_case(seed)
    whole = Sums.of(firings_of(dense), split).columns(split, split.n_tokens)
    parts: list[dict[str, np.ndarray]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nullsae.latents.store.PIECE_FIRINGS", most)
        sums: Sums | None = None
        at, n_pieces = -1, 0
        for first, part in firings_of(dense).pieces(CONTEXT):
            n_pieces += 1
            if sums is not None and first == at:
                sums = sums.then(Sums.of(part, split))
                continue
            if sums is not None:
                parts.append(sums.columns(split, split.n_tokens))
            sums, at = Sums.of(part, split), first
        assert sums is not None
        parts.append(sums.columns(split, split.n_tokens))
    assert n_pieces > len(parts), "no latent was torn apart"
    for name, values in whole.items():
        joined = np.concatenate([part[name] for part in parts])
        np.testing.assert_allclose(joined, values, rtol=1e-9, atol=1e-12, err_msg=name)


def test_the_pairs_of_a_split_equal_a_count() -> None:
    _, split = random_case(4)
    for lag in range(1, LAGS + 1):
        counted = sum(
            t // CONTEXT == (t + lag) // CONTEXT and split.document[t] == split.document[t + lag]
            for t in range(split.n_tokens - lag)
        )
        assert split.n_pairs[lag - 1] == counted
    assert split.n_documents == len(set(split.document.tolist()))


def test_a_wave_has_the_autocorrelation_of_its_closed_form() -> None:
    """1 on every other token of one long document: r is -1 at odd lags and 1 at even ones."""
    n = 4000
    split = Split(np.zeros(n, np.int32), np.zeros(n, np.int32), n, None, Path("manifest.json"))
    dense = (np.arange(n) % 2).astype(np.float32)[:, None]
    sums = Sums.of(firings_of(dense), split)
    r = autocorrelation(
        *(sums.added[k] for k in ("total", "squares", "products")), n, split.n_pairs
    )[0]
    np.testing.assert_allclose(r, [-1, 1] * 7 + [-1], atol=0.01)


def test_short_contexts_give_no_mean_over_lags() -> None:
    dense, _ = random_case(0)
    n = len(dense)
    split = Split(
        np.zeros(n, np.int32), (np.arange(n) // 4).astype(np.int32), 4, None, Path("manifest.json")
    )
    found = Sums.of(firings_of(dense), split).columns(split, split.n_tokens)
    assert not np.isnan(found["autocorrelation_lag1"][:4]).any()
    assert np.isnan(found["autocorrelation"]).all()
    assert split.n_pairs[3:].tolist() == [0] * 12


def spread_of(
    latent: np.ndarray, tokens: np.ndarray, value: np.ndarray, n: int
) -> dict[str, np.ndarray]:
    counts = np.bincount(latent, minlength=n)
    return token_spread(TokenMass.of(latent, tokens, value.astype(np.float64)), counts)


def test_the_spread_over_tokens_equals_that_by_hand() -> None:
    # Token 3 has mass 1 + 2, token 8 mass 1: p = 3/4, 1/4; 3 firings of 2 types.
    found = spread_of(np.zeros(3, np.int64), np.array([3, 3, 8]), np.array([1, 2, 1]), 1)
    entropy = 2 - 0.75 * math.log2(3)
    assert found["token_entropy_bits"][0] == pytest.approx(entropy)
    assert found["token_entropy_corrected_bits"][0] == pytest.approx(
        entropy + 1 / (6 * math.log(2))
    )
    assert (found["peak_token_share"][0], found["peak_token"][0]) == (0.75, 3)


def test_a_tie_of_peak_tokens_does_not_depend_on_the_order() -> None:
    for tokens in ([5, 2], [2, 5]):
        found = spread_of(np.zeros(2, np.int64), np.array(tokens), np.ones(2), 1)
        assert found["peak_token"][0] == 2


def test_token_ids_of_more_than_16_bits_are_told_apart() -> None:
    tokens = np.array([65_536 + 5, 5, 2**20 + 5, 5])
    found = TokenMass.of(np.array([0, 0, 1, 1]), tokens, np.array([1.0, 2, 4, 8]))
    assert found.latent.tolist() == [0, 0, 1, 1]
    assert found.token.tolist() == [5, 65_541, 5, 2**20 + 5]
    assert found.mass.tolist() == [2, 1, 8, 4]


def test_miller_madow_lessens_the_bias_of_a_small_sample() -> None:
    """Uniform over 16 types, 32 firings of equal strength: the plain entropy is too low."""
    rng = np.random.default_rng(0)
    n, samples = 32, 400
    latent = np.repeat(np.arange(samples), n)
    found = spread_of(latent, rng.integers(0, 16, len(latent)), np.ones(len(latent)), samples)
    plain, corrected = (
        found["token_entropy_bits"].mean() - 4,
        found["token_entropy_corrected_bits"].mean() - 4,
    )
    assert plain < -0.25
    assert abs(corrected) < abs(plain) / 4


def test_no_firings_at_all_give_zeros_and_nan() -> None:
    dense, split = random_case(0)
    found = Sums.of(firings_of(np.zeros_like(dense)), split).columns(split, split.n_tokens)
    assert found["firings"].tolist() == found["n_documents"].tolist() == [0] * N_LATENTS
    assert found["max_activation"].tolist() == [0] * N_LATENTS
    assert found["peak_token"].tolist() == [-1] * N_LATENTS
    for name in ("token_entropy_bits", "autocorrelation", "sd_position_tokens", "mean_activation"):
        assert np.isnan(found[name]).all(), name


@pytest.mark.parametrize(
    ("mass", "tokens", "bits"),
    [
        ([1.0, 1.0, 1.0, 1.0], [0, 1, 2, 3], 2.0),
        ([1.0, 3.0], [4, 4], 0.0),
        ([1.0, 0.0, 1.0], [0, 7, 2], 1.0),
        ([0.0, 0.0], [0, 1], None),
        ([], [], None),
    ],
)
def test_entropy_of_windows_equals_its_closed_form(
    mass: list[float], tokens: list[int], bits: float | None
) -> None:
    found = entropy_bits(np.array(mass), np.array(tokens, dtype=np.int64))
    assert found == (None if bits is None else pytest.approx(bits, abs=1e-12))
