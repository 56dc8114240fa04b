from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.saes import Sae
from nullsae.sae.architectures.base import Losses
from nullsae.sae.architectures.topk import TopK
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.initialization import geometric_median, initialize

TOKENS, D, WIDTH, K = 40, 6, 20, 3


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_sae(dtype: torch.dtype = torch.float64) -> Autoencoder:
    return Autoencoder(
        "topk",
        randn(WIDTH, D, seed=1, dtype=dtype),
        randn(WIDTH, seed=2, dtype=dtype) * 0.1,
        F.normalize(randn(WIDTH, D, seed=3, dtype=dtype), dim=1),
        randn(D, seed=4, dtype=dtype) * 0.5,
        k=K,
    )


def gradients(
    sae: Autoencoder,
    x: Tensor,
    *,
    dead: Tensor,
    auxk_k: int,
    auxk_coefficient: float,
    **keys: Any,
) -> tuple[dict[str, Tensor], Losses]:
    assert sae.k is not None
    recipe = Sae.of(n_latents=WIDTH, k=sae.k, auxk_k=auxk_k, **keys)
    model = recipe.training()(recipe, sae.k, sae)
    model.auxk_coefficient = auxk_coefficient
    return model.gradients(x, dead)


def autograd(
    sae: Autoencoder, x: Tensor, dead: Tensor, auxk_k: int, coefficient: float, multi: bool
) -> tuple[dict[str, Tensor], float, float]:
    """Compute the documented loss with dense codes and PyTorch's own derivative."""
    p = {name: t.clone().requires_grad_() for name, t in sae.parameters().items()}
    pre = (x - p["b_dec"]) @ p["encoder.weight"].T + p["encoder.bias"]

    def code(scores: Tensor, k: int) -> Tensor:
        values, indices = scores.topk(k, dim=1)
        return torch.zeros_like(pre).scatter(1, indices, values.relu())

    assert sae.k is not None
    output = code(pre, sae.k) @ p["W_dec"] + p["b_dec"]
    variance = (x - x.mean(dim=0)).pow(2).sum()
    fvu = (x - output).pow(2).sum() / variance
    auxk = torch.zeros((), dtype=x.dtype)
    n_dead = int(dead.sum())
    if n_dead:
        chosen = code(pre.masked_fill(~dead, -torch.inf), min(auxk_k, n_dead))
        auxk = (chosen @ p["W_dec"] - (x - output).detach()).pow(2).sum() / variance
    loss = fvu + coefficient * min(1.0, n_dead / auxk_k) * auxk
    if multi:
        wide = code(pre, min(4 * sae.k, sae.n_latents)) @ p["W_dec"] + p["b_dec"]
        loss = loss + (x - wide).pow(2).sum() / variance / 8
    found = torch.autograd.grad(loss, list(p.values()))
    return dict(zip(p, found, strict=True)), fvu.item(), auxk.item()


# With 12 dead latents, AuxK takes 4 by matrix products, and 1 by its rows.
@pytest.mark.parametrize(("n_dead", "auxk_k"), [(0, 4), (2, 4), (12, 4), (12, 1), (20, 2)])
@pytest.mark.parametrize("coefficient", [0.0, 1 / 32, 2.0])
@pytest.mark.parametrize(("multi", "k"), [(False, K), (True, K), (True, 6)])
def test_gradients_equal_plain_autograd(
    n_dead: int, auxk_k: int, coefficient: float, multi: bool, k: int
) -> None:
    sae, x = random_sae(), randn(TOKENS, D, seed=5) + 1.0
    sae.k = k
    dead = torch.zeros(WIDTH, dtype=torch.bool)
    dead[(torch.arange(n_dead) + 4) % WIDTH] = True
    found, losses = gradients(
        sae, x, dead=dead, auxk_k=auxk_k, auxk_coefficient=coefficient, multi_topk=multi
    )
    expected, fvu, auxk = autograd(sae, x, dead, auxk_k, coefficient, multi)
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-13)
    assert losses.fvu == pytest.approx(fvu, rel=1e-12)
    assert losses.auxk == pytest.approx(auxk if coefficient else 0.0, rel=1e-12)


@pytest.mark.parametrize("dictionary", ["frozen_decoder", "frozen_encoder"])
@pytest.mark.parametrize("auxk_k", [1, 4])
def test_gradients_of_the_rest_stay_where_a_part_is_frozen(dictionary: str, auxk_k: int) -> None:
    sae, x = random_sae(), randn(TOKENS, D, seed=5)
    settings: dict[str, Any] = {
        "dead": torch.arange(WIDTH) < 12,
        "auxk_k": auxk_k,
        "auxk_coefficient": 1.0,
        "multi_topk": True,
    }
    whole, _ = gradients(sae, x, **settings)
    part, _ = gradients(sae, x, **settings, dictionary=dictionary)
    for name in whole.keys() - {*DICTIONARIES[dictionary].frozen}:
        assert torch.equal(part[name], whole[name])


def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    sae = initialize(
        randn(4096, 32, seed=6, dtype=torch.float32),
        n_latents=1024,
        k=16,
        generator=torch.Generator().manual_seed(0),
    )
    x = randn(4096, 32, seed=7, dtype=torch.float32)
    dead = torch.arange(1024) < 200
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            settings = {"auxk_k": 16, "auxk_coefficient": 1.0, "multi_topk": True}
            found.append(gradients(sae, x, dead=dead, **settings))
    finally:
        torch.set_num_threads(before)
    for name, gradient in found[0][0].items():
        assert torch.equal(gradient, found[1][0][name]), name
    assert (found[0][1].fvu, found[0][1].auxk) == (found[1][1].fvu, found[1][1].auxk)


# Trains on noise in a separate process, and prints how many bytes its memory grew at most. Half of
# the latents are dead from the second step on. A tiny training comes first, so that one-time
# allocations of libraries are not counted.
GROWTH = """
import json, sys
import torch
from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.saes import Sae
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.trainer import Trainer

def bytes_of(key):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

def train(d, n, keys):
    recipe = Sae.of(n_latents=n, **keys)
    w_dec = torch.nn.functional.normalize(torch.randn(n, d), dim=1)
    b_enc = torch.zeros(n)
    b_enc[n // 2 :] = -100.0
    start = Autoencoder("topk", w_dec.clone(), b_enc, w_dec, torch.zeros(d), k=recipe.kept)
    trainer = Trainer(recipe, 10, start, k=recipe.kept)
    x = torch.randn(recipe.batch_tokens, d)
    for _ in range(3):
        trainer.train_step(x)

torch.set_num_threads(1)
common = {"dead_after_tokens": 1, "multi_topk": True}
train(8, 300, {**common, "k": 2, "batch_tokens": 64, "auxk_k": 4})
before = bytes_of("VmRSS")
train(*json.loads(sys.argv[1]))
print(bytes_of("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("d", "n", "keys"),
    [
        (256, 4096, {"k": 32, "batch_tokens": 4096}),
        (32, 4096, {"k": 16, "batch_tokens": 8192, "auxk_coefficient": 0.0, "multi_topk": True}),
    ],
)
def test_a_step_takes_the_memory_that_its_formula_says(
    d: int, n: int, keys: dict[str, Any]
) -> None:
    """All pre-activations or a [tokens, k, d] tensor would take at least 64 MiB more."""
    keys = {"dead_after_tokens": 1, "auxk_k": 64, **keys}
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, json.dumps([d, n, keys])],
        capture_output=True,
        text=True,
        check=True,
        # Return freed memory, because what the allocator keeps depends on the order of requests.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    stated = TopK.step_bytes(Sae.of(n_latents=n, **keys), d_model=d, n_latents=n, k=keys["k"])
    assert 0.75 * stated < int(done.stdout) < 1.1 * stated


def test_auxk_gradient_reaches_the_encoder() -> None:
    """In sparsify 1.3.3 the encoder's gradient of AuxK is exactly 0."""
    sae, x = random_sae(), randn(TOKENS, D, seed=5)
    sae.w_enc[:5] *= 1e-3  # these five never enter the top k
    sae.b_enc[:5] = 0.0
    dead = torch.arange(WIDTH) < 5
    off, _ = gradients(sae, x, dead=dead, auxk_k=3, auxk_coefficient=0.0)
    on, _ = gradients(sae, x, dead=dead, auxk_k=3, auxk_coefficient=1 / 32)
    assert off["encoder.weight"][:5].abs().max() < 1e-12
    assert bool((on["encoder.weight"][:5].norm(dim=1) > 1e-6).all())
    assert bool((on["encoder.bias"][:5].abs() > 1e-9).all())
    assert bool((on["W_dec"][:5].norm(dim=1) > 1e-9).all())
    # AuxK changes only the dead latents.
    for name in ("encoder.weight", "encoder.bias", "W_dec"):
        torch.testing.assert_close(on[name][5:], off[name][5:], rtol=0, atol=0)


def test_fired_leaves_out_latents_whose_value_is_zero() -> None:
    sae, x = random_sae(), randn(TOKENS, D, seed=6)
    sae.b_enc -= 1.5  # some of the top k are now negative
    _, losses = gradients(
        sae, x, dead=torch.zeros(WIDTH, dtype=torch.bool), auxk_k=1, auxk_coefficient=0.0
    )
    values, indices = sae.encode(x)
    assert bool((values == 0).any())
    dense = torch.zeros(TOKENS, WIDTH, dtype=torch.float64).scatter(1, indices, values)
    assert torch.equal(losses.fired, (dense > 0).any(dim=0))
    assert not bool(losses.fired.all())


def test_b_dec_is_subtracted_once_and_added_once() -> None:
    sae = Autoencoder(
        "topk",
        w_enc=torch.tensor([[2.0, 0.0], [0.0, 3.0]]),
        b_enc=torch.tensor([0.5, -0.5]),
        w_dec=torch.tensor([[1.0, 0.0], [0.0, 1.0]]),
        b_dec=torch.tensor([10.0, 20.0]),
        k=1,
    )
    x = torch.tensor([[11.0, 20.0], [10.0, 22.0]])
    values, indices = sae.encode(x)
    # 2 * (11 - 10) + 0.5 and 3 * (22 - 20) - 0.5
    assert values.tolist() == [[2.5], [5.5]]
    assert indices.tolist() == [[0], [1]]
    assert sae.decode(values, indices).tolist() == [[12.5, 20.0], [10.0, 25.5]]


def test_top_k_is_taken_over_all_latents() -> None:
    """SAEDashboard takes the top k of each block of 128 latents."""
    width, k = 1000, 4
    winners = torch.tensor([0, 1, 499, 999])
    w_enc = torch.full((width, 1), 0.5)
    w_enc[winners, 0] = torch.tensor([5.0, 4.0, 3.0, 2.0])
    sae = Autoencoder("topk", w_enc, torch.zeros(width), torch.ones(width, 1), torch.zeros(1), k=k)
    values, indices = sae.encode(torch.ones(1, 1))
    assert indices.sort().values.tolist() == [winners.tolist()]
    assert values.sum() == 14.0


def test_the_geometric_median_of_collinear_points_is_their_median() -> None:
    t = torch.tensor([0.0, 1.0, 2.0, 3.0, 14.5], dtype=torch.float64)
    direction = torch.tensor([0.6, 0.8], dtype=torch.float64)
    point = geometric_median(t[:, None] * direction, iterations=2000)
    torch.testing.assert_close(point, 2.0 * direction, rtol=1e-3, atol=1e-3)


def test_the_geometric_median_is_found_where_the_mean_is_one_of_the_points() -> None:
    """Weiszfeld's step divides by a distance of 0 there."""
    t = torch.tensor([0.0, 1.0, 2.0, 3.0, 9.0])  # mean 3, median 2
    point = geometric_median(t[:, None] * torch.tensor([0.6, 0.8]), iterations=2000)
    assert float(point.norm()) == pytest.approx(2.0, abs=0.01)


def test_the_geometric_median_minimizes_the_sum_of_distances() -> None:
    x = randn(60, 4, seed=8)
    x[:10] += 20.0  # outliers that pull the mean
    point = geometric_median(x).numpy()

    def total(p: Any) -> float:
        return float(np.linalg.norm(x.numpy() - p, axis=1).sum())

    best = scipy.optimize.minimize(total, x.mean(dim=0).numpy(), tol=1e-12)
    assert total(point) <= best.fun * (1 + 1e-7)
    np.testing.assert_allclose(point, best.x, atol=1e-3)


def test_initialization_is_the_best_multiple_of_its_decoder() -> None:
    x = randn(200, D, seed=9, dtype=torch.float32) + 3.0
    sae = initialize(x, n_latents=WIDTH, k=K, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(sae.w_dec.norm(dim=1), torch.ones(WIDTH))
    torch.testing.assert_close(sae.b_dec, geometric_median(x))
    assert not sae.b_enc.any()
    ratio = sae.w_enc / sae.w_dec
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0])), rtol=1e-4, atol=0)

    def error(factor: float) -> float:
        other = Autoencoder("topk", sae.w_enc * factor, sae.b_enc, sae.w_dec, sae.b_dec, K)
        return float((x - other.decode(*other.encode(x))).double().square().sum())

    best = error(1.0)
    assert all(error(factor) > best for factor in (0.9, 0.99, 1.01, 1.1))


def test_initialization_depends_only_on_its_generator_and_sample() -> None:
    x = randn(50, D, seed=9, dtype=torch.float32)
    torch.manual_seed(1)
    first = initialize(x, n_latents=WIDTH, k=K, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(2)
    second = initialize(x, n_latents=WIDTH, k=K, generator=torch.Generator().manual_seed(3))
    other = initialize(x, n_latents=WIDTH, k=K, generator=torch.Generator().manual_seed(4))
    assert torch.equal(first.w_enc, second.w_enc)
    assert not torch.equal(first.w_enc, other.w_enc)
    # The encoder must not share memory with the decoder, because both are trained in place.
    assert first.w_enc.data_ptr() != first.w_dec.data_ptr()
