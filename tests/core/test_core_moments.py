from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullsae.core.moments import Moments

N, D = 200, 6


def randn(n: int = N, d: int = D, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + 3


def moments_of(x: Tensor, cuts: tuple[int, ...] = ()) -> Moments:
    moments = Moments(x.shape[1])
    for low, high in itertools.pairwise([0, *sorted(cuts), len(x)]):
        moments.add(x[low:high])
    return moments


def isotropic(d: int, scale: float = 1.0) -> Tensor:
    """Return points whose covariance is exactly scale^2 times the identity: +-scale sqrt(d) e_j."""
    axes = torch.eye(d, dtype=torch.float64) * scale * math.sqrt(d)
    return torch.cat([axes, -axes])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_moments_equal_those_of_numpy(dtype: torch.dtype) -> None:
    x = randn().to(dtype)
    moments, exact = moments_of(x, (13, 13, 140)), x.double().numpy()
    assert moments.n == N
    np.testing.assert_allclose(moments.mean().numpy(), exact.mean(axis=0), rtol=1e-13)
    expected = np.cov(exact, rowvar=False, bias=True)
    np.testing.assert_allclose(moments.covariance().numpy(), expected, rtol=1e-12, atol=1e-13)
    health, values = moments.health(), np.linalg.eigvalsh(expected)
    share = values / values.sum()
    assert health == {
        "mean_norm": pytest.approx(np.linalg.norm(exact, axis=1).mean(), rel=1e-13),
        "max_coordinate_variance_share": pytest.approx(
            exact.var(axis=0).max() / values.sum(), rel=1e-12
        ),
        "max_eigenvalue_share": pytest.approx(share.max(), rel=1e-12),
        "effective_rank": pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-12),
    }


@given(cuts=st.lists(st.integers(0, N), max_size=8), seed=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_the_batch_size_does_not_matter(cuts: list[int], seed: int) -> None:
    x = randn(seed=seed)
    whole, split = moments_of(x), moments_of(x, tuple(cuts))
    assert split.n == whole.n
    torch.testing.assert_close(split.mean(), whole.mean(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(split.covariance(), whole.covariance(), rtol=1e-12, atol=1e-12)
    for name, value in whole.health().items():
        assert split.health()[name] == pytest.approx(value, rel=1e-11), name


def test_vectors_may_be_added_one_by_one() -> None:
    x = randn(40)
    one = moments_of(x, tuple(range(1, 40)))
    torch.testing.assert_close(one.covariance(), moments_of(x).covariance(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", ["like the others", "massive"])
def test_a_mean_far_from_zero_costs_no_digits(first: str) -> None:
    """Sums of squares would keep 16 - 2 * 8 = 0 digits; so might sums about the first token."""
    x = torch.randint(-8, 9, (N, D), generator=torch.Generator().manual_seed(0)).double()
    expected = moments_of(x).covariance()
    shifted = x + 1e8  # exact in float64
    found = moments_of(shifted, (1, 70))
    torch.testing.assert_close(found.covariance(), expected, rtol=1e-8, atol=1e-8)
    if first == "massive":
        far = torch.cat([torch.full((1, D), 1e8, dtype=torch.float64), x])
        variance = moments_of(far, (1, 70)).covariance()
        exact = np.cov(far.numpy(), rowvar=False, bias=True)
        np.testing.assert_allclose(variance.numpy(), exact, rtol=1e-13)


@pytest.mark.parametrize("d", [1, 2, 7, 32])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_an_isotropic_cloud_has_full_rank(d: int, scale: float) -> None:
    health = moments_of(isotropic(d, scale) + 5.0).health()
    assert health["effective_rank"] == pytest.approx(d, rel=1e-9)
    assert health["max_coordinate_variance_share"] == pytest.approx(1 / d, rel=1e-9)
    assert moments_of(isotropic(d, scale)).health()["mean_norm"] == pytest.approx(
        scale * math.sqrt(d), rel=1e-12
    )


def test_a_line_has_rank_one() -> None:
    direction = torch.tensor([3.0, 4.0, 0.0, 12.0], dtype=torch.float64)
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None] * direction + 7.0
    health = moments_of(x).health()
    assert health["effective_rank"] == pytest.approx(1.0, abs=1e-9)
    assert health["max_coordinate_variance_share"] == pytest.approx(144 / 169, rel=1e-12)


def test_the_shares_follow_their_closed_form() -> None:
    """Variances 6 : 1 : 1 along the axes."""
    x = isotropic(3) * torch.tensor([6.0, 1.0, 1.0], dtype=torch.float64).sqrt()
    health = moments_of(x).health()
    assert health["max_coordinate_variance_share"] == pytest.approx(6 / 8, rel=1e-12)
    entropy = -(6 / 8) * math.log(6 / 8) - 2 * (1 / 8) * math.log(1 / 8)
    assert health["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-12)


def test_rotating_the_cloud_keeps_its_rank_and_hides_a_massive_dimension() -> None:
    """The rank and the eigenvalue share depend on the cloud, the coordinate share on the axes."""
    x = isotropic(4) * torch.tensor([10.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    hadamard = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2.0
    plain, turned = moments_of(x).health(), moments_of(x @ hadamard.double()).health()
    assert turned["effective_rank"] == pytest.approx(plain["effective_rank"], rel=1e-9)
    assert plain["max_coordinate_variance_share"] == pytest.approx(100 / 103, rel=1e-12)
    assert turned["max_coordinate_variance_share"] == pytest.approx(1 / 4, rel=1e-12)
    for health in (plain, turned):
        assert health["max_eigenvalue_share"] == pytest.approx(100 / 103, rel=1e-12)


def test_a_point_has_no_share_and_no_rank() -> None:
    x = torch.tensor([[3.0, 4.0]]).expand(20, 2)
    assert moments_of(x, (7,)).health() == {
        "mean_norm": 5.0,
        "max_coordinate_variance_share": None,
        "max_eigenvalue_share": None,
        "effective_rank": None,
    }
