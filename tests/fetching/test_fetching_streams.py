"""The documents of a stream, fetched as a file: a fetch resumes after a kill."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from killed_streams import STREAM, WORDS, downloads_of_two_runs, save_words
from nullsae.fetching.streams import Recorded

N_FILES, N_TEXTS = 20, 900
FETCH = """
import json, os, signal, sys
from pathlib import Path
from nullsae.config.corpora import Corpus
from nullsae.config.parse import parse_section
from nullsae.corpus import preparation
from nullsae.fetching import streams

class Bar:
    def __enter__(self):
        return self.show
    def __exit__(self, *_):
        pass
    def show(self, done, _total):
        if done >= int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

preparation.CHECKPOINT_TOKENS = 300
streams.bar = lambda *_: Bar()
corpus = parse_section(Corpus, json.loads(sys.argv[2]), where="test")
streams.Stream(corpus, corpus.source, Path(sys.argv[1]), "c", "test").fetch()
"""


def test_a_killed_fetch_resumes_from_its_last_checkpoint(tmp_path: Path) -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(N_TEXTS)]
    each = N_TEXTS // N_FILES
    files = {
        f"train-{i:02}.jsonl": "".join(
            json.dumps({"text": text}) + "\n" for text in texts[each * i : each * (i + 1)]
        )
        for i in range(N_FILES)
    }
    corpus = {
        "source": STREAM,
        "tokenizer": {"kind": "pretrained", "path": str(save_words(tmp_path / "words"))},
        **{"context_tokens": 16, "eval_share": 0.2, "sae_train_tokens": 16_000},
        "eval_tokens": 3000,
    }
    home = tmp_path / "home"
    downloads_of_two_runs(FETCH, corpus, files, home, tmp_path / "hub")
    [file] = home.rglob("*.*")
    found = pq.read_table(file)["text"].to_pylist()
    # Each document once, in order, and no more than both splits need.
    assert found == texts[: len(found)]
    assert 19_000 < sum(len(text.split()) + 1 for text in found) < 24_000


class Texts:
    """A stream in memory."""

    def __init__(self, texts: list[str]) -> None:
        self.texts, self.at = texts, 0

    def __next__(self) -> str:
        if self.at == len(self.texts):
            raise StopIteration
        self.at += 1
        return self.texts[self.at - 1]

    def state(self) -> dict[str, Any]:
        return {"at": self.at}

    def go_on(self, state: dict[str, Any]) -> bool:
        self.at = state["at"]
        return True


def test_texts_after_the_last_checkpoint_are_recorded_again(tmp_path: Path) -> None:
    texts, file = ["a", "é", "\ud83d alone", "d"], tmp_path / "texts"
    once = Recorded(Texts(texts), file)
    read = [next(once), next(once)]
    state = once.state()
    assert state is not None
    read.append(next(once))
    once.close()
    again = Recorded(Texts(texts), file)
    assert again.go_on(state)
    assert list(again) == texts[2:]
    again.close()
    whole = Recorded(Texts(texts), tmp_path / "whole")
    assert list(whole) == texts
    whole.close()
    assert file.read_bytes() == (tmp_path / "whole").read_bytes()
    # A truncated or unrelated file is written from its start.
    other = Recorded(Texts(texts), tmp_path / "other")
    assert not other.go_on(state)
    assert list(other) == texts
    other.close()
    assert (tmp_path / "other").read_bytes() == file.read_bytes()
