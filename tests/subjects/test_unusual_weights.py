"""Weights that not every model has: fixed initial values, stored buffers, and shared blocks."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
import transformers
from family_models import GROUPED, SHAPE, random_model
from torch import Tensor

import nullsae
from nullsae.core.errors import UserError
from small_chain import tiny_model

MAMBA = {"state_size": 4, "vocab_size": 96, "hidden_size": 16, "num_hidden_layers": 2}
BALANCE = "mlp.gate.e_score_correction_bias"


def of_mamba() -> Any:
    """Return a Mamba near its initial values, as training leaves `A_log`."""
    model = random_model(transformers.MambaConfig(**MAMBA), "mamba")
    for block in model.backbone.layers:
        block.mixer.A_log += torch.arange(1.0, 5.0).log() - 0.9 * block.mixer.A_log
    return model


def of_experts() -> Any:
    """Return a DeepSeek-V3 whose first block is dense, and whose routers have been balanced."""
    config = transformers.DeepseekV3Config(
        **{**SHAPE, **GROUPED, "num_key_value_heads": 2, "head_dim": 4},
        **{
            "moe_intermediate_size": 8,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 1,
            "topk_group": 1,
        },
        **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4},
        **{"v_head_dim": 8, "first_k_dense_replace": 1},
    )
    model = random_model(config, "experts")
    for name, buffer in model.named_buffers():
        if name.endswith(BALANCE):
            buffer.copy_(torch.tensor([0.4, -0.1, 0.2, -0.3]))
    return model


def balances(model: Any) -> list[Tensor]:
    return [buffer for name, buffer in model.named_buffers() if name.endswith(BALANCE)]


def test_initial_values_without_chance_are_those_of_every_draw() -> None:
    trained = of_mamba()
    a, b = (nullsae.randomize(trained, "fresh_init", draw) for draw in (0, 1))
    for one, other, old in zip(*(m.backbone.layers for m in (a, b, trained)), strict=True):
        assert torch.equal(one.mixer.A_log, torch.arange(1.0, 5.0).log().expand(32, 4))
        assert torch.equal(one.mixer.A_log, other.mixer.A_log)
        assert not torch.equal(one.mixer.A_log, old.mixer.A_log)
        assert not torch.equal(one.mixer.in_proj.weight, other.mixer.in_proj.weight)


def test_initial_weights_come_with_the_initial_buffers() -> None:
    trained = of_experts()
    assert len(balances(trained)) == 2
    fresh = nullsae.randomize(trained, "fresh_init")
    assert not any(x.any() for x in balances(fresh))
    assert all(x.any() for x in balances(trained))


def test_buffers_that_stay_as_trained_are_named(caplog: pytest.LogCaptureFixture) -> None:
    trained = of_experts()
    with caplog.at_level(logging.WARNING):
        null = nullsae.randomize(trained, "rerandomized")
    assert all(torch.equal(*pair) for pair in zip(*map(balances, (trained, null)), strict=True))
    assert [record.getMessage() for record in caplog.records] == [
        f"warning: rerandomized: model.layers.1.{BALANCE} stays as trained (2 buffers next to "
        f"changed weights; only parameters are changed)"
    ]
    caplog.clear()
    for variant in ("fresh_init", "permuted_embeddings"):
        nullsae.randomize(trained, variant)
    nullsae.randomize(tiny_model("gpt2"), "rerandomized")
    assert caplog.records == []


def test_blocks_that_share_weights_are_not_both_kept_and_redrawn() -> None:
    """Zamba runs one attention in many blocks."""
    model = tiny_model("llama")
    model.model.layers[2].mlp = model.model.layers[0].mlp
    with pytest.raises(UserError, match=r"first_random_block: 1: .*0\.mlp\.gate_proj\.weight"):
        nullsae.randomize(model, "cascade")
    below = nullsae.randomize(model, "cascade", first_random_block=0)
    assert below.model.layers[2].mlp is below.model.layers[0].mlp  # type: ignore[attr-defined]
