from __future__ import annotations

from typing import Any

import pytest
import torch
from family_models import D_MODEL, VOCAB, family_model
from torch import Tensor

from nullsae.core.randomness import torch_generator
from nullsae.subjects.interventions import CUT_TOKENS, Interventions
from nullsae.subjects.loading import Subject
from small_chain import CPU

SITES = (
    *("resid_pre.0", "resid_pre.1", "attn_out.1", "mlp_out.1", "resid_post.0", "resid_post.2"),
    *("hook_z.1", "mlp_in.1", "mlp_post.1"),
)
TOKENS = 2 * CUT_TOKENS
# Where each family keeps its blocks and the parts that add to the residual stream.
TREES = {
    "gpt_neox": ("gpt_neox.layers", "attention", "mlp"),
    "gpt2": ("transformer.h", "attn", "mlp"),
    "llama": ("model.layers", "self_attn", "mlp"),
    "qwen3": ("model.layers", "self_attn", "mlp"),
}
LAST_MATRICES = {
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
}


def drawn(*shape: int, name: str) -> Tensor:
    return torch.randn(shape, generator=torch_generator(0, "test_interventions", name))


def subject_of(family: str) -> Subject:
    return Subject(family_model(family), {"vocab_size": VOCAB}, CPU)


def tokens(n: int) -> Tensor:
    generator = torch_generator(0, "test_interventions")
    return torch.randint(2, VOCAB, (n, TOKENS), generator=generator)


def by_hooks(model: Any, family: str, site: str, row: Tensor, at: int, added: Tensor) -> Tensor:
    """Return logits [vocab] at a token, from a whole pass with the test's own hooks."""
    path, attention, mlp = TREES[family]
    kind, _, layer = site.partition(".")
    block = model.get_submodule(path)[int(layer)]

    def into(_module: Any, args: Any, kwargs: Any) -> Any:
        x = args[0].clone()
        x[0, at] += added
        return (x, *args[1:]), kwargs

    def out_of(_module: Any, _args: Any, output: Any) -> Any:
        whole = isinstance(output, Tensor)
        x = (output if whole else output[0]).clone()
        x[0, at] += added
        return x if whole else (x, *output[1:])

    z, post = LAST_MATRICES.get(family, ("self_attn.o_proj", "mlp.down_proj"))
    read = {"resid_pre": "", "hook_z": z, "mlp_in": mlp, "mlp_post": post}
    if kind in read:
        handle = block.get_submodule(read[kind]).register_forward_pre_hook(into, with_kwargs=True)
    else:
        parts = {"attn_out": attention, "mlp_out": mlp, "resid_post": ""}
        handle = block.get_submodule(parts[kind]).register_forward_hook(out_of)
    with torch.no_grad():
        logits: Tensor = model(input_ids=row[None]).logits
    handle.remove()
    return logits[0, at]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", sorted(TREES))
def test_logits_are_those_of_whole_passes_with_other_hooks(family: str, site: str) -> None:
    subject = subject_of(family)
    interventions = Interventions(subject, site)
    assert interventions.from_site
    ids, contexts = tokens(3), [4, 7, 9]
    states = interventions.states(ids, contexts)
    # The same context twice, and all of them cut after the last change.
    rows, at = torch.tensor([0, 1, 1, 2]), torch.tensor([3, 0, 15, 9])
    added = drawn(4, subject.width(site), name="added")
    found = interventions.logits(
        *(ids[rows, :CUT_TOKENS], [contexts[row] for row in rows.tolist()]),
        *(None if states is None else states[rows, :CUT_TOKENS], at, added),
    )
    assert found.shape == (4, VOCAB)
    for logits, row, token, change in zip(found, rows, at.tolist(), added, strict=True):
        wanted = by_hooks(subject.model, family, site, ids[row], token, change)
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)
        plain = by_hooks(subject.model, family, site, ids[row], token, change * 0)
        assert (plain - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("family", ["bloom", "falcon", "gemma3", "gptj", "mistral", "mpt", "opt"])
def test_other_families_give_the_same_from_the_site_as_by_whole_passes(family: str) -> None:
    subject = subject_of(family)
    ids, at, added = tokens(2), torch.tensor([5, 14]), drawn(2, D_MODEL, name="added")
    for site in ("resid_post.1", "resid_pre.2"):
        interventions = Interventions(subject, site)
        assert interventions.from_site

        def change(x: Tensor) -> Tensor:
            x = x.clone()
            x[[0, 1], at] += added
            return x

        whole = subject.logits(ids, split="eval", contexts=[0, 1], site=site, replace=change)
        states = interventions.states(ids, [0, 1])
        assert states is not None
        found = interventions.logits(ids[:, :CUT_TOKENS], [0, 1], states[:, :CUT_TOKENS], at, added)
        torch.testing.assert_close(found, whole[[0, 1], at], rtol=1e-4, atol=1e-5)


def test_a_model_that_needs_its_first_blocks_runs_whole_passes() -> None:
    subject = subject_of("llama")
    layers, kept = subject.model.model.layers, []
    subject.model.register_forward_pre_hook(lambda _m, _args: kept.clear())
    layers[0].mlp.register_forward_hook(lambda _m, _a, output: kept.append(output))
    # The last block takes what the first left for it.
    layers[2].mlp.register_forward_hook(lambda _m, _a, output: output + kept.pop())
    interventions = Interventions(subject, "resid_post.1")
    assert not interventions.from_site
    ids, at = tokens(2), torch.tensor([5, 14])
    assert interventions.states(ids, [0, 1]) is None
    added = drawn(2, D_MODEL, name="added")
    found = interventions.logits(ids[:, :CUT_TOKENS], [0, 1], None, at, added)
    for logits, row, token, change in zip(found, ids, at.tolist(), added, strict=True):
        wanted = by_hooks(subject.model, "llama", "resid_post.1", row, token, change)
        torch.testing.assert_close(logits, wanted, rtol=1e-4, atol=1e-5)


def test_a_model_is_left_as_it_was() -> None:
    subject = subject_of("gpt_neox")
    ids = tokens(2)
    before = subject.logits(ids, split="eval", contexts=[0, 1])
    interventions = Interventions(subject, "resid_post.1")
    states = interventions.states(ids, [0, 1])
    interventions.logits(ids, [0, 1], states, torch.tensor([1, 2]), drawn(2, D_MODEL, name="added"))
    assert torch.equal(subject.logits(ids, split="eval", contexts=[0, 1]), before)
    for module in subject.model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
