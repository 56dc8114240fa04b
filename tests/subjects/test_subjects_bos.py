"""The trained subject is read with and without BOS; a corpus whose choice is worse is reported."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nullsae.config.subjects import PretrainedSource
from nullsae.core.files import read_json, write_json
from nullsae.corpus.store import load_tokens
from nullsae.subjects.health import bos_check, heldout_loss
from nullsae.subjects.loading import load_subject
from nullsae.subjects.publish import randomize_model
from small_chain import CONTEXT, CPU, VOCAB, model_params, tiny_model, tokens_of, write_corpus

BOS = VOCAB - 1
N_CONTEXTS = 16


def corpus_of(folder: Path, bos: list[int], *, prepended: bool) -> Path:
    """Make contexts of one text, with BOS at their starts or only in the manifest."""
    ids, documents = tokens_of(N_CONTEXTS, seed=3, vocab=VOCAB - 2)
    if prepended:
        ids[:, : len(bos)] = bos
    manifest = write_corpus(folder, ids, documents)
    said = {"prepend_bos": prepended, "bos_token_ids": bos}
    write_json(manifest, {**read_json(manifest, rebuild=""), **said})
    return manifest


def model_that(folder: Path, kind: str, likes_bos: bool) -> PretrainedSource:
    """Make a model that predicts contexts with BOS much better, or much worse, than without.

    The embedding of BOS has a direction of its own; heads that find it raise or lower the logits of
    frequent tokens.
    """
    model = tiny_model(kind)
    embed, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        embed[BOS] = 0
        embed[BOS, 0] = 40.0
        model.model.layers[0].self_attn.v_proj.weight[:, 0] = 2.0
        o_proj = model.model.layers[0].self_attn.o_proj.weight
        o_proj[:] = 0
        o_proj[1, :] = 4.0
        head[:] = head * 0.1
        model.model.norm.weight[:] = 1.0
        head[:10, 1] = 2.0 if likes_bos else -2.0
    model.save_pretrained(folder)
    return PretrainedSource(kind="pretrained", path=str(folder))


def losses_by_hand(model: Any, text: Tensor, bos: list[int]) -> Tensor:
    """Return each context's mean loss over tokens of `text` after the first, [contexts]."""
    rows = torch.cat([torch.tensor(bos, dtype=torch.int64).expand(len(text), -1), text], dim=1)
    with torch.no_grad():
        likely = model(input_ids=rows).logits.double().log_softmax(dim=-1)
    at = torch.arange(len(bos), rows.shape[1] - 1)
    found: Tensor = -likely[:, at].gather(2, rows[:, at + 1, None])[..., 0].mean(dim=1)
    return found


@pytest.mark.parametrize("likes_bos", [True, False])
@pytest.mark.parametrize("prepended", [True, False])
def test_a_corpus_whose_bos_does_not_suit_the_subject_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, likes_bos: bool, prepended: bool
) -> None:
    source = model_that(tmp_path / "source", "llama", likes_bos)
    tokens = corpus_of(tmp_path / "corpus", [BOS], prepended=prepended)
    with caplog.at_level(logging.WARNING):
        out = tmp_path / "out"
        randomize_model(model_params(source), trained=None, eval_tokens=tokens, output=out)
    found = json.loads((out / "gates.json").read_text())["bos"]
    ids = torch.from_numpy(load_tokens(tokens).input_ids).long()
    text = ids[:, 1:] if prepended else ids[:, :-1]
    model = load_subject(out / "recipe.json", CPU).model
    with_bos, without = (float(losses_by_hand(model, text, b).mean()) for b in ([BOS], []))
    assert (with_bos < without - 0.1) if likes_bos else (with_bos > without + 0.1)
    own, other = (with_bos, without) if prepended else (without, with_bos)
    assert found["prepended"] is prepended
    assert found["loss_nats"] == pytest.approx(own, rel=1e-5)
    assert found["other_loss_nats"] == pytest.approx(other, rel=1e-5)
    assert found["n_predicted_tokens"] == N_CONTEXTS * (CONTEXT - 2)
    told = [record.getMessage() for record in caplog.records if "BOS" in record.getMessage()]
    if likes_bos == prepended:
        assert (found["warning"], told) == (None, [])
    else:
        assert told == [f"config: subjects.tiny: {found['warning']}"]
        assert f"set corpora.*.prepend_bos to {str(likes_bos).lower()}" in told[0]
        assert f"{own:.2f} nats" in told[0]


def test_a_tokenizer_without_bos_gives_nothing_to_compare(tmp_path: Path) -> None:
    source = model_that(tmp_path / "source", "llama", True)
    tokens = corpus_of(tmp_path / "corpus", [], prepended=False)
    out = tmp_path / "out"
    randomize_model(model_params(source), trained=None, eval_tokens=tokens, output=out)
    assert json.loads((out / "gates.json").read_text())["bos"] is None


def test_losses_are_of_the_tokens_behind_bos(tmp_path: Path) -> None:
    source = model_that(tmp_path / "source", "llama", True)
    bos = [VOCAB - 2, BOS]
    tokens = load_tokens(corpus_of(tmp_path / "corpus", bos, prepended=True))
    out = tmp_path / "out"
    manifest = tmp_path / "corpus/manifest.json"
    randomize_model(model_params(source), trained=None, eval_tokens=manifest, output=out)
    subject = load_subject(out / "recipe.json", CPU)
    loss, n = heldout_loss(subject, tokens)
    ids = torch.from_numpy(tokens.input_ids).long()
    with torch.no_grad():
        likely = subject.model(input_ids=ids).logits.double().log_softmax(dim=-1)
    wanted = -likely[:, 1:-1].gather(2, ids[:, 2:, None]).mean()
    assert n == N_CONTEXTS * (CONTEXT - 2)
    assert loss == pytest.approx(float(wanted), rel=1e-5)
    found = bos_check(subject, tokens)
    assert found is not None
    text = ids[:, 2:]
    own = float(losses_by_hand(subject.model, text, bos).mean())
    assert found["loss_nats"] == pytest.approx(own, rel=1e-5)
