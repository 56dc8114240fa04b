from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from nullsae.core.randomness import numpy_generator
from nullsae.metrics.ce_score import ce_score, is_clear

Floats = NDArray[np.float64]


def score(clean: list[float], sae: list[float], zero: list[float]) -> float | None:
    """Score units of one token."""
    parts = {"clean": clean, "sae": sae, "zero": zero, "tokens": [1.0] * len(clean)}
    return ce_score(**{name: np.array(values) for name, values in parts.items()})


def test_the_score_is_one_without_harm_and_zero_at_that_of_zeroing() -> None:
    clean, zero = [3.0, 3.2, 2.8, 3.1], [6.0, 6.1, 6.2, 5.9]
    assert score(clean, clean, zero) == 1.0
    assert score(clean, zero, zero) == 0.0
    half = [(a + b) / 2 for a, b in zip(clean, zero, strict=True)]
    assert score(clean, half, zero) == pytest.approx(0.5)
    found = score(clean, [b + 1.0 for b in zero], zero)
    assert found is not None
    assert found < 0


@pytest.mark.parametrize(
    ("reason", "clean", "zero"),
    [
        ("zeroing helps", [5.0, 5.1, 5.2], [4.0, 4.1, 4.2]),
        ("no harm at all", [5.0, 5.1, 5.2], [5.0, 5.1, 5.2]),
        ("within 3 standard errors", [5.0, 5.0, 5.0, 5.0], [6.0, 4.5, 6.5, 5.0]),
        ("less than 0.1 nats, however sure", [5.0, 5.0, 5.0], [5.05, 5.051, 5.049]),
        ("one context", [3.0], [9.0]),
        ("no context", [], []),
    ],
)
def test_no_score_is_given_where_zeroing_does_no_clear_harm(
    reason: str, clean: list[float], zero: list[float]
) -> None:
    assert score(clean, clean, zero) is None, reason


def test_three_standard_errors_are_the_limit() -> None:
    """Harm 1 +- s over 4 contexts: standard error s * sqrt(4/3) / 2, limit s = 1 / sqrt(3)."""
    for s, given in ((0.57, True), (0.585, False)):
        zero = [1 + s, 1 - s, 1 + s, 1 - s]
        assert (score([0.0] * 4, [0.0] * 4, zero) is not None) == given


def units(rng: np.random.Generator, n: int) -> tuple[Floats, Floats]:
    """Return documents of different lengths with a mean harm of about 0.5 per token."""
    tokens = rng.integers(5, 60, n).astype(float)
    return tokens * (0.5 + 0.3 * rng.standard_normal(n)), tokens


def test_the_limit_for_documents_is_three_standard_errors_of_their_ratio() -> None:
    """Compared with the spread of the ratio over repeated samples of documents."""
    rng = numpy_generator(0, "test_ce_score")
    ratios = []
    for _ in range(4000):
        harm, tokens = units(rng, 40)
        ratios.append(harm.sum() / tokens.sum())
    spread = float(np.std(ratios))
    clear = []
    for _ in range(4000):
        harm, tokens = units(rng, 40)
        # Shifted so that the true ratio is 3 such errors: clear in half of the samples.
        clear.append(is_clear(harm - (0.5 - 3 * spread) * tokens, tokens))
    assert 3 * spread > 0.1, "the other limit must not decide"
    assert 0.44 < np.mean(clear) < 0.56


def test_harm_is_judged_by_the_tokens_of_each_unit() -> None:
    """Per-token means equal the plain mean only for units of one length."""
    harm, tokens = np.array([30.0, 1.0, 1.0]), np.array([10.0, 10.0, 10.0])
    assert not is_clear(harm, tokens)
    assert is_clear(np.array([30.0, 3.0, 3.0]), np.array([10.0, 1.0, 1.0]))
