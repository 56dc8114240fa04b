"""A training step asks a GPU for nothing that it would have to wait for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nullsae.config.saes import Sae
from nullsae.core.randomness import torch_generator
from nullsae.sae.initialization import initialize
from nullsae.sae.kernels import starts_of
from nullsae.sae.trainer import Trainer

D, N_LATENTS, K, BATCH = 12, 64, 4, 96


class Waits(TorchDispatchMode):
    """Operations whose result a host must know: a number, or a size that depends on numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = str(func), kwargs or {}
        unsized = "repeat_interleave.Tensor" in name and kwargs.get("output_size") is None
        if unsized or any(
            word in name for word in ("_local_scalar_dense", "nonzero", "masked_sel")
        ):
            self.found[name] += 1
        return func(*args, **kwargs)


def trainer(**keys: Any) -> Trainer:
    recipe = Sae.of(n_latents=N_LATENTS, k=K, batch_tokens=BATCH, **keys)
    generator = torch_generator(0, "waits", "start")
    sample = torch.randn(256, D, generator=generator)
    start = initialize(sample, n_latents=N_LATENTS, k=K, generator=generator)
    return Trainer(recipe, 100, start, k=K)


def batch(step: int) -> Tensor:
    return torch.randn(BATCH, D, generator=torch_generator(0, "waits", "batch", step))


def test_a_step_without_dead_latents_waits_for_nothing() -> None:
    made = trainer(dead_after_tokens=10**6)
    made.train_step(batch(0))  # which checks when a latent may be dead at the earliest
    with Waits() as waits:
        losses = [made.train_step(batch(step)) for step in range(1, 9)]
    assert not waits.found
    with Waits() as waits:
        assert all(0 < loss.fvu < 2 for loss in losses)
    assert waits.found == {"aten._local_scalar_dense.default": 8}


def test_dead_latents_are_known_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every step, although the counts are read in only a few."""
    made, looks = trainer(dead_after_tokens=9 * BATCH), list[Tensor | None]()
    gradients = made.model.gradients

    def spied(x: Tensor, dead: Tensor | None) -> Any:
        looks.append(dead)
        expected = made.unfired_tokens >= 9 * BATCH
        if dead is None:
            assert not expected.any()
        else:
            assert torch.equal(dead, expected)
        return gradients(x, dead)

    monkeypatch.setattr(made.model, "gradients", spied)
    # With tokens of few directions, most latents stay silent.
    for step in range(60):
        x = batch(step)
        made.train_step(x if step < 12 else x[:, :1] * torch.ones(D) + 0.01 * x)
    assert looks[0] is None
    assert sum(dead is not None for dead in looks) > 5


@pytest.mark.parametrize("n_hits", [0, 1, 200])
def test_starts_of_sorted_latents_are_sums_of_counts(n_hits: int) -> None:
    generator = torch_generator(0, "waits", "latents")
    ordered = torch.randint(3, 40, (n_hits,), generator=generator).sort().values
    counts = torch.bincount(ordered, minlength=50)
    assert torch.equal(starts_of(ordered, 50), counts.cumsum(0) - counts)
