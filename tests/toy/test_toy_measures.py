from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from nullsae.core.randomness import torch_generator
from nullsae.toy import measures
from nullsae.toy.measures import evaluate, explained_variance, mmcs, norms, sparsity
from nullsae.toy.training import standardize, start_weights


def of(v: torch.Tensor) -> dict[str, float]:
    return sparsity(norms(v), v.shape[1])


def test_hoyer_of_one_entry_is_1_and_of_equal_ones_0() -> None:
    one_hot = torch.eye(9) * torch.tensor([[0.1], [5.0], [2.0]]).repeat(3, 1)
    assert of(one_hot)["hoyer"] == pytest.approx(1.0)
    assert of(torch.full((4, 9), 0.3))["hoyer"] == pytest.approx(0.0)
    # Two equal ones of k: (sqrt(k) - sqrt(2)) / (sqrt(k) - 1).
    two = torch.tensor([[1.0, 1.0, 0, 0, 0, 0, 0, 0, 0]])
    assert of(two)["hoyer"] == pytest.approx((3 - 2**0.5) / 2)


def test_hoyer_does_not_depend_on_the_scale() -> None:
    v = torch.rand(50, 7, generator=torch_generator(0, "v"))
    assert of(v)["hoyer"] == pytest.approx(of(1000 * v)["hoyer"], rel=1e-6)
    assert of(4 * v)["l1_over_sqrt_l2"] == pytest.approx(2 * of(v)["l1_over_sqrt_l2"], rel=1e-6)


def test_norms_are_divided_before_they_are_averaged() -> None:
    # The paper's code computes norms of the batch's means. Samples of unequal size reveal this.
    scale = torch.tensor([[0.1], [1.0], [30.0]]).repeat(10, 1)
    v = torch.rand(30, 5, generator=torch_generator(0, "v")) * scale
    v[2::3, 1:] = 0  # the large ones are sparse
    found, exact = of(v), v.double().numpy()
    expected: dict[str, list[float]] = {"l0": [], "l1": [], "l1_over_sqrt_l2": [], "hoyer": []}
    for row in exact:
        l1, l2 = sum(abs(x) for x in row), sum(x * x for x in row) ** 0.5
        expected["l0"].append(sum(x != 0 for x in row))
        expected["l1"].append(l1)
        expected["l1_over_sqrt_l2"].append(l1 / l2**0.5)
        expected["hoyer"].append((5**0.5 - l1 / l2) / (5**0.5 - 1))
    for name, values in expected.items():
        assert found[name] == pytest.approx(np.mean(values), rel=1e-9)
    l1, l2 = np.mean(expected["l1"]), np.mean(np.linalg.norm(exact, axis=1))
    assert abs((5**0.5 - l1 / l2) / (5**0.5 - 1) - found["hoyer"]) > 0.01
    assert abs(l1 / l2**0.5 - found["l1_over_sqrt_l2"]) > 0.1


def test_samples_without_an_active_latent_have_no_hoyer() -> None:
    v = torch.tensor([[0.0, 0, 0, 0], [2.0, 0, 0, 0]])
    found = of(v)
    assert found == {
        "l0": 0.5,
        "l1": 1.0,
        "l1_over_sqrt_l2": pytest.approx(2 / 2**0.5 / 2),
        "hoyer": 1.0,
        "active_share": 0.5,
    }
    nothing = of(torch.zeros(3, 4))
    assert nothing["hoyer"] is None
    assert (nothing["l0"], nothing["l1_over_sqrt_l2"], nothing["active_share"]) == (0, 0, 0)


def test_explained_variance_is_the_variance_weighted_r2() -> None:
    x = torch.randn(60, 4, generator=torch_generator(0, "x")) * torch.tensor([1.0, 2, 3, 4]) + 5
    output = x + torch.randn(60, 4, generator=torch_generator(0, "y"))
    expected = r2_score(x.double(), output.double(), multioutput="variance_weighted")
    assert explained_variance(x, output) == pytest.approx(expected, rel=1e-9)
    assert explained_variance(x, x.double().mean(dim=0).expand_as(x)) == pytest.approx(0.0)
    assert explained_variance(x, x) == 1.0
    assert explained_variance(torch.ones(3, 2), torch.ones(3, 2)) is None


def test_about_one_scalar_a_common_mean_is_counted_as_variance() -> None:
    # Rows that differ by 1% of what they share: predicting the mean explains all but that.
    common = torch.tensor([-3.0, 3.0, -1.0, 1.0])
    x = common + 0.03 * torch.randn(500, 4, generator=torch_generator(0, "x"))
    output = common.expand_as(x)
    scalar = explained_variance(x, output, about="scalar")
    mse = float((x.double() - output.double()).square().mean())
    assert scalar == pytest.approx(1 - mse / float(x.double().var(correction=0)))
    assert scalar is not None
    assert scalar > 0.999
    assert explained_variance(x, output) == pytest.approx(0, abs=0.02)


def test_mmcs_is_the_mean_of_the_largest_cosines() -> None:
    true = torch.randn(5, 4, generator=torch_generator(0, "t"))
    rows = torch.randn(7, 4, generator=torch_generator(0, "r"))

    def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
        return float(a.double() @ b.double() / (a.double().norm() * b.double().norm()))

    expected = [max(cosine(a, b) for b in rows) for a in true]
    assert mmcs(true, rows) == pytest.approx(np.mean(expected), rel=1e-6)
    assert mmcs(true, torch.cat([rows, 3 * true])) == pytest.approx(1.0)
    assert mmcs(true, -true[:1]) < 1


def test_measures_do_not_depend_on_how_many_codes_are_held_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = torch.randn(100, 6, generator=torch_generator(0, "x"))
    weights = start_weights(6, 12, torch_generator(0, "w"))
    whole = evaluate(weights, standardize(x), x)
    monkeypatch.setattr(measures, "CHUNK_ENTRIES", 7 * 12)
    in_parts = evaluate(weights, standardize(x), x)
    assert in_parts == pytest.approx(whole, rel=1e-6)


def test_measures_of_an_sae_are_those_of_its_formula() -> None:
    x = torch.randn(100, 6, generator=torch_generator(0, "x"))
    weights = start_weights(6, 12, torch_generator(0, "w"))
    found = evaluate(weights, standardize(x), x)
    exact = x.double().numpy()
    mean, std = exact.mean(axis=1, keepdims=True), exact.std(axis=1, ddof=1, keepdims=True)
    encoder, bias, decoder = (t[0].double().numpy() for t in weights.tensors)
    codes = np.maximum((exact - mean) / std @ encoder + bias, 0)
    output = codes @ decoder * std + mean
    assert found["mse"] == pytest.approx(((exact - output) ** 2).mean(), rel=1e-5)
    assert found["explained_variance"] == pytest.approx(
        r2_score(exact, output, multioutput="variance_weighted"), rel=1e-5
    )
    assert found["l0"] == pytest.approx((codes > 1e-7).sum(axis=1).mean())
    assert found["l1"] == pytest.approx(codes.sum(axis=1).mean(), rel=1e-5)
    assert found["alive_share"] == (codes > 1e-7).any(axis=0).mean()
