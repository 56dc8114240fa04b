from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nullsae.subjects import gates
from nullsae.subjects.randomize import (
    embedding_parameters,
    norm_parameters,
    parameters_to_redraw,
    redraw,
    rerandomize,
)
from small_chain import tiny_model

KINDS = [("gpt_neox", False), ("gpt2", True), ("llama", False), ("llama", True)]
EMBEDDINGS = {
    ("gpt_neox", False): {"gpt_neox.embed_in.weight", "lm_head.weight"},
    ("gpt2", True): {"transformer.wte.weight"},
    ("llama", False): {"model.embed_tokens.weight", "lm_head.weight"},
    ("llama", True): {"model.embed_tokens.weight"},
}


def model_of(kind: str, tied: bool) -> Any:
    return tiny_model(kind, tie_word_embeddings=tied)


def redrawn(tensor: Tensor, **keys: Any) -> Tensor:
    plain: dict[str, Any] = {"name": "w", "seed": 0, "subject": "tiny", "draw": 0}
    return redraw(tensor, **{**plain, **keys})


def changed_names(model: Any, change: Callable[[], object]) -> set[str]:
    before = gates.state(model)
    change()
    after = gates.state(model)
    return {name for name in before if not torch.equal(before[name], after[name])}


@given(mean=st.floats(-5, 5), std=st.floats(0.01, 10), draw=st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_moments_leave_six_standard_errors(mean: float, std: float, draw: int) -> None:
    original = torch.rand(64, 64, generator=torch.Generator().manual_seed(draw)) * std + mean
    new = redrawn(original, draw=draw).double()
    n, variance = original.numel(), float(original.double().var(correction=0))
    assert abs(float(new.mean() - original.double().mean())) < 6 * math.sqrt(variance / n)
    assert abs(float(new.var()) - variance) < 6 * variance * math.sqrt(2 / n)


def test_entries_are_a_permutation_of_the_original_instead_of_new_normals() -> None:
    """`permuted_weights` keeps the multiset; `rerandomized` must not (the paper, section 3)."""
    original = torch.rand(100, 100, generator=torch.Generator().manual_seed(0)) ** 4
    new = redrawn(original)
    assert not torch.equal(new.flatten().sort().values, original.flatten().sort().values)
    z = (new.double() - new.double().mean()) / new.double().std()
    # A normal has skewness 0 and kurtosis 3 (standard errors sqrt(6/n), sqrt(24/n)).
    assert abs(float((z**3).mean())) < 6 * math.sqrt(6 / z.numel())
    assert abs(float((z**4).mean()) - 3) < 6 * math.sqrt(24 / z.numel())
    correlation = torch.corrcoef(torch.stack([new.flatten(), original.flatten()]))[0, 1]
    assert abs(float(correlation)) < 6 / math.sqrt(z.numel())


def test_the_key_of_a_draw_misses_a_part_or_holds_too_much() -> None:
    original = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    first = redrawn(original)
    torch.manual_seed(2)
    assert torch.equal(redrawn(original), first)
    for other in ({"name": "v"}, {"seed": 1}, {"subject": "other"}, {"draw": 1}):
        assert not torch.equal(redrawn(original, **other), first), other


@pytest.mark.parametrize("constant", [0.0, 1.0, 0.1])
def test_a_constant_tensor_gets_noise(constant: float) -> None:
    original = torch.full((7, 13), constant)
    assert torch.equal(redrawn(original), original)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_draw_depends_on_the_precision_beyond_rounding(dtype: torch.dtype) -> None:
    original = torch.randn(50, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    new = redrawn(original)
    assert new.dtype == dtype
    assert torch.equal(new, redrawn(original.float()).to(dtype))


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_a_tensor_keeps_its_weights_or_a_tie_is_broken(kind: str, tied: bool) -> None:
    model = model_of(kind, tied)
    names = {name for name, _ in model.named_parameters()}
    drawn: set[str] = set()

    def change() -> None:
        drawn.update(rerandomize(model, "rerandomized", None, seed=0, subject="tiny", draw=0))

    assert changed_names(model, change) == names == drawn
    inner, outer = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (inner is outer) == tied
    # A second draw into the tied tensor under another name would show here.
    name = next(n for n, p in model.named_parameters() if p is inner)
    original = dict(model_of(kind, tied).named_parameters())[name]
    expected = redraw(original, name, seed=0, subject="tiny", draw=0)
    assert torch.equal(inner, expected)


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_keep_embeddings_keeps_other_tensors_or_redraws_an_embedding(kind: str, tied: bool) -> None:
    model = model_of(kind, tied)
    names = {name for name, _ in model.named_parameters()}
    assert embedding_parameters(model) == EMBEDDINGS[kind, tied]
    changed = changed_names(
        model,
        lambda: rerandomize(
            model, "rerandomized_keep_embeddings", "rerandomize", seed=0, subject="tiny", draw=0
        ),
    )
    assert names - changed == EMBEDDINGS[kind, tied]


@pytest.mark.parametrize(("kind", "tied"), KINDS)
def test_the_norm_policy_misses_a_norm_or_takes_more(kind: str, tied: bool) -> None:
    model = model_of(kind, tied)
    by_hand = {
        name
        for name, _ in model.named_parameters()
        if any(part.startswith("ln_") or "norm" in part for part in name.split("."))
    }
    per_norm = 1 if kind == "llama" else 2
    assert len(by_hand) == per_norm * (2 * 3 + 1)  # two per block and the final one
    assert norm_parameters(model) == by_hand
    changed = changed_names(
        model, lambda: rerandomize(model, "rerandomized", "keep", seed=0, subject="t", draw=0)
    )
    assert {name for name, _ in model.named_parameters()} - changed == by_hand
    kept = parameters_to_redraw(model, "rerandomized_keep_embeddings", "keep")
    assert kept == changed - EMBEDDINGS[kind, tied]


def test_a_draw_depends_on_the_order_of_the_parameters() -> None:
    class Pair(nn.Module):
        def __init__(self, names: tuple[str, str]) -> None:
            super().__init__()
            for name in names:
                values = torch.randn(9, generator=torch.Generator().manual_seed(len(name)))
                self.register_parameter(name, nn.Parameter(values))

    found = []
    for names in (("a", "bb"), ("bb", "a")):
        model = Pair(names)
        rerandomize(model, "rerandomized", None, seed=0, subject="tiny", draw=0)
        found.append(gates.state(model))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
