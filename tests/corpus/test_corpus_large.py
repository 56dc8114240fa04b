"""Corpora larger than memory: what a preparation needs, and what a killed one leaves."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corpus_files import files_of
from safetensors.numpy import save_file

from killed_streams import STREAM, WORDS, downloads_of_two_runs, save_words
from nullsae import paths
from nullsae.config.corpora import Corpus, HubSource
from nullsae.config.parse import parse_section
from nullsae.core import locking
from nullsae.core.errors import UserError
from nullsae.corpus import preparation, prepare, spool
from nullsae.corpus.documents import SPLITS
from nullsae.corpus.hub_texts import HubTexts
from nullsae.corpus.prepare import prepare_corpus
from nullsae.corpus.reading import Document, Reader
from nullsae.corpus.tokenizer import Encoder, train_tokenizer
from nullsae.jobs.corpus import PrepareCorpusParams

CONTEXT = 16
SHARE = 0.2


def texts_of(n: int, n_words: int = 30) -> list[str]:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 2 * n_words))) for _ in range(n)]
    return [*texts, "", *texts[: n // 10]]


def params_of(root: Path, texts: list[str], **keys: Any) -> PrepareCorpusParams:
    file = root / "data/train.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    given = {
        "source": {"kind": "files", "paths": [str(file)]},
        "tokenizer": {"kind": "train", "vocab_size": 300},
        "context_tokens": CONTEXT,
        "eval_share": SHARE,
        **keys,
    }
    return PrepareCorpusParams(corpus=parse_section(Corpus, given, where="test"))


def stream_of(root: Path) -> dict[str, Any]:
    return {
        "source": {"kind": "hub", "path": str(root / "data"), "streaming": True},
        "sae_train_tokens": 16_000,
        "eval_tokens": 3000,
    }


def packed_in_memory(documents: list[Document], encoder: Encoder, split: str) -> Any:
    """Join everything in memory and cut it into contexts."""
    ids, index = [], []
    for i, document in enumerate(d for d in documents if d.split == split):
        mine = [*encoder.encode([document.text])[0].tolist(), encoder.eos_token_id]
        ids += mine
        index += [i] * len(mine)
    n = len(ids) // CONTEXT * CONTEXT
    return {
        name: np.array(values[:n], dtype=np.int32).reshape(-1, CONTEXT)
        for name, values in (("input_ids", ids), ("document_id", index))
    }


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_tokens_equal_those_of_a_sort_in_memory_byte_for_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr(preparation, "ENCODE_BATCH_DOCUMENTS", batch)
    monkeypatch.setattr(preparation, "CHECKPOINT_TOKENS", 500)
    monkeypatch.setattr(spool, "BUFFER_BYTES", 3000)
    texts = texts_of(300)
    params = params_of(tmp_path, texts)
    prepare_corpus(params, "c", tmp_path)
    documents = sorted(Reader(texts, SHARE))
    encoder = train_tokenizer(
        (d.text for d in documents if d.split == "sae_train"), params.corpus.tokenizer
    )
    for split in SPLITS:
        save_file(packed_in_memory(documents, encoder, split), tmp_path / "wanted")
        made = tmp_path / paths.CORPUS_TOKENS.format(corpus="c", split=split)
        assert made.read_bytes() == (tmp_path / "wanted").read_bytes()


def test_a_source_is_read_again_if_too_little_of_it_was_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool, "BUFFER_BYTES", 20_000)
    words = {"kind": "pretrained", "path": str(save_words(tmp_path / "words"))}
    wanted = {"sae_train_tokens": 4000, "eval_tokens": 800, "tokenizer": words}
    made = {}
    for kept in (16, 1):
        monkeypatch.setattr(preparation, "KEPT_BYTES_PER_TOKEN", kept)
        root = tmp_path / str(kept)
        params = params_of(tmp_path, texts_of(900), **wanted)
        prepare_corpus(params, "c", root)
        made[kept] = files_of(root)
    assert made[16] == made[1]


def run_until_killed(params: PrepareCorpusParams, root: Path, kind: str, at: int) -> int:
    """Prepare in a separate process that is killed by SIGKILL; return its exit code."""

    def kill() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    class Mortal(HubTexts):
        """Texts of a stream that kills the process at the last one."""

        n_given = 0

        def __next__(self) -> str:
            if kind == "texts" and self.n_given == at:
                kill()
            self.n_given += 1
            return super().__next__()

    def work() -> None:
        def texts(source: Any, **keys: Any) -> Iterator[str]:
            if isinstance(source, HubSource):
                return Mortal(source, **keys)
            return mortal(read(source, **keys))

        def mortal(texts: Iterator[str]) -> Iterator[str]:
            for i, text in enumerate(texts):
                if kind == "texts" and i == at:
                    kill()
                yield text

        def progress(done: int, _total: int) -> None:
            if kind == "tokens" and done >= at:
                kill()

        read = prepare.documents
        prepare.documents = texts
        if kind == "writing":
            prepare.write_json = lambda *_: kill()
        prepare_corpus(params, "c", root, progress)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


KILLS = [("texts", 10), ("texts", 150), ("tokens", 200), ("tokens", 5000), ("writing", 0)]


@pytest.mark.parametrize("source", ["files", "stream"])
@pytest.mark.parametrize("tokenizer", ["trained", "pretrained"])
def test_a_killed_preparation_resumes_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, tokenizer: str
) -> None:
    monkeypatch.setattr(preparation, "CHECKPOINT_TOKENS", 1000)
    monkeypatch.setattr(spool, "BUFFER_BYTES", 20_000)
    keys: dict[str, Any] = stream_of(tmp_path) if source == "stream" else {}
    if tokenizer == "pretrained":
        folder = save_words(tmp_path / "words")
        keys["tokenizer"] = {"kind": "pretrained", "path": str(folder)}
    params = params_of(tmp_path, texts_of(900), **keys)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    prepare_corpus(params, "c", whole)
    for kind, at in KILLS:
        assert run_until_killed(params, killed, kind, at) == -signal.SIGKILL, (kind, at)
    encoded: list[str] = []
    encode = Encoder.encode

    def count(self: Encoder, texts: Any) -> Any:
        encoded.extend(texts)
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "encode", count)
    prepare_corpus(params, "c", killed)
    # Everything was packed when the last run was killed; the last checkpoint is recent.
    assert sum(len(text.split()) for text in encoded) < 3000
    assert files_of(killed) == files_of(whole)


KILLED = """
import json, os, signal, sys
from pathlib import Path
from nullsae.config.corpora import Corpus
from nullsae.config.parse import parse_section
from nullsae.corpus import preparation, prepare
from nullsae.jobs.corpus import PrepareCorpusParams

def progress(done, _total):
    if done >= int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

preparation.CHECKPOINT_TOKENS = 1000
corpus = parse_section(Corpus, json.loads(sys.argv[2]), where="test")
prepare.prepare_corpus(PrepareCorpusParams(corpus=corpus), "c", Path(sys.argv[1]), progress)
"""


def test_a_killed_stream_resumes_where_it_was_not_at_the_first_file(
    tmp_path: Path,
) -> None:
    lines = [json.dumps({"text": text}) + "\n" for text in texts_of(900)]
    files = {f"train-{i:02}.jsonl": "".join(lines[50 * i : 50 * (i + 1)]) for i in range(20)}
    words = {"kind": "pretrained", "path": str(save_words(tmp_path / "words"))}
    local = params_of(tmp_path, [], **stream_of(tmp_path), tokenizer=words)
    (tmp_path / "data/train.jsonl").unlink()
    for name, text in files.items():
        (tmp_path / "data" / name).write_text(text)
    prepare_corpus(local, "c", tmp_path / "whole")

    corpus = local.corpus.model_dump(mode="json") | {"source": STREAM}
    place, home = tmp_path / "killed", tmp_path / "home"
    first, second = downloads_of_two_runs(KILLED, corpus, files, place, home)
    assert second - first
    whole, killed = files_of(tmp_path / "whole"), files_of(tmp_path / "killed")
    assert killed.keys() == whole.keys()
    for name in whole:
        if name.endswith("manifest.json"):
            made, wanted = json.loads(killed[name]), json.loads(whole[name])
            assert made["source"].pop("name").startswith("some/text")
            assert wanted["source"].pop("name").startswith(str(tmp_path))
            assert made == wanted
        else:
            assert killed[name] == whole[name], name


def test_a_preparation_that_cannot_succeed_leaves_nothing(tmp_path: Path) -> None:
    params = params_of(tmp_path, texts_of(50), sae_train_tokens=10**6)
    with pytest.raises(UserError, match="1000000 tokens are asked for"):
        prepare_corpus(params, "c", tmp_path)
    assert not (tmp_path / "results").exists()


SCRIPT = """
import json, sys
from pathlib import Path
from nullsae.config.corpora import Corpus
from nullsae.config.parse import parse_section
from nullsae.corpus import ngram, packing, prepare, spool
from nullsae.jobs.corpus import PrepareCorpusParams

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

# Scaled down like the corpus.
prepare.MAX_NGRAM_FIT_TOKENS, ngram.PIECE_TOKENS, packing.BUFFER_TOKENS = 2**14, 2**14, 2**14
spool.BUFFER_BYTES = 2**18
for root, corpus in zip(sys.argv[1::2], sys.argv[2::2]):
    given = parse_section(Corpus, json.loads(corpus), where="test")
    # Reset the peak, because that of the imports exceeds that of a small corpus.
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    prepare.prepare_corpus(PrepareCorpusParams(corpus=given), "c", Path(root))
    print((kilobytes("VmHWM") - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.slow
def test_memory_does_not_grow_with_a_corpus(tmp_path: Path) -> None:
    words = {"kind": "pretrained", "path": str(save_words(tmp_path / "words"))}
    command, sizes = [sys.executable, "-c", SCRIPT], []
    for n in (400, 4000):
        root = tmp_path / str(n)
        corpus = params_of(root, texts_of(n, 400), tokenizer=words).corpus
        command += [str(root), corpus.model_dump_json()]
        sizes.append((root / "data/train.jsonl").stat().st_size)
    assert sizes[1] > 9 * sizes[0] > 10**6
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    _, large = map(int, result.stdout.split())
    # Sorting and packing in memory takes 3.8 times the size of the file.
    assert large < sizes[1]


@pytest.mark.parametrize("source", ["files", "stream"])
def test_a_corpus_is_prepared_by_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.setattr(locking, "WAIT_SECONDS", 0.0)
    keys: dict[str, Any] = stream_of(tmp_path) if source == "stream" else {}
    params = params_of(tmp_path, texts_of(900), **keys)
    tried: list[int] = []

    def beside(done: int, _: int) -> None:
        if not tried:
            before = files_of(tmp_path)
            with pytest.raises(UserError, match=rf"process {os.getpid()} on .* is already working"):
                prepare_corpus(params, "c", tmp_path)
            assert files_of(tmp_path) == before
        tried.append(done)

    prepare_corpus(params, "c", tmp_path, beside)
    assert tried
    made = files_of(tmp_path)
    assert not (tmp_path / paths.WORK).exists()
    prepare_corpus(params, "c", tmp_path)
    assert files_of(tmp_path) == made
