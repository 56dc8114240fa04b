from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPTNeoXModel

import nullsae
from nullsae.config.randomization import Settings
from nullsae.subjects.loading import load_subject
from nullsae.subjects.publish import randomize_model
from small_chain import CPU, Chain, model_params, tiny_model


def bits(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("variant", "settings"),
    [
        ("rerandomized", {"norm_parameters": "keep"}),
        ("spectrum_matched", {}),
        ("cascade", {"first_random_block": 2}),
        ("fresh_init", {}),
        ("rotated_embeddings", {}),
    ],
)
def test_weights_equal_those_of_a_study_with_this_seed_and_subject(
    variant: str, settings: dict[str, Any], chain: Chain, tmp_path: Path
) -> None:
    params = model_params(None, variant, draw=3)
    reads = {"norm_parameters": "rerandomize"} if variant != "rotated_embeddings" else {}
    reads = {} if variant == "fresh_init" else reads
    params = params.model_copy(update={**reads, **settings})
    randomize_model(
        params, trained=chain.recipe, eval_tokens=chain.eval_tokens, output=tmp_path / "made"
    )
    made = load_subject(tmp_path / "made/recipe.json", CPU).model
    trained = load_subject(chain.recipe, CPU).model
    draw: Any = np.int64(3)
    null = nullsae.randomize(trained, variant, draw=draw, seed=0, subject="tiny", **settings)
    assert same(bits(null), bits(made))
    assert not same(bits(null), bits(trained))
    assert Settings(**settings)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_given_model_does_not_change(kind: str) -> None:
    model = tiny_model(kind).train()
    before, state = bits(model), torch.random.get_rng_state()
    null = nullsae.randomize(model, "permuted_weights", 1)
    assert same(bits(model), before)
    assert model.training
    assert not null.training
    assert torch.equal(torch.random.get_rng_state(), state)
    assert type(null) is type(model)
    assert not any(p is q for p, q in zip(model.parameters(), null.parameters(), strict=True))


def test_draws_and_seeds_differ_and_repeat() -> None:
    model = tiny_model("gpt_neox")
    keys = [(0, 0), (1, 0), (0, 1), (0, 0)]
    nulls = [bits(nullsae.randomize(model, "rerandomized", d, seed=s)) for d, s in keys]
    assert same(nulls[0], nulls[3])
    assert not same(nulls[0], nulls[1])
    assert not same(nulls[0], nulls[2])


def test_moments_equal_the_originals_by_numpy() -> None:
    model = tiny_model("gpt_neox")
    null = nullsae.randomize(model, "rerandomized")
    name = "gpt_neox.layers.1.mlp.dense_h_to_4h.weight"
    old, new = (dict(m.named_parameters())[name].numpy() for m in (model, null))
    assert abs(new.mean() - old.mean()) < 6 * old.std() / np.sqrt(old.size)
    assert abs(new.std() / old.std() - 1) < 6 / np.sqrt(2 * old.size)
    assert abs(np.corrcoef(old.ravel(), new.ravel())[0, 1]) < 6 / np.sqrt(old.size)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_model_without_a_head_and_another_dtype_is_randomized_too(dtype: torch.dtype) -> None:
    base = GPTNeoXModel(tiny_model("gpt_neox").config).to(dtype)
    null = nullsae.randomize(base, "rerandomized")
    assert {p.dtype for p in null.parameters()} == {dtype}
    assert torch.isfinite(null(torch.arange(8)[None]).last_hidden_state).all()


@pytest.mark.parametrize(
    ("variant", "settings", "said"),
    [
        ("noise_embeddings", {}, "randomize: variant 'noise_embeddings' is not one of those made"),
        ("gaussian", {}, "randomize: variant 'gaussian' is not one of those made"),
        ("trained", {}, "randomize: variant 'trained' is not one of those made"),
        ("rerandomised", {}, "randomize: variant 'rerandomised' is not one of those made"),
        ("rerandomized", {"first_random_block": 1}, "rerandomized reads norm_parameters"),
        ("cascade", {"first_random_block": 9}, "first_random_block: 9 is beyond the last block"),
        ("rerandomized", {"norm_parameters": "drop"}, "randomize: norm_parameters: 'drop'"),
        ("rerandomized", {"draw": 1.5}, "randomize: draw: 1.5 is not a whole number of at least 0"),
        ("rerandomized", {"seed": -1}, "randomize: seed: -1 is not a whole number of at least 0"),
    ],
)
def test_a_mistake_is_one_line(variant: str, settings: Any, said: str) -> None:
    with pytest.raises(nullsae.UserError, match=said) as caught:
        nullsae.randomize(tiny_model("gpt_neox"), variant, **settings)
    assert "\n" not in str(caught.value)


def test_other_kinds_of_models_are_refused() -> None:
    with pytest.raises(nullsae.UserError, match=r"Linear is not a transformers\.PreTrainedModel"):
        nullsae.randomize(torch.nn.Linear(2, 2), "rerandomized")
    with pytest.raises(nullsae.UserError, match="is not in memory"):
        nullsae.randomize(tiny_model("gpt2").to("meta"), "rerandomized")


def test_a_null_that_fails_a_gate_is_not_returned() -> None:
    model = tiny_model("gpt_neox")
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    with pytest.raises(nullsae.UserError, match="gate 'changed' failed: no tensor differs"):
        nullsae.randomize(model, "rerandomized")
