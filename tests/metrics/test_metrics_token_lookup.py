from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from nullsae.metrics.evaluate import add_lookup_errors
from nullsae.sae.token_means import fit_token_means

VOCAB, D = 20, 6


def ids_of(n: int, seed: int, vocab: int = VOCAB) -> Tensor:
    return torch.randint(0, vocab, (n,), generator=torch.Generator().manual_seed(seed))


def randn(n: int, seed: int) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def split(x: Tensor, ids: Tensor, size: int = 70) -> list[tuple[Tensor, Tensor]]:
    return list(zip(torch.split(x, size), torch.split(ids, size), strict=True))


def errors(means: Tensor, x: Tensor, ids: Tensor, size: int = 70, n_documents: int = 1) -> Any:
    """Return errors for documents that alternate."""
    documents = np.array_split(np.arange(len(x)) % n_documents, range(size, len(x), size))
    found = np.zeros(n_documents)
    for (part, own), of in zip(split(x, ids, size), documents, strict=True):
        add_lookup_errors(found, means, part, own, of)
    return found


def r2(means: Tensor, x: Tensor, ids: Tensor) -> float:
    return 1 - errors(means, x, ids).sum() / float((x.double() - x.double().mean(0)).square().sum())


def test_means_equal_a_group_by() -> None:
    x, ids = randn(500, 0), ids_of(500, 1, VOCAB - 3)  # three ids never occur
    means, counts = fit_token_means(split(x, ids), VOCAB, D)
    frame = pd.DataFrame(x.double().numpy()).groupby(ids.numpy()).mean()
    np.testing.assert_allclose(
        means[torch.tensor(frame.index)].numpy(), frame.to_numpy(), rtol=1e-12
    )
    expected = x.double().mean(dim=0).expand(3, D)
    torch.testing.assert_close(means[-3:], expected, rtol=1e-12, atol=1e-14)
    assert counts.tolist() == np.bincount(ids.numpy(), minlength=VOCAB).tolist()


def test_a_function_of_the_token_is_explained_by_the_token() -> None:
    table = randn(VOCAB, 2)
    fit_ids, ids = ids_of(400, 3), ids_of(300, 4)
    assert len(set(fit_ids.tolist())) == VOCAB
    means, _ = fit_token_means(split(table[fit_ids], fit_ids), VOCAB, D)
    assert r2(means, table[ids], ids) == pytest.approx(1.0, abs=1e-12)


def test_noise_is_not_explained_by_the_token_on_another_split() -> None:
    """On its own split a lookup explains types / tokens of pure noise, so R2 must be held out."""
    n = 4000
    fit_ids, ids = ids_of(n, 5), ids_of(n, 6)
    fit_x, x = randn(n, 7), randn(n, 8)
    means, _ = fit_token_means(split(fit_x, fit_ids), VOCAB, D)
    # The fitted means have noise of variance VOCAB / n, which the other split pays for.
    assert r2(means, x, ids) == pytest.approx(-VOCAB / n, abs=0.005)
    assert r2(means, fit_x, fit_ids) == pytest.approx(VOCAB / n, abs=0.005)
    few = slice(0, 100)
    means, _ = fit_token_means(split(fit_x[few], fit_ids[few]), VOCAB, D)
    assert r2(means, fit_x[few], fit_ids[few]) > 0.1 > 0 > r2(means, x, ids)


def test_batches_do_not_change_the_floor() -> None:
    x, ids = randn(333, 9), ids_of(333, 10)
    means, _ = fit_token_means(split(x, ids, 10), VOCAB, D)
    other, _ = fit_token_means([(x, ids)], VOCAB, D)
    torch.testing.assert_close(means, other, rtol=1e-13, atol=1e-14)
    one = errors(means, x, ids, 17, n_documents=3)
    np.testing.assert_allclose(one, errors(means, x, ids, 333, n_documents=3), rtol=1e-13)
    off = (x.double() - means[ids]).square().sum(dim=1).numpy()
    np.testing.assert_allclose(one, [off[d::3].sum() for d in range(3)], rtol=1e-12)
    # Predicting the mean itself explains nothing.
    mean = x.double().mean(dim=0)
    assert r2(mean.expand(VOCAB, D), x, ids) == pytest.approx(0, abs=1e-14)
