from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import norm
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from nullsae import tables
from nullsae.metrics.geometry import (
    decoder_geometry,
    effective_rank,
    nearest_cosines,
    random_directions,
    unit_rows,
)
from nullsae.sae.autoencoder import Autoencoder

NEAREST = ("nearest_cosine_mean", "nearest_cosine_median", "nearest_cosine_p95")


def sae(w_dec: Tensor, w_enc: Tensor | None = None) -> Autoencoder:
    n, d = w_dec.shape
    encoder = w_dec.clone() if w_enc is None else w_enc
    kind: Any = "topk" if len(encoder) else "token_lookup"
    return Autoencoder(kind, encoder, torch.ones(n), w_dec, torch.ones(d), k=1)


def clustered(n: int, d: int) -> Tensor:
    """Return rows of different norms that share a direction and form bundles."""
    g = torch.Generator().manual_seed(n)
    bundles = torch.randn(max(1, n // 5), d, generator=g)
    picked = bundles[torch.randint(len(bundles), (n,), generator=g)]
    rows = picked + 0.4 * torch.randn(n, d, generator=g) + 0.7
    return rows * torch.rand(n, 1, generator=g).add(0.1)


def test_every_figure_equals_that_of_scikit_learn() -> None:
    decoder, encoder = clustered(300, 12), torch.randn(300, 12)
    row = decoder_geometry(sae(decoder, encoder), 0)
    exact, other = decoder.double().numpy(), encoder.double().numpy()
    norms = np.linalg.norm(exact, axis=1)
    # Two neighbours, the nearest of which is the row itself.
    search = NearestNeighbors(n_neighbors=2, metric="cosine", algorithm="brute").fit(exact)
    nearest = 1 - search.kneighbors(exact)[0][:, 1]
    expected = {
        "n_latents": 300,
        "n_zero_rows": 0,
        "decoder_norm_mean": norms.mean(),
        "decoder_norm_sd": norms.std(),
        "encoder_norm_mean": np.linalg.norm(other, axis=1).mean(),
        "encoder_decoder_cosine_mean": np.diag(cosine_similarity(exact, other)).mean(),
        "nearest_cosine_mean": nearest.mean(),
        "nearest_cosine_median": np.median(nearest),
        "nearest_cosine_p95": np.quantile(nearest, 0.95),
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(float(value), rel=1e-5), name
    # Squared singular values of the unit rows, without a covariance.
    share = np.linalg.svd(exact / norms[:, None], compute_uv=False) ** 2 / 300
    assert share.sum() == pytest.approx(1.0)
    rank = math.exp(-(share * np.log(share)).sum())
    assert row["effective_rank"] == pytest.approx(rank, rel=1e-6)
    assert row.keys() == set(tables.cell_schema("geometry").names)


@pytest.mark.parametrize("n", [2, 7, 8, 9, 50])
def test_blocks_miss_no_pair(n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nullsae.metrics.geometry.BLOCK_ROWS", 8)
    rows = unit_rows(clustered(n, 5))
    cosines = rows.double() @ rows.double().t()
    cosines.fill_diagonal_(-2)
    expected = cosines.amax(dim=1)
    torch.testing.assert_close(nearest_cosines(rows).double(), expected, atol=1e-6, rtol=0)
    assert effective_rank(rows) == pytest.approx(
        math.exp(entropy(torch.linalg.svdvals(rows.double()).square() / n)), rel=1e-7
    )


def entropy(share: Tensor) -> float:
    return -float(torch.special.xlogy(share, share).sum())


def test_a_row_is_not_its_own_neighbour_but_a_copy_is() -> None:
    rows = F.normalize(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 2, 0], [0, 0, -3]]), dim=1)
    assert nearest_cosines(rows).tolist() == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.parametrize("d", [3, 16])
def test_the_neuron_basis_and_its_opposites_have_their_known_geometry(d: int) -> None:
    basis = torch.cat([torch.eye(d), -torch.eye(d)])
    row = decoder_geometry(sae(2.5 * basis), 0)
    assert row["decoder_norm_mean"] == 2.5
    assert row["decoder_norm_sd"] == 0.0
    assert [row[name] for name in NEAREST] == [0.0, 0.0, 0.0]
    assert row["encoder_decoder_cosine_mean"] == pytest.approx(1.0)
    assert row["effective_rank"] == pytest.approx(d)


def test_a_line_fills_one_dimension() -> None:
    """The mean is not subtracted: equal rows have a spectrum of one, not none."""
    row = decoder_geometry(sae(torch.rand(20, 1) @ torch.randn(1, 6)), 0)
    assert row["effective_rank"] == pytest.approx(1.0, abs=1e-5)
    assert row["nearest_cosine_median"] == pytest.approx(1.0, abs=1e-6)


def test_the_norm_of_a_row_changes_the_norms_alone() -> None:
    decoder = clustered(60, 8)
    row, other = (decoder_geometry(sae(rows), 0) for rows in (decoder, F.normalize(decoder)))
    for name in (*NEAREST, "random_nearest_cosine_mean", "effective_rank"):
        assert row[name] == pytest.approx(other[name], rel=1e-5), name
    assert row["decoder_norm_sd"] > 0.1
    assert other["decoder_norm_sd"] == pytest.approx(0.0, abs=1e-6)


def expected_nearest(n: int, d: int) -> float:
    """Compute the mean of the largest of n - 1 cosines with density c (1 - t^2)^((d - 3) / 2).

    E[max] = 1 - integral of F(t)^(n - 1) over [-1, 1]; given one direction, the others are
    independent.
    """
    t = np.linspace(-1, 1, 400_001)
    density = (1 - t**2).clip(0) ** ((d - 3) / 2)
    cumulated = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    cumulated /= cumulated[-1]
    return 1 - float(np.trapezoid(cumulated ** (n - 1), t))


@pytest.mark.parametrize(("n", "d"), [(500, 8), (1000, 64), (3000, 32)])
def test_the_floor_is_that_of_random_directions(n: int, d: int) -> None:
    row = decoder_geometry(sae(torch.eye(d).repeat(n // d + 1, 1)[:n]), 0)
    expected = expected_nearest(n, d)
    assert row["random_nearest_cosine_mean"] == pytest.approx(expected, rel=0.01)
    # The leading order for large d: the largest of n normal cosines of variance 1 / d.
    assert expected == pytest.approx(norm.isf(1 / n) / math.sqrt(d), rel=0.2)


def test_a_gaussian_decoder_lies_on_its_floor() -> None:
    g = torch.Generator().manual_seed(5)
    row = decoder_geometry(sae(torch.randn(800, 24, generator=g)), 0)
    assert row["nearest_cosine_mean"] == pytest.approx(row["random_nearest_cosine_mean"], rel=0.01)
    assert row["effective_rank"] == pytest.approx(24, rel=0.02)


def test_the_floor_depends_on_seed_and_shape_alone() -> None:
    one, other = (decoder_geometry(sae(clustered(90, 6) + shift), 4) for shift in (0, 1))
    assert one["random_nearest_cosine_mean"] == other["random_nearest_cosine_mean"]
    again = decoder_geometry(sae(clustered(90, 6)), 5)
    assert again["random_nearest_cosine_mean"] != one["random_nearest_cosine_mean"]
    assert again["nearest_cosine_mean"] == one["nearest_cosine_mean"]
    assert not torch.equal(random_directions(9, 4, 0, "a"), random_directions(9, 4, 0, "b"))


def test_rows_without_a_direction_do_not_count() -> None:
    decoder = clustered(50, 6)
    padded = torch.zeros(80, 6)
    padded[10:60] = decoder
    encoder = torch.randn(80, 6)
    whole, own = decoder_geometry(sae(padded, encoder), 0), sae(decoder, encoder[10:60])
    assert whole == {**decoder_geometry(own, 0), "n_latents": 80, "n_zero_rows": 30}


@pytest.mark.parametrize(
    ("rows", "lacking"),
    [
        (torch.zeros(4, 3), set(tables.cell_schema("geometry").names) - {"n_latents"}),
        (torch.eye(3)[:1], {*NEAREST, "random_nearest_cosine_mean"}),
    ],
)
def test_no_row_or_a_single_one_gives_nulls(rows: Tensor, lacking: set[str]) -> None:
    row = decoder_geometry(sae(rows), 0)
    assert {name for name, value in row.items() if value is None} == lacking - {"n_zero_rows"}


def test_a_dictionary_without_an_encoder_has_no_encoder_norm() -> None:
    row = decoder_geometry(sae(clustered(30, 4), torch.zeros(0, 4)), 0)
    lacking = {name for name, value in row.items() if value is None}
    assert lacking == {"encoder_norm_mean", "encoder_decoder_cosine_mean"}


def test_an_encoder_row_of_zeros_has_no_cosine() -> None:
    generator = torch.Generator().manual_seed(0)
    decoder, encoder = clustered(20, 4), torch.randn(20, 4, generator=generator)
    encoder[3] = 0
    row = decoder_geometry(sae(decoder, encoder), 0)
    cosines = F.cosine_similarity(decoder.double(), encoder.double(), dim=1)
    kept = torch.arange(20) != 3
    assert row["encoder_decoder_cosine_mean"] == pytest.approx(float(cosines[kept].mean()))
    assert row["encoder_norm_mean"] == pytest.approx(float(encoder.double().norm(dim=1).mean()))
