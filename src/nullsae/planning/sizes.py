"""Sizes of a study's subjects and corpora, before anything is downloaded."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from nullsae import paths
from nullsae.config.corpora import BuiltinSource, Corpus, FilesSource, HubSource
from nullsae.config.model_size import Size, subject_size, vocabulary
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.core.folders import matching
from nullsae.corpus.documents import split_of_digest, text_digest
from nullsae.corpus.sources import documents
from nullsae.jobs.work.amounts import CorpusSize

# Characters per token of English with a vocabulary of 2,048, and what each doubling adds: State of
# the Union speeches have 3.6 and, with Pythia's vocabulary, 4.5.
CHARACTERS_AT_2048, CHARACTERS_PER_DOUBLING = 3.6, 0.2


def subject_sizes(config: Config) -> dict[str, Size]:
    """Return the size of each subject.

    Pythia's sizes are known; the `config.json` of other hub models is read, from cache or hub.

    Raises:
        UserError: a file is missing or does not state the size; names the config key.
    """
    corpora = config.corpora
    return {
        name: subject_size(given.source, corpora[given.corpus], f"config: subjects.{name}.source")
        for name, given in config.subjects.items()
    }


def corpus_sizes(config: Config, root: Path) -> dict[str, CorpusSize]:
    """Return the size of each corpus that a subject reads.

    Raises:
        UserError: a number of tokens is known neither from the config nor from an earlier run.
    """
    names = dict.fromkeys(subject.corpus for subject in config.subjects.values())
    return {name: _corpus_size(config.corpora[name], name, root) for name in names}


def _corpus_size(corpus: Corpus, name: str, root: Path) -> CorpusSize:
    found, counted = {"sae_train": corpus.sae_train_tokens, "eval": corpus.eval_tokens}, True
    share = {"sae_train": 1 - corpus.eval_share, "eval": corpus.eval_share}
    for split, wanted in found.items():
        if wanted is not None:
            continue
        manifest = root / paths.CORPUS_MANIFEST.format(corpus=name, split=split)
        if manifest.is_file():
            found[split] = int(json.loads(manifest.read_text(encoding="utf-8"))["n_tokens"])
        elif isinstance(corpus.source, HubSource):
            raise UserError(
                f"config: corpora.{name}.{split}_tokens: null, but the size of a hub data set is "
                f"unknown until it is read; give a number to plan with"
            )
        else:
            characters, counted = _characters(corpus, split), False
            found[split] = int(characters / _characters_per_token(corpus))
    context = corpus.context_tokens
    whole = {split: n // context * context for split, n in found.items() if n is not None}
    if isinstance(corpus.source, HubSource):
        read = max(n / share[split] for split, n in whole.items())
    else:
        read = sum(_characters(corpus, split) for split in whole) / _characters_per_token(corpus)
    return CorpusSize(whole["sae_train"], whole["eval"], int(read), counted)


def _characters_per_token(corpus: Corpus) -> float:
    return CHARACTERS_AT_2048 + CHARACTERS_PER_DOUBLING * math.log2(vocabulary(corpus) / 2048)


def _characters(corpus: Corpus, split: str) -> float:
    if isinstance(corpus.source, BuiltinSource):
        return _builtin_characters(corpus.source.name, corpus.eval_share)[split]
    assert isinstance(corpus.source, FilesSource)
    files = {file for pattern in corpus.source.paths for file in matching(pattern)}
    share = corpus.eval_share if split == "eval" else 1 - corpus.eval_share
    return share * sum(file.stat().st_size for file in files)


@cache
def _builtin_characters(name: Any, eval_share: float) -> dict[str, int]:
    found = {"sae_train": 0, "eval": 0}
    for text in documents(BuiltinSource(kind="builtin", name=name)):
        found[split_of_digest(text_digest(text), eval_share)] += len(text)
    return found
