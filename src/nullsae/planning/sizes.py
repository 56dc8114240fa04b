"""How large the parts of a study are: subjects and corpora, before anything was downloaded."""

from __future__ import annotations

import glob
import json
import math
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nullsae import paths
from nullsae.config.corpora import BuiltinSource, Corpus, FilesSource, HubSource, TrainedTokenizer
from nullsae.config.model_files import find_gguf, is_local
from nullsae.config.model_size import LAYER_KEYS, WIDTH_KEYS
from nullsae.config.study import Config
from nullsae.config.subjects import GgufSource, PretrainedSource, TrainSource
from nullsae.core.errors import UserError, first_line
from nullsae.corpus.sources import documents
from nullsae.corpus.splits import split_of_digest, text_digest

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Layers, width, heads and rows of the embedding of Pythia (Biderman et al. 2023, table 1, and the
# config.json of each): a plan of the paper's grid must not need a hub.
PYTHIA = {
    "pythia-14m": (6, 128, 4, 50304),
    "pythia-31m": (6, 256, 8, 50304),
    "pythia-70m": (6, 512, 8, 50304),
    "pythia-160m": (12, 768, 12, 50304),
    "pythia-410m": (24, 1024, 16, 50304),
    "pythia-1b": (16, 2048, 8, 50304),
    "pythia-1.4b": (24, 2048, 16, 50304),
    "pythia-2.8b": (32, 2560, 32, 50304),
    "pythia-6.9b": (32, 4096, 32, 50432),
    "pythia-12b": (36, 5120, 40, 50688),
}
# Families whose MLP has two matrices; the others gate it by a third.
TWO_MATRICES = ("gpt_neox", "gpt2", "opt", "gptj", "gpt_neo", "bloom", "falcon", "phi", "codegen")
LEARNED_POSITIONS = ("gpt2", "opt", "gpt_neo")
# English characters in a token, at a vocabulary of 2,048, and how many more each doubling adds:
# State of the Union speeches have 3.6 and, in the vocabulary of Pythia, 4.5.
CHARACTERS_AT_2048, CHARACTERS_PER_DOUBLING = 3.6, 0.2


@dataclass(frozen=True)
class Size:
    """What a subject is made of."""

    n_layers: int
    d_model: int
    vocab_size: int
    block_weights: int
    """Entries of the matrices of one block, which each token is multiplied with."""
    n_parameters: int
    """All, embeddings and norms included."""
    attention_width: int
    """Heads times their width: d_model in most families."""
    dtype: str

    @property
    def weight_bytes(self) -> int:
        """Size of a checkpoint."""
        return self.n_parameters * BYTES[self.dtype]


def neox_size(n_layers: int, d: int, vocab_size: int, dtype: str) -> Size:
    """A GPT-NeoX: 12 d^2 weights and 13 d biases and gains in a block, two embeddings, a norm."""
    n = n_layers * (12 * d * d + 13 * d) + 2 * vocab_size * d + 2 * d
    return Size(n_layers, d, vocab_size, 12 * d * d, n, d, dtype)


def described_size(described: dict[str, Any], dtype: str) -> Size:
    """The size that a Hugging Face `config.json` states.

    Raises:
        KeyError: it does not say how many blocks, how wide, or how many tokens.
    """
    text = described.get("text_config", described)
    n_layers, d = (
        int(text[next((key for key in keys if isinstance(text.get(key), int)), keys[0])])
        for keys in (LAYER_KEYS, WIDTH_KEYS)
    )
    vocab_size = int(text["vocab_size"])
    heads = text.get("num_attention_heads", text.get("n_head"))
    width = int(text.get("head_dim") or (d // heads if heads else d)) * (heads or 1)
    values = width * text.get("num_key_value_heads", heads or 1) // (heads or 1)
    inner = text.get("intermediate_size") or text.get("n_inner") or text.get("ffn_dim") or 4 * d
    matrices = 2 if text.get("model_type") in TWO_MATRICES else 3
    block = d * (2 * width + 2 * values) + matrices * d * inner
    tied = text.get("tie_word_embeddings", text.get("model_type") in ("gpt2", "opt"))
    learned = text.get("n_positions") or text.get("max_position_embeddings") or 0
    positions = learned if text.get("model_type") in LEARNED_POSITIONS else 0
    n = n_layers * (block + 4 * d) + ((1 if tied else 2) * vocab_size + positions) * d
    return Size(n_layers, d, vocab_size, block, n, width, dtype)


def subject_sizes(config: Config) -> dict[str, Size]:
    """The size of each subject.

    Pythia's are known; of other hub models the `config.json` is read, from the cache or the hub.

    Raises:
        UserError: a file that is missing or does not say; names the config key.
    """
    return {
        name: _subject_size(
            subject.source, config.corpora[subject.corpus], f"config: subjects.{name}.source"
        )
        for name, subject in config.subjects.items()
    }


def _subject_size(
    source: TrainSource | PretrainedSource | GgufSource, corpus: Corpus, where: str
) -> Size:
    if isinstance(source, TrainSource):
        return neox_size(source.n_layers, source.d_model, vocabulary(corpus), "float32")
    return model_size(source, where)


def model_size(source: PretrainedSource | GgufSource, where: str) -> Size:
    """The size of a model that was trained elsewhere.

    Raises:
        UserError: a file that is missing or does not say.
    """
    if isinstance(source, GgufSource):
        return _gguf_size(source, where)
    name = source.path.rsplit("/", 1)[-1].removesuffix("-deduped")
    if name in PYTHIA and not is_local(source.path):
        n_layers, d, _, vocab_size = PYTHIA[name]
        return neox_size(n_layers, d, vocab_size, source.dtype)
    try:
        return described_size(_described(source, where), source.dtype)
    except KeyError as error:
        raise UserError(
            f"{where}.path: the config.json of {source.path!r} does not state {error}, which a "
            f"plan needs"
        ) from None


def _described(source: PretrainedSource, where: str) -> Any:
    """A model's config.json: a local folder's, the hub cache's, else the hub's."""
    import huggingface_hub

    path, revision = source.path, source.revision
    try:
        if is_local(path):
            file = Path(path).expanduser() / "config.json"
        else:
            cached = huggingface_hub.try_to_load_from_cache(path, "config.json", revision=revision)
            file = Path(
                cached
                if isinstance(cached, str)
                else huggingface_hub.hf_hub_download(path, "config.json", revision=revision)
            )
        return json.loads(file.read_text(encoding="utf-8"))
    except Exception as error:  # the HTTP client differs between versions of huggingface_hub
        raise UserError(
            f"{where}.path: a plan needs the size of {path!r}, and its config.json can be had "
            f"neither from the hub nor from its cache ({first_line(error)})"
        ) from None


def _gguf_size(source: GgufSource, where: str) -> Size:
    from gguf import GGUFReader

    fields = GGUFReader(find_gguf(source, where=where)).fields
    family = fields["general.architecture"].contents()

    def number(key: str, default: int | None = None) -> int:
        field = fields.get(f"{family}.{key}")
        if field is None and default is not None:
            return default
        if field is None:
            raise UserError(f"{where}: the GGUF file does not say {family}.{key}")
        return int(field.contents())

    d, heads = number("embedding_length"), number("attention.head_count")
    described = {
        "num_hidden_layers": number("block_count"),
        "hidden_size": d,
        "num_attention_heads": heads,
        "num_key_value_heads": number("attention.head_count_kv", heads),
        "intermediate_size": number("feed_forward_length", 4 * d),
        "vocab_size": len(fields["tokenizer.ggml.tokens"].data),
        "tie_word_embeddings": not any(
            name == "output.weight" for name in _tensor_names(find_gguf(source, where=where))
        ),
        "model_type": family,
    }
    return described_size(described, source.dtype)


def _tensor_names(file: Path) -> list[str]:
    from gguf import GGUFReader

    return [tensor.name for tensor in GGUFReader(file).tensors]


def vocabulary(corpus: Corpus) -> int:
    """Token ids of a corpus; about that of Pythia for a tokenizer that was not read yet."""
    tokenizer = corpus.tokenizer
    return tokenizer.vocab_size if isinstance(tokenizer, TrainedTokenizer) else 50_304


@dataclass(frozen=True)
class CorpusSize:
    """Tokens of a corpus."""

    sae_train_tokens: int
    eval_tokens: int
    read_tokens: int
    """That have to be read to find these."""
    counted: bool
    """Counted in `results/`, or by the config; else estimated from the number of characters."""

    def of(self, split: str) -> int:
        """Tokens of a split."""
        return self.sae_train_tokens if split == "sae_train" else self.eval_tokens


def corpus_sizes(config: Config, root: Path) -> dict[str, CorpusSize]:
    """The size of each corpus that a subject reads.

    Raises:
        UserError: a number of tokens that neither the config nor an earlier run tells.
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
                f"config: corpora.{name}.{split}_tokens: null, and how much a hub's data set holds "
                f"is not known before it is read; give a number to plan with"
            )
        else:
            characters, counted = _characters(corpus, split), False
            found[split] = int(characters / characters_per_token(vocabulary(corpus)))
    context = corpus.context_tokens
    whole = {split: n // context * context for split, n in found.items() if n is not None}
    if isinstance(corpus.source, HubSource):
        read = max(n / share[split] for split, n in whole.items())
    else:
        read = sum(_characters(corpus, split) for split in whole) / characters_per_token(
            vocabulary(corpus)
        )
    return CorpusSize(whole["sae_train"], whole["eval"], int(read), counted)


def characters_per_token(vocab_size: int) -> float:
    """English characters in a token."""
    return CHARACTERS_AT_2048 + CHARACTERS_PER_DOUBLING * math.log2(vocab_size / 2048)


def _characters(corpus: Corpus, split: str) -> float:
    """Characters of a split."""
    if isinstance(corpus.source, BuiltinSource):
        return _builtin_characters(corpus.source.name, corpus.eval_share)[split]
    assert isinstance(corpus.source, FilesSource)
    files = [Path(file) for pattern in corpus.source.paths for file in glob.glob(pattern)]
    share = corpus.eval_share if split == "eval" else 1 - corpus.eval_share
    return share * sum(file.stat().st_size for file in files)


@cache
def _builtin_characters(name: Any, eval_share: float) -> dict[str, int]:
    found = {"sae_train": 0, "eval": 0}
    for text in documents(BuiltinSource(kind="builtin", name=name)):
        found[split_of_digest(text_digest(text), eval_share)] += len(text)
    return found
