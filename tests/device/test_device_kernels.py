"""Sparse products and selections on the device, against float64 on the CPU."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from nullsae.config.saes import ARCHITECTURES, Sae
from nullsae.core.randomness import torch_generator
from nullsae.sae import kernels
from nullsae.sae.architectures.batch_topk import batch_top_k
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.kernels import Hits, HitsByLatent

# Tokens, latents, width, hits per token; the first latents fire at many tokens, beyond a window.
SHAPES = [(700, 90, 17, 5), (1500, 600, 512, 8), (64, 300, 1100, 3)]
PAID = ("gated", "standard")


def randn(*shape: int, key: str) -> Tensor:
    return torch.randn(shape, generator=torch_generator(0, "device", key, *shape)).float()


def skewed(n_tokens: int, n_latents: int, k: int) -> tuple[Tensor, Tensor]:
    """Values and latents of k hits per token, latents fire about as 1 / rank."""
    generator = torch_generator(0, "device", "hits", n_tokens)
    frequency = (1.0 / torch.arange(1, n_latents + 1)).expand(n_tokens, -1)
    indices = torch.multinomial(frequency, k, generator=generator)
    return torch.rand(n_tokens, k, generator=generator) + 0.1, indices


@pytest.mark.parametrize(("n_tokens", "n_latents", "d", "k"), SHAPES)
def test_sparse_products_equal_dense_ones_in_float64(
    device: torch.device, n_tokens: int, n_latents: int, d: int, k: int
) -> None:
    values, indices = skewed(n_tokens, n_latents, k)
    rows, dense = randn(n_latents, d, key="rows"), randn(n_tokens, d, key="dense")
    code = torch.zeros(n_tokens, n_latents, dtype=torch.float64)
    code.scatter_(1, indices, values.double())
    hits = Hits.of(values.to(device), indices.to(device))
    by = HitsByLatent(hits, n_latents)
    there_rows, there = rows.to(device), dense.to(device)
    found = {
        "decode": lambda: hits.decode(there_rows),
        "dot_rows": lambda: hits.dot_rows(there, there_rows),
        "row_gradient": lambda: by.row_gradient(hits.values, there),
        "bias_gradient": lambda: by.bias_gradient(hits.values, n_tokens),
    }
    expected = {
        "decode": code @ rows.double(),
        "dot_rows": (dense.double() @ rows.double().T).gather(1, indices).flatten(),
        "row_gradient": code.T @ dense.double(),
        "bias_gradient": code.sum(dim=0),
    }
    assert n_tokens == 64 or int(by.offsets[1]) > 256  # one latent is beyond a window
    for name, run in found.items():
        once, twice = run(), run()
        assert torch.equal(once, twice), f"{name} gives other bits the second time"
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(
            once.cpu().double(), expected[name], rtol=1e-5, atol=2e-6 * scale, msg=name
        )


def clear_cases(n_tokens: int, n_latents: int, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, encoder and bias whose pre-activations are whole numbers: every device has them."""
    generator = torch_generator(0, "device", "whole", n_latents)
    x = torch.randint(-8, 9, (n_tokens, d), generator=generator).float()
    w_enc = torch.randint(-8, 9, (n_latents, d), generator=generator).float()
    # Halves of a latent's own that keep equal products apart.
    bias = torch.rand(n_latents, generator=generator).mul_(2**12).round_().div_(2**13)
    return x, w_enc, bias


@pytest.mark.parametrize(("n_latents", "k"), [(40, 3), (4096, 32), (5000, 200)])
def test_the_latents_chosen_are_the_largest(device: torch.device, n_latents: int, k: int) -> None:
    x, w_enc, b_enc = clear_cases(50, n_latents, 24)
    values, indices = kernels.encode_top_k(*(t.to(device) for t in (x, w_enc, b_enc)), k)
    exact = x.double() @ w_enc.double().T + b_enc.double()
    expected = exact.topk(k, dim=1).values
    assert torch.equal(values.cpu().double().sort(dim=1, descending=True).values, expected.relu())
    own = exact.gather(1, indices.cpu()).relu()
    assert torch.equal(own, values.cpu().double())
    assert all(len(set(row)) == k for row in indices.tolist())


def test_the_hits_of_a_batch_are_the_largest_of_all(device: torch.device) -> None:
    x, w_enc, b_enc = clear_cases(50, 700, 24)
    hits = batch_top_k(*(t.to(device) for t in (x, w_enc, b_enc)), 400)
    exact = (x.double() @ w_enc.double().T + b_enc.double()).flatten()
    largest = exact.topk(400)
    assert torch.equal(hits.values.cpu().double().sort(descending=True).values, largest.values)
    places = (hits.tokens * 700 + hits.latents).cpu()
    assert torch.equal(exact[places], hits.values.cpu().double())


def trained(name: str, dtype: torch.dtype, device: torch.device) -> tuple[Any, Tensor, Tensor]:
    """An SAE in training, a batch, and which of its latents are dead."""
    n_latents, d, k = 60, 20, 4
    rows = torch.nn.functional.normalize(randn(n_latents, d, key="sae"), dim=1)
    start = (rows.clone(), randn(n_latents, key="bias") * 0.1, rows, randn(d, key="b_dec") * 0.3)
    weights = [t.to(device, dtype) for t in start]
    own = {"n_latents": n_latents} | ({} if name in PAID else {"k": k})
    recipe = Sae.of(architecture=name, **own)
    model = recipe.training()(recipe, k, Autoencoder("topk", *weights, k=k))
    dead = (torch.arange(n_latents) % 4 == 0).to(device)
    return model, (randn(300, d, key="x") + 0.5).to(device, dtype), dead


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_equal_those_in_float64_on_the_cpu(device: torch.device, name: str) -> None:
    model, x, dead = trained(name, torch.float32, device)
    found, losses = model.gradients(x, dead)
    exact_model, exact_x, exact_dead = trained(name, torch.float64, torch.device("cpu"))
    expected, exact = exact_model.gradients(exact_x, exact_dead)
    assert set(found) == set(expected)
    for key, gradient in expected.items():
        scale = float(gradient.abs().max())
        assert scale > 0, key
        close = (found[key].cpu().double() - gradient).abs() <= 1e-4 * scale
        # A kernel of finite width, or a tie of single precision, may see a token otherwise.
        assert float(close.double().mean()) > 0.99, key
    assert losses.fvu == pytest.approx(exact.fvu, rel=1e-4)
    assert losses.auxk == pytest.approx(exact.auxk, rel=1e-3)


def test_products_run_on_a_device_that_is_not_the_current_one(last_device: str) -> None:
    """In a thread of its own, too, whose current device is the first."""
    values, indices = skewed(40, 30, 4)
    rows, dense = randn(30, 16, key="rows"), randn(40, 16, key="dense")
    expected = Hits.of(values, indices).decode(rows)
    found: list[Tensor] = []

    def work() -> None:
        on = [t.to(last_device) for t in (values, indices, rows, dense)]
        hits = Hits.of(on[0], on[1])
        hits.dot_rows(on[3], on[2])
        HitsByLatent(hits, 30).row_gradient(hits.values, on[3])
        found.append(hits.decode(on[2]))

    for run in (work, lambda: _in_thread(work)):
        run()
    assert len(found) == 2
    for each in found:
        assert str(each.device) == last_device
        torch.testing.assert_close(each.cpu(), expected, rtol=1e-5, atol=1e-5)


def _in_thread(work: Any) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
