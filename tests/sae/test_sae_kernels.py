from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullsae.sae import chunks
from nullsae.sae.kernels import Hits, HitsByLatent, decode, encode_top_k, stable_order, top_k


def codes(
    seed: int, n_tokens: int, n_latents: int, k: int, d: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return values and indices [tokens, k], rows [latents, d], dense [tokens, d], in float64."""
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
def test_sparse_products_equal_dense_matrix_products(
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
def test_ragged_hits_equal_dense_matrix_products(seed: int, n_tokens: int) -> None:
    """Tokens with different numbers of hits, some with none."""
    _, _, rows, dense = codes(seed, n_tokens, 8, 3, 5)
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randn(n_tokens, 8, generator=g, dtype=torch.float64)
    matrix *= torch.rand(n_tokens, 8, generator=g) < 0.4
    token, latent = matrix.nonzero(as_tuple=True)
    counts = torch.bincount(token, minlength=n_tokens)
    hits = Hits(matrix[token, latent], latent, counts.cumsum(0) - counts)
    assert torch.equal(hits.tokens, token)
    torch.testing.assert_close(hits.decode(rows), matrix @ rows)
    torch.testing.assert_close(hits.dot_rows(dense, rows), (dense @ rows.T)[token, latent])
    by_latent = HitsByLatent(hits, 8)
    torch.testing.assert_close(by_latent.row_gradient(hits.values, dense), matrix.T @ dense)
    bias = by_latent.bias_gradient(hits.values, n_tokens)
    torch.testing.assert_close(bias, matrix.sum(dim=0))


# --- the k largest ----------------------------------------------------------------------------


def test_top_k_keeps_the_largest_and_zeroes_negative_ones() -> None:
    pre = torch.tensor([[3.0, -1.0, 2.0, -4.0], [-1.0, -2.0, -3.0, -0.5]])
    values, indices = top_k(pre, 2)
    assert indices.tolist() == [[0, 2], [0, 3]]
    assert values.tolist() == [[3.0, 2.0], [0.0, 0.0]]
    assert indices.dtype == torch.int64


def check_top_k(pre: Tensor, k: int) -> None:
    before = pre.clone()
    values, indices = top_k(pre, k)
    assert torch.equal(pre, before)
    expected = torch.topk(pre, k, dim=1).values.relu()
    assert torch.equal(values.sort(dim=1, descending=True).values, expected)
    assert torch.equal(values, pre.gather(1, indices).relu())
    assert bool((indices.diff(dim=1) > 0).all()), "a column twice, or not in order"


@given(
    seed=st.integers(0, 10_000),
    n=st.integers(0, 7),
    width=st.integers(1, 600),
    share=st.floats(0, 1),
    levels=st.sampled_from([1, 2, 5, 100, None]),
    shift=st.sampled_from([-3.0, 0.0, 3.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=300, deadline=None)
def test_top_k_equals_a_full_ranking(
    seed: int,
    n: int,
    width: int,
    share: float,
    levels: int | None,
    shift: float,
    dtype: torch.dtype,
) -> None:
    """Few levels make ties, within the k largest and at their border; large k leave few groups."""
    g = torch.Generator().manual_seed(seed)
    pre = torch.randn(n, width, generator=g, dtype=dtype) + shift
    if levels is not None:
        pre = torch.randint(-levels, levels + 1, (n, width), generator=g).to(dtype) + shift
    check_top_k(pre, 1 + round(share**3 * (width - 1)))


@pytest.mark.parametrize("width", [2048, 2051, 8190, 10_007])
@pytest.mark.parametrize("k", [1, 32, 128])
def test_top_k_equals_a_full_ranking_in_wide_rows(width: int, k: int) -> None:
    pre = torch.randn(300, width, generator=torch.Generator().manual_seed(k))
    pre[7] = 1.0
    pre[8, :: width // (2 * k)] = 9.0  # more equal ones than k
    pre[9] = -torch.inf
    pre[9, 5] = torch.inf
    pre[10] = torch.arange(width)  # all of the largest in the last columns
    check_top_k(pre, k)


@pytest.mark.parametrize("where", [[(3, 700)], [(3, 1), (3, 2), (5, 1999)], "a whole row"])
def test_a_pre_activation_that_is_not_a_number_shows_in_the_values(
    where: str | list[tuple[int, int]],
) -> None:
    """Otherwise the loss would stay finite, and training would continue with broken weights."""
    pre = torch.randn(8, 2000, generator=torch.Generator().manual_seed(0))
    if isinstance(where, str):
        pre[3] = torch.nan
        where = [(3, 0)]
    for at in where:
        pre[at] = torch.nan
    values, _ = top_k(pre, 16)
    broken = {row for row, _ in where}
    assert [bool(row.isnan().any()) for row in values] == [row in broken for row in range(8)]


@pytest.mark.parametrize("entries", [1, 700, 5000, 10**6])
def test_results_do_not_depend_on_how_many_rows_are_held_at_once(
    entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(3)
    # Whole numbers, so that products are exact in any order; many are equal.
    centred, w_enc = (torch.randint(-3, 4, (n, 16), generator=g).double() for n in (41, 300))
    b_enc = torch.randint(-3, 4, (300,), generator=g).double()
    expected = top_k(centred @ w_enc.T + b_enc, 6)
    monkeypatch.setitem(chunks.CHUNK_ENTRIES, "cpu", entries)
    monkeypatch.setattr(chunks, "MIN_CHUNK_ROWS", 1)
    for found in (encode_top_k(centred, w_enc, b_enc, 6), top_k(centred @ w_enc.T + b_enc, 6)):
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("n_latents", [3, 2**16, 2**16 + 1, 2**20])
def test_hits_of_one_latent_keep_their_order_when_sorted(n_latents: int) -> None:
    g = torch.Generator().manual_seed(n_latents)
    latents = torch.randint(0, n_latents, (5000,), generator=g)
    latents[::7] = n_latents - 1
    assert torch.equal(stable_order(latents, n_latents), torch.argsort(latents, stable=True))


# --- order of additions -----------------------------------------------------------------------


def test_results_do_not_depend_on_the_number_of_threads() -> None:
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
                    *encode_top_k(dense, rows, rows[:, 0], 8),
                ]
            )
    finally:
        torch.set_num_threads(before)
    for one, two in zip(*found, strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("mode", ["tracked rows", "no_grad"])
def test_dot_rows_works_with_gradients_on_or_off(mode: str) -> None:
    values, indices, rows, dense = codes(1, 4, 6, 2, 3)
    hits = Hits.of(values, indices)
    expected = torch.gather(dense @ rows.T, 1, indices).flatten()
    if mode == "no_grad":
        with torch.no_grad():
            torch.testing.assert_close(hits.dot_rows(dense, rows), expected)
    else:
        torch.testing.assert_close(hits.dot_rows(dense, rows.clone().requires_grad_()), expected)
