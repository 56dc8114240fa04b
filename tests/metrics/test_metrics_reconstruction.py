from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullsae.config.metrics import METRICS
from nullsae.metrics.reconstruction import SUMS, ReconstructionSums

N, D, WIDTH, K = 60, 7, 25, 4


def data(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, np.ndarray]:
    """Return x, reconstruction, values, indices, documents."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=g) * 2 + 3
    output = x + torch.randn(N, D, generator=g)
    values = torch.randn(N, K, generator=g).relu()
    indices = torch.rand(N, WIDTH, generator=g).argsort(dim=1)[:, :K]
    documents = torch.randint(0, 9, (N,), generator=g).numpy() * 2  # odd documents are empty
    return x, output, values, indices, documents


def summed(
    x: Tensor,
    output: Tensor,
    values: Tensor,
    indices: Tensor,
    documents: np.ndarray,
    cuts: list[int] | None = None,
) -> ReconstructionSums:
    sums = ReconstructionSums(mean=x.double().mean(dim=0), n_documents=20, n_latents=WIDTH)
    edges = [0, *sorted(cuts or []), len(x)]
    for low, high in itertools.pairwise(edges):
        part = slice(low, high)
        sums.add(x[part], output[part], values[part], indices[part], documents[part])
    return sums


def test_predicting_the_mean_explains_no_variance() -> None:
    """SAEBench gives 0.52 for the mean, and formulas as in delphi 0.5 for a constant."""
    x, _, values, indices, documents = data()
    mean = x.double().mean(dim=0).expand_as(x)
    totals = summed(x, mean, values, indices, documents).totals()
    assert totals["explained_variance"] == pytest.approx(0.0, abs=1e-14)


def test_a_perfect_copy_explains_all() -> None:
    x, _, values, indices, documents = data()
    totals = summed(x, x, values, indices, documents).totals()
    assert totals["explained_variance"] == 1.0
    assert totals["cosine"] == pytest.approx(1.0, abs=1e-14)
    assert totals["l2_ratio"] == 1.0


def test_totals_follow_their_definitions() -> None:
    x, output, values, indices, documents = data()
    totals = summed(x, output, values, indices, documents).totals()
    exact, out = x.double().numpy(), output.double().numpy()
    error = ((exact - out) ** 2).sum() / ((exact - exact.mean(axis=0)) ** 2).sum()
    expected: dict[str, Any] = {
        "n_tokens": N,
        "explained_variance": 1 - error,
        "cosine": float(F.cosine_similarity(x.double(), output.double(), dim=1).mean()),
        "l0": float((values > 0).sum()) / N,
        "l1": float(values.double().sum()) / N,
        "l2_ratio": np.linalg.norm(out, axis=1).mean() / np.linalg.norm(exact, axis=1).mean(),
        "alive_share": len(set(indices[values > 0].tolist())) / WIDTH,
        "mean_norm": np.linalg.norm(exact, axis=1).mean(),
    }
    assert totals.keys() == expected.keys()
    for name, value in expected.items():
        assert totals[name] == pytest.approx(value, rel=1e-12), name


def test_l1_does_not_cancel_negative_codes() -> None:
    """SAEBench takes the signed sum."""
    x, output, values, indices, documents = data()
    signed = values * torch.tensor([1.0, -1.0, 1.0, -1.0])
    assert summed(x, output, signed, indices, documents).totals()["l1"] == pytest.approx(
        summed(x, output, values, indices, documents).totals()["l1"], rel=1e-12
    )


def test_a_reconstruction_of_zero_gives_a_cosine_of_zero() -> None:
    x, _, values, indices, documents = data()
    totals = summed(x, torch.zeros_like(x), values, indices, documents).totals()
    assert totals["cosine"] == 0.0


@given(cuts=st.lists(st.integers(0, N), max_size=6), seed=st.integers(0, 20))
@settings(max_examples=30, deadline=None)
def test_the_batch_size_does_not_matter(cuts: list[int], seed: int) -> None:
    whole, split = summed(*data(seed)), summed(*data(seed), cuts=cuts)
    for name, value in whole.totals().items():
        assert split.totals()[name] == pytest.approx(value, rel=1e-13), name
    assert split.documents() == whole.documents()


def test_documents_add_up_to_the_totals() -> None:
    sums = summed(*data())
    rows, totals = sums.documents(), sums.totals()
    added = {name: sum(row[name] for row in rows) for name in ("n_tokens", *SUMS)}
    assert added["n_tokens"] == totals["n_tokens"] == N
    ratio = added["squared_error"] / added["squared_deviation"]
    assert 1 - ratio == pytest.approx(totals["explained_variance"], rel=1e-12)
    for name, total in (("cosine", "cosine"), ("l0", "l0"), ("l1", "l1"), ("norm", "mean_norm")):
        assert added[name] / N == pytest.approx(totals[total], rel=1e-12)


def test_l1_over_the_norm_is_free_of_the_scale_of_the_activations() -> None:
    x, output, values, indices, documents = data()
    exact, codes = x.double().numpy(), values.double().numpy()
    expected = np.abs(codes).sum() / np.linalg.norm(exact, axis=1).sum()
    for scale in (1.0, 1024.0):
        rows = summed(scale * x, scale * output, scale * values, indices, documents).documents()
        columns = {n: np.array([row[n] for row in rows]) for n in METRICS["l1_ratio"].columns}
        above, below = METRICS["l1_ratio"]().value(columns)
        assert above.sum() / below.sum() == pytest.approx(expected, rel=1e-12)


def test_a_token_counts_for_its_own_document() -> None:
    x, output, values, indices, documents = data()
    rows = {
        row["document"]: row for row in summed(x, output, values, indices, documents).documents()
    }
    assert list(rows) == sorted(set(documents.tolist())), "documents without tokens are left out"
    for document, row in rows.items():
        mine = documents == document
        error = (x[mine].double() - output[mine].double()).square().sum()
        assert row["n_tokens"] == int(mine.sum())
        assert row["squared_error"] == pytest.approx(float(error), rel=1e-12)
        assert row["l0"] == float((values[mine] > 0).sum())
