"""A variant's folder is what it says, for any other program too."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2Tokenizer,
)

from nullsae.config.corpora import TrainedTokenizer
from nullsae.config.variants import VARIANTS, Variant, has_model, runs_on_trained
from nullsae.core.errors import UserError
from nullsae.core.files import checksum, read_json, write_json
from nullsae.corpus.tokenizer import save_tokenizer, train_tokenizer
from nullsae.subjects import folders
from nullsae.subjects.changes import REDRAWN, WeightsVariant
from nullsae.subjects.loading import load_subject
from nullsae.subjects.publish import randomize_model
from small_chain import CPU, SITES, model_params, save_source, tokens_of, write_corpus

TEXTS = ("the cat  sat,\n\tthen it left", "Über 3 naïve façades <s> 😀", " leading and trailing ")
WORDS = [f"the cat sat on mat number {n} and it left at dawn" for n in range(60)]


def byte_level() -> PreTrainedTokenizerFast:
    """Return a tokenizer like the workflow's."""
    return train_tokenizer(WORDS, TrainedTokenizer(kind="train", vocab_size=300)).tokenizer


def metaspace() -> PreTrainedTokenizerFast:
    """Return one like Llama 2's: word marks, a BOS that it adds, a chat template."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=special, show_progress=False)
    backend.train_from_iterator(WORDS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{{ messages[0].content }}"
    return tokenizer


def lower_case() -> PreTrainedTokenizerFast:
    """Return one of lower-case words without accents."""
    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=120, special_tokens=["[UNK]", "[SEP]"], show_progress=False
    )
    backend.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", sep_token="[SEP]")


class Shifted(Variant):
    """Trained weights, and the same shift of every embedding, which no weight shows."""

    name = "shifted"
    position = 30
    text = "Every embedding is shifted by one."
    fixed = True
    changes_weights = False

    @classmethod
    def install(cls, subject: Any) -> None:
        embedding = subject.model.get_input_embeddings()
        embedding.register_forward_hook(lambda _m, _i, output: output + 1.0)

    @classmethod
    def gates(cls, subject: Any, probe: Any) -> list[Any]:
        from nullsae.subjects.gates import passed

        return [passed("shifted", "by one")]


class RedrawnAndShifted(WeightsVariant):
    """Its own weights, which are only a part of it."""

    name = "redrawn_and_shifted"
    position = 31
    text = "All is redrawn, and every embedding is shifted by one."
    matrix = REDRAWN
    install = Shifted.install  # type: ignore[assignment]


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    len(VARIANTS)  # find nullsae's own first
    for variant in (Shifted, RedrawnAndShifted):
        monkeypatch.setitem(VARIANTS._found, variant.name, variant)


class Study:
    """A corpus with a tokenizer, and models by their variants, laid out as below `results/`."""

    def __init__(self, root: Path, kind: str, tokenizer: PreTrainedTokenizerFast | None) -> None:
        self.root, self.source = root, save_source(kind, root / "source")
        self.tokens = write_corpus(root / "corpus/split=eval", *tokens_of(12, seed=3))
        if tokenizer is not None:
            save_tokenizer(tokenizer, root / "corpus/tokenizer")
            manifest = read_json(self.tokens, rebuild="")
            file = root / "corpus/tokenizer/tokenizer.json"
            write_json(self.tokens, manifest | {"tokenizer_checksum": checksum(file)})

    def folder(self, variant: str, draw: int = 0) -> Path:
        return self.root / f"models/variant={variant}/draw={draw}"

    def make(self, variant: str = "trained", draw: int = 0, **keys: Any) -> Path:
        trained = None if variant == "trained" else self.folder("trained") / "recipe.json"
        params = model_params(self.source, variant, draw=draw, **keys)
        output = self.folder(variant, draw)
        randomize_model(params, trained=trained, eval_tokens=self.tokens, output=output)
        return output


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = Study(tmp_path, "gpt_neox", byte_level())
    made.make()
    return made


def ids(study: Study) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.arange(16) + n for n in range(3)]))


def activations(folder: Path, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    subject = load_subject(folder / "recipe.json", CPU)
    return subject.activations(input_ids, split="eval", contexts=[0, 1, 2], sites=SITES)


@pytest.mark.parametrize(
    ("kind", "tokenizer"), [("llama", byte_level), ("gpt2", metaspace), ("gpt_neox", lower_case)]
)
def test_a_model_folder_tokenizes_text_as_the_study_does(
    tmp_path: Path, kind: str, tokenizer: Any
) -> None:
    """Even if transformers has other rules for the tokenizers of that type of model."""
    study = Study(tmp_path, kind, tokenizer())
    folders = [study.make(), study.make("rerandomized", 1, norm_parameters="keep")]
    plain = Tokenizer.from_file(str(tmp_path / "corpus/tokenizer/tokenizer.json"))
    for folder in folders:
        found = AutoTokenizer.from_pretrained(folder)
        for text in TEXTS:
            assert found(text)["input_ids"] == plain.encode(text).ids
            bare = found(text, add_special_tokens=False)["input_ids"]
            assert bare == plain.encode(text, add_special_tokens=False).ids
        own = AutoTokenizer.from_pretrained(tmp_path / "corpus/tokenizer")
        assert found.special_tokens_map == own.special_tokens_map
        assert found.chat_template == own.chat_template
        names = {file.name for file in folder.iterdir()} - {"generation_config.json"}
        assert names == {
            *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
            *("recipe.json", "gates.json", "model.parquet"),
        }
        files = read_json(folder / "recipe.json", rebuild="")["files"]
        assert {"tokenizer.json", "tokenizer_config.json"} < files.keys()
        # Weights and tokenizer of one folder belong together.
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert model(torch.tensor([[1, 2, 3]])).logits.shape[:2] == (1, 3)


@pytest.mark.parametrize("variant", ["trained", "permuted_weights", "noise_embeddings"])
def test_a_model_folder_has_the_same_bytes_again(study: Study, variant: str) -> None:
    keys = {"embedding_noise_std": 1.0} if variant == "noise_embeddings" else {}

    def written() -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in study.make(variant, **keys).iterdir()}

    assert written() == written()


def test_a_tokenizer_that_is_not_the_one_of_the_tokens_is_refused(study: Study) -> None:
    file = study.root / "corpus/tokenizer/tokenizer.json"
    file.write_text(file.read_text() + " ")
    with pytest.raises(UserError, match=r"corpus/tokenizer/tokenizer.json: damaged"):
        study.make("permuted_weights")


def test_tokens_without_a_tokenizer_give_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    folder = Study(tmp_path, "gpt2", None).make()
    assert "no tokenizer here" in caplog.text
    assert not (folder / "tokenizer.json").exists()


@pytest.mark.parametrize("own", [True, False])
def test_a_type_of_model_that_insists_on_a_class_gets_it_or_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, own: bool
) -> None:
    """For models of type qwen2 transformers takes its class, whatever the folder says."""
    tokenizer: Any = lower_case()
    if own:
        learned = json.loads(byte_level().backend_tokenizer.to_str())["model"]
        merges = [tuple(pair) for pair in learned["merges"]]
        tokenizer = Qwen2Tokenizer(vocab=learned["vocab"], merges=merges)
    caplog.set_level(logging.WARNING)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    Qwen2Config().save_pretrained(tmp_path / "model")
    folders.save_tokenizer(tmp_path / "tokenizer", tmp_path / "model")
    assert ("AutoTokenizer does not give" in caplog.text) is not own
    kind = AutoTokenizer if own else PreTrainedTokenizerFast
    found = kind.from_pretrained(tmp_path / "model")
    for text in TEXTS:
        assert found(text)["input_ids"] == tokenizer(text)["input_ids"]


def test_variants_without_weights_are_found_by_what_they_do(added: None) -> None:
    without = {name for name in VARIANTS if runs_on_trained(name)}
    assert without == {"noise_embeddings", "shifted"}
    assert {name for name in VARIANTS if VARIANTS[name].acts_on_passes()} == {
        *without,
        "redrawn_and_shifted",
    }
    assert all(has_model(name) for name in without)


@pytest.mark.parametrize(
    ("variant", "draw", "keys"),
    [
        ("noise_embeddings", 0, {"embedding_noise_std": 2.0}),
        ("noise_embeddings", 3, {"embedding_noise_std": 1.0}),
        ("shifted", 0, {}),
    ],
)
def test_a_variant_that_is_no_weight_has_no_copy_of_the_trained_ones(
    study: Study, added: None, variant: str, draw: int, keys: dict[str, Any]
) -> None:
    folder = study.folder(variant, draw)
    folder.mkdir(parents=True)
    # As an older version left it.
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        shutil.copyfile(study.folder("trained") / name, folder / name)
    assert study.make(variant, draw, **keys) == folder
    names = {file.name for file in folder.iterdir()}
    assert names == {
        *("README.md", "recipe.json", "gates.json", "model.parquet"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    with pytest.raises((OSError, ValueError)):
        AutoModelForCausalLM.from_pretrained(folder)
    readme = (folder / "README.md").read_text()
    assert "There are no weights here" in readme
    assert "](../../variant=trained/draw=0/recipe.json)" in readme
    assert "{" not in readme

    # The study's own loader runs the variant, which differs from the trained weights alone.
    found, trained = (
        activations(folder, ids(study)),
        activations(study.folder("trained"), ids(study)),
    )
    assert all(not torch.equal(found[site], trained[site]) for site in SITES)
    subject = load_subject(folder / "recipe.json", CPU)
    plain = load_subject(study.folder("trained") / "recipe.json", CPU)
    own, kept = (dict(each.model.named_parameters()) for each in (subject, plain))
    assert own.keys() == kept.keys()
    assert all(torch.equal(own[name], kept[name]) for name in own)
    assert subject.recipe["variant"] == variant
    if variant == "shifted":  # the same, from the trained model alone
        hook = plain.model.get_input_embeddings().register_forward_hook(lambda _m, _i, o: o + 1.0)
        again = plain.activations(ids(study), split="eval", contexts=[0, 1, 2], sites=SITES)
        hook.remove()
        assert all(torch.equal(found[site], again[site]) for site in SITES)


def test_noise_is_what_a_copy_of_the_trained_weights_would_give(study: Study) -> None:
    """Compared with the variant's hook on a model loaded by transformers alone."""
    from nullsae.subjects.loading import Subject

    folder = study.make("noise_embeddings", 2, embedding_noise_std=1.5)
    recipe = read_json(folder / "recipe.json", rebuild="")
    model = AutoModelForCausalLM.from_pretrained(study.folder("trained")).eval()
    by_hand = Subject(model, recipe, CPU)
    expected = by_hand.activations(ids(study), split="eval", contexts=[0, 1, 2], sites=SITES)
    found = activations(folder, ids(study))
    assert all(torch.equal(found[site], expected[site]) for site in SITES)
    assert recipe["embedding_noise_std"] == 1.5
    assert "standard deviation 1.5" in (folder / "README.md").read_text()


def test_the_whole_tree_can_be_moved(study: Study, tmp_path: Path) -> None:
    study.make("noise_embeddings", embedding_noise_std=1.0)
    before = activations(study.folder("noise_embeddings"), ids(study))
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(study.root / "models", tmp_path / "elsewhere/models")
    after = activations(Path(moved) / "variant=noise_embeddings/draw=0", ids(study))
    assert all(torch.equal(before[site], after[site]) for site in SITES)


def test_weights_that_are_a_part_of_a_variant_come_with_a_note(study: Study, added: None) -> None:
    folder = study.make("redrawn_and_shifted", 1, norm_parameters="rerandomize")
    assert (folder / "model.safetensors").is_file()
    assert "only a part of this variant" in (folder / "README.md").read_text()
    assert "weights" not in read_json(folder / "recipe.json", rebuild="")
    other = study.make("permuted_weights", norm_parameters="rerandomize")
    assert not (other / "README.md").exists()


def test_trained_weights_that_changed_under_a_variant_are_refused(study: Study) -> None:
    folder = study.make("noise_embeddings", embedding_noise_std=1.0)
    trained = study.folder("trained")
    moved = trained.rename(trained.with_name("away"))
    with pytest.raises(UserError, match=r"variant=trained/draw=0/recipe.json: the file is missing"):
        load_subject(folder / "recipe.json", CPU)
    moved.rename(trained)
    recipe = json.loads((trained / "recipe.json").read_text())
    weights = trained / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(UserError, match=r"trained/draw=0/model.safetensors: damaged .* checksum"):
        load_subject(folder / "recipe.json", CPU)
    # Retrained and complete, but not what the variant was made and gated for.
    recipe["files"]["model.safetensors"] = checksum(weights)
    write_json(trained / "recipe.json", recipe)
    with pytest.raises(UserError, match=r"noise_embeddings/draw=0/recipe.json: made for other"):
        load_subject(folder / "recipe.json", CPU)


def test_a_variant_without_weights_needs_the_trained_ones(study: Study) -> None:
    params = model_params(study.source, "noise_embeddings", embedding_noise_std=1.0)
    with pytest.raises(UserError, match=r"^--trained: missing; 'noise_embeddings' has no weights"):
        randomize_model(params, trained=None, eval_tokens=study.tokens, output=study.root / "noise")
    assert not (study.root / "noise").exists()
