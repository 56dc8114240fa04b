"""A row of activations depends on its own token and no later one, or the subject is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_models import FAMILIES, FURTHER, family_model, random_model
from torch import Tensor, nn

from nullsae.config.subjects import PretrainedSource
from nullsae.config.variants import VARIANTS
from nullsae.core.errors import UserError
from nullsae.core.files import read_json, write_json
from nullsae.subjects.families import Point, attach, context_limit, token_tables
from nullsae.subjects.forward_gates import all_tables, forward_gates, reads_no_text
from nullsae.subjects.loading import Subject
from nullsae.subjects.publish import randomize_model
from small_chain import CPU, VOCAB, model_params, tiny_model, tokens_of, write_corpus

PROBE = torch.from_numpy(tokens_of(3, seed=1)[0])
SHAPE = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
PER_LAYER = {
    **{"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "head_dim": 8},
    **{"num_key_value_heads": 2, "max_position_embeddings": 64, "num_kv_shared_layers": 0},
    "layer_types": ["sliding_attention", "full_attention"],
}
GEMMA4 = transformers.Gemma4TextConfig(
    **SHAPE, **PER_LAYER, intermediate_size=48, global_head_dim=8, sliding_window=16
)
GEMMA3N = transformers.Gemma3nTextConfig(
    **SHAPE,
    **PER_LAYER,
    intermediate_size=[48] * 2,
    laurel_rank=4,
    sliding_window=16,
    activation_sparsity_pattern=[0.0] * 2,
)


def subject_of(model: Any, **recipe: Any) -> Subject:
    return Subject(model=model, recipe={"vocab_size": VOCAB, **recipe}, device=CPU)


def failures(model: Any) -> dict[str, str]:
    found = forward_gates(subject_of(model), PROBE)
    return {gate["gate"]: gate["detail"] for gate in found if not gate["passed"]}


@pytest.mark.parametrize("family", [*FAMILIES, *FURTHER])
def test_causal_families_pass(family: str) -> None:
    assert failures(family_model(family)) == {}


@pytest.mark.parametrize(
    "config",
    [
        transformers.BertConfig(**SHAPE, intermediate_size=48),
        transformers.RobertaConfig(**SHAPE, intermediate_size=48),
        transformers.ElectraConfig(**SHAPE, intermediate_size=48, embedding_size=32),
    ],
    ids=lambda config: config.model_type,
)
def test_models_that_see_later_tokens_are_not_causal(config: Any) -> None:
    assert "the model is not causal" in failures(random_model(config, config.model_type))["causal"]


class Mixing(nn.Module):
    """A block in which rows of the batch affect each other."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, *args: Any, **keys: Any) -> Any:
        return self.block(x - 0.1 * x.mean(dim=0, keepdim=True), *args, **keys)


class Shifted(Mixing):
    """A block whose rows are those of the previous token."""

    def forward(self, x: Tensor, *args: Any, **keys: Any) -> Any:
        found = self.block(x, *args, **keys)
        whole = found[0] if isinstance(found, tuple) else found
        moved = whole.roll(1, dims=1)
        moved[:, 0] = 0
        return (moved, *found[1:]) if isinstance(found, tuple) else moved


class SeesPiece(Mixing):
    """A block whose tokens see their whole piece of `n` tokens, including later ones."""

    n = 8

    def forward(self, x: Tensor, *args: Any, **keys: Any) -> Any:
        pieces = x.unflatten(1, (-1, self.n))
        mean = pieces.mean(dim=2, keepdim=True).expand_as(pieces).flatten(1, 2)
        return self.block(x + 0.1 * mean, *args, **keys)


class SeesPrefix(Mixing):
    """A block whose first four tokens see each other."""

    def forward(self, x: Tensor, *args: Any, **keys: Any) -> Any:
        moved = x.clone()
        moved[:, :4] += 0.1 * x[:, :4].mean(dim=1, keepdim=True)
        return self.block(moved, *args, **keys)


@pytest.mark.parametrize("kind", [SeesPiece, SeesPrefix])
def test_later_tokens_are_seen_in_no_part_of_a_context(kind: type[Mixing]) -> None:
    model = tiny_model("llama")
    model.model.layers[1] = kind(model.model.layers[1])
    assert "the model is not causal" in failures(model)["causal"]


def test_rows_of_a_batch_that_see_each_other_are_found() -> None:
    model = tiny_model("gpt_neox")
    model.gpt_neox.layers[1] = Mixing(model.gpt_neox.layers[1])
    assert "rows of the batch affect each other" in failures(model)["alone"]


def test_activations_that_are_no_numbers_are_not_called_a_mix_of_rows() -> None:
    model = tiny_model("gpt_neox")
    model.gpt_neox.layers[1].mlp.dense_4h_to_h.bias.fill_(float("nan"))
    assert list(failures(model)) == ["finite"]
    assert failures(model)["finite"].startswith("resid_post.1: NaN or infinite values: the weights")


def test_rows_that_belong_to_another_token_are_found() -> None:
    model = tiny_model("gpt_neox", use_parallel_residual=True)
    model.gpt_neox.layers[2] = Shifted(model.gpt_neox.layers[2])
    found = failures(model)
    assert found == {"own rows": "resid_post.2: a nudge at position 8 does not change its row"}


@pytest.mark.parametrize(
    "config",
    [
        # The first list of its length holds attentions, not blocks.
        transformers.XLMConfig(vocab_size=VOCAB, emb_dim=32, n_layers=2, n_heads=4, causal=True),
        # Halves what passes on after every second block.
        transformers.RwkvConfig(
            **{"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 4, "rescale_every": 2}
        ),
    ],
    ids=lambda config: config.model_type,
)
def test_what_a_block_passes_on_is_what_the_next_one_reads(config: Any) -> None:
    found = failures(random_model(config, config.model_type))
    assert list(found) == ["handed on"]
    assert ": the next block reads something else, " in found["handed on"]


def test_a_block_may_call_what_it_reads_by_any_name() -> None:
    class Block(nn.Module):
        def forward(self, stream: Tensor, mask: Tensor) -> Tensor:
            return stream * mask

    block, x, mask = Block(), torch.ones(2), torch.tensor([2.0, 3.0])
    with attach(Point(block, before=True), lambda seen: seen + 1):
        assert torch.equal(block(stream=x, mask=mask), 2 * mask)


def test_other_layouts_of_a_block_are_refused_in_one_line() -> None:
    model = random_model(GEMMA3N, "gemma3n")
    with pytest.raises(UserError, match=r"resid_post.0: not supported for .*gemma3n_text.*\[4, 3"):
        forward_gates(subject_of(model), PROBE)


# --- ways of token ids into a model


def test_tables_that_token_ids_index_are_found_by_what_they_are_given() -> None:
    assert list(token_tables(tiny_model("gpt2"))) == ["transformer.wte"]  # positions are none
    assert list(token_tables(tiny_model("llama"))) == ["model.embed_tokens"]
    found = list(token_tables(random_model(GEMMA4, "gemma4")))
    assert found == ["model.embed_tokens", "model.embed_tokens_per_layer"]


@pytest.mark.parametrize("way", ["flat", "keyword"])
def test_a_table_is_found_however_it_is_given_the_ids(way: str) -> None:
    model = tiny_model("llama")
    model.further = nn.Embedding(VOCAB, 16)
    look = model.further.__call__

    def add(_module: nn.Module, args: Any) -> None:
        ids = args[0].flatten() if way == "flat" else args[0]
        look(ids) if way == "flat" else look(input=ids)

    model.model.embed_tokens.register_forward_pre_hook(add)
    assert list(token_tables(model)) == ["model.embed_tokens", "further"]


NOISE = {"variant": "noise_embeddings", "draw": 0, "seed": 0, "embedding_noise_std": 1.0}


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma4"])
def test_two_texts_with_one_noise_give_the_same_activations(kind: str) -> None:
    model = random_model(GEMMA4, "gemma4") if kind == "gemma4" else tiny_model(kind)
    assert reads_no_text(subject_of(model, **NOISE), PROBE)["passed"]


def test_a_model_may_write_into_its_embeddings() -> None:
    """CTRL scales them in place."""
    config = transformers.CTRLConfig(vocab_size=VOCAB, n_embd=16, dff=32, n_layer=2, n_head=2)
    model = random_model(config, "ctrl")
    assert all_tables(subject_of(model), PROBE)["passed"]
    found = VARIANTS["noise_embeddings"].gates(subject_of(model, **NOISE), PROBE)
    assert [gate for gate in found if not gate["passed"]] == []


def test_a_road_that_is_no_table_fails_the_gate() -> None:
    model = tiny_model("llama")
    codes = torch.randn(VOCAB, 16, generator=torch.Generator().manual_seed(0))
    ids: list[Tensor] = []
    model.model.embed_tokens.register_forward_pre_hook(lambda _m, args: ids.append(args[0]))
    model.model.layers[1].register_forward_hook(lambda _m, _i, out: out + codes[ids[-1]])
    gate = reads_no_text(subject_of(model, **NOISE), PROBE)
    assert not gate["passed"]
    assert "resid_post.1: another text with the same noise differs" in gate["detail"]
    other = all_tables(subject_of(model), PROBE)
    assert not other["passed"]
    assert "resid_post.1: another text with the same embeddings differs" in other["detail"]


@pytest.mark.parametrize("family", [*FAMILIES, *FURTHER])
def test_embedding_tables_are_all_that_tells_tokens_apart(family: str) -> None:
    assert all_tables(subject_of(family_model(family)), PROBE)["passed"]


@pytest.mark.parametrize("variant", ["permuted_embeddings", "rotated_embeddings"])
def test_embedding_nulls_change_all_tables_of_tokens(variant: str, tmp_path: Path) -> None:
    model = random_model(GEMMA4, "gemma4")
    model.save_pretrained(tmp_path / "m")
    heldout = write_corpus(tmp_path / "c", *tokens_of(16, seed=2))
    source = PretrainedSource(kind="pretrained", path=str(tmp_path / "m"))
    out = tmp_path / variant
    randomize_model(model_params(source, variant), trained=None, eval_tokens=heldout, output=out)
    gates = json.loads((out / "gates.json").read_text())["gates"]
    changed = next(gate for gate in gates if gate["gate"] == "changed")
    assert changed["detail"].startswith("2 of ")


# --- what stops a study


def test_nothing_is_written_of_a_subject_that_is_refused(tmp_path: Path) -> None:
    model = random_model(transformers.BertConfig(**SHAPE, intermediate_size=48), "bert")
    model.save_pretrained(tmp_path / "m")
    heldout = write_corpus(tmp_path / "c", *tokens_of(16, seed=2))
    source = PretrainedSource(kind="pretrained", path=str(tmp_path / "m"))
    with pytest.raises(UserError, match="gate 'causal' failed"):
        randomize_model(
            model_params(source), trained=None, eval_tokens=heldout, output=tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


def trained_with(tmp_path: Path, unigram: float, bigram: float) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "m")
    heldout = write_corpus(tmp_path / "c", *tokens_of(16, seed=2))
    losses = {"unigram_loss_nats": unigram, "bigram_loss_nats": bigram}
    write_json(heldout, {**read_json(heldout, rebuild=""), **losses})
    source = PretrainedSource(kind="pretrained", path=str(tmp_path / "m"))
    out = tmp_path / "out"
    randomize_model(model_params(source), trained=None, eval_tokens=heldout, output=out)


def test_a_trained_subject_that_knows_no_more_than_frequencies_stops(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"subjects.tiny: the trained .* no better than the freq"):
        trained_with(tmp_path, unigram=2.0, bigram=1.0)


def test_a_trained_subject_that_knows_no_more_than_bigrams_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained_with(tmp_path, unigram=40.0, bigram=1.0)
    assert "no better than that of bigrams (1.00)" in caplog.text


def test_step0_that_is_the_trained_model_fails_a_gate(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "m")
    tiny_model("llama").save_pretrained(tmp_path / "same")
    heldout = write_corpus(tmp_path / "c", *tokens_of(16, seed=2))
    paths = {"path": str(tmp_path / "m"), "step0_path": str(tmp_path / "same")}
    source = PretrainedSource(kind="pretrained", **paths)
    params = model_params(source, "step0")
    with pytest.raises(UserError, match="gate 'untrained' failed: every tensor equals the trained"):
        randomize_model(params, trained=None, eval_tokens=heldout, output=tmp_path / "out")


@pytest.mark.parametrize("key", ["revision", "step0_revision"])
def test_a_local_folder_has_no_revisions(key: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{key}: '/.*' is a local folder, which has no revisions"):
        PretrainedSource(kind="pretrained", path=str(tmp_path), **{key: "step0"})


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        (transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=32), 32),
        (transformers.GPT2Config(n_embd=32, n_head=4, n_layer=2, n_positions=48), 48),
        (transformers.LlamaConfig(**SHAPE, intermediate_size=48, max_position_embeddings=64), 64),
        (transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4), None),
        (transformers.MptConfig(d_model=32, n_heads=4, n_layers=2, max_seq_len=-1), None),
        (transformers.PretrainedConfig(block_size=40), 40),
        (transformers.PretrainedConfig(model_max_length=24, seq_len=-1), 24),
        # MiniMax's block size is that of its linear attention.
        (transformers.PretrainedConfig(max_position_embeddings=512, block_size=256), 512),
        (transformers.PretrainedConfig(max_position_embeddings=True, n_ctx=2.0), None),
    ],
    ids=lambda value: getattr(value, "model_type", str(value)),
)
def test_context_limits_are_found_under_any_name(config: Any, limit: int | None) -> None:
    model = type("Model", (), {"config": config})()
    assert context_limit(model) == limit
