from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.saes import ARCHITECTURES, Sae
from nullsae.core.randomness import torch_generator
from nullsae.sae.architectures import batch_topk
from nullsae.sae.architectures.base import Losses, TrainedSae
from nullsae.sae.architectures.batch_topk import THRESHOLD_DECAY, batch_top_k
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.exchange.export import export_sae
from nullsae.sae.exchange.pretrained import read_pretrained
from nullsae.sae.files import load_sae
from nullsae.sae.initialization import initialize
from nullsae.sae.kernels import Hits
from nullsae.sae.train_sae import train_sae
from nullsae.sae.trainer import Trainer, evaluate
from small_chain import codes_of, train_params, write_sae, write_site

TOKENS, D, WIDTH, K = 40, 6, 20, 3
SHARES = (0.25, 0.5, 1.0)
OTHERS = tuple(name for name in ARCHITECTURES if name != "topk")
WITH_AUXK = ("batch_topk", "matryoshka")
PENALIZED = ("gated", "standard")
UNIT = math.sqrt(D)  # mean norm of inputs; coefficients are for a norm of 1
NONE_DEAD = torch.zeros(WIDTH, dtype=torch.bool)


def randn(*shape: int, key: str) -> Tensor:
    return torch.randn(shape, generator=torch_generator(0, "test", key), dtype=torch.float64)


def recipe(architecture: Any, **keys: Any) -> Sae:
    plain: dict[str, Any] = {"n_latents": WIDTH, "k": K}
    if architecture in PENALIZED:
        plain = {"n_latents": WIDTH, "l1_coefficient": 0.7 / UNIT}
    if architecture == "matryoshka":
        plain["prefix_shares"] = SHARES
    if architecture == "jumprelu":
        plain |= {"l0_coefficient": 0.3, "bandwidth": 0.4 / UNIT, "initial_threshold": 0.5 / UNIT}
    return Sae.of(architecture=architecture, **{**plain, **keys})


def model_of(sae: Sae, *, auxk_coefficient: float = 0.0) -> TrainedSae[Any]:
    """Return an SAE in float64 with no weight at a special value."""
    start = Autoencoder(
        "topk",
        randn(WIDTH, D, key="w_enc"),
        randn(WIDTH, key="b_enc") * 0.1,
        F.normalize(randn(WIDTH, D, key="w_dec"), dim=1),
        randn(D, key="b_dec") * 0.5,
        k=K,
    )
    if sae.architecture in ("topk", *WITH_AUXK):
        sae = sae.model_copy(update={"auxk_coefficient": auxk_coefficient})
    model: TrainedSae[Any] = sae.training()(sae, K, start)
    for name in ("log_threshold", "r_mag", "b_gate"):
        if name in model.parameters:
            model.parameters[name] += randn(WIDTH, key=name) * 0.4
    return model


def batch(key: str = "x", n: int = TOKENS) -> Tensor:
    return randn(n, D, key=key) + 1.0


# --- gradients --------------------------------------------------------------------------------

Parameters = dict[str, Tensor]


def variance(x: Tensor) -> Tensor:
    return (x - x.mean(dim=0)).pow(2).sum()


def batch_code(pre: Tensor) -> Tensor:
    values, places = pre.flatten().topk(K * len(pre))
    return torch.zeros_like(pre).flatten().scatter(0, places, values.relu()).view_as(pre)


def batch_topk_loss(p: Parameters, x: Tensor, sae: Sae, dead: Tensor, coefficient: float) -> Tensor:
    """Compute the loss; for Matryoshka the mean of the FVU of every prefix, each written out."""
    pre = (x - p["b_dec"]) @ p["encoder.weight"].T + p["encoder.bias"]
    code = batch_code(pre)
    shares = sae.prefix_shares if sae.architecture == "matryoshka" else (1.0,)
    fvus = []
    for share in shares:
        n = round(share * WIDTH)
        output = code[:, :n] @ p["W_dec"][:n] + p["b_dec"]
        fvus.append((x - output).pow(2).sum() / variance(x))
    loss = torch.stack(fvus).mean()
    n_dead = int(dead.sum())
    if n_dead:
        assert sae.auxk_k is not None
        k = min(sae.auxk_k, n_dead)
        values, indices = pre.masked_fill(~dead, -torch.inf).topk(k, dim=1)
        chosen = torch.zeros_like(pre).scatter(1, indices, values.relu())
        error = chosen @ p["W_dec"] - (x - output).detach()
        weight = coefficient * min(1.0, n_dead / sae.auxk_k)
        loss = loss + weight * error.pow(2).sum() / variance(x)
    return loss


def standard_loss(p: Parameters, x: Tensor, sae: Sae) -> Tensor:
    code = ((x - p["b_dec"]) @ p["encoder.weight"].T + p["encoder.bias"]).relu()
    error = (code @ p["W_dec"] + p["b_dec"] - x).pow(2).sum()
    return (error + sae.l1_coefficient * UNIT * code.abs().sum()) / variance(x)


def gated_loss(p: Parameters, x: Tensor, sae: Sae) -> Tensor:
    """Compute the paper's loss; the auxiliary decoder is a frozen copy."""
    centred = x - p["b_dec"]
    gate = centred @ p["encoder.weight"].T + p["b_gate"]
    w_mag = p["r_mag"].exp()[:, None] * p["encoder.weight"]
    code = (gate > 0) * (centred @ w_mag.T + p["encoder.bias"]).relu()
    error = (code @ p["W_dec"] + p["b_dec"] - x).pow(2).sum()
    by_gate = gate.relu() @ p["W_dec"].detach() + p["b_dec"].detach()
    auxiliary = (by_gate - x).pow(2).sum()
    return (error + sae.l1_coefficient * UNIT * gate.relu().sum() + auxiliary) / variance(x)


def autograd(loss: Callable[[Parameters], Tensor], model: TrainedSae) -> tuple[Parameters, float]:
    p = {name: t.clone().requires_grad_() for name, t in model.parameters.items()}
    total = loss(p)
    found = torch.autograd.grad(total, list(p.values()))
    return dict(zip(p, found, strict=True)), total.item()


def compare(found: Parameters, expected: Parameters) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-13, msg=name)


@pytest.mark.parametrize("n_dead", [0, 2, 12])
@pytest.mark.parametrize("architecture", WITH_AUXK)
def test_gradients_of_the_topk_family_equal_plain_autograd(architecture: str, n_dead: int) -> None:
    sae = recipe(architecture, auxk_k=4)
    model, x, dead = model_of(sae, auxk_coefficient=0.5), batch(), NONE_DEAD.clone()
    dead[torch.arange(n_dead) + 4] = True
    found, losses = model.gradients(x, dead)
    expected, total = autograd(lambda p: batch_topk_loss(p, x, sae, dead, 0.5), model)
    compare(found, expected)
    assert losses.sparsity == 0.0
    if architecture == "batch_topk":
        weight = 0.5 * min(1.0, n_dead / 4)
        assert losses.fvu + weight * losses.auxk == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(("architecture", "loss"), [("standard", 0), ("gated", 1)])
def test_gradients_of_penalized_saes_equal_plain_autograd(architecture: str, loss: int) -> None:
    sae, x = recipe(architecture), batch()
    model = model_of(sae)
    documented = (standard_loss, gated_loss)[loss]
    found, losses = model.gradients(x, NONE_DEAD)
    expected, total = autograd(lambda p: documented(p, x, sae), model)
    compare(found, expected)
    if architecture == "standard":
        assert losses.fvu + losses.sparsity == pytest.approx(total, rel=1e-12)


def test_jumprelu_gradients_follow_the_formulae_of_the_paper() -> None:
    sae, x = recipe("jumprelu"), batch()
    model, width = model_of(sae), sae.bandwidth * UNIT
    p = {name: t.clone().requires_grad_() for name, t in model.parameters.items()}
    theta = p.pop("log_threshold").detach().exp()
    pre = (x - p["b_dec"]) @ p["encoder.weight"].T + p["encoder.bias"]
    code = pre * (pre > theta)
    l0 = (pre > theta).double().sum(dim=1).mean().requires_grad_()
    error = (code @ p["W_dec"] + p["b_dec"] - x).pow(2).sum() / variance(x)
    loss = error + sae.l0_coefficient * (l0 / K - 1).pow(2)
    *by_weights, by_code, by_l0 = torch.autograd.grad(loss, [*p.values(), code, l0])
    expected = dict(zip(p, by_weights, strict=True))
    # Equations 11 and 12, token by token and latent by latent.
    slope = torch.zeros(WIDTH, dtype=torch.float64)
    for token in range(TOKENS):
        for i in range(WIDTH):
            u = (float(pre[token, i].detach()) - float(theta[i])) / width
            kernel = float(-0.5 < u < 0.5)
            slope[i] -= float(by_code[token, i]) * float(theta[i]) / width * kernel
            slope[i] -= float(by_l0) / TOKENS / width * kernel
    assert bool((slope != 0).any())
    expected["log_threshold"] = slope * theta  # d theta / d log theta
    found, losses = model.gradients(x, NONE_DEAD)
    compare(found, expected)
    assert losses.fvu == pytest.approx(float(error.detach()), rel=1e-12)
    assert losses.fvu + losses.sparsity == pytest.approx(float(loss.detach()), rel=1e-12)


def test_thresholds_are_pulled_towards_the_target() -> None:
    """The rectangle kernel's slope of L0 is its central difference over the bandwidth, exactly."""
    sae, x = recipe("jumprelu", bandwidth=0.25 / UNIT, l0_coefficient=1e6), batch()
    model = model_of(sae)
    theta = model.parameters["log_threshold"].exp()
    pre = (x - model.b_dec) @ model.w_enc.T + model.b_enc
    more, fewer = ((pre > theta + shift).double().mean(dim=0) for shift in (-0.125, 0.125))
    l0 = float((pre > theta).double().sum(dim=1).mean())
    found, _ = model.gradients(x, NONE_DEAD)
    expected = 1e6 * 2 * (l0 / K - 1) / K * (fewer - more) / 0.25 * theta
    torch.testing.assert_close(found["log_threshold"], expected, rtol=1e-3, atol=1e-1)


@pytest.mark.parametrize("architecture", WITH_AUXK)
def test_auxk_gradient_reaches_the_encoder(architecture: str) -> None:
    x, found = batch(), {}
    dead = torch.arange(WIDTH) < 5
    for coefficient in (0.0, 1 / 32):
        model = model_of(recipe(architecture, auxk_k=3), auxk_coefficient=coefficient)
        model.w_enc[:5] *= 1e-3  # these five are never kept
        model.b_enc[:5] = 0.0
        found[coefficient], _ = model.gradients(x, dead)
    off, on = found[0.0], found[1 / 32]
    assert off["encoder.weight"][:5].abs().max() < 1e-12
    assert bool((on["encoder.weight"][:5].norm(dim=1) > 1e-6).all())
    assert bool((on["encoder.bias"][:5].abs() > 1e-9).all())
    assert bool((on["W_dec"][:5].norm(dim=1) > 1e-9).all())


@pytest.mark.parametrize("architecture", OTHERS)
def test_fired_marks_the_latents_with_a_positive_code(architecture: str) -> None:
    x = batch(n=12)
    model = model_of(recipe(architecture))
    model.b_enc[:4] -= 3.0
    _, losses = model.gradients(x, NONE_DEAD)
    # For these, `autoencoder` has the batch's own threshold, and values equal to it count.
    sae = model.autoencoder()
    for threshold in sae.own.values():
        threshold *= 1 - 1e-9
    values, indices = sae.encode(x)
    dense = torch.zeros(len(x), WIDTH, dtype=torch.float64).scatter(1, indices, values)
    assert torch.equal(losses.fired, (dense > 0).any(dim=0))
    assert not bool(losses.fired.all())


def test_matryoshka_with_one_prefix_is_batch_topk() -> None:
    x, dead = batch(), torch.arange(WIDTH) < 5
    found: list[tuple[Parameters, Losses]] = []
    for sae in (recipe("batch_topk"), recipe("matryoshka", prefix_shares=(1.0,))):
        model = model_of(sae, auxk_coefficient=0.5)
        found.append(model.gradients(x, dead))
        assert torch.equal(model.buffers["threshold"], batch_threshold(x))
    compare(found[1][0], found[0][0])
    assert found[1][1].fvu == pytest.approx(found[0][1].fvu, rel=1e-12)
    assert found[1][1].auxk == pytest.approx(found[0][1].auxk, rel=1e-12)


def test_prefixes_that_round_to_nothing_keep_one_latent() -> None:
    """0.01 of 20 latents is one latent, not none; a repeated prefix has twice the weight."""

    def nested(*shares: float) -> Parameters:
        model = model_of(recipe("matryoshka", prefix_shares=shares))
        model.b_enc[0] += 2.0  # the one latent is active
        return model.gradients(batch(), NONE_DEAD)[0]

    compare(nested(0.01, 0.05, 1.0), nested(0.02, 0.03, 1.0))
    assert not torch.allclose(nested(0.01, 0.05, 1.0)["W_dec"][0], nested(0.05, 1.0)["W_dec"][0])


# --- the k of a batch -------------------------------------------------------------------------


def batch_threshold(x: Tensor) -> Tensor:
    model = model_of(recipe("batch_topk"))
    pre = (x - model.b_dec) @ model.w_enc.T + model.b_enc
    return pre.flatten().sort(descending=True).values[K * len(x) - 1] * (1 - THRESHOLD_DECAY)


def by_sorting(pre: Tensor, n: int) -> list[tuple[int, int, float]]:
    """Return (token, latent, value) of the n largest positive entries, the first of equal ones."""
    entries = [
        (token, latent, float(value))
        for token, row in enumerate(pre)
        for latent, value in enumerate(row)
        if value > 0
    ]
    return sorted(sorted(entries, key=lambda e: (-e[2], e[0], e[1]))[:n])


def entries(hits: Hits) -> list[tuple[int, int, float]]:
    parts = (hits.tokens.tolist(), hits.latents.tolist(), hits.values.tolist())
    return list(zip(*parts, strict=True))


@given(
    seed=st.integers(0, 10_000),
    n_tokens=st.integers(1, 7),
    n_latents=st.integers(1, 70),
    share=st.floats(0.01, 1.0),
    levels=st.sampled_from([1, 3, 1000]),
    offset=st.sampled_from([-2.0, 0.0, 2.0]),
    drift=st.sampled_from([0.0, 1.0]),
    chunk=st.integers(1, 4),
)
@settings(max_examples=200, deadline=None)
def test_the_same_entries_are_kept_as_by_sorting(
    seed: int,
    n_tokens: int,
    n_latents: int,
    share: float,
    levels: int,
    offset: float,
    drift: float,
    chunk: int,
) -> None:
    """Few levels make ties; an offset makes all or few entries positive; with a drift some chunks
    of tokens contain far more of the largest entries than others.
    """
    g = torch.Generator().manual_seed(seed)
    pre = torch.randn(n_tokens, n_latents, generator=g) + offset
    pre += drift * torch.arange(n_tokens)[:, None]
    pre = (pre * levels).round() / levels
    n = max(1, int(share * pre.numel()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_topk, "rows_at_once", lambda *_: chunk)
        hits = batch_top_k(pre, torch.eye(n_latents), torch.zeros(n_latents), n)
    assert entries(hits) == by_sorting(pre, n)
    assert len(hits.values) == min(n, int((pre > 0).sum()))
    assert len(hits.offsets) == n_tokens


def test_a_batch_keeps_k_per_token_on_average() -> None:
    x = batch()
    model = model_of(recipe("batch_topk"))
    hits = batch_top_k(x - model.b_dec, model.w_enc, model.b_enc, K * TOKENS)
    assert len(hits.values) == K * TOKENS
    counts = torch.bincount(hits.tokens, minlength=TOKENS)
    assert int(counts.min()) < K < int(counts.max())
    model.b_enc[3:] -= 100.0
    _, losses = model.gradients(x, NONE_DEAD)
    assert losses.fired.nonzero().flatten().tolist() == [0, 1, 2]


@pytest.mark.parametrize("architecture", WITH_AUXK)
def test_training_survives_a_batch_without_a_positive_entry(architecture: str) -> None:
    model, x = model_of(recipe(architecture)), batch()
    model.b_enc[:] = -100.0
    found, losses = model.gradients(x, NONE_DEAD)
    expected = (model.b_dec - x).pow(2).sum() / variance(x)
    assert losses.fvu == pytest.approx(float(expected))
    assert not bool(losses.fired.any())
    assert not bool(found["W_dec"].any())
    assert not bool(model.autoencoder().own["threshold"].any())


def test_the_saved_threshold_is_the_weighted_mean_of_those_of_the_batches() -> None:
    """Each weighs by its age, and the initial value does not bias the average."""
    model, seen = model_of(recipe("batch_topk")), []
    for step in range(5):
        x = batch(f"batch {step}") * (1 + step)
        model.gradients(x, NONE_DEAD)
        seen.append(float(batch_threshold(x)) / (1 - THRESHOLD_DECAY))
    weights = [THRESHOLD_DECAY**age for age in (4, 3, 2, 1, 0)]
    mean = sum(w * t for w, t in zip(weights, seen, strict=True)) / sum(weights)
    threshold = model.autoencoder().own["threshold"]
    assert threshold is not None
    assert threshold.tolist() == pytest.approx([mean] * WIDTH, rel=1e-12)


# --- folding and starts -----------------------------------------------------------------------


def test_folding_keeps_the_codes_of_a_gated_sae() -> None:
    model, x = model_of(recipe("gated")), batch(n=400)
    model.parameters["r_mag"] *= 3.0
    model.parameters["b_gate"] *= 3.0
    p, centred = model.parameters, x - model.b_dec
    gate = centred @ p["encoder.weight"].T + p["b_gate"]
    magnitude = centred @ (p["r_mag"].exp()[:, None] * p["encoder.weight"]).T + p["encoder.bias"]
    expected = (gate > 0) * magnitude.relu()
    sae = model.autoencoder()
    values, indices = sae.encode(x)
    found = torch.zeros(len(x), WIDTH, dtype=torch.float64).scatter(1, indices, values)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    # Some latents are held back by the gate, others are not.
    held_back = (gate <= 0) & (magnitude > 0)
    assert bool(held_back.any(dim=0).any())
    assert not bool(held_back.any(dim=0).all())
    assert sae.architecture == "jumprelu"


def test_thresholds_start_at_k_active_latents() -> None:
    x = batch(n=200)
    model = model_of(recipe("jumprelu", initial_threshold=None))
    _, losses = model.gradients(x, NONE_DEAD)
    # The value at the threshold itself is not above it.
    assert losses.sparsity == pytest.approx(0.3 * (1 / (200 * K)) ** 2, rel=1e-6)
    started = model.parameters["log_threshold"].clone()
    model.gradients(batch("other", n=200) * 3.0, NONE_DEAD)
    assert torch.equal(model.parameters["log_threshold"], started)
    given = recipe("jumprelu", initial_threshold=0.25 / UNIT)
    given_one = given.training()(given, K, model.autoencoder())
    given_one.gradients(x, NONE_DEAD)
    threshold = given_one.autoencoder().own["threshold"]
    assert threshold is not None
    assert threshold.tolist() == pytest.approx([0.25] * WIDTH)


# --- training ---------------------------------------------------------------------------------

WIDE, N_PLANTED, ACTIVE = 24, 32, 3


def planted(n: int, key: str) -> tuple[Tensor, Tensor]:
    """Return sums of ACTIVE of N_PLANTED unit directions, x [n, WIDE], and the directions.

    Weights are in [1, 2], scaled to a mean norm of sqrt(WIDE).
    """
    g = torch_generator(0, "planted directions")
    directions = F.normalize(torch.randn(N_PLANTED, WIDE, generator=g), dim=1)
    g = torch_generator(0, "planted", key)
    chosen = torch.rand(n, N_PLANTED, generator=g).argsort(dim=1)[:, :ACTIVE]
    strength = 1 + torch.rand(n, ACTIVE, generator=g)
    weights = torch.zeros(n, N_PLANTED).scatter(1, chosen, strength)
    x = weights @ directions + 0.5
    return x * (WIDE**0.5 / x.norm(dim=1).mean()), directions


def small(architecture: Any, **keys: Any) -> Sae:
    plain: dict[str, Any] = {
        "n_latents": 64,
        "batch_tokens": 256,
        "lr": 1e-2,
        "dead_after_tokens": 5000,
    }
    if architecture not in PENALIZED:
        plain["k"] = ACTIVE
    return Sae.of(architecture=architecture, **{**plain, **keys})


def trainer_of(sae: Sae, x: Tensor, n_steps: int) -> Trainer:
    g = torch_generator(0, "test start")
    start = initialize(x, n_latents=64, k=sae.kept, generator=g)
    return Trainer(sae, n_steps, start, k=sae.kept)


def trained(sae: Sae, n_steps: int) -> Trainer:
    x, _ = planted(20_000, "train")
    trainer = trainer_of(sae, x, n_steps)
    for step in range(n_steps):
        first = step * sae.batch_tokens % (len(x) - sae.batch_tokens)
        trainer.train_step(x[first : first + sae.batch_tokens])
    return trainer


@pytest.fixture(scope="module")
def of_each() -> dict[str, Trainer]:
    return {name: trained(small(name, lr=2e-2), 150) for name in ARCHITECTURES}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_training_finds_a_planted_dictionary(
    of_each: dict[str, Trainer], architecture: str
) -> None:
    sae = of_each[architecture].sae
    fresh, directions = planted(4000, "fresh")
    cosine = directions @ F.normalize(sae.w_dec, dim=1).T
    assert float(cosine.max(dim=1).values.mean()) > 0.9
    assert evaluate(sae, fresh)["heldout_explained_variance"] > 0.8
    torch.testing.assert_close(sae.w_dec.norm(dim=1), torch.ones(64))


@pytest.mark.parametrize("architecture", ["batch_topk", "matryoshka", "jumprelu"])
def test_fresh_tokens_have_about_k_active_latents(
    of_each: dict[str, Trainer], architecture: str
) -> None:
    fresh, _ = planted(4000, "fresh")
    values, _ = of_each[architecture].sae.encode(fresh)
    assert float((values > 0).sum(dim=1).double().mean()) == pytest.approx(ACTIVE, rel=0.1)


def test_prefixes_of_a_matryoshka_reconstruct_better_than_in_batch_topk(
    of_each: dict[str, Trainer],
) -> None:
    fresh, _ = planted(4000, "fresh")

    def fvu(sae: Autoencoder, n: int) -> float:
        values, indices = sae.encode(fresh)
        output = sae.decode(values * (indices < n), indices)
        return float((fresh - output).pow(2).sum() / variance(fresh))

    for n in (16, 32):
        nested, flat = (fvu(of_each[name].sae, n) for name in ("matryoshka", "batch_topk"))
        assert nested < flat - 0.02, n


NULLS = ("frozen_decoder", "soft_frozen_decoder", "frozen_encoder")
ALLOWED = [
    (dictionary, architecture)
    for dictionary in NULLS
    for architecture in ARCHITECTURES
    if dictionary != "frozen_encoder" or architecture in ("topk", *WITH_AUXK)
]


@pytest.mark.parametrize(("dictionary", "architecture"), ALLOWED)
def test_a_null_keeps_its_frozen_parts_and_trains_the_rest(
    dictionary: Any, architecture: str
) -> None:
    sae = small(architecture, dictionary=dictionary)
    x, _ = planted(2000, "train")
    trainer = trainer_of(sae, x, 12)
    before: Parameters = {}
    for step in range(12):
        trainer.train_step(x[step * 100 : step * 100 + 256])
        if step == 0:  # thresholds of jumprelu are set in the first step
            before = {name: t.clone() for name, t in trainer.model.parameters.items()}
    start = initialize(x, n_latents=64, k=sae.kept, generator=torch_generator(0, "test start"))
    found = {
        name
        for name, t in trainer.model.parameters.items()
        if torch.equal(t, start.parameters().get(name, before[name]))
    }
    assert found == set(DICTIONARIES[dictionary].frozen)
    if dictionary == "soft_frozen_decoder":
        cosine = (trainer.sae.w_dec * start.w_dec).sum(dim=1)
        assert float(cosine.min()) >= sae.min_decoder_cosine - 1e-6


# --- whole trainings --------------------------------------------------------------------------


def run(folder: Path, sae: Sae, name: str = "sae", progress: Any = None) -> Path:
    """Run `train_sae` on planted activations, which are written once; return the SAE's folder."""
    if not (folder / "train").exists():
        write_site(folder / "train", planted(1500, "train")[0] * 3.0, [500, 1000])
        write_site(folder / "eval", planted(400, "eval")[0] * 3.0, [400])
    train_sae(
        train_params(sae, activations_key="key"),
        train_activations=folder / "train/manifest.json",
        eval_activations=folder / "eval/manifest.json",
        output=folder / name,
        work=folder / "work",
        progress=progress,
    )
    return folder / name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path, architecture: str) -> None:
    sae = small(
        architecture,
        batch_tokens=128,
        epochs=2,
        checkpoint_every_steps=5,
        evaluate_every_steps=4,
        dead_after_tokens=300,
    )
    run(tmp_path, sae, "whole")

    def kill(step: int, _steps: int, _loss: float | None) -> None:
        if step == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, sae, "resumed", kill)
    steps: list[int] = []
    run(tmp_path, sae, "resumed", lambda step, *_: steps.append(step))
    assert steps == list(range(11, 23))
    for file in ("sae.safetensors", "cfg.json"):
        whole, resumed = tmp_path / "whole" / file, tmp_path / "resumed" / file
        assert whole.read_bytes() == resumed.read_bytes(), file


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_sae_on_disk_has_the_codes_of_the_one_that_was_trained(
    of_each: dict[str, Trainer], tmp_path: Path, architecture: str
) -> None:
    sae, (x, _) = of_each[architecture].sae, planted(300, "fresh")
    training = of_each[architecture].recipe.model_dump(mode="json")
    write_sae(sae.scaled(3.0), tmp_path / "ours", training=training)
    loaded, described = load_sae(tmp_path / "ours/cfg.json")
    inference = {"topk": "topk", "standard": "standard"}.get(architecture, "jumprelu")
    assert (loaded.architecture, described.architecture) == (inference, inference)
    assert described.training["architecture"] == architecture
    expected = codes_of(sae, x)
    assert bool((expected > 0).any())
    torch.testing.assert_close(codes_of(loaded, x * 3.0), expected * 3.0, rtol=1e-4, atol=1e-4)
    export_sae(tmp_path / "ours/cfg.json", "saelens", tmp_path / "theirs")
    theirs = read_pretrained(str(tmp_path / "theirs"), "resid_post.1", where="")
    torch.testing.assert_close(
        codes_of(theirs, x * 3.0), codes_of(loaded, x * 3.0), rtol=1e-4, atol=1e-4
    )
