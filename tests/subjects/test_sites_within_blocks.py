"""Sites between the parts of a block, compared with the test's own hooks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from family_models import FURTHER, GROUPED, SHAPE, VOCAB, family_model, random_model
from torch import Tensor

from nullsae.core.errors import UserError
from nullsae.subjects.families import attach
from nullsae.subjects.loading import Subject
from nullsae.subjects.site_gates import verify_sites
from refusing import refused
from small_chain import CPU

IDS = (torch.arange(24) * 7 % VOCAB).reshape(2, 12)
WHERE: dict[str, Any] = {"split": "eval", "contexts": [0, 1]}
LAYER = 1
# The path of the blocks and, in a block, of the last matrix of the attention, the MLP, its last
# matrix, and the norm that reads what the attention has added to; None for parallel residuals.
TREES: dict[str, tuple[str, str, str, str, str | None]] = {
    "gpt_neox": ("gpt_neox.layers", "attention.dense", "mlp", "mlp.dense_4h_to_h", None),
    "gpt_neox_sequential": (
        *("gpt_neox.layers", "attention.dense", "mlp", "mlp.dense_4h_to_h"),
        "post_attention_layernorm",
    ),
    "gpt2": ("transformer.h", "attn.c_proj", "mlp", "mlp.c_proj", "ln_2"),
    **dict.fromkeys(
        ("llama", "qwen3", "mistral", "phi3"),
        (
            *("model.layers", "self_attn.o_proj", "mlp", "mlp.down_proj"),
            "post_attention_layernorm",
        ),
    ),
    "gemma3": (
        *("model.layers", "self_attn.o_proj", "mlp", "mlp.down_proj"),
        "pre_feedforward_layernorm",
    ),
    "glm4": (
        *("model.layers", "self_attn.o_proj", "mlp", "mlp.down_proj"),
        "post_attention_layernorm",
    ),
    # Its norms follow its parts, so the MLP reads the stream itself.
    "olmo2": ("model.layers", "self_attn.o_proj", "mlp", "mlp.down_proj", "mlp"),
    "opt": ("model.decoder.layers", "self_attn.out_proj", "fc1", "fc2", "final_layer_norm"),
    "gptj": ("transformer.h", "attn.out_proj", "mlp", "mlp.fc_out", None),
    "falcon": ("transformer.h", "self_attention.dense", "mlp", "mlp.dense_4h_to_h", None),
    "bloom": (
        *("transformer.h", "self_attention.dense", "mlp", "mlp.dense_4h_to_h"),
        "post_attention_layernorm",
    ),
    "mpt": ("transformer.blocks", "attn.out_proj", "ffn", "ffn.down_proj", "norm_2"),
}


def subject_of(name: str) -> Subject:
    return Subject(family_model(name), {"vocab_size": VOCAB}, CPU)


def block_of(subject: Subject, name: str) -> Any:
    return subject.model.get_submodule(TREES[name][0])[LAYER]


def read_by(subject: Subject, name: str, path: str) -> Tensor:
    """Return what a module of the block reads, [contexts, tokens, width], by the test's hook."""
    found: list[Tensor] = []
    handle = (
        block_of(subject, name)
        .get_submodule(path)
        .register_forward_pre_hook(lambda _module, args: found.append(args[0].clone()))
    )
    with torch.inference_mode():
        subject.model(IDS)
    handle.remove()
    return found[0].reshape(*IDS.shape, -1)


@pytest.mark.parametrize("name", TREES)
def test_what_parts_of_a_block_read_is_what_hooks_on_their_modules_see(name: str) -> None:
    subject = subject_of(name)
    _, z, mlp, post, norm = TREES[name]
    wanted = {f"hook_z.{LAYER}": z, f"mlp_in.{LAYER}": mlp, f"mlp_post.{LAYER}": post}
    if norm is not None:
        wanted[f"resid_mid.{LAYER}"] = norm
    found = subject.activations(IDS, **WHERE, sites=list(wanted))
    verify_sites(subject, list(wanted), where="here")
    for site, path in wanted.items():
        seen = read_by(subject, name, path)
        assert torch.equal(found[site], seen), site
        assert seen.shape[-1] == subject.width(site), site
        assert float(seen.abs().mean()) > 1e-3, site
    four_times = ("bloom", "falcon", "gpt2", "gptj", "mpt")
    assert subject.width(f"mlp_post.{LAYER}") == (64 if name in four_times else 32)


def test_heads_stand_one_after_the_other() -> None:
    """In a Llama with two query heads and one value head, 6 dimensions each."""
    config = transformers.LlamaConfig(
        **{**SHAPE, "num_key_value_heads": 1, "head_dim": 6}, attn_implementation="eager"
    )
    model = random_model(config, "heads")
    subject = Subject(model, {"vocab_size": VOCAB}, CPU)
    found = subject.activations(IDS, **WHERE, sites=["resid_pre.1", "hook_z.1"])
    assert found["hook_z.1"].shape == (2, 12, 12)
    with torch.inference_mode():
        weights = model(IDS, output_attentions=True).attentions[1]
        block = model.model.layers[1]
        values = block.self_attn.v_proj(block.input_layernorm(found["resid_pre.1"]))
    for head in range(2):
        own = found["hook_z.1"][..., 6 * head : 6 * (head + 1)]
        torch.testing.assert_close(own, weights[:, head] @ values)


@pytest.mark.parametrize("name", ["gpt_neox", "gpt2", "llama", "gemma3", "opt", "bloom", "mpt"])
def test_heads_or_neurons_spliced_to_zero_are_a_projection_without_weights(name: str) -> None:
    for site, path in zip(("hook_z", "mlp_post"), (TREES[name][1], TREES[name][3]), strict=True):
        subject = subject_of(name)
        found = subject.logits(IDS, **WHERE, site=f"{site}.{LAYER}", replace=torch.zeros_like)
        clean = subject.logits(IDS, **WHERE)
        block_of(subject, name).get_submodule(path).weight.zero_()
        wanted = subject.logits(IDS, **WHERE)
        torch.testing.assert_close(found, wanted)
        assert not torch.allclose(found, clean)


def test_the_middle_of_a_block_is_replaced_for_the_mlp_and_for_what_follows() -> None:
    subject = subject_of("llama")
    model, last = subject.model, subject.model.model.layers[2]
    other = torch.linspace(-1, 1, 2 * 12 * 16).reshape(2, 12, 16).sin()
    found = subject.logits(IDS, **WHERE, site="resid_mid.2", replace=lambda _x: other)
    with torch.inference_mode():
        after = other + last.mlp(last.post_attention_layernorm(other))
        wanted = model.lm_head(model.model.norm(after))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt_neox", "gptj", "falcon"])
def test_parallel_residuals_have_no_middle(name: str) -> None:
    family = name.split("_sequential")[0]
    said = refused(verify_sites, subject_of(name), ("resid_mid.1",), where="--params: sites")
    assert said == (
        f"--params: sites: resid_mid.1: not supported for model_type {family!r}, whose attention "
        f"and MLP read the same residual stream; take resid_pre and resid_post"
    )


def test_a_mixture_of_experts_has_no_one_layer_of_neurons() -> None:
    config = transformers.MixtralConfig(**{**SHAPE, **GROUPED}, num_local_experts=2)
    subject = Subject(random_model(config, "mixtral"), {"vocab_size": VOCAB}, CPU)
    verify_sites(subject, ("hook_z.1", "resid_mid.1", "mlp_out.1"), where="here")
    said = refused(subject.activations, IDS, **WHERE, sites=["mlp_post.1"])
    assert said == (
        "site mlp_post.1: not found in a subject of class MixtralForCausalLM (model_type "
        "'mixtral'); looked for down_proj, dense_4h_to_h, c_proj, fc2, fc_out, w2 in mlp, "
        "feed_forward, ffn, block_sparse_moe in its MixtralDecoderLayer"
    )


HYBRID: dict[str, tuple[Any, dict[str, Any]]] = {
    "jamba": (transformers.JambaConfig, {"attn_layer_period": 2, "attn_layer_offset": 0}),
    "lfm2": (
        transformers.Lfm2Config,
        {"layer_types": ["full_attention", "conv", "full_attention"], "block_multiple_of": 8},
    ),
    "granitemoehybrid": (
        transformers.GraniteMoeHybridConfig,
        {
            **{"layer_types": ["attention", "mamba", "attention"], "num_local_experts": 2},
            **{"mamba_n_heads": 4, "mamba_d_head": 8, "shared_intermediate_size": 16},
        },
    ),
    "qwen3_next": (
        transformers.Qwen3NextConfig,
        {
            **{"layer_types": ["full_attention", "linear_attention", "full_attention"]},
            **{"linear_num_key_heads": 2, "linear_num_value_heads": 2, "num_experts": 2},
            **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "num_experts_per_tok": 1},
            **{"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8},
        },
    ),
}


def hybrid(name: str) -> Subject:
    kind, keys = HYBRID[name]
    config = kind(**{**SHAPE, **GROUPED, **keys})
    return Subject(random_model(config, name), {"vocab_size": VOCAB}, CPU)


@pytest.mark.parametrize("name", ["jamba", "lfm2"])
def test_an_mlp_after_no_attention_is_read_as_one_after_attention(name: str) -> None:
    subject = hybrid(name)
    verify_sites(subject, ("mlp_out.0", "mlp_out.1"), where="here")
    sites = ["mlp_out.1", "resid_post.1"]
    mlp, after = subject.activations(IDS, **WHERE, sites=sites).values()
    with attach(subject.point("mlp_out.1"), torch.zeros_like):
        without = subject.activations(IDS, **WHERE, sites=sites[1:])["resid_post.1"]
    torch.testing.assert_close(without + mlp, after)
    with pytest.raises(UserError, match=r"site attn_out\.1: not found in a subject of class"):
        verify_sites(subject, ("mlp_out.1", "attn_out.1"), where="here")


def test_a_part_of_an_mlp_after_no_attention_is_refused() -> None:
    """Beside its experts, GraniteMoeHybrid has a shared MLP."""
    subject = hybrid("granitemoehybrid")
    for sites in (("mlp_out.0",), ("mlp_out.1",)):
        with pytest.raises(UserError, match="whose blocks scale or normalize what they add"):
            verify_sites(subject, sites, where="here")


def test_linear_attention_is_attention() -> None:
    subject = hybrid("qwen3_next")
    sites = tuple(f"{kind}.1" for kind in ("attn_out", "mlp_out", "resid_mid", "hook_z"))
    verify_sites(subject, sites, where="here")
    assert subject.point("attn_out.1").module is subject.blocks[1].linear_attn


def test_a_matrix_that_is_not_the_end_of_its_part_is_refused() -> None:
    subject = subject_of("llama")
    block = subject.model.model.layers[1]
    block.mlp.register_forward_hook(lambda _module, _args, output: output * 2)
    said = refused(verify_sites, subject, ("mlp_post.1",), where="here")
    assert said == (
        "here: mlp_post.1: not supported for model_type 'llama', in which the module that reads it "
        "is not the last one of its part of the block"
    )


def test_every_further_family_is_in_the_table() -> None:
    assert set(FURTHER) <= set(TREES)
