from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from family_models import D_MODEL, ENDS, GROUPED, SHAPE, VOCAB, family_model, random_model
from torch import Tensor

from nullsae.subjects.loading import Subject
from nullsae.subjects.unembedding import NoDirectPathError, direct_path
from small_chain import CPU


def path_of(model: Any, site: str = "resid_post.0") -> Tensor:
    return direct_path(Subject(model, {"vocab_size": VOCAB}, CPU), site)


def relative(a: Tensor, b: Tensor) -> float:
    """Return how far a is from the best positive multiple of b, as a share of a."""
    factor = (a * b).sum() / (b * b).sum()
    assert factor > 0
    return float((a - factor * b).norm() / a.norm())


def centred(matrix: Tensor) -> Tensor:
    return matrix - matrix.mean(dim=1, keepdim=True)


# Gain and centring by hand, from each family's name for its last norm.
BY_HAND = {
    "gpt_neox": lambda m: centred(m.lm_head.weight * m.gpt_neox.final_layer_norm.weight),
    "gpt2": lambda m: centred(m.transformer.wte.weight * m.transformer.ln_f.weight),
    "gpt2_untied": lambda m: centred(m.lm_head.weight * m.transformer.ln_f.weight),
    "llama": lambda m: m.lm_head.weight * m.model.norm.weight,
    "llama_tied": lambda m: m.model.embed_tokens.weight * m.model.norm.weight,
    "gemma3": lambda m: m.lm_head.weight * (1 + m.model.norm.weight),
    "opt": lambda m: centred(m.lm_head.weight * m.model.decoder.final_layer_norm.weight),
    "bloom": lambda m: centred(m.lm_head.weight * m.transformer.ln_f.weight),
    "falcon": lambda m: centred(m.lm_head.weight * m.transformer.ln_f.weight),
    "olmo2": lambda m: m.lm_head.weight * m.model.norm.weight,
}


@pytest.mark.parametrize("family", sorted(BY_HAND))
def test_the_path_is_gain_and_centring_of_the_last_norm_and_the_head(family: str) -> None:
    model = family_model(family)
    found = path_of(model)
    assert found.shape == (VOCAB, D_MODEL)
    assert found.dtype == torch.float32
    assert relative(found, BY_HAND[family](model)) < 1e-5


# Weights of the projections of block 1, [outputs, inputs].
MATRICES = {
    "gpt_neox": lambda m: (
        m.gpt_neox.layers[1].attention.dense.weight,
        m.gpt_neox.layers[1].mlp.dense_4h_to_h.weight,
    ),
    "gpt2": lambda m: (
        m.transformer.h[1].attn.c_proj.weight.t(),
        m.transformer.h[1].mlp.c_proj.weight.t(),
    ),
    "llama": lambda m: (
        m.model.layers[1].self_attn.o_proj.weight,
        m.model.layers[1].mlp.down_proj.weight,
    ),
}


@pytest.mark.parametrize("family", sorted(MATRICES))
def test_the_path_from_heads_and_neurons_begins_with_their_projection(family: str) -> None:
    model = family_model(family)
    for site, matrix in zip(("hook_z.1", "mlp_post.1"), MATRICES[family](model), strict=True):
        assert relative(path_of(model, site), BY_HAND[family](model) @ matrix) < 1e-5
    assert torch.equal(path_of(model, "resid_mid.1"), path_of(model))


def test_neither_what_an_mlp_reads_nor_what_a_norm_follows_has_a_path() -> None:
    with pytest.raises(NoDirectPathError, match="not in the residual stream and not written to it"):
        path_of(family_model("llama"), "mlp_in.1")
    for site in ("hook_z.1", "mlp_post.1"):
        with pytest.raises(NoDirectPathError, match="a norm follows the site's projection"):
            path_of(family_model("gemma3"), site)


# Kinds of heads and norms: scaled logits, soft caps, a norm without parameters.
@pytest.mark.parametrize(
    ("kind", "keys", "by_hand"),
    [
        (
            "CohereConfig",
            {"logit_scale": 0.1},
            lambda m: centred(m.lm_head.weight * m.model.norm.weight),
        ),
        (
            "Gemma2Config",
            {"final_logit_softcapping": 5.0},
            lambda m: m.lm_head.weight * (1 + m.model.norm.weight),
        ),
        ("OlmoConfig", {}, lambda m: centred(m.lm_head.weight)),
        (
            "GraniteConfig",
            {"logits_scaling": 8.0},
            lambda m: m.lm_head.weight * m.model.norm.weight,
        ),
    ],
)
def test_scales_and_caps_behind_the_head_change_no_order(
    kind: str, keys: dict[str, Any], by_hand: Any
) -> None:
    grouped = {} if kind == "OlmoConfig" else GROUPED
    config = getattr(transformers, kind)(**{**SHAPE, **grouped, **keys})
    model = random_model(config, kind)
    assert relative(path_of(model), by_hand(model)) < 1e-5


@pytest.mark.parametrize("family", ["gpt_neox", "gemma3"])
def test_the_path_tells_how_logits_move_with_the_norms_scale_held(family: str) -> None:
    # The logits of x + d minus those of x, where d is small and orthogonal to x: the scale of the
    # norm stays, and the direct effect remains, by the model's own forward pass.
    model = family_model(family)
    subject = Subject(model, {}, CPU)
    ids, where = torch.arange(5)[None], {"split": "eval", "contexts": [0]}
    last = subject.block_outputs[-1]
    x = subject.activations(ids, sites=[last], **where)[last]
    direction = torch.randn(D_MODEL, generator=torch.Generator().manual_seed(1))
    mean = x.mean(-1, keepdim=True) if family == "gpt_neox" else 0.0
    inner = x - mean
    along = (direction * inner).sum(-1, keepdim=True) / (inner * inner).sum(-1, keepdim=True)
    moved = 1e-2 * (direction - along * inner)
    moves = subject.logits(ids, site=last, replace=lambda s: s + moved, **where) - subject.logits(
        ids, site=last, replace=lambda s: s - moved, **where
    )
    wanted = moved[0] @ path_of(model).T
    for token in range(5):
        assert relative(moves[0, token], wanted[token]) < 1e-3


def test_an_odd_number_of_dimensions_has_a_gain_in_each() -> None:
    config = transformers.GPT2Config(
        vocab_size=VOCAB, n_layer=2, n_embd=15, n_head=1, n_positions=32, **ENDS
    )
    model = random_model(config, "odd")
    wanted = centred(model.transformer.wte.weight * model.transformer.ln_f.weight)
    assert relative(path_of(model), wanted) < 1e-5


def test_weights_in_bfloat16_give_the_path_of_their_values() -> None:
    model = family_model("llama").to(torch.bfloat16)
    wanted = model.lm_head.weight.float() * model.model.norm.weight.float()
    assert relative(path_of(model), wanted) < 1e-5


def test_a_model_without_a_last_norm_has_the_head_alone() -> None:
    config = transformers.OPTConfig(
        **{**SHAPE, "ffn_dim": 32, "word_embed_proj_dim": D_MODEL, "do_layer_norm_before": False}
    )
    model = random_model(config, "post norm")
    assert relative(path_of(model), model.lm_head.weight) < 1e-6


def without_blocks(family: str, embedding: Tensor) -> Any:
    """Return a model whose blocks add nothing, and whose norms have gain 1 and no bias."""
    model = family_model(family)
    added = ("o_proj", "down_proj", "attention.dense", "dense_4h_to_h")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if any(part in name for part in added):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(float(name.endswith("weight")))
        model.get_input_embeddings().weight.copy_(embedding)
    return model


def test_a_norm_that_only_scales_the_stream_of_a_text_still_takes_the_mean_away() -> None:
    # Rows of mean 0 and equal size, as the probe sees them; a direction need not have mean 0.
    rows = centred(torch.randn(VOCAB, D_MODEL, generator=torch.Generator().manual_seed(2)))
    model = without_blocks("gpt_neox", rows / rows.norm(dim=1, keepdim=True))
    assert relative(path_of(model), centred(model.lm_head.weight)) < 1e-5


def test_norms_of_blocks_that_add_nothing_are_not_taken_for_the_last() -> None:
    embedding = torch.randn(VOCAB, D_MODEL, generator=torch.Generator().manual_seed(3))
    embedding[:, 4:] = 0
    model = without_blocks("llama", embedding)
    model.model.norm.weight[4:] = 3
    assert relative(path_of(model), model.lm_head.weight * model.model.norm.weight) < 1e-5


def test_a_projection_before_the_head_is_refused_in_words() -> None:
    with pytest.raises(NoDirectPathError, match="head"):
        path_of(family_model("opt_projected"))


def test_a_norm_of_another_form_is_refused_in_words() -> None:
    class Tanh(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x)

    model = family_model("llama")
    model.model.norm = Tanh()
    with pytest.raises(NoDirectPathError, match="Tanh, has another form"):
        path_of(model)
