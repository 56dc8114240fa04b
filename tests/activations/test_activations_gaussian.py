from __future__ import annotations

import json
import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from sklearn.covariance import OAS
from torch import Tensor

from nullsae.activations.gaussian import Gaussian, oas_shrinkage
from nullsae.activations.sampling import SampleCheck, sample_gaussian
from nullsae.activations.store import SiteReader
from nullsae.core import locking
from nullsae.core.errors import UserError
from nullsae.core.moments import Moments
from nullsae.corpus.store import load_tokens
from nullsae.jobs.activations import SampleGaussianParams
from nullsae.jobs.keys import ModelKeys
from nullsae.subjects.gates import Gate
from refusing import refused
from small_chain import (
    COMPUTE,
    CONTEXT,
    CPU,
    D_MODEL,
    SITES,
    VOCAB,
    Chain,
    all_rows,
    flip_byte,
    tokens_of,
    write_corpus,
    write_site,
)

SITE = SITES[1]


def params(**keys: Any) -> SampleGaussianParams:
    plain: dict[str, Any] = {
        "sites": (SITE,),
        "seed": 0,
        "dtype": "float32",
        "shard_tokens": 8 * CONTEXT,
        "compute": COMPUTE,
        "key": "own",
        "fitted_activations_key": "key",
    }
    own = {"subject": "tiny", "variant": "gaussian", "draw": 0}
    model = ModelKeys(**{name: keys.pop(name, value) for name, value in own.items()})
    return SampleGaussianParams(keys=model, **{**plain, **keys})


def sample(
    chain: Chain,
    output: Path,
    split: str = "eval",
    progress: Callable[[int, int], None] | None = None,
    **keys: Any,
) -> list[str]:
    tokens = chain.train_tokens if split == "sae_train" else chain.eval_tokens
    return sample_gaussian(
        params(**keys),
        split=split,
        fitted=keys.get("fitted", chain.train_activations),
        tokens=tokens,
        output=output,
        progress=progress,
    )


def rows(folder: Path, site: str = SITE) -> tuple[Tensor, Tensor]:
    return all_rows(folder / "manifest.json", site)


def manifest(folder: Path, site: str = SITE) -> Any:
    return json.loads((folder / f"site={site}/manifest.json").read_text())


def mixed(n: int, d: int, seed: int = 0) -> Tensor:
    """Return correlated float64 vectors with a nonzero mean."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    return torch.randn(n, d, generator=generator, dtype=torch.float64) @ mixing + 2


def moments_of(x: Tensor) -> Moments:
    moments = Moments(x.shape[1])
    moments.add(x)
    return moments


def fitted(x: Tensor) -> Gaussian:
    return Gaussian.fitted_to(moments_of(x), CPU)


def checked(gaussian: Gaussian, x: Tensor, ids: Tensor | None = None) -> dict[str, Gate]:
    check = SampleCheck(gaussian, VOCAB)
    check.add(x, torch.arange(len(x)) % VOCAB if ids is None else ids)
    return {gate["gate"]: gate for gate in check.gates()}


def failures(gaussian: Gaussian, x: Tensor, ids: Tensor | None = None) -> set[str]:
    return {name for name, gate in checked(gaussian, x, ids).items() if not gate["passed"]}


def draws(gaussian: Gaussian, n: int, seed: int = 1) -> Tensor:
    return gaussian.sample(n, torch.Generator().manual_seed(seed))


# Samples


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tensor, Tensor]:
    """Return non-Gaussian activations [8000, 12] and as many samples, from the verb's function."""
    root, site = tmp_path_factory.mktemp("large"), "resid_post.0"
    x = mixed(8000, 12)
    x[:, 3] = x[:, 3].abs() ** 2 + 50.0
    source = write_site(root / "trained", x.float(), [3000, 5000], site=site)
    tokens = write_corpus(root / "corpus", *tokens_of(500, seed=3))
    sample_gaussian(
        params(sites=(site,), shard_tokens=3000),
        split="sae_train",
        fitted=source,
        tokens=tokens,
        output=root / "gaussian",
    )
    return x, all_rows(root / "gaussian/manifest.json", site)[0].double()


def test_samples_have_the_moments_of_the_activations(large: tuple[Tensor, Tensor]) -> None:
    """The bounds come from the sampling distribution, not from the package's gates."""
    x, found = large
    n, mean = len(found), x.mean(dim=0)
    covariance = torch.from_numpy(np.cov(x.numpy(), rowvar=False, bias=True))
    variance = covariance.diagonal()
    assert bool(((found.mean(dim=0) - mean).abs() < 5 * (variance / n).sqrt()).all())
    # The variance of a sample covariance of normals: (s_ii s_jj + s_ij^2) / n.
    spread = ((torch.outer(variance, variance) + covariance.square()) / n).sqrt()
    centred = found - found.mean(dim=0)
    assert bool(((centred.t() @ centred / n - covariance).abs() < 5 * spread).all())


def test_samples_keep_only_the_moments(large: tuple[Tensor, Tensor]) -> None:
    """A squared normal has skewness 2.8, its Gaussian stand-in 0. Rows are independent."""
    x, found = large
    assert stats.skew(x[:, 3].numpy()) > 2
    assert abs(stats.skew(found[:, 3].numpy())) < 5 * (6 / len(found)) ** 0.5
    assert stats.kstest(stats.zscore(found[:, 3].numpy()), "norm").pvalue > 1e-4
    first, second = found[:-1, 0], found[1:, 0]
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 5 / len(found) ** 0.5


def test_a_singular_covariance_is_sampled_and_stays_singular() -> None:
    x = torch.cat([mixed(4000, 3) @ torch.ones(3, 5).double().triu(), mixed(4000, 2, 7)], dim=1)
    x[:, 6] = 0.1  # constant, but not exact in binary
    assert np.linalg.matrix_rank(np.cov(x.numpy(), rowvar=False)) == 4
    gaussian = fitted(x)
    assert int((gaussian.eigenvalues > 0).sum()) == 4
    found = draws(gaussian, 3000)
    assert bool(torch.isfinite(found).all())
    assert np.linalg.matrix_rank(np.cov(found.numpy(), rowvar=False), tol=1e-9) == 4
    assert bool((found[:, 6] - 0.1).abs().max() < 1e-12)
    # The null space of one is in that of the other.
    null = torch.linalg.svd(torch.cov(x.t())).Vh[4:]
    assert float(((found - x.mean(dim=0)) @ null.t()).abs().max()) < 1e-6
    assert failures(gaussian, found) == set()


def test_a_massive_dimension_does_not_swamp_the_small_ones() -> None:
    """Variances 16 orders apart: an eigendecomposition of the covariance loses the small one."""
    x = mixed(5000, 3)
    x[:, 0] *= 1e8
    x[:, 2] *= 1e-6
    gaussian = fitted(x)
    found = draws(gaussian, 5000)
    correlation = np.corrcoef(x.numpy(), rowvar=False)
    np.testing.assert_allclose(found.std(dim=0).numpy(), x.std(dim=0).numpy(), rtol=0.06)
    np.testing.assert_allclose(np.corrcoef(found.numpy(), rowvar=False), correlation, atol=0.08)
    assert failures(gaussian, found) == set()


# Which keys the numbers depend on


def test_two_runs_give_the_same_bytes(chain: Chain, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert sample(chain, tmp_path / name, "sae_train", sites=SITES) == list(SITES)
    files = sorted(p.relative_to(tmp_path / "one") for p in tmp_path.glob("one/**/*.*"))
    files = [file for file in files if (tmp_path / "one" / file).is_file()]
    assert len(files) == 1 + 3 * 10
    for file in files:
        one, two = ((tmp_path / name / file).read_bytes() for name in ("one", "two"))
        assert one == two, file


def test_samples_depend_neither_on_shard_size_nor_on_their_number(
    chain: Chain, tmp_path: Path
) -> None:
    sample(chain, tmp_path / "plain", "sae_train")
    expected, at = rows(tmp_path / "plain")
    in_order = expected[at.argsort()]
    sample(chain, tmp_path / "shards", "sae_train", shard_tokens=13 * CONTEXT + 7)
    found, at = rows(tmp_path / "shards")
    assert torch.equal(found, in_order[at])
    sizes = [shard["n_tokens"] for shard in manifest(tmp_path / "shards")["shards"]]
    assert sizes == [13 * CONTEXT] * 4 + [12 * CONTEXT]
    sample(chain, tmp_path / "few", "sae_train", max_tokens=10 * CONTEXT + CONTEXT - 1)
    found, at = rows(tmp_path / "few")
    assert len(found) == 10 * CONTEXT
    assert torch.equal(found, in_order[at])


def test_every_key_that_should_matter_does(chain: Chain, tmp_path: Path) -> None:
    """Uncorrelated, not merely different: whitened by the same fit, context by context."""
    cases: dict[str, dict[str, Any]] = {
        "plain": {},
        "draw": {"draw": 1},
        "seed": {"seed": 1},
        "subject": {"subject": "other"},
        # Floors of two variants, here with the same moments, and `gaussian` itself.
        "floor": {"variant": "gaussian@trained"},
        "other floor": {"variant": "gaussian@step0"},
        "split": {"split": "sae_train"},
    }
    found = {}
    for name, keys in cases.items():
        sample(chain, tmp_path / name, **keys)
        x, at = rows(tmp_path / name)
        found[name] = x[at.argsort()][: 60 * CONTEXT].double()
    # Another site of the same run has its own noise: sites are independent.
    sample(chain, tmp_path / "sites", sites=SITES[:2])
    assert torch.equal(rows(tmp_path / "sites")[0].double(), found["plain"])
    found["site"] = rows(tmp_path / "sites", SITES[0])[0].double()

    def noise(x: Tensor) -> Tensor:
        white = torch.linalg.inv_ex(torch.linalg.cholesky(torch.cov(x.t())))[0]
        return ((x - x.mean(dim=0)) @ white.t()).flatten()

    floors = torch.stack([noise(found["floor"]), noise(found["other floor"])])
    assert abs(float(torch.corrcoef(floors)[0, 1])) < 5 / floors.shape[1] ** 0.5
    plain = noise(found.pop("plain"))
    assert float(torch.corrcoef(torch.stack([plain, plain.roll(CONTEXT * D_MODEL)]))[0, 1]) < 0.05
    for name, x in found.items():
        correlation = float(torch.corrcoef(torch.stack([plain, noise(x)]))[0, 1])
        assert abs(correlation) < 5 / len(plain) ** 0.5, name


def test_eval_is_in_order_and_training_tokens_are_permuted_as_captured(
    chain: Chain, tmp_path: Path
) -> None:
    sample(chain, tmp_path / "eval")
    assert torch.equal(rows(tmp_path / "eval")[1], torch.arange(60 * CONTEXT))
    sample(chain, tmp_path / "sae_train", "sae_train", sites=SITES)
    captured = all_rows(chain.train_activations, SITE)[1]
    for site in SITES:
        assert torch.equal(rows(tmp_path / "sae_train", site)[1], captured)


def test_the_manifests_have_the_form_of_captured_ones(chain: Chain, tmp_path: Path) -> None:
    sample(chain, tmp_path)
    own, captured = manifest(tmp_path), manifest(chain.eval_activations.parent)
    assert own.keys() - captured.keys() == {"fitted", "gates", "health"}
    assert captured.keys() - own.keys() == set()
    same = ("site", "split", "context_tokens", "tokens_checksum", "dtype", "d_model", "n_tokens")
    assert {name: own[name] for name in same} == {name: captured[name] for name in same}
    assert own["key"] == "own"
    assert own["fitted"] == {"key": "key", "n_tokens": 64 * CONTEXT, "shrinkage": 0.0}
    x = rows(tmp_path)[0].double()
    torch.testing.assert_close(torch.tensor(own["mean"], dtype=x.dtype), x.mean(dim=0))
    for name, value in moments_of(x).health().items():
        assert own["health"][name] == pytest.approx(value, rel=1e-5), name
    gates = [(gate["gate"], gate["passed"]) for gate in own["gates"]]
    assert gates == [(g, True) for g in ("finite", "mean", "covariance", "token identity")]
    both = [
        json.loads(path.read_text())
        for path in (tmp_path / "manifest.json", chain.eval_activations)
    ]
    assert both[0].keys() == both[1].keys()
    assert both[0]["sites"][SITE].keys() == both[1]["sites"][SITE].keys()
    SiteReader.open(tmp_path / "manifest.json", SITE, key="own").check()


def test_the_stored_dtype_is_the_configured_one(chain: Chain, tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        sample(chain, tmp_path / dtype, dtype=dtype)
    stored = load_file(tmp_path / f"bfloat16/site={SITE}/shard-00000.safetensors")
    # float64 is cast to bfloat16 in one step, not always what rounding float32 would give.
    expected = load_file(tmp_path / f"float32/site={SITE}/shard-00000.safetensors")["activations"]
    assert stored["activations"].dtype == torch.bfloat16
    torch.testing.assert_close(stored["activations"].float(), expected, rtol=2**-8, atol=0)


# Reruns and progress


def test_only_a_damaged_site_is_sampled_again(chain: Chain, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    keys: dict[str, Any] = {"sites": SITES, "progress": lambda *x: seen.append(x)}
    assert sample(chain, tmp_path, **keys) == list(SITES)
    total = 3 * 60 * CONTEXT
    assert seen[0] == (8 * CONTEXT, total)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    before, text = rows(tmp_path)[0], (tmp_path / "manifest.json").read_bytes()
    assert sample(chain, tmp_path, sites=SITES) == []
    flip_byte(tmp_path / f"site={SITE}/shard-00002.safetensors")
    assert sample(chain, tmp_path, sites=SITES) == [SITE]
    assert torch.equal(rows(tmp_path)[0], before)
    assert (tmp_path / "manifest.json").read_bytes() == text
    assert sample(chain, tmp_path, sites=SITES, key="new") == list(SITES)


def test_without_a_key_other_inputs_are_sampled_again(chain: Chain, tmp_path: Path) -> None:
    """Without a key, one is made from params, split and inputs."""
    assert sample(chain, tmp_path, key="") == [SITE]
    assert sample(chain, tmp_path, key="") == []
    assert sample(chain, tmp_path, key="", draw=1) == [SITE]
    assert sample(chain, tmp_path, "sae_train", key="", draw=1) == [SITE]


# Shrinkage


@pytest.mark.parametrize(("n", "d"), [(40, 30), (200, 60), (300, 300)])
def test_oas_equals_its_definition_and_is_close_to_sklearn(n: int, d: int) -> None:
    x = mixed(n, d, seed=n)
    covariance = moments_of(x).covariance()
    weight = oas_shrinkage(covariance, n)
    # Chen et al. 2010: the limit of their iteration (19, 20); its traces are linear in rho.
    S, rho = covariance.numpy(), 0.5
    trace, square_trace = np.trace(S), np.trace(S @ S)
    for _ in range(5000):
        overlap = (1 - rho) * square_trace + rho * trace**2 / d
        square = trace**2
        rho = ((1 - 2 / d) * overlap + square) / ((n + 1 - 2 / d) * overlap + (1 - n / d) * square)
    assert 0.01 < weight < 1
    assert weight == pytest.approx(rho, rel=1e-9)
    # scikit-learn omits the terms 2 / d of equation 23, as its documentation states.
    assert weight == pytest.approx(OAS().fit(x.numpy()).shrinkage_, rel=3 / d)


@pytest.mark.parametrize(("n", "shrunk"), [(119, True), (120, False)])
def test_shrinkage_follows_the_number_of_tokens(n: int, shrunk: bool) -> None:
    x = mixed(n, 12)
    gaussian = fitted(x)
    assert (gaussian.shrinkage > 0) == shrunk
    root = gaussian.root
    found = (root.t() @ root).numpy()
    sample_covariance = np.cov(x.numpy(), rowvar=False, bias=True)
    if shrunk:
        reference = OAS().fit(x.numpy()).covariance_
        np.testing.assert_allclose(found, reference, rtol=0.03, atol=0.03)
        own = oas_shrinkage(torch.from_numpy(sample_covariance), n)
        assert gaussian.shrinkage == pytest.approx(own, rel=1e-12)
        weight, trace = gaussian.shrinkage, np.trace(sample_covariance)
        exact = (1 - weight) * sample_covariance + weight * trace / 12 * np.eye(12)
        np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-9)
    else:
        np.testing.assert_allclose(found, sample_covariance, rtol=1e-9, atol=1e-9)


def test_a_covariance_equal_to_its_target_gives_full_weight() -> None:
    assert oas_shrinkage(torch.eye(4, dtype=torch.float64) * 3, 10) == 1.0
    assert oas_shrinkage(torch.ones(1, 1, dtype=torch.float64), 10) == 1.0


def test_few_trained_tokens_give_a_cloud_of_full_rank(tmp_path: Path) -> None:
    """20 tokens at 16 dimensions, 960 samples: full rank, and the manifest records why."""
    source = write_site(tmp_path / "trained", mixed(20, 16).float(), [20])
    tokens = write_corpus(tmp_path / "corpus", *tokens_of(60, seed=3))
    output = tmp_path / "gaussian"
    sample_gaussian(params(), split="eval", fitted=source, tokens=tokens, output=output)
    described = manifest(output)["fitted"]
    assert described["n_tokens"] == 20
    assert described["shrinkage"] > 0.05
    eigenvalues = np.linalg.eigvalsh(np.cov(rows(output)[0].numpy(), rowvar=False))
    assert eigenvalues[0] > 1e-3 * eigenvalues[-1]


# Gates


def test_correct_samples_pass_every_gate_at_any_size() -> None:
    gaussian = fitted(mixed(3000, 9))
    for n in (1, 2, 16, 63, 64, 100, 4000):
        for seed in range(5):
            assert failures(gaussian, draws(gaussian, n, seed)) == set(), (n, seed)


def test_a_wrong_mean_fails() -> None:
    gaussian = fitted(mixed(3000, 9))
    x, std = draws(gaussian, 4000), gaussian.root.square().sum(dim=0).sqrt()
    one = torch.zeros(9, dtype=torch.float64)
    one[4] = 1.0
    assert failures(gaussian, x + one * std * 0.3) >= {"mean"}
    # All dimensions are off by 4 standard errors, no single one by enough.
    whitened = gaussian.eigenvectors * gaussian.eigenvalues.sqrt()
    shift = (whitened.sum(dim=1) * gaussian.scale) * 4 / len(x) ** 0.5
    assert failures(gaussian, x + shift) >= {"mean"}
    assert failures(gaussian, x) == set()


def test_a_wrong_covariance_fails() -> None:
    gaussian = fitted(mixed(3000, 9))
    mean, n = gaussian.mean, 4000
    x = draws(gaussian, n)
    wrong = {
        "all 8 percent too wide": mean + (x - mean) * 1.08,
        "independent dimensions": torch.stack([x[:, j].roll(j * 7) for j in range(9)], dim=1),
        "isotropic": mean
        + torch.randn(n, 9, generator=torch.Generator().manual_seed(5)).double() * x.std(),
    }
    for name, samples in wrong.items():
        assert failures(gaussian, samples) >= {"covariance"}, name
    # Correct variances along all eigenvectors, two of which are correlated.
    white = torch.randn(n, 9, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    white[:, 1] = (white[:, 1] + white[:, 0]) / 2**0.5
    together = mean + (white * gaussian.eigenvalues.sqrt()) @ gaussian.eigenvectors.t() * (
        gaussian.scale
    )
    assert failures(gaussian, together) == {"covariance"}


def test_variance_in_a_constant_direction_fails() -> None:
    x = mixed(3000, 4)
    x[:, 3] = x[:, 0] - x[:, 1]
    gaussian = fitted(x)
    found = draws(gaussian, 2000)
    assert failures(gaussian, found) == set()
    found[:, 3] += draws(gaussian, 2000, seed=9)[:, 0] * 1e-3
    gate = checked(gaussian, found)["covariance"]
    assert not gate["passed"]
    assert "where the fitted one has none" in gate["detail"]


def test_a_trace_of_the_token_fails() -> None:
    gaussian = fitted(mixed(3000, 9))
    x, ids = draws(gaussian, 4000), torch.arange(4000) % VOCAB
    assert failures(gaussian, x, ids) == set()
    means = draws(gaussian, VOCAB, seed=2) - gaussian.mean
    # 3 percent of the variance depends on the token; the moments are unchanged.
    told = gaussian.mean + (x - gaussian.mean) * 0.97**0.5 + means[ids] * 0.03**0.5
    assert failures(gaussian, told, ids) == {"token identity"}


def test_samples_that_are_not_finite_fail() -> None:
    gaussian = fitted(mixed(3000, 4))
    x = draws(gaussian, 100)
    x[7, 2] = torch.nan
    assert failures(gaussian, x) == {"finite"}


def test_a_failed_gate_leaves_no_complete_site(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Gaussian.sample
    monkeypatch.setattr(Gaussian, "sample", lambda *arguments: plain(*arguments) * 1.2)
    folder = tmp_path / f"site={SITE}"
    assert refused(sample, chain, tmp_path).startswith(
        f"{folder}: gate 'mean' failed: 16 directions and jointly"
    )
    assert not (folder / "manifest.json").exists()
    assert not (tmp_path / "manifest.json").exists()
    monkeypatch.undo()
    assert sample(chain, tmp_path) == [SITE]


# Users' mistakes


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"fitted_activations_key": "new"}, r"made from another config \(key key, wanted new\)"),
        ({"sites": ("resid_post.9",)}, r"site=resid_post.9/manifest.json: the file is missing"),
        ({"fitted": Path("none/manifest.json")}, "none/site=resid_post.1/manifest.json: the file"),
        ({"fitted": Path("none/manifest.json"), "key": ""}, "none/manifest.json: the file is"),
        ({"max_tokens": CONTEXT - 1}, "activations.sae_train_tokens: 15 is not between one"),
        ({"max_tokens": 61 * CONTEXT}, "activations.sae_train_tokens: 976 is not between one"),
    ],
)
def test_a_mistake_is_refused_in_one_line(
    chain: Chain, tmp_path: Path, keys: dict[str, Any], message: str
) -> None:
    source = keys.pop("fitted", chain.train_activations)
    with pytest.raises(UserError, match=message) as caught:
        sample_gaussian(
            params(**keys),
            split="eval",
            fitted=source,
            tokens=chain.eval_tokens,
            output=tmp_path,
        )
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_damaged_activations_are_refused(chain: Chain, tmp_path: Path) -> None:
    copy = tmp_path / "trained"
    shutil.copytree(chain.train_activations.parent, copy)
    flip_byte(copy / f"site={SITE}/shard-00003.safetensors")
    with pytest.raises(UserError, match=r"shard-00003.safetensors: damaged"):
        sample_gaussian(
            params(),
            split="eval",
            fitted=copy / "manifest.json",
            tokens=chain.eval_tokens,
            output=tmp_path / "gaussian",
        )


def test_too_little_disk_space_is_noticed_before_writing(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    needed = int(60 * CONTEXT * 3 * (D_MODEL * 4 + 12) * 1.02)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, needed - 1))
    with pytest.raises(UserError, match=r"the activations need .* GB, the disk has .* GB free"):
        sample(chain, tmp_path / "split", sites=SITES)
    assert not (tmp_path / "split").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, needed))
    assert sample(chain, tmp_path / "split", sites=SITES) == list(SITES)


def test_values_beyond_the_storage_type_are_refused(tmp_path: Path) -> None:
    source = write_site(tmp_path / "trained", mixed(400, 4).float() * 1e5, [400])
    tokens = write_corpus(tmp_path / "corpus", *tokens_of(60, seed=3))
    with pytest.raises(UserError, match=r"shard-00000.safetensors: row .* is NaN or infinite"):
        sample_gaussian(
            params(dtype="float16"),
            split="eval",
            fitted=source,
            tokens=tokens,
            output=tmp_path / "gaussian",
        )


def test_token_ids_are_those_at_the_positions_of_the_samples(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gate on token identity must pair each sample with the token at its position."""
    seen: list[Tensor] = []
    plain = SampleCheck.add

    def add(self: SampleCheck, x: Tensor, ids: Tensor) -> None:
        seen.append(torch.cat([x, ids[:, None].double()], dim=1))
        plain(self, x, ids)

    monkeypatch.setattr(SampleCheck, "add", add)
    sample(chain, tmp_path, "sae_train")
    found, at = rows(tmp_path)
    ids = torch.from_numpy(load_tokens(chain.train_tokens).input_ids).flatten()
    offered = torch.cat(seen)
    assert torch.equal(offered[at, :-1].float(), found)
    assert torch.equal(offered[:, -1].int(), ids)


def test_a_split_is_sampled_by_one_process_at_a_time(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "WAIT_SECONDS", 0.0)
    tried: list[int] = []

    def beside(done: int, _: int) -> None:
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* is already working"):
            sample(chain, tmp_path)
        tried.append(done)

    assert sample(chain, tmp_path, progress=beside) == [SITE]
    assert tried
    assert not list(tmp_path.rglob(".*"))
