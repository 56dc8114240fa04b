"""Jobs of workflow/rules/corpus.smk."""

from __future__ import annotations

from functools import cache

from nullsae.config.corpora import (
    Corpus,
    FilesSource,
    GgufTokenizer,
    HubSource,
    PretrainedTokenizer,
)
from nullsae.config.model_files import find_gguf, is_local
from nullsae.config.section import Section
from nullsae.config.study import Config
from nullsae.core.files import content_key
from nullsae.core.folders import matching
from nullsae.jobs.file_stamps import folder_files, named_file, stamps
from nullsae.jobs.rules import PRESENT, Codes, Wildcards, rule


class PrepareCorpusParams(Section):
    """What `nullsae prepare_corpus` takes."""

    corpus: Corpus
    local_files: tuple[str, ...] = ()
    """Name and hash of each local file that is read, so that an edit of one counts as a change."""


@rule("corpus")
def prepare_corpus(config: Config, wildcards: Wildcards) -> PrepareCorpusParams:
    """Build params for a corpus and the files that it is read from."""
    return _params(wildcards["corpus"], config.corpora[wildcards["corpus"]])


def _params(name: str, corpus: Corpus) -> PrepareCorpusParams:
    paths = corpus.source.paths if isinstance(corpus.source, FilesSource) else ()
    read = [named_file(file) for path in paths for file in matching(path)]
    if isinstance(corpus.source, HubSource) and is_local(corpus.source.path):
        read.append(f"{named_file(corpus.source.path)}/**/*")
    if isinstance(corpus.tokenizer, PretrainedTokenizer):
        read += folder_files(corpus.tokenizer.path)
    if isinstance(corpus.tokenizer, GgufTokenizer):
        where = f"config: corpora.{name}.tokenizer"
        read.append(named_file(find_gguf(corpus.tokenizer, where=where)))
    return PrepareCorpusParams(corpus=corpus, local_files=stamps(read))


@cache
def corpus_key(name: str, corpus: Corpus, codes: Codes = PRESENT) -> str:
    """Return a short key of all that determines a corpus' tokens; its files are read once."""
    params = _params(name, corpus).model_dump(mode="json")
    return content_key([params, codes.of(prepare_corpus)])
