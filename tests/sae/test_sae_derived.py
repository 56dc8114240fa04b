"""Dictionaries made from a given SAE: what they keep and what they lose, compared with NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nullsae import tables
from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.saes import Sae
from nullsae.core.randomness import torch_generator
from nullsae.jobs.saes import DeriveSaeParams
from nullsae.sae import derivation
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.derive_sae import derive_sae
from nullsae.sae.files import load_sae
from refusing import refused
from small_chain import COMPUTE, D_MODEL, Chain, all_rows, cell

SITE = "resid_post.1"
N_LATENTS, K, N_TOKENS = 48, 4, 6000
KINDS = ("rotated", "rotated_whitened", "rate_matched_random")
ARCHITECTURES: tuple[tuple[str, int | None], ...] = (
    *(("topk", K), ("standard", None), ("jumprelu", None)),
)
Array = np.ndarray[Any, Any]


def cloud(n: int = N_TOKENS, seed: int = 0) -> Tensor:
    """Return activations with a mean, unequal variances and heavy tails, float32 [n, D_MODEL]."""
    generator = torch_generator(seed, "cloud")
    mixed = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=torch_generator(0, "mixed")))[0]
    drawn = torch.randn(n, D_MODEL, generator=generator)
    scale = torch.linspace(0.1, 3, D_MODEL)
    found: Tensor = drawn * drawn.abs() * scale @ mixed + scale
    return found


def sae_of(architecture: str = "topk", k: int | None = K) -> Autoencoder:
    """Return an SAE whose latents fire at unequal rates, one of them never."""
    generator = torch_generator(0, "sae")
    w_enc, w_dec = (torch.randn(N_LATENTS, D_MODEL, generator=generator) for _ in range(2))
    b_enc = torch.linspace(-9.0, -1.0, N_LATENTS)
    b_enc[7] = -1e4
    own = {"threshold": torch.linspace(0.5, 2.0, N_LATENTS)} if architecture == "jumprelu" else {}
    return Autoencoder(architecture, w_enc, b_enc, w_dec, torch.full((D_MODEL,), 0.7), k, own)


def exact(tensor: Tensor) -> Array:
    return np.asarray(tensor.double())


def fires(sae: Autoencoder, x: Tensor) -> Array:
    """Return which latents fire on which tokens, bool [tokens, n_latents], in float64."""
    pre = (exact(x) - exact(sae.b_dec)) @ exact(sae.w_enc).T + exact(sae.b_enc)
    if sae.architecture == "jumprelu":
        return np.asarray(pre > np.maximum(exact(sae.own["threshold"]), 0))
    if sae.k is not None:
        kth = np.sort(pre, axis=1)[:, -sae.k, None]
        return np.asarray((pre >= kth) & (pre > 0))
    return np.asarray(pre > 0)


def made(kind: str, sae: Autoencoder, x: Tensor, *, seed: int = 0, **keys: Any) -> Autoencoder:
    origin = DICTIONARIES[kind].model_validate({"from": "it", **keys})
    generator = torch_generator(seed, "test", kind)
    return derivation.derive(origin, sae, x, cloud(seed=1), generator, "test")[0]


@pytest.mark.parametrize(("architecture", "k"), ARCHITECTURES)
def test_a_rotation_keeps_all_products_of_rows(architecture: str, k: int | None) -> None:
    sae = sae_of(architecture, k)
    found = made("rotated", sae, cloud())
    for before, after in ((sae.w_enc, found.w_enc), (sae.w_dec, found.w_dec)):
        gram = exact(before) @ exact(before).T
        assert exact(after) @ exact(after).T == pytest.approx(gram, abs=1e-4)
    # It is a single rotation, so products of encoder and decoder rows are kept as well.
    mixed = exact(sae.w_enc) @ exact(sae.w_dec).T
    assert exact(found.w_enc) @ exact(found.w_dec).T == pytest.approx(mixed, abs=1e-4)
    turned = np.linalg.lstsq(exact(sae.w_dec), exact(found.w_dec), rcond=None)[0]
    assert turned @ turned.T == pytest.approx(np.eye(D_MODEL), abs=1e-5)
    assert np.linalg.det(turned) == pytest.approx(1.0, abs=1e-5)
    assert abs(np.trace(turned)) < 0.5 * D_MODEL


@pytest.mark.parametrize("kind", ["rotated", "rotated_whitened"])
def test_codes_are_those_of_activations_turned_the_other_way(kind: str) -> None:
    sae, x = sae_of(), cloud()
    found = made(kind, sae, x)
    there = np.linalg.lstsq(exact(sae.w_dec), exact(found.w_dec), rcond=None)[0]
    mean = exact(x).mean(axis=0)
    turned = torch.from_numpy(mean + (exact(x) - mean) @ np.linalg.inv(there)).float()
    values, indices = found.encode(x[:500])
    expected, latents = sae.encode(turned[:500])
    same = (indices == latents).all(dim=1)
    assert same.float().mean() > 0.99  # rounding decides between two equal ones
    assert exact(values[same]) == pytest.approx(exact(expected[same]), rel=1e-3, abs=1e-3)
    back = mean + (exact(sae.decode(expected, latents)) - mean) @ there
    decoded = exact(found.decode(values, indices))
    assert decoded[same] == pytest.approx(back[same], rel=1e-3, abs=1e-2)


def test_in_whitened_space_covariance_and_spreads_of_pre_activations_stay() -> None:
    sae, x = sae_of(), cloud()
    found = made("rotated_whitened", sae, x)
    covariance = np.cov(exact(x).T, bias=True)
    there = np.linalg.lstsq(exact(sae.w_dec), exact(found.w_dec), rcond=None)[0]
    assert there.T @ covariance @ there == pytest.approx(covariance, rel=1e-3, abs=1e-3)
    for metric, before, after in (
        (covariance, sae.w_enc, found.w_enc),
        (np.linalg.inv(covariance), sae.w_dec, found.w_dec),
    ):
        gram = exact(before) @ metric @ exact(before).T
        scale = np.sqrt(np.diag(gram))
        error = exact(after) @ metric @ exact(after).T - gram
        assert np.abs(error / scale / scale[:, None]).max() < 1e-4
    pre = [(exact(x) - exact(s.b_dec)) @ exact(s.w_enc).T + exact(s.b_enc) for s in (sae, found)]
    assert pre[1].mean(axis=0) == pytest.approx(pre[0].mean(axis=0), rel=1e-3, abs=1e-3)
    assert pre[1].std(axis=0) == pytest.approx(pre[0].std(axis=0), rel=1e-4)


def test_a_direction_without_variance_is_left_as_it_is() -> None:
    x = cloud() @ torch.diag((torch.arange(D_MODEL) > 0).float()) + 3.0
    sae = sae_of("standard", None)
    sae.b_dec = x.mean(dim=0)
    found = made_on(x, "rotated_whitened", sae)
    assert exact(found.w_enc[:, 0]) == pytest.approx(exact(sae.w_enc[:, 0]), abs=1e-5)
    assert np.isfinite(exact(found.w_enc)).all()
    assert not np.allclose(exact(found.w_enc[:, 1:]), exact(sae.w_enc[:, 1:]), atol=0.1)


def made_on(x: Tensor, kind: str, sae: Autoencoder) -> Autoencoder:
    origin = DICTIONARIES[kind].model_validate({"from": "it"})
    return derivation.derive(origin, sae, x, x, torch_generator(0, "test"), "test")[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("architecture", "k"), ARCHITECTURES)
def test_l0_is_that_of_the_given_sae(architecture: str, k: int | None, kind: str) -> None:
    sae, others = sae_of(architecture, k), cloud(seed=1)
    found = made(kind, sae, cloud())
    l0 = [fires(s, others).sum(axis=1).mean() for s in (sae, found)]
    assert l0[0] > 1
    assert l0[1] == pytest.approx(l0[0], rel=0.05)
    assert (found.k, found.architecture) == (
        (None, "jumprelu") if kind == "rate_matched_random" else (k, architecture)
    )


@pytest.mark.parametrize(("architecture", "k"), ARCHITECTURES)
def test_each_random_direction_fires_as_often_as_its_latent(
    architecture: str, k: int | None
) -> None:
    sae, x = sae_of(architecture, k), cloud()
    found = made("rate_matched_random", sae, x)
    wanted, rates = (fires(s, x).mean(axis=0) for s in (sae, found))
    assert wanted[7] == rates[7] == 0
    assert len(set(wanted)) > N_LATENTS / 2
    assert rates == pytest.approx(wanted, abs=2.5 / N_TOKENS)
    # On other tokens as well, up to sampling error.
    others = [fires(s, cloud(seed=1)).mean(axis=0) for s in (sae, found)]
    assert np.abs(others[1] - wanted).max() < 6 * np.sqrt(0.25 / N_TOKENS)
    rows = exact(found.w_dec)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(N_LATENTS), abs=1e-6)
    cosines = rows @ (exact(sae.w_dec) / np.linalg.norm(exact(sae.w_dec), axis=1)[:, None]).T
    assert cosines.std() == pytest.approx(1 / np.sqrt(D_MODEL), rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_an_sae_that_normalizes_is_matched_in_the_space_of_its_weights(kind: str) -> None:
    sae, x = replace(sae_of("standard", None), normalization="layer_norm"), cloud()
    sae.b_enc += 5.0
    found = made(kind, sae, x)
    assert found.normalization == "layer_norm"
    centred = exact(x) - exact(x).mean(axis=1, keepdims=True)
    normal = torch.from_numpy(centred / exact(x).std(axis=1, ddof=1, keepdims=True))
    plain = [replace(s, normalization="none") for s in (sae, found)]
    wanted, rates = (fires(s, normal).mean(axis=0) for s in plain)
    assert rates.sum() == pytest.approx(wanted.sum(), rel=0.05)
    if kind == "rate_matched_random":
        assert rates == pytest.approx(wanted, abs=5 / N_TOKENS)
    if kind == "rotated_whitened":
        pre = [exact(normal - s.b_dec) @ exact(s.w_enc).T for s in plain]
        assert pre[1].std(axis=0) == pytest.approx(pre[0].std(axis=0), rel=1e-3)


def test_a_latent_that_fires_on_most_tokens_has_its_rate() -> None:
    sae, x = sae_of("standard", None), cloud()
    sae.b_enc[:] = torch.linspace(-6, 40, N_LATENTS)
    found = made("rate_matched_random", sae, x)
    wanted, rates = (fires(s, x).mean(axis=0) for s in (sae, found))
    assert wanted.max() > 0.95
    assert rates == pytest.approx(wanted, abs=2.5 / N_TOKENS)


def test_the_factor_on_random_codes_is_the_best_one() -> None:
    x = cloud()
    found = made("rate_matched_random", sae_of(), x)
    back = exact(found.decode(*found.encode(x))) - exact(found.b_dec)
    centred = exact(x) - exact(found.b_dec)
    assert (centred * back).sum() / (back**2).sum() == pytest.approx(1.0, abs=1e-4)


def test_rates_are_matched_up_to_tokens_that_are_equal() -> None:
    x = torch.cat([cloud(), cloud()[:3000]])
    sae = sae_of("standard", None)
    wanted, rates = (fires(s, x).sum(axis=0) for s in (sae, made("rate_matched_random", sae, x)))
    assert {*np.abs(rates - wanted)} == {0, 1}


def test_a_draw_is_of_its_seed_alone() -> None:
    sae, x = sae_of(), cloud()
    for kind in KINDS:
        one, again, other = (made(kind, sae, x, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(one.w_dec, again.w_dec)
        assert not torch.allclose(one.w_dec, other.w_dec, atol=0.1)


def test_gates_fail_on_what_they_are_there_for() -> None:
    sae, eye = sae_of(), torch.eye(D_MODEL, dtype=torch.float64)
    bent = sae.w_enc.clone()
    bent[3] *= 1.01
    for after, passed in ((sae.w_enc, True), (sae.w_enc.flip(1), True), (bent, False)):
        assert derivation.geometry_gate("g", sae.w_enc, after, eye)["passed"] is passed
    wanted, equal = torch.tensor([100, 0, 20]), torch.tensor([0, 0, 2])
    for found, passed in (
        *(([105, 0, 20], True), ([106, 0, 20], False), ([100, 1, 20], False)),
        *(([100, 0, 22], True), ([100, 0, 17], False)),
    ):
        assert derivation.rates_gate(wanted, torch.tensor(found), equal, 999)["passed"] is passed
    for found_l0, passed in ((104.0, True), (94.0, False)):
        assert derivation.l0_gate(100.0, found_l0)["passed"] is passed
    assert derivation.l0_gate(0.0, 0.0)["passed"]
    assert not derivation.l0_gate(0.0, 1.0)["passed"]


def test_a_failed_gate_is_one_line() -> None:
    # Rates on 60 tokens of another kind do not predict those on held-out ones.
    sae = sae_of("standard", None)
    origin = DICTIONARIES["rate_matched_random"].model_validate({"from": "it"})
    arguments = sae, cloud(60) * 3, cloud(seed=1), torch_generator(0, "test"), "config: saes.null"
    assert refused(derivation.derive, origin, *arguments).startswith(
        "config: saes.null: gate 'l0' failed: L0 on held-out tokens differs by"
    )


# --- the stage ----------------------------------------------------------------------------------


def derived(chain: Chain, sae: Path, folder: Path, **keys: Any) -> Autoencoder:
    recipe = Sae.of(**{"dictionary": "rotated", "from": "topk", "heldout_tokens": 512, **keys})
    own = cell(SITE).model_copy(update={"sae": "null"})
    params = DeriveSaeParams(seed=0, keys=own, recipe=recipe, compute=COMPUTE)
    derive_sae(
        DeriveSaeParams.model_validate_json(params.model_dump_json()),
        sae=sae,
        train_activations=chain.train_activations,
        eval_activations=chain.eval_activations,
        output=folder,
    )
    found, config = load_sae(folder / "cfg.json")
    assert (config.dictionary, config.n_steps) == (recipe.dictionary, 0)
    return found


def test_the_stage_writes_what_is_derived(chain: Chain, tiny_sae: Path, tmp_path: Path) -> None:
    given, _ = load_sae(tiny_sae)
    x, _ = all_rows(chain.train_activations, SITE)
    for kind in KINDS:
        found = derived(chain, tiny_sae, tmp_path / kind, dictionary=kind)
        wanted, rates = (fires(s, x).sum(axis=0) for s in (given, found))
        assert rates.sum() == pytest.approx(wanted.sum(), rel=0.05)
        if kind == "rate_matched_random":
            assert np.abs(rates - wanted).max() <= 1
    schema = tables.cell_schema("history")
    history = tables.read_table(tmp_path / "rotated/history.parquet", schema).to_pylist()
    assert [(row["step"], row["tokens"]) for row in history] == [(0, len(x))]
    fewer = derived(chain, tiny_sae, tmp_path / "fewer", sample_tokens=100)
    assert fewer.b_dec.tolist() != load_sae(tmp_path / "rotated/cfg.json")[0].b_dec.tolist()


def test_a_whitened_rotation_explains_the_mean_over_directions_which_may_be_below_0() -> None:
    """For Gaussian activations, in expectation over rotations: docs/controls.md."""
    generator = torch_generator(0, "gaussian")
    scale = torch.linspace(0.1, 3, D_MODEL)
    turned = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator))[0]
    x = torch.randn(4000, D_MODEL, generator=generator) * scale @ turned + scale
    # Two latents for each of the six widest directions, which also write into narrow ones.
    rows = torch.cat([turned[-6:], -turned[-6:]])
    spilled = rows + 0.3 * torch.cat([turned[:6], turned[:6]])
    sae = Autoencoder("standard", rows, torch.zeros(len(rows)), spilled, x.mean(dim=0))

    def unexplained(made: Autoencoder) -> Array:
        error = exact(x - made.decode(*made.encode(x))) @ exact(turned).T
        found: Array = error.var(axis=0)
        return found

    variance = exact(x @ turned.T).var(axis=0)
    own = unexplained(sae)
    assert 1 - own.sum() / variance.sum() > 0.5
    expected = 1 - (own / variance).mean()
    null = DICTIONARIES["rotated_whitened"](**{"from": "sae"})
    explained = []
    for draw in range(40):
        made, _ = null.derive(sae, x, torch_generator(draw, "whitened"))
        explained.append(1 - unexplained(made).sum() / variance.sum())
    assert expected < -0.5
    spread = np.std(explained, ddof=1) / len(explained) ** 0.5
    assert np.mean(explained) == pytest.approx(expected, abs=3 * spread)


def test_a_given_sae_is_itself_on_other_activations(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    found = derived(chain, tiny_sae, tmp_path / "given", dictionary="given")
    for name, tensor in load_sae(tiny_sae)[0].parameters().items():
        assert torch.equal(found.parameters()[name], tensor)
