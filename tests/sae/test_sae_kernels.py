from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullsae.sae.kernels import HitsByLatent, decode, dot_rows, top_k


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
    torch.testing.assert_close(dot_rows(dense, indices, rows), products)
    hits = HitsByLatent(indices, len(rows))
    torch.testing.assert_close(hits.row_gradient(values, dense), matrix.T @ dense)
    torch.testing.assert_close(hits.bias_gradient(values), matrix.sum(dim=0))
    assert hits.counts.tolist() == [int((indices == i).sum()) for i in range(len(rows))]


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
            hits = HitsByLatent(indices, len(rows))
            found.append(
                [
                    decode(values, indices, rows),
                    dot_rows(dense, indices, rows),
                    hits.row_gradient(values, dense),
                    hits.bias_gradient(values),
                ]
            )
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("mode", ["tracked rows", "no_grad"])
def test_dot_rows_needs_gradients_switched_on_by_its_caller(mode: str) -> None:
    _, indices, rows, dense = codes(1, 4, 6, 2, 3)
    expected = torch.gather(dense @ rows.T, 1, indices)
    if mode == "no_grad":
        with torch.no_grad():
            torch.testing.assert_close(dot_rows(dense, indices, rows), expected)
    else:
        torch.testing.assert_close(
            dot_rows(dense, indices, rows.clone().requires_grad_()), expected
        )
