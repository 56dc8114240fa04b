from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import (
    D_MODEL,
    ENDS,
    FAMILIES,
    FURTHER,
    N_LAYERS,
    SHAPE,
    VOCAB,
    family_model,
    random_model,
)
from torch import Tensor, nn
from transformers import Gemma3Config, PretrainedConfig

from nullsae.config.sites import KINDS
from nullsae.config.subjects import PretrainedSource
from nullsae.subjects.families import find_blocks, find_site
from nullsae.subjects.folders import save_subject
from nullsae.subjects.loading import Subject, fetch, load_subject
from nullsae.subjects.site_gates import verify_sites
from refusing import refused
from small_chain import CPU

LAST = N_LAYERS - 1
IDS = (torch.arange(24) * 7 % VOCAB).reshape(2, 12)
WHERE = {"split": "eval", "contexts": [0, 1]}
SITES = ("embed", *(f"{kind}.{layer}" for kind in KINDS for layer in range(N_LAYERS)))
# Families whose attention and MLP read the same, so that nothing is between them.
PARALLEL = ("gpt_neox", "gptj", "falcon")
TERMS = ("resid_pre", "attn_out", "mlp_out", "resid_post")
# The path of the blocks, the norm after the last, and the attention in a block.
PLACES = {
    "gpt_neox": ("gpt_neox.layers", "gpt_neox.final_layer_norm", "attention"),
    "gpt2": ("transformer.h", "transformer.ln_f", "attn"),
    "opt": ("model.decoder.layers", "model.decoder.final_layer_norm", "self_attn"),
    "llama": ("model.layers", "model.norm", "self_attn"),
}


@dataclass
class Family:
    """One family: the subject from disk, what Hugging Face returns, and the blocks by hand."""

    name: str
    subject: Subject
    found: dict[str, Tensor]
    hidden: tuple[Tensor, ...]
    logits: Tensor
    called_with: list[dict[str, Any]]
    """For each block, what Hugging Face passes to its attention besides the hidden states."""

    @property
    def kind(self) -> str:
        return next((kind for kind in PLACES if self.name.startswith(kind)), "llama")

    def block(self, layer: int) -> Any:
        return self.subject.model.get_submodule(PLACES[self.kind][0])[layer]

    def attention(self, layer: int, x: Tensor) -> Tensor:
        """Return what the attention of a block adds to the residual stream [batch, tokens, d]."""
        block = self.block(layer)
        norm = {"gpt2": "ln_1", "opt": "self_attn_layer_norm"}.get(self.kind, "input_layernorm")
        attend = getattr(block, PLACES[self.kind][2])
        attended = attend(getattr(block, norm)(x), **self.called_with[layer])[0]
        return block.post_attention_layernorm(attended) if self.name == "gemma3" else attended

    def mlp(self, layer: int, x: Tensor, attention: Tensor) -> Tensor:
        """Return what the MLP of a block adds, given what the attention has added."""
        block, middle = self.block(layer), x + attention
        if self.kind == "gpt2":
            return block.mlp(block.ln_2(middle))
        if self.kind == "opt":
            return block.fc2(torch.relu(block.fc1(block.final_layer_norm(middle))))
        if self.name == "gpt_neox":  # its residual is parallel
            return block.mlp(block.post_attention_layernorm(x))
        if self.name == "gemma3":
            inner = block.mlp(block.pre_feedforward_layernorm(middle))
            return block.post_feedforward_layernorm(inner)
        return block.mlp(block.post_attention_layernorm(middle))

    def head(self, x: Tensor) -> Tensor:
        """Return logits from the output of the last block."""
        model = self.subject.model
        x = model.get_submodule(PLACES[self.kind][1])(x)
        if self.name == "opt_projected":
            x = model.model.decoder.project_out(x)
        return model.get_output_embeddings()(x)


def sites_of(name: str) -> tuple[str, ...]:
    """Return the sites that a family has."""
    return tuple(s for s in SITES if name not in PARALLEL or not s.startswith("resid_mid"))


def through_disk(name: str, folder: Path, **keys: Any) -> Subject:
    """Return a subject as a study gets it: fetched, saved, loaded."""
    family_model(name).save_pretrained(folder / "source")
    source = PretrainedSource(kind="pretrained", path=str(folder / "source"), **keys)
    recipe = {"seed": 0, "draw": 0, "variant": "trained", "source": source.model_dump(mode="json")}
    save_subject(fetch(source), folder / "saved", recipe)
    return load_subject(folder / "saved/recipe.json", CPU)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    name = request.param
    subject = through_disk(name, tmp_path_factory.mktemp(name))
    made = Family(name, subject, {}, (), torch.empty(0), [])

    def record(_module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
        made.called_with.append({k: v for k, v in kwargs.items() if k != "hidden_states"})

    attentions = [getattr(made.block(i), PLACES[made.kind][2]) for i in range(N_LAYERS)]
    handles = [m.register_forward_pre_hook(record, with_kwargs=True) for m in attentions]
    with torch.inference_mode():
        output = subject.model(IDS, output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    made.found = subject.activations(IDS, **WHERE, sites=SITES)
    made.hidden, made.logits = output.hidden_states, output.logits
    return made


@torch.inference_mode()
def test_a_saved_subject_comes_back_with_the_same_logits(family: Family) -> None:
    assert torch.equal(family_model(family.name)(IDS).logits, family.logits)
    assert torch.equal(family.subject.logits(IDS, **WHERE), family.logits)
    recipe = family.subject.recipe
    assert (recipe["n_layers"], recipe["d_model"], recipe["vocab_size"]) == (3, D_MODEL, VOCAB)


def test_a_block_reads_and_writes_its_hidden_states(family: Family) -> None:
    for layer in range(N_LAYERS):
        assert torch.equal(family.found[f"resid_pre.{layer}"], family.hidden[layer])
    for layer in range(LAST):
        assert torch.equal(family.found[f"resid_post.{layer}"], family.hidden[layer + 1])


@torch.inference_mode()
def test_the_last_block_is_read_before_the_final_norm(family: Family) -> None:
    last = family.found[f"resid_post.{LAST}"]
    if last.shape == family.hidden[-1].shape:
        assert not torch.allclose(last, family.hidden[-1])
    torch.testing.assert_close(family.head(last), family.logits)


@torch.inference_mode()
def test_attention_and_mlp_add_the_same_as_by_hand(family: Family) -> None:
    for layer in range(N_LAYERS):
        x = family.found[f"resid_pre.{layer}"]
        attention = family.attention(layer, x)
        torch.testing.assert_close(family.found[f"attn_out.{layer}"], attention)
        mlp = family.mlp(layer, x, attention)
        torch.testing.assert_close(family.found[f"mlp_out.{layer}"], mlp)
        assert float(attention.abs().mean()) > 1e-3
        assert float(mlp.abs().mean()) > 1e-3


@torch.inference_mode()
def test_embeddings_come_without_positions_and_with_their_scale(family: Family) -> None:
    expected = family.subject.model.get_input_embeddings()(IDS)
    assert torch.equal(family.found["embed"], expected)
    if family.name.startswith(("llama", "gpt_neox", "qwen3", "mistral", "gemma3")):
        assert torch.equal(expected, family.hidden[0])
    else:
        assert expected.shape != family.hidden[0].shape or not torch.equal(
            expected, family.hidden[0]
        )


def test_a_site_has_the_width_that_it_says(family: Family) -> None:
    for site in SITES:
        assert family.found[site].shape == (2, 12, family.subject.width(site)), site
    narrow = family.name == "opt_projected"
    assert family.subject.width("embed") == (8 if narrow else D_MODEL)
    assert family.subject.width("attn_out.0") == D_MODEL


def test_the_parts_of_a_block_add_up_to_its_output(family: Family) -> None:
    verify_sites(family.subject, sites_of(family.name), where="here")
    for layer in range(N_LAYERS):
        before, attention, mlp, after = (family.found[f"{kind}.{layer}"] for kind in TERMS)
        torch.testing.assert_close(before + attention + mlp, after)


def test_splicing_a_site_into_itself_keeps_the_logits(family: Family) -> None:
    for site in SITES:
        seen: list[Tensor] = []

        def same(x: Tensor, seen: list[Tensor] = seen) -> Tensor:
            seen.append(x.clone())
            return x.clone()

        logits = family.subject.logits(IDS, **WHERE, site=site, replace=same)
        assert torch.equal(logits, family.logits), site
        assert torch.equal(seen[0], family.found[site]), site
        assert len(seen) == 1, site


@torch.inference_mode()
def test_a_part_spliced_to_zero_adds_nothing(family: Family) -> None:
    x = family.found[f"resid_pre.{LAST}"]
    attention = family.attention(LAST, x)
    none = torch.zeros_like(x)
    expected = {
        f"attn_out.{LAST}": x + family.mlp(LAST, x, none),
        f"mlp_out.{LAST}": x + attention,
        f"resid_pre.{LAST}": (a := family.attention(LAST, none)) + family.mlp(LAST, none, a),
        f"resid_post.{LAST}": none,
    }
    for site, after in expected.items():
        logits = family.subject.logits(IDS, **WHERE, site=site, replace=torch.zeros_like)
        torch.testing.assert_close(logits, family.head(after), msg=site)
        assert not torch.allclose(logits, family.logits), site


def test_replacing_a_blocks_input_replaces_the_output_of_the_one_before(
    family: Family,
) -> None:
    def shifted(x: Tensor) -> Tensor:
        return x + torch.linspace(-1, 1, x.shape[-1])

    first = family.subject.logits(IDS, **WHERE, site="resid_post.0", replace=shifted)
    second = family.subject.logits(IDS, **WHERE, site="resid_pre.1", replace=shifted)
    assert torch.equal(first, second)
    assert not torch.allclose(first, family.logits)


@torch.inference_mode()
def test_embeddings_spliced_to_zero_carry_no_tokens(family: Family) -> None:
    logits = family.subject.logits(IDS, **WHERE, site="embed", replace=torch.zeros_like)
    zeros = torch.zeros(2, 12, family.subject.width("embed"))
    expected = family.subject.model(inputs_embeds=zeros, use_cache=False).logits
    assert torch.equal(logits, expected)


def test_the_pass_stops_after_what_is_wanted(family: Family) -> None:
    calls = dict.fromkeys(range(N_LAYERS), 0)
    handles = []
    for layer in calls:

        def count(*_: Any, layer: int = layer) -> None:
            calls[layer] += 1

        # The MLP of a block runs after its attention in every family, parallel or not.
        point = find_site(family.subject.model, f"mlp_out.{layer}")
        handles.append(point.module.register_forward_hook(count))
    family.subject.activations(IDS, **WHERE, sites=("attn_out.1", "embed", "resid_post.0"))
    for handle in handles:
        handle.remove()
    assert calls == {0: 1, 1: 0, 2: 0}


def test_a_family_in_bfloat16_is_close_to_itself_in_float32(tmp_path: Path) -> None:
    for name in ("gpt_neox", "gemma3", "opt"):
        subject = through_disk(name, tmp_path / name, dtype="bfloat16")
        assert subject.recipe["dtype"] == "bfloat16"
        found = subject.activations(IDS, **WHERE, sites=SITES)
        assert {x.dtype for x in found.values()} == {torch.bfloat16}
        verify_sites(subject, sites_of(name), where="here")
        exact = Subject(family_model(name), subject.recipe, CPU)
        expected = exact.activations(IDS, **WHERE, sites=SITES)
        for site in SITES:
            error = (found[site].float() - expected[site]).norm() / expected[site].norm()
            assert 0 < float(error) < 0.05, site


@pytest.mark.parametrize("name", FURTHER)
def test_a_family_without_a_test_of_its_own_is_read_rightly(name: str, tmp_path: Path) -> None:
    """Fused projections, norms after parts, in-place additions, parts that add by themselves."""
    subject = through_disk(name, tmp_path)
    with torch.inference_mode():
        output = subject.model(IDS, output_hidden_states=True)
    found = subject.activations(IDS, **WHERE, sites=SITES)
    for layer in range(LAST):
        assert torch.equal(found[f"resid_pre.{layer}"], output.hidden_states[layer])
        assert torch.equal(found[f"resid_post.{layer}"], output.hidden_states[layer + 1])
    verify_sites(subject, sites_of(name), where="here")
    zero = torch.zeros_like
    for site in ("attn_out.1", "mlp_out.1"):
        same = subject.logits(IDS, **WHERE, site=site, replace=torch.clone)
        assert torch.equal(same, output.logits), site
        assert not torch.allclose(subject.logits(IDS, **WHERE, site=site, replace=zero), same)


@pytest.mark.parametrize("name", ["granite", "opt_post_norm"])
def test_parts_of_a_block_that_scales_what_it_adds_are_refused(name: str, tmp_path: Path) -> None:
    subject = through_disk(name, tmp_path)
    family = name.split("_")[0]
    verify_sites(subject, ("embed", "resid_pre.1", "resid_post.2"), where="here")
    for site in ("attn_out.1", "mlp_out.1"):
        said = refused(verify_sites, subject, (site,), where="--params: sites")
        assert said == (
            f"--params: sites: attn_out.1 and mlp_out.1: not supported for model_type {family!r}, "
            f"whose blocks scale or normalize what they add (resid_pre + attn_out + mlp_out is "
            f"not resid_post); take resid_pre and resid_post"
        )


def test_attention_of_a_model_without_it_is_refused() -> None:
    subject = Subject(family_model("mamba"), {"vocab_size": VOCAB}, CPU)
    said = refused(subject.activations, IDS, **WHERE, sites=("attn_out.0",))
    assert said == (
        "site attn_out.0: not found in a subject of class MambaForCausalLM (model_type 'mamba'); "
        "looked for post_self_attn_layernorm, self_attn, attn, attention, self_attention, "
        "linear_attn in its MambaBlock"
    )


def test_blocks_are_not_taken_from_the_vision_tower() -> None:
    """Multimodal models nest the config of their language model, and its blocks."""
    text = {k: v for k, v in SHAPE.items() if k not in ENDS}
    vision = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": 2,
        "image_size": 8,
        "patch_size": 4,
    }
    keys = {"mm_tokens_per_image": 4, "image_token_index": 95}
    model = random_model(
        Gemma3Config(
            text_config={**text, "head_dim": 8, "num_key_value_heads": 1},
            vision_config=vision,
            **keys,
        ),
        "multimodal",
    )
    subject = Subject(model, {"vocab_size": VOCAB}, CPU)
    assert find_blocks(model) is model.model.language_model.layers
    with torch.inference_mode():
        output = model(IDS, output_hidden_states=True)
    found = subject.activations(IDS, **WHERE, sites=SITES)
    assert subject.width("mlp_out.1") == D_MODEL
    assert torch.equal(found["resid_post.0"], output.hidden_states[1])
    verify_sites(subject, SITES, where="here")


def test_an_inner_list_of_the_same_length_is_not_taken_for_the_blocks() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = PretrainedConfig(num_hidden_layers=2)
            self.blocks = nn.ModuleList([Block(), Block()])

    model = Model()
    assert find_blocks(model) is model.blocks


def test_an_unsupported_model_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = PretrainedConfig(num_hidden_layers=4)
            self.layers = nn.ModuleList([nn.Linear(1, 1)])

    assert refused(find_blocks, Odd()) == (
        "subject of class Odd: not supported; found no list of 4 blocks (config.num_hidden_layers)"
    )
    hierarchical = Odd()
    hierarchical.config = PretrainedConfig()
    assert refused(find_blocks, hierarchical) == (
        "subject of class Odd: not supported; its config has no num_hidden_layers"
    )
