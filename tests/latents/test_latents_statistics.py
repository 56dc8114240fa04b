from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from nullsae.latents.statistics import Firings, entropy_bits, token_statistics

N_LATENTS = 6


def random_dense(seed: int, n_tokens: int = 30) -> np.ndarray:
    """Activations float32 [n_tokens, n_latents], mostly 0; the last latent never fires."""
    rng = np.random.default_rng(seed)
    dense = np.maximum(rng.normal(-0.8, 1, (n_tokens, N_LATENTS)), 0).astype(np.float32)
    dense[:, -1] = 0
    return dense


def firings_of(dense: np.ndarray, seed: int = 0) -> Firings:
    """The same firings, handed over in a random order."""
    position, latent = np.nonzero(dense)
    order = np.random.default_rng(seed).permutation(len(position))
    return Firings.sort(
        latent[order], position[order], dense[position, latent][order], dense.shape[1]
    )


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_sorted_firings_differ_from_the_dense_matrix(seed: int) -> None:
    dense = random_dense(seed)
    firings = firings_of(dense, seed)
    np.testing.assert_array_equal(firings.counts, (dense > 0).sum(axis=0))
    np.testing.assert_allclose(firings.sums(), dense.astype(np.float64).sum(axis=0), rtol=1e-12)
    np.testing.assert_array_equal(firings.maxima(), dense.max(axis=0))
    for latent in range(N_LATENTS):
        own = firings.of(latent)
        np.testing.assert_array_equal(firings.position[own], np.flatnonzero(dense[:, latent]))
        np.testing.assert_array_equal(firings.value[own], dense[dense[:, latent] > 0, latent])
    group = np.random.default_rng(seed).integers(0, 4, len(dense))
    found = firings.distinct(group[firings.position])
    expected = [len(set(group[dense[:, latent] > 0])) for latent in range(N_LATENTS)]
    assert found.tolist() == expected


@given(seed=st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_token_entropy_differs_from_scipy(seed: int) -> None:
    dense = random_dense(seed)
    tokens = np.random.default_rng(seed + 1).integers(0, 7, len(dense))
    firings = firings_of(dense, seed)
    found = token_statistics(firings, tokens[firings.position])
    for latent in range(N_LATENTS):
        column = dense[:, latent].astype(np.float64)
        if not column.any():
            assert math.isnan(found.entropy_bits[latent])
            assert math.isnan(found.corrected_bits[latent])
            assert math.isnan(found.peak_share[latent])
            assert found.peak_token[latent] == -1
            assert found.n_types[latent] == 0
            continue
        mass = np.bincount(tokens, weights=column, minlength=7)
        entropy = scipy.stats.entropy(mass, base=2)
        assert found.entropy_bits[latent] == pytest.approx(entropy, abs=1e-12)
        assert found.peak_share[latent] == pytest.approx(mass.max() / mass.sum(), rel=1e-12)
        assert found.peak_token[latent] == int(mass.argmax())
        types, n = int((mass > 0).sum()), int((column > 0).sum())
        assert found.n_types[latent] == types
        correction = (types - 1) / (2 * n * math.log(2))
        assert found.corrected_bits[latent] == pytest.approx(entropy + correction, abs=1e-12)


def test_a_case_by_hand_differs() -> None:
    # Token 3 has mass 1 + 2, token 8 mass 1: p = 3/4, 1/4; 3 firings of 2 types.
    firings = Firings(
        np.zeros(3, dtype=np.int64), np.arange(3), np.array([1, 2, 1], dtype=np.float32), 1
    )
    found = token_statistics(firings, np.array([3, 3, 8]))
    entropy = 2 - 0.75 * math.log2(3)
    assert found.entropy_bits[0] == pytest.approx(entropy)
    assert found.corrected_bits[0] == pytest.approx(entropy + 1 / (6 * math.log(2)))
    assert (found.peak_share[0], found.peak_token[0]) == (0.75, 3)


def test_a_tie_of_peak_tokens_depends_on_the_order() -> None:
    for tokens in ([5, 2], [2, 5]):
        firings = Firings(
            np.zeros(2, dtype=np.int64), np.arange(2), np.ones(2, dtype=np.float32), 1
        )
        assert token_statistics(firings, np.array(tokens)).peak_token[0] == 2


def test_miller_madow_does_not_lessen_the_bias_of_a_small_sample() -> None:
    """Uniform over 16 types, 32 firings of equal strength: the plain entropy is too low."""
    rng = np.random.default_rng(0)
    n, samples = 32, 400
    latent = np.repeat(np.arange(samples), n)
    firings = Firings(latent, np.arange(len(latent)), np.ones(len(latent), np.float32), samples)
    found = token_statistics(firings, rng.integers(0, 16, len(latent)))
    plain, corrected = found.entropy_bits.mean() - 4, found.corrected_bits.mean() - 4
    assert plain < -0.25
    assert abs(corrected) < abs(plain) / 4


def test_no_firings_at_all_give_a_traceback() -> None:
    none = np.zeros(0, dtype=np.int64)
    firings = Firings.sort(none, none, none.astype(np.float32), 3)
    found = token_statistics(firings, none)
    assert np.isnan(found.entropy_bits).all()
    assert found.peak_token.tolist() == [-1, -1, -1]
    assert firings.counts.tolist() == firings.distinct(none).tolist() == [0, 0, 0]
    assert firings.maxima().tolist() == [0, 0, 0]


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
def test_entropy_of_windows_differs_from_its_closed_form(
    mass: list[float], tokens: list[int], bits: float | None
) -> None:
    found = entropy_bits(np.array(mass), np.array(tokens, dtype=np.int64))
    assert found == (None if bits is None else pytest.approx(bits, abs=1e-12))
