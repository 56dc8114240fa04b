"""What a recipe does if its keys are not given: the defaults, and the paper's settings."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.config.saes import Sae
from nullsae.core.randomness import torch_generator
from nullsae.sae.initialization import initialize
from nullsae.sae.trainer import Trainer, evaluate, learning_rate, schedule

D, N_PLANTED, K, BATCH = 32, 512, 6, 512


@cache
def planted(n: int, split: str) -> Tensor:
    """Return sums of K directions with Zipf frequencies, of mean norm sqrt(D): [n, D]."""
    g = torch_generator(0, "defaults_directions")
    directions = F.normalize(torch.randn(N_PLANTED, D, generator=g), dim=1)
    frequencies = 1.0 / (torch.arange(N_PLANTED) + 10.0)
    g = torch_generator(0, "defaults_tokens", split)
    chosen = torch.multinomial(frequencies, n * K, replacement=True, generator=g).view(n, K)
    weights = torch.rand(n, K, generator=g) + 0.5
    x = F.embedding_bag(chosen, directions, per_sample_weights=weights, mode="sum")
    return x * (D**0.5 / x.norm(dim=1).mean())


def trainer_on(x: Tensor, n_steps: int, **keys: Any) -> Trainer:
    sae = Sae.model_validate({"k": K, "n_latents": 256, "batch_tokens": BATCH, **keys})
    start = initialize(x, n_latents=256, k=K, generator=torch_generator(0, "defaults_start"))
    return Trainer(sae, n_steps, start, k=K)


def quality(**keys: Any) -> tuple[float, float]:
    """Return (FVU, dead share) on held-out tokens after 100 steps."""
    x = planted(100 * BATCH, "train")
    trainer = trainer_on(x, 100, **keys)
    for step in range(100):
        trainer.train_step(x[step * BATCH :][:BATCH])
    found = evaluate(trainer.sae, planted(8192, "heldout"))
    return 1.0 - found["heldout_explained_variance"], 1.0 - found["heldout_alive_share"]


def test_defaults_reconstruct_better_than_without_one_of_the_choices() -> None:
    fvu, dead = quality()
    assert dead <= 0.02
    for taken_back in ({"base_lr": 2e-4}, {"adam_betas": (0.9, 0.999)}, {"decay_share": 0.0}):
        assert fvu < quality(**taken_back)[0] - 0.004, taken_back


def test_dead_after_tokens_follows_the_length_of_the_training() -> None:
    x = planted(BATCH, "train")
    assert trainer_on(x, 1000).dead_after_tokens == 1000 * BATCH // 100
    assert trainer_on(x, 10**7).dead_after_tokens == 10_000_000
    assert trainer_on(x, 1).dead_after_tokens == 100 * 256 // K
    assert trainer_on(x, 1000, dead_after_tokens=7).dead_after_tokens == 7


def test_adam_forgets_at_the_pace_that_the_recipe_says() -> None:
    x = planted(BATCH, "train")
    trainer = trainer_on(x, 10, adam_betas=(0.25, 0.75), grad_clip_norm=1e9)
    gradient = trainer.model.gradients(x, None)[0]["b_dec"].clone()
    trainer.train_step(x)
    state = trainer.optimizer.state["b_dec"]
    torch.testing.assert_close(state["exp_avg"], 0.75 * gradient)
    torch.testing.assert_close(state["exp_avg_sq"], 0.25 * gradient**2)


def test_the_papers_settings_are_those_of_heap_et_al() -> None:
    paper = Sae.model_validate({"recipe": "paper"})
    assert (paper.architecture, paper.k, paper.expansion_factor) == ("topk", 32, 64)
    assert (paper.adam_betas, paper.grad_clip_norm) == ((0.9, 0.999), 1.0)
    assert (paper.auxk_coefficient, paper.multi_topk) == (0.0, False)
    assert (paper.batch_tokens, paper.dead_after_tokens) == (65_536, 10_000_000)
    assert learning_rate(paper, 2**15) == pytest.approx(2e-4 / 2**0.5)
    # 100 million tokens, with the schedule of transformers' get_linear_schedule_with_warmup, which
    # starts one step earlier, at 0.
    n_steps = 1526
    for step in (0, 1, 500, 999):
        assert schedule(step, n_steps, paper) == pytest.approx((step + 1) / 1000)
    for step in (1001, 1200, 1525):
        assert schedule(step, n_steps, paper) == pytest.approx((n_steps - step) / (n_steps - 1000))
    # A run that ends within the warm-up.
    assert schedule(99, 100, paper) == pytest.approx(0.1)


def test_what_is_given_beside_a_recipe_replaces_its_settings() -> None:
    given = {"recipe": "paper", "base_lr": 1e-3, "n_latents": 64, "k": 4}
    sae = Sae.model_validate(given)
    assert (sae.base_lr, sae.n_latents, sae.expansion_factor, sae.k) == (1e-3, 64, None, 4)
    assert sae.warmup_steps == 1000
