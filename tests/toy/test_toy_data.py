from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from nullsae.config.compute import Compute
from nullsae.config.toy import SharkeySource, ToyTraining, WordVectorsSource
from nullsae.core.errors import UserError
from nullsae.core.randomness import torch_generator
from nullsae.jobs.keys import ToyKeys
from nullsae.jobs.toy import TrainToyParams
from nullsae.toy.data import (
    activation_probabilities,
    gaussian_control,
    make_samples,
    mixing_matrix,
    random_network,
    read_word_vectors,
    sharkey,
)
from refusing import refused


def source(**changes: Any) -> SharkeySource:
    small = {"n_samples": 2000, "d_input": 8, "n_true_features": 12, "mean_active": 2.0}
    return SharkeySource.model_validate({"kind": "sharkey", **small, **changes})


def generators(purpose: str) -> torch.Generator:
    return torch_generator(0, purpose)


def params(data: str, *, expansion: int = 2, seed: int = 0, **changes: Any) -> TrainToyParams:
    return TrainToyParams.model_validate(
        {
            "seed": 0,
            "keys": ToyKeys.model_validate(
                {"source": "s", "data": data, "expansion": expansion, "seed": seed}
            ),
            "source": source(),
            "gaussian": "matched",
            "mlp_hidden_factor": 4,
            "training": ToyTraining(),
            "compute": Compute(device="cpu"),
            **changes,
        }
    )


def test_probabilities_are_the_formula_written_out() -> None:
    settings = source(n_true_features=5, mean_active=1.5, probability_exponent=0.7)
    z = np.random.default_rng(0).normal(size=(30, 5))
    found = activation_probabilities(settings, torch.from_numpy(z)).numpy()
    for row, normals in zip(found, z, strict=True):
        p = [stats.norm.cdf(value) ** (0.7 * i) for i, value in enumerate(normals)]
        np.testing.assert_allclose(row, [min(1.0, q * 1.5 / sum(p)) for q in p], rtol=1e-12)


def test_normals_have_the_requested_variance() -> None:
    settings = source(n_true_features=400)
    unit = mixing_matrix(settings, generators("a"))
    torch.testing.assert_close((unit @ unit.T).diagonal(), torch.ones(400).double())
    raw = mixing_matrix(source(n_true_features=400, normalize_covariance=False), generators("a"))
    # Chi-square with 400 degrees of freedom: mean 400, variance 800.
    variances = (raw @ raw.T).diagonal()
    assert float(variances.mean()) == pytest.approx(400, abs=5 * math.sqrt(800 / 400))


def test_a_true_feature_is_as_probable_as_the_power_of_a_uniform() -> None:
    # Phi(z) of a standard normal is uniform: E U^k = 1 / (k + 1), Var = 1 / (2k + 1) - E^2.
    n, m = 20_000, 40
    mixing = mixing_matrix(source(n_true_features=m), generators("a"))
    z = torch.randn(n, m, dtype=torch.float64, generator=generators("z")) @ mixing.T
    k = 0.99 * torch.arange(m, dtype=torch.float64)
    found = (torch.special.ndtr(z) ** k).mean(dim=0)
    expected = 1 / (k + 1)
    error = (1 / (2 * k + 1) - expected**2).clamp_min(0).sqrt() / math.sqrt(n)
    assert bool(((found - expected).abs() <= 5 * error + 1e-12).all())


def test_the_flaw_of_the_paper_is_there_when_asked_for() -> None:
    # Without unit variance z has sd of about sqrt(m): P(|z| > 1.645) from the normal tail.
    m = 256
    mixing = mixing_matrix(source(n_true_features=m, normalize_covariance=False), generators("a"))
    z = torch.randn(4000, m, dtype=torch.float64, generator=generators("z")) @ mixing.T
    p = torch.special.ndtr(z)
    extreme = float(((p < 0.05) | (p > 0.95)).double().mean())
    assert extreme == pytest.approx(2 * stats.norm.sf(1.645 / math.sqrt(m)), abs=0.02)


@pytest.mark.parametrize("normalize", [True, False])
def test_as_many_true_features_are_active_as_the_mean_says(normalize: bool) -> None:
    # The first has Phi^0 = 1 before rescaling, so with a mean of 1 no probability is clipped.
    settings = source(n_samples=20_000, mean_active=1.0, normalize_covariance=normalize)
    found = sharkey(settings, generators).mean_active
    assert found is not None
    # A sum of Bernoullis with mean 1 has a variance of at most 1.
    assert found == pytest.approx(1.0, abs=5 / math.sqrt(20_000))


def test_samples_are_sums_of_true_features_with_coefficients_from_0_to_1() -> None:
    # With more dimensions than true features, the coefficients can be solved for.
    settings = source(n_samples=3000, d_input=40, n_true_features=10, mean_active=3.0)
    made = sharkey(settings, generators)
    assert made.directions is not None
    torch.testing.assert_close(made.directions.norm(dim=1), torch.ones(10))
    solved, residuals, _, _ = np.linalg.lstsq(
        made.directions.double().numpy().T, made.x.double().numpy().T, rcond=None
    )
    assert residuals.max() < 1e-10
    active = solved[np.abs(solved) > 1e-4]
    assert made.mean_active == pytest.approx(len(active) / 3000, rel=0.01)
    assert active.min() > 0
    assert active.max() < 1
    assert stats.kstest(active, "uniform").pvalue > 1e-3


def test_a_matched_gaussian_has_the_same_mean_and_covariance() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.exponential(size=(4000, 3)) @ rng.normal(size=(3, 5)) + 2).float()
    found = gaussian_control(x, "matched", torch_generator(0, "g"))
    assert found.shape == x.shape
    covariance = np.cov(x.numpy().T, bias=True)
    mean_error = np.sqrt(np.diag(covariance) / 4000)
    assert (np.abs(found.mean(dim=0).numpy() - x.mean(dim=0).numpy()) < 5 * mean_error).all()
    own = np.cov(found.numpy().T, bias=True)
    # Variance of an entry of a sample covariance of normals: (s_ii s_jj + s_ij^2) / n.
    error = np.sqrt((np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2) / 4000)
    assert (np.abs(own - covariance) < 5 * error).all()
    # Three dimensions of variance, as in the data.
    assert np.linalg.matrix_rank(own, tol=1e-3) == 3
    standard = (found[:, 0] - found[:, 0].mean()) / found[:, 0].std()
    assert stats.kstest(standard.numpy(), "norm").pvalue > 1e-3
    # The test can fail, because the data is not Gaussian.
    skewed = (x[:, 0] - x[:, 0].mean()) / x[:, 0].std()
    assert stats.kstest(skewed.numpy(), "norm").pvalue < 1e-3


def test_a_scalar_gaussian_does_not_follow_single_dimensions() -> None:
    x = torch.randn(5000, 4, generator=torch_generator(0, "x")) * torch.tensor([0.1, 1, 2, 3]) + 1
    found = gaussian_control(x, "scalar", torch_generator(0, "g"))
    assert float(found.mean()) == pytest.approx(float(x.mean()), abs=0.1)
    sd = x.std(correction=0)
    assert found.std(dim=0).numpy() == pytest.approx(float(sd) * np.ones(4), rel=0.06)


def test_the_random_network_is_one_as_pytorch_makes_it() -> None:
    x = torch.randn(9, 6, generator=torch_generator(0, "x"))
    network = random_network(6, 4, torch.Generator().manual_seed(7))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        theirs = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 6))
    torch.testing.assert_close(network(x), theirs(x).detach(), rtol=1e-5, atol=1e-6)


def test_vectors_depend_on_the_seed_and_not_on_the_width() -> None:
    for data in ("data", "gaussian", "mlp_of_data", "mlp_of_gaussian"):
        one, other = make_samples(params(data)), make_samples(params(data, expansion=8))
        assert torch.equal(one.x, other.x)
        assert not torch.allclose(one.x, make_samples(params(data, seed=1)).x)


def test_the_output_of_the_network_is_that_of_its_input() -> None:
    inputs = {data: make_samples(params(data)) for data in ("data", "gaussian")}
    outputs = {data: make_samples(params(f"mlp_of_{data}")) for data in ("data", "gaussian")}
    network = random_network(8, 4, torch_generator(0, "toy_mlp", "s", 0))
    for data in ("data", "gaussian"):
        torch.testing.assert_close(network(inputs[data].x), outputs[data].x)
        # Outputs are not sums of true features, so none are claimed.
        assert outputs[data].directions is None
    images = outputs["data"].images
    assert images is not None
    assert inputs["data"].directions is not None
    raw = network(inputs["data"].directions)
    torch.testing.assert_close(images, raw / raw.norm(dim=1, keepdim=True))
    assert outputs["gaussian"].images is None


def words(lines: list[str], tmp_path: Path, **changes: Any) -> WordVectorsSource:
    file = tmp_path / "vectors.txt"
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    given = {"kind": "word_vectors", "path": str(file), **changes}
    return WordVectorsSource.model_validate(given)


LINES = [f"word{i} {i}.5 -0.25 1e-3" for i in range(30)]


def test_word_vectors_are_read_unchanged(tmp_path: Path) -> None:
    found = read_word_vectors(words([*LINES, "at name@domain.com 1 2 3"], tmp_path))
    expected = [[i + 0.5, -0.25, 1e-3] for i in range(30)] + [[1, 2, 3]]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), np.array(expected, dtype=np.float32))
    first = read_word_vectors(words(LINES, tmp_path, max_vectors=21))
    assert torch.equal(first, found[:21])


def test_the_control_of_word_vectors_has_the_same_number_of_points(tmp_path: Path) -> None:
    given = words(LINES, tmp_path)
    for data in ("data", "gaussian", "mlp_of_data", "mlp_of_gaussian"):
        assert make_samples(params(data, source=given)).x.shape == (30, 3)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("word 1 2", "line 31: 2 numbers after the word; the first line has 3"),
        ("1 2 3", "line 31: 2 numbers after the word; the first line has 3"),
        ("", "line 31: 0 numbers after the word; the first line has 3"),
        ("word 1 x 3", "line 31: not a number (could not convert string to float: 'x'"),
        ("word 1 nan 3", "line 31: has a number that is not finite"),
    ],
)
def test_a_bad_line_is_refused_and_named(line: str, said: str, tmp_path: Path) -> None:
    given = words([*LINES, line, "word 1 2 3"], tmp_path)
    assert refused(read_word_vectors, given).startswith(f"{given.path}: {said}")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", ": 0 word vectors; at least 20 are needed"),
        (b"word 1 2 3\n", ": 1 word vectors; at least 20 are needed"),
        (b"word\n", ": line 1: 'word' is not a word and its numbers (at least 2)"),
        (b"word 1 2 3\n\xff\xfe 1 2 3\n", ": line "),
    ],
)
def test_a_file_without_vectors_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    file = tmp_path / "vectors.txt"
    file.write_bytes(content)
    line = refused(read_word_vectors, WordVectorsSource(kind="word_vectors", path=str(file)))
    assert line.startswith(f"{file}{said}")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.txt: No such file or directory"):
        read_word_vectors(
            WordVectorsSource(kind="word_vectors", path=str(tmp_path / "nowhere.txt"))
        )
