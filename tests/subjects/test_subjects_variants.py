from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nullsae import tables
from nullsae.corpus.store import load_tokens
from nullsae.errors import UserError
from nullsae.subjects import variants
from nullsae.subjects.loading import load_subject
from nullsae.subjects.randomize import rerandomize
from nullsae.subjects.variants import heldout_loss, randomize_model
from small_chain import (
    CPU,
    SITES,
    VOCAB,
    model_params,
    save_source,
    tokens_of,
    write_corpus,
)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(params' source, eval manifest, folder) with the trained variant already made."""
    root = tmp_path_factory.mktemp(request.param)
    source = save_source(request.param, root / "source")
    tokens = write_corpus(root / "corpus", *tokens_of(12, seed=3))
    randomize_model(model_params(source), trained=None, eval_tokens=tokens, output=root / "trained")
    return source, tokens, root


def make(study: Any, variant: str, name: str, **keys: Any) -> Path:
    """A variant made from the trained one; returns its folder."""
    source, tokens, root = study
    randomize_model(
        model_params(source, variant, **keys),
        trained=root / "trained/recipe.json",
        eval_tokens=tokens,
        output=root / name,
    )
    folder: Path = root / name
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return found


def gate_names(folder: Path) -> list[str]:
    written = json.loads((folder / "gates.json").read_text())
    assert all(gate["passed"] for gate in written["gates"])
    return [gate["gate"] for gate in written["gates"]]


def test_the_trained_variant_differs_from_its_source(study: Any) -> None:
    source, tokens, root = study
    before, after = weights(Path(source.path)), weights(root / "trained")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    recipe = json.loads((root / "trained/recipe.json").read_text())
    assert (recipe["subject"], recipe["variant"], recipe["draw"]) == ("tiny", "trained", 0)
    assert recipe["source"] == source.model_dump(mode="json")
    assert gate_names(root / "trained") == ["reloads", "finite"]
    table = tables.read_table(root / "trained/model.parquet", tables.cell_schema("models"))
    (row,) = table.to_pylist()
    subject = load_subject(root / "trained/recipe.json", CPU)
    loss, n = heldout_loss(subject, load_tokens(tokens))
    assert row["heldout_loss_nats"] == loss
    assert row["n_heldout_tokens"] == n == 12 * 15
    assert (row["unigram_loss_nats"], row["bigram_loss_nats"]) == (4.0, 3.5)
    assert row["n_parameters"] == sum(p.numel() for p in subject.model.parameters())
    assert (row["n_gates"], row["gates_passed"]) == (2, True)


def test_a_rerandomized_subject_keeps_trained_weights_or_does_not_repeat(study: Any) -> None:
    folders = [
        make(study, "rerandomized", name, norm_parameters="rerandomize", draw=draw)
        for name, draw in (("one", 0), ("one again", 0), ("two", 1))
    ]
    trained = weights(study[2] / "trained")
    one, again, two = map(weights, folders)
    assert all(not torch.equal(trained[name], one[name]) for name in trained)
    assert all(not torch.equal(one[name], two[name]) for name in one)
    assert (folders[0] / "model.safetensors").read_bytes() == (
        folders[1] / "model.safetensors"
    ).read_bytes()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert gate_names(folders[0]) == [
        *("inventory", "changed", "moments", "uncorrelated", "repeatable"),
        *("reloads", "finite"),
    ]


def test_kept_embeddings_are_redrawn_on_disk(study: Any) -> None:
    folder = make(study, "rerandomized_keep_embeddings", "keep", norm_parameters="keep", draw=0)
    trained, found = weights(study[2] / "trained"), weights(folder)
    kept = {name for name in trained if torch.equal(trained[name], found[name])}
    embeddings = {"transformer.wte.weight", "model.embed_tokens.weight", "lm_head.weight"}
    norms = {n for n in trained if any(p.startswith("ln_") or "norm" in p for p in n.split("."))}
    assert kept == (embeddings & trained.keys()) | norms


def test_noise_variant_changes_the_weights_or_sees_the_text(study: Any) -> None:
    folder = make(study, "noise_embeddings", "noise", embedding_noise_std=2.0, draw=1)
    trained, found = weights(study[2] / "trained"), weights(folder)
    assert all(torch.equal(trained[name], found[name]) for name in trained)
    assert gate_names(folder)[-3:] == ["noise repeatable", "noise moments", "noise replaces"]
    subject = load_subject(folder / "recipe.json", CPU)
    ids = torch.from_numpy(load_tokens(study[1]).input_ids[:2])
    run: dict[str, Any] = {"split": "eval", "contexts": [0, 1], "sites": SITES}
    one = subject.activations(ids, **run)
    other = subject.activations((ids + 1) % VOCAB, **run)
    assert all(torch.equal(one[site], other[site]) for site in SITES)


def test_token_ids_beyond_the_vocabulary_give_a_traceback(study: Any, tmp_path: Path) -> None:
    ids, documents = tokens_of(4, seed=4)
    ids[1, 5] = VOCAB
    tokens = write_corpus(tmp_path / "corpus", ids, documents)
    with pytest.raises(UserError) as caught:
        randomize_model(
            model_params(study[0]), trained=None, eval_tokens=tokens, output=tmp_path / "out"
        )
    assert str(caught.value) == (
        "config: subjects.tiny.corpus: token id 96 is beyond the subject's vocabulary of 96; "
        "use the subject's own tokenizer in corpora.*.tokenizer"
    )
    assert not (tmp_path / "out").exists()


def test_contexts_that_are_too_long_give_a_traceback(study: Any, tmp_path: Path) -> None:
    tokens = write_corpus(tmp_path / "corpus", *tokens_of(4, seed=4, context=33))
    with pytest.raises(UserError) as caught:
        randomize_model(
            model_params(study[0]), trained=None, eval_tokens=tokens, output=tmp_path / "out"
        )
    assert str(caught.value) == (
        "config: subjects.tiny.corpus: contexts of 33 tokens, but the subject reads at most 32; "
        "lower corpora.*.context_tokens"
    )


def test_a_missing_source_gives_a_traceback(study: Any, tmp_path: Path) -> None:
    _, tokens, _ = study
    with pytest.raises(UserError, match=r"^--params: source is missing"):
        randomize_model(
            model_params(None), trained=None, eval_tokens=tokens, output=tmp_path / "out"
        )


def test_a_failed_gate_lets_the_variant_pass(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A randomization that forgets one tensor must not reach `gates.json`."""
    real = rerandomize

    def forgetful(model: Any, *args: Any, **keys: Any) -> set[str]:
        name, parameter = next(iter(model.named_parameters()))
        before = parameter.clone()
        names = real(model, *args, **keys)
        with torch.no_grad():
            parameter.copy_(before)
        assert name in names
        return names

    monkeypatch.setattr(variants, "rerandomize", forgetful)
    with pytest.raises(UserError, match=r"gate 'changed' failed: .*weight: should have changed"):
        make(study, "rerandomized", "forgetful", norm_parameters="rerandomize")
    folder = study[2] / "forgetful"
    assert not (folder / "gates.json").exists()
    assert not (folder / "model.parquet").exists()
