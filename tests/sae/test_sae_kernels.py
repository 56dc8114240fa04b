from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullsae.sae.kernels import Hits, HitsByLatent, decode, top_k


def codes(
    seed: int, n_tokens: int, n_latents: int, k: int, d: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Values and indices [tokens, k], rows [latents, d], dense [tokens, d], in float64."""
    g = torch.Generator().manual_seed(seed)
    indices = torch.rand(n_tokens, n_latents, generator=g).argsort(dim=1)[:, :k]
    values = torch.randn(n_tokens, k, generator=g, dtype=torch.float64)
    rows = torch.randn(n_latents, d, generator=g, dtype=torch.float64)
    return values, indices, rows, torch.randn(n_tokens, d, generator=g, dtype=torch.float64)


def scattered(values: Tensor, indices: Tensor, n_latents: int) -> Tensor:
    return values.new_zeros(len(values), n_latents).scatter(1, indices, values)


shapes = st.tuples(
    st.integers(0, 1000),
    st.integers(1, 9),
    st.integers(5, 12),
    st.integers(1, 5),
    st.integers(1, 7),
)


@given(shapes)
@settings(max_examples=40, deadline=None)
def test_sparse_products_differ_from_dense_matrix_products(
    shape: tuple[int, int, int, int, int],
) -> None:
    values, indices, rows, dense = codes(*shape)
    matrix = scattered(values, indices, len(rows))
    torch.testing.assert_close(decode(values, indices, rows), matrix @ rows)
    products = torch.gather(dense @ rows.T, 1, indices)
    hits = Hits.of(values, indices)
    torch.testing.assert_close(hits.decode(rows), matrix @ rows)
    torch.testing.assert_close(hits.dot_rows(dense, rows), products.flatten())
    by_latent = HitsByLatent(hits, len(rows))
    torch.testing.assert_close(by_latent.row_gradient(hits.values, dense), matrix.T @ dense)
    bias = by_latent.bias_gradient(hits.values, len(dense))
    torch.testing.assert_close(bias, matrix.sum(dim=0))


@given(seed=st.integers(0, 1000), n_tokens=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_ragged_hits_differ_from_dense_matrix_products(seed: int, n_tokens: int) -> None:
    """Tokens with different numbers of hits, some with none."""
    _, _, rows, dense = codes(seed, n_tokens, 8, 3, 5)
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n_tokens, 8, generator=g, dtype=torch.float64)
    matrix *= torch.rand(n_tokens, 8, generator=g) < 0.4
    token, latent = matrix.nonzero(as_tuple=True)
    counts = torch.bincount(token, minlength=n_tokens)
    hits = Hits(matrix[token, latent], latent, counts.cumsum(0) - counts)
    assert torch.equal(hits.tokens(), token)
    torch.testing.assert_close(hits.decode(rows), matrix @ rows)
    torch.testing.assert_close(hits.dot_rows(dense, rows), (dense @ rows.T)[token, latent])
    by_latent = HitsByLatent(hits, 8)
    torch.testing.assert_close(by_latent.row_gradient(hits.values, dense), matrix.T @ dense)
    bias = by_latent.bias_gradient(hits.values, n_tokens)
    torch.testing.assert_close(bias, matrix.sum(dim=0))


def test_top_k_keeps_negative_entries_or_misses_a_larger_one() -> None:
    pre = torch.tensor([[3.0, -1.0, 2.0, -4.0], [-1.0, -2.0, -3.0, -0.5]])
    values, indices = top_k(pre, 2)
    assert indices.sort(dim=1).values.tolist() == [[0, 2], [0, 3]]
    assert values.sort(dim=1).values.tolist() == [[2.0, 3.0], [0.0, 0.0]]
    assert indices.dtype == torch.int64


def test_results_depend_on_the_number_of_threads() -> None:
    values, indices, rows, dense = codes(0, 300, 200, 8, 32)
    values, rows, dense = values.float(), rows.float(), dense.float()
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            hits = Hits.of(values, indices)
            by_latent = HitsByLatent(hits, len(rows))
            found.append(
                [
                    hits.decode(rows),
                    hits.dot_rows(dense, rows),
                    by_latent.row_gradient(hits.values, dense),
                    by_latent.bias_gradient(hits.values, len(dense)),
                ]
            )
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("mode", ["tracked rows", "no_grad"])
def test_dot_rows_needs_gradients_switched_on_by_its_caller(mode: str) -> None:
    values, indices, rows, dense = codes(1, 4, 6, 2, 3)
    hits = Hits.of(values, indices)
    expected = torch.gather(dense @ rows.T, 1, indices).flatten()
    if mode == "no_grad":
        with torch.no_grad():
            torch.testing.assert_close(hits.dot_rows(dense, rows), expected)
    else:
        torch.testing.assert_close(hits.dot_rows(dense, rows.clone().requires_grad_()), expected)
