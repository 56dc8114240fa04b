"""BOS before contexts and what ends documents, for tokenizers of several makes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from nullsae import paths
from nullsae.config.corpora import Corpus, PretrainedTokenizer
from nullsae.config.parse import parse_section
from nullsae.core.errors import UserError
from nullsae.corpus.boundaries import boundaries
from nullsae.corpus.ngram import fit_ngram, ngram_losses
from nullsae.corpus.prepare import prepare_corpus
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.corpus.tokenizer import load_tokenizer
from nullsae.jobs.corpus import PrepareCorpusParams
from refusing import refused

CONTEXT = 16
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
SPECIAL = ["<s>", "</s>", "<|endoftext|>", "<|im_end|>", "<sop>"]
ID = {token: len(ALPHABET) + i for i, token in enumerate(SPECIAL)}


def byte_tokenizer(special: list[str] = SPECIAL) -> Tokenizer:
    """Return a tokenizer with one token per byte, followed by special ones."""
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(ALPHABET)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    return backend


def template(single: str) -> processors.TemplateProcessing:
    named = [(t, ID[t]) for t in SPECIAL if t in single]
    return processors.TemplateProcessing(single=single, special_tokens=named)


def plain(backend: Tokenizer) -> None:
    """Add no post-processor."""


def from_template(backend: Tokenizer) -> None:
    backend.post_processor = template("<s> $A </s>")


def from_sequence(backend: Tokenizer) -> None:
    # As in Llama 3.
    parts = [processors.ByteLevel(trim_offsets=True), template("<s> $A")]
    backend.post_processor = processors.Sequence(parts)


def from_roberta(backend: Tokenizer) -> None:
    backend.post_processor = processors.RobertaProcessing(("</s>", ID["</s>"]), ("<s>", ID["<s>"]))


def from_two(backend: Tokenizer) -> None:
    # As in GLM-4.
    backend.post_processor = template("<s> <sop> $A")


def byte_level(backend: Tokenizer) -> None:
    # As in GPT-2 and Qwen: it moves offsets and adds nothing.
    backend.post_processor = processors.ByteLevel(trim_offsets=False)


def only_end(backend: Tokenizer) -> None:
    backend.post_processor = template("$A </s>")


def saved(
    folder: Path,
    post_process: Callable[[Tokenizer], None] = plain,
    *,
    backend: Tokenizer | None = None,
    added: dict[str, Any] | None = None,
    **keys: Any,
) -> Path:
    """Write a tokenizer folder; `added` is merged into its tokenizer_config.json."""
    backend = backend or byte_tokenizer()
    post_process(backend)
    keys = {"bos_token": "<s>", "eos_token": "</s>", **keys}
    PreTrainedTokenizerFast(tokenizer_object=backend, **keys).save_pretrained(folder)
    # transformers may have changed the files; restore those of the hub.
    backend.save(str(folder / "tokenizer.json"))
    file = folder / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(file.read_text()).items() if not k.startswith("add_")}
    file.write_text(json.dumps({**kept, **(added or {})}))
    return folder


def made(root: Path, tokenizer: Path | None, texts: list[str] | None = None, **keys: Any) -> Path:
    """Prepare a corpus; return the root."""
    file = root / "data.jsonl"
    root.mkdir(exist_ok=True)
    texts = texts or [f"text {i} " + "abc " * (i % 7) for i in range(60)]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = {
        "source": {"kind": "files", "paths": [str(file)]},
        "tokenizer": {"kind": "train", "vocab_size": 270}
        if tokenizer is None
        else {"kind": "pretrained", "path": str(tokenizer)},
        "context_tokens": CONTEXT,
        "eval_share": 0.3,
        **keys,
    }
    corpus = parse_section(Corpus, given, where="test")
    prepare_corpus(PrepareCorpusParams(corpus=corpus), "c", root)
    return root


def tokens_of(root: Path, split: str = "sae_train") -> Tokens:
    return load_tokens(root / paths.CORPUS_MANIFEST.format(corpus="c", split=split))


def stream(tokens: Tokens) -> list[int]:
    """Concatenate the contexts, without BOS."""
    flat: list[int] = tokens.input_ids[:, tokens.n_bos :].reshape(-1).tolist()
    return flat


MAKES = [
    (plain, {}, []),
    (from_template, {}, ["<s>"]),
    (from_sequence, {}, ["<s>"]),
    (from_roberta, {}, ["<s>"]),
    (from_two, {}, ["<s>", "<sop>"]),
    (byte_level, {}, []),
    (only_end, {}, []),
    (plain, {"add_bos_token": True, "add_eos_token": False}, ["<s>"]),
    (byte_level, {"add_bos_token": False}, []),
    (byte_level, {"add_bos_token": True, "tokenizer_class": "LlamaTokenizer"}, ["<s>"]),
    (from_sequence, {"add_bos_token": True, "tokenizer_class": "LlamaTokenizerFast"}, ["<s>"]),
]


@pytest.mark.parametrize(("post_process", "added", "before"), MAKES)
def test_auto_puts_before_contexts_what_the_tokenizer_puts_before_texts(
    tmp_path: Path, post_process: Callable[[Tokenizer], None], added: dict[str, Any], before: Any
) -> None:
    root = made(tmp_path, saved(tmp_path / "t", post_process, added=added))
    for split in ("sae_train", "eval"):
        tokens = tokens_of(root, split)
        ids = [ID[token] for token in before]
        assert tokens.manifest["prepend_bos"] is bool(before)
        assert tokens.manifest["bos_token_ids"] == (ids or [ID["<s>"]])
        assert tokens.n_bos == len(ids)
        assert (tokens.input_ids[:, : len(ids)] == ids).all()
        assert ID["<s>"] not in stream(tokens)
        # BOS replaces no token of the text, and belongs to the document of the next token.
        assert (tokens.document_id[:, :1] == tokens.document_id[:, : len(ids) + 1]).all()
        assert (np.diff(tokens.document_id.reshape(-1)) >= 0).all()


def test_a_tokenizer_without_a_tokenizer_json_prepends_as_its_config_says(tmp_path: Path) -> None:
    for added in (True, False):
        folder = tmp_path / str(added)
        folder.mkdir()
        names = [*ALPHABET, *SPECIAL]
        (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(names)}))
        (folder / "merges.txt").write_text("#version: 0.2\n")
        given = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": added, "unk_token": "</s>"}
        given |= {"bos_token": "<s>", "eos_token": "</s>"}
        (folder / "tokenizer_config.json").write_text(json.dumps(given))
        tokens = tokens_of(made(tmp_path / f"made-{added}", folder))
        assert tokens.manifest["prepend_bos"] is added
        assert (tokens.input_ids[:, 0] == ID["<s>"]).all() == added


def test_the_text_is_the_same_with_bos_and_without(tmp_path: Path) -> None:
    folder = saved(tmp_path / "t", from_template)
    streams = {}
    for prepend in (True, False):
        tokens = tokens_of(made(tmp_path / str(prepend), folder, prepend_bos=prepend))
        assert tokens.input_ids.shape[1] == CONTEXT
        assert tokens.n_bos == prepend
        streams[prepend] = stream(tokens)
    n = min(map(len, streams.values()))
    assert n > 10 * CONTEXT
    assert streams[True][:n] == streams[False][:n]


def test_bos_can_be_requested_if_the_tokenizer_adds_none(tmp_path: Path) -> None:
    folder = saved(tmp_path / "t", byte_level, bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    tokens = tokens_of(made(tmp_path, folder, prepend_bos=True))
    assert (tokens.input_ids[:, 0] == ID["<|endoftext|>"]).all()


def test_eos_replaces_a_requested_bos_that_is_missing(tmp_path: Path) -> None:
    tokens = tokens_of(made(tmp_path, None, prepend_bos=True))
    assert (tokens.input_ids[:, 0] == tokens.manifest["eos_token_id"]).all()
    assert tokens.bos_token_ids == [tokens.manifest["eos_token_id"]]


def test_requesting_bos_without_bos_or_eos_is_one_line(tmp_path: Path) -> None:
    folder = saved(tmp_path / "t", bos_token=None, eos_token=None)
    with pytest.raises(UserError, match=r"corpora\.c\.prepend_bos: true, .* neither a BOS nor an"):
        made(tmp_path, folder, prepend_bos=True)
    assert not (tmp_path / "results").exists()


def test_a_tokenizer_trained_here_gets_no_bos_and_its_own_separator(tmp_path: Path) -> None:
    tokens = tokens_of(made(tmp_path, None))
    said = {key: tokens.manifest[key] for key in ("prepend_bos", "bos_token_ids")}
    assert said == {"prepend_bos": False, "bos_token_ids": []}
    assert tokens.manifest["separator_token_id"] == tokens.manifest["eos_token_id"] == 0


SEPARATORS = [
    ("auto", "</s>"),
    ("eos", "</s>"),
    ("bos", "<s>"),
    ("none", None),
    ("<|endoftext|>", "<|endoftext|>"),
    ("\n", "\u010a"),  # by its text, which differs from its name in a byte-level vocabulary
]


@pytest.mark.parametrize(("separator", "expected"), SEPARATORS)
def test_documents_end_with_the_separator(
    tmp_path: Path, separator: str, expected: str | None
) -> None:
    folder = saved(tmp_path / "t", byte_level)
    root = made(tmp_path, folder, separator=separator)
    vocabulary = {**{token: i for i, token in enumerate(ALPHABET)}, **ID}
    wanted = None if expected is None else vocabulary[expected]
    for split in ("sae_train", "eval"):
        tokens = tokens_of(root, split)
        assert tokens.manifest["separator_token_id"] == wanted
        assert tokens.manifest["eos_token_id"] == ID["</s>"]
        flat, documents = tokens.input_ids.reshape(-1), tokens.document_id.reshape(-1)
        ends = np.flatnonzero(np.diff(documents))
        assert len(ends) > 5
        assert documents[ends].tolist() == list(range(len(ends)))
        if wanted is None:
            assert flat.max() < len(ALPHABET)
        else:
            np.testing.assert_array_equal(ends, np.flatnonzero(flat == wanted)[: len(ends)])


CHAT = "{% for m in messages %}<|u|>{{ m.content }}<|stop|>{% endfor %}"
ENDS = [
    # SmolLM2 and Qwen for chat, Pythia, Llama 2 (one token for both), Hermes, a made-up one.
    ("<|im_end|>", ["<|im_end|>", "<|endoftext|>"], None, "<|endoftext|>"),
    ("<|endoftext|>", ["<|im_end|>", "<|endoftext|>"], None, "<|endoftext|>"),
    ("</s>", ["</s>", "<|endoftext|>"], "{{ m }}</s>", "</s>"),
    ("<|im_end|>", ["<|im_end|>", "</s>"], None, "</s>"),
    ("<|eot_id|>", ["<|eot_id|>", "<|end_of_text|>"], None, "<|end_of_text|>"),
    ("<|stop|>", ["<|stop|>", "<eos>"], CHAT, "<eos>"),
    ("<|stop|>", ["<|stop|>", "<eos>"], None, "<|stop|>"),
    ("<|im_end|>", ["<|im_end|>"], None, "<|im_end|>"),
    (None, ["<|endoftext|>"], None, "<|endoftext|>"),
]


@pytest.mark.parametrize(("eos", "special", "chat", "expected"), ENDS)
def test_auto_ends_documents_with_the_end_of_text_not_of_turn(
    tmp_path: Path, eos: str | None, special: list[str], chat: str | None, expected: str
) -> None:
    keys = {"bos_token": None, "eos_token": eos, "chat_template": chat}
    folder = saved(tmp_path, backend=byte_tokenizer(special), **keys)
    encoder = load_tokenizer(PretrainedTokenizer(kind="pretrained", path=str(folder)))
    source = {"kind": "builtin", "name": "stdlib"}
    tokenizer = {"kind": "pretrained", "path": str(folder)}
    given = parse_section(Corpus, {"source": source, "tokenizer": tokenizer}, where="test")
    found = boundaries(encoder, given, "config: corpora.c")
    assert found.separator_token_id == len(ALPHABET) + special.index(expected)


@pytest.mark.parametrize("separator", ["auto", "eos", "bos", "<nothing>", "two words"])
def test_a_missing_separator_is_one_line(tmp_path: Path, separator: str) -> None:
    keys = {"bos_token": None, "eos_token": None}
    folder = saved(tmp_path / "t", backend=byte_tokenizer(["<x>"]), **keys)
    said = refused(made, tmp_path, folder, separator=separator)
    assert said.startswith(f"config: corpora.c.separator: {separator}, but the tokenizer has no ")
    assert "'<x>'" in said
    assert tokens_of(made(tmp_path, folder, separator="none")).manifest["eos_token_id"] is None


def test_baselines_cover_the_tokens_that_a_model_predicts(tmp_path: Path) -> None:
    root = made(tmp_path, saved(tmp_path / "t", from_two))
    train, heldout = tokens_of(root), tokens_of(root, "eval")
    ngram = fit_ngram(np.array(stream(train), dtype=np.int32), heldout.manifest["vocab_size"])
    n = heldout.input_ids.shape[0] * (CONTEXT - 2)
    assert heldout.manifest["n_predicted_tokens"] == n
    mean = -np.log(ngram.unigram[heldout.input_ids[:, 2:]]).mean()
    assert heldout.manifest["unigram_loss_nats"] == pytest.approx(mean, rel=1e-12)
    assert heldout.manifest["bigram_loss_nats"] == ngram_losses(ngram, heldout.input_ids, 2)[1]


def test_requesting_the_reported_number_of_tokens_works_with_bos(tmp_path: Path) -> None:
    folder = saved(tmp_path / "t", from_template)
    said = refused(made, tmp_path, folder, eval_tokens=10**6)
    there = int(said.split("eval has ")[1].split()[0])
    root = made(tmp_path, folder, eval_tokens=there)
    assert tokens_of(root, "eval").input_ids.size == there // CONTEXT * CONTEXT
    with pytest.raises(UserError):
        made(tmp_path, folder, eval_tokens=there + CONTEXT)
