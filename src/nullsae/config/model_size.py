"""A model's size, by its own files, without loading it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullsae.config import plain
from nullsae.config.corpora import Corpus, TrainedTokenizer
from nullsae.config.model_files import GGUF_PACKAGES, find_gguf, is_local
from nullsae.config.model_limits import check_sizes
from nullsae.config.sites import site_kind
from nullsae.config.subjects import GgufSource, PretrainedSource, TrainSource
from nullsae.core.errors import UserError, first_line
from nullsae.core.folders import expanded

Source = TrainSource | PretrainedSource | GgufSource
HUB_TIMEOUT_SECONDS = 10.0
FOR_PATTERNS = "patterns of sites need the number of blocks"
# Families' names of the number of blocks and the width in config.json.
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTH_KEYS = ("hidden_size", "n_embd", "n_embed", "d_model", "model_dim")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
# Layers, width, heads and rows of the embedding of Pythia (Biderman et al. 2023, table 1, and the
# config.json of each), so that a plan of the paper's grid needs no hub.
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
# A stored weight takes at least half a byte (4 bits), and some models use theirs twice.
WEIGHTS_PER_BYTE, SPARE_WEIGHTS = 4, 1 << 28
# Families whose MLP has two matrices; the others have a third, the gate.
TWO_MATRICES = ("gpt_neox", "gpt2", "opt", "gptj", "gpt_neo", "bloom", "falcon", "phi", "codegen")
LEARNED_POSITIONS = ("gpt2", "opt", "gpt_neo")

# GGUF names of the keys of a config.json.
GGUF_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
}


@dataclass(frozen=True)
class Shape:
    """Size of a subject; None if its files do not say."""

    n_layers: int | None = None
    d_model: int | None = None


@dataclass(frozen=True)
class Size:
    """Sizes of a model's parts."""

    n_layers: int
    d_model: int
    vocab_size: int
    block_weights: int
    """Entries of the matrices of one block."""
    n_parameters: int
    """All parameters, including embeddings and norms."""
    attention_width: int
    """Heads times their width: d_model in most families."""
    mlp_width: int
    """Neurons of an MLP."""
    dtype: str

    @property
    def weight_bytes(self) -> int:
        """Size of a checkpoint."""
        return self.n_parameters * BYTES[self.dtype]

    @property
    def logit_bytes(self) -> float:
        """Memory of a token's logits, four times in float32: raw, cast, log-softmax, and loss."""
        return 16.0 * self.vocab_size

    @property
    def largest_tensor(self) -> int:
        """Entries of the largest tensor: the embedding, or a matrix of a typical MLP."""
        return self.d_model * max(self.vocab_size, 4 * self.d_model)

    def width(self, site: str) -> int:
        """Return the dimensions of a site."""
        own = {"hook_z": self.attention_width, "mlp_post": self.mlp_width}
        return own.get(site_kind(site), self.d_model)


def subject_shape(source: Source, *, where: str, fetch: bool) -> Shape:
    """Return the size of a subject.

    Args:
        source: where it comes from.
        where: its key in the config, for messages.
        fetch: whether a hub's config.json (from the cache, else downloaded) or a GGUF file's
            header (seconds) may be read; without it such subjects have unknown sizes.

    Raises:
        UserError: a path looks local but is not a model folder, a GGUF file does not exist, or
            the hub is needed but does not answer.
    """
    if isinstance(source, TrainSource):
        return Shape(source.n_layers, source.d_model)
    if isinstance(source, GgufSource):
        file = find_gguf(source, where=where)
        if not fetch:
            return Shape()
        return shape_of(_gguf_header(file, where, FOR_PATTERNS, "; or name each site"))
    if is_local(source.path):
        file = expanded(source.path) / "config.json"
        if not file.is_file():
            raise UserError(
                f"{where}.path: {source.path!r} holds no config.json; give a local model "
                f"folder or a hub id such as EleutherAI/pythia-70m"
            )
    elif fetch:
        otherwise = "; name each site instead, or give a local folder"
        file = _hub_config(source, where, FOR_PATTERNS, otherwise)
    else:
        return Shape()
    return shape_of(_read_described(file, f"{where}.path: "))


def _read_described(file: Path, where: str) -> dict[str, Any]:
    """Read and check a `config.json`; `where` begins the line of a `UserError`."""
    try:
        described = plain.read_object(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}{file}: {first_line(error)}") from None
    except UserError as error:
        raise UserError(f"{where}{error}") from None
    check_described(described, f"{where}{file}")
    return described


def check_described(described: dict[str, Any], where: str, weight_bytes: int | None = None) -> None:
    """Check the sizes that a Hugging Face `config.json` states before a model is built from it.

    Args:
        described: its content.
        where: the file, for messages.
        weight_bytes: size of the weights' files, if known.

    Raises:
        UserError: a size is larger than that of any model, or than the weights allow.
    """
    check_sizes(described, where)
    if weight_bytes is None:
        return
    with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
        n = described_size(described, "float32").n_parameters
        if n > WEIGHTS_PER_BYTE * weight_bytes + SPARE_WEIGHTS:
            raise UserError(
                f"{where}: describes a model of {n:.3g} weights, but the files of its weights have "
                f"only {weight_bytes:,} bytes"
            )


def check_model(path: str, what: str, revision: str | None = None) -> None:
    """Check the config.json of a model, if it is on this machine.

    Args:
        path: local folder or hub id.
        what: the model, for messages.
        revision: revision on the hub.

    Raises:
        UserError: the file is not a config, or `check_described` refuses it.
    """
    file = Path(path) / "config.json" if is_local(path) else _cached_config(path, revision)
    if file is not None and file.is_file():  # loading the model reports a missing one
        described = _read_described(file, f"{what}: ")
        check_described(described, f"{what}: config.json", local_weight_bytes(path))


def local_weight_bytes(path: str) -> int | None:
    """Return the size of the weights' files in a local folder; None for the hub or without any."""
    if not is_local(path):
        return None
    found = [file for kind in ("*.safetensors", "*.bin") for file in Path(path).glob(kind)]
    return sum(file.stat().st_size for file in found if file.is_file()) or None


def shape_of(described: dict[str, Any]) -> Shape:
    """Return the size that a Hugging Face `config.json`, or its nested text config, states."""
    text = described.get("text_config", described)
    described = text if isinstance(text, dict) else described
    return Shape(_first(described, LAYER_KEYS), _first(described, WIDTH_KEYS))


def _first(described: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((described[key] for key in keys if isinstance(described.get(key), int)), None)


def neox_size(n_layers: int, d: int, vocab_size: int, dtype: str) -> Size:
    """Return the size of a GPT-NeoX.

    A block has 12 d^2 weights and 13 d biases and gains; two embeddings and a norm are added.
    """
    n = n_layers * (12 * d * d + 13 * d) + 2 * vocab_size * d + 2 * d
    return Size(n_layers, d, vocab_size, 12 * d * d, n, d, 4 * d, dtype)


def described_size(described: dict[str, Any], dtype: str) -> Size:
    """Return the size that a Hugging Face `config.json` states.

    Raises:
        KeyError: it does not state the number of blocks, the width, or the vocabulary.
    """
    nested = described.get("text_config")
    text: dict[str, Any] = nested if isinstance(nested, dict) else described
    shape = shape_of(text)
    n_layers, d = shape.n_layers, shape.d_model
    if n_layers is None or d is None:
        raise KeyError((LAYER_KEYS if n_layers is None else WIDTH_KEYS)[0])
    vocab_size = int(text["vocab_size"])
    heads = text.get("num_attention_heads", text.get("n_head"))
    width = int(text.get("head_dim") or (d // heads if heads else d)) * (heads or 1)
    values = width * (text.get("num_key_value_heads") or heads or 1) // (heads or 1)
    inner = text.get("intermediate_size") or text.get("n_inner") or text.get("ffn_dim") or 4 * d
    matrices = 2 if text.get("model_type") in TWO_MATRICES else 3
    block = d * (2 * width + 2 * values) + matrices * d * inner
    tied = text.get("tie_word_embeddings", text.get("model_type") in ("gpt2", "opt"))
    learned = text.get("n_positions") or text.get("max_position_embeddings") or 0
    positions = learned if text.get("model_type") in LEARNED_POSITIONS else 0
    n = n_layers * (block + 4 * d) + ((1 if tied else 2) * vocab_size + positions) * d
    return Size(n_layers, d, vocab_size, block, n, width, inner, dtype)


def subject_size(source: Source, corpus: Corpus, where: str) -> Size:
    """Return the size of a subject; `where` is the key of its source, for messages.

    A subject trained here has the vocabulary of its corpus; of others see `model_size`.
    """
    if isinstance(source, TrainSource):
        return neox_size(source.n_layers, source.d_model, vocabulary(corpus), "float32")
    return model_size(source, where)


def known_size(source: Source, corpus: Corpus) -> Size | None:
    """Return the size of a subject if it is known at once, without a hub; else None.

    A hub's config.json counts if it is in the hub's cache. GGUF files do not: they take seconds.
    """
    if isinstance(source, GgufSource):
        return None
    unread = isinstance(source, PretrainedSource) and not (
        is_local(source.path) or _pythia(source) or _cached_config(source.path, source.revision)
    )
    if unread:
        return None
    try:
        return subject_size(source, corpus, "")
    except UserError:
        return None


def model_size(source: PretrainedSource | GgufSource, where: str) -> Size:
    """Return the size of a model that was trained elsewhere.

    Pythia's sizes are known; the `config.json` of other hub models is read, from cache or hub.

    Raises:
        UserError: a file is missing or does not state the size; names the config key.
    """
    if isinstance(source, GgufSource):
        file = find_gguf(source, where=where)
        name, described = str(file), _gguf_header(file, where, "a plan needs the size")
    elif (pythia := _pythia(source)) is not None:
        return neox_size(*pythia, source.dtype)
    else:
        described = model_config(source, where)
        name, where = f"the config.json of {source.path!r}", f"{where}.path"
    try:
        return described_size(described, source.dtype)
    except KeyError as error:
        raise UserError(f"{where}: {name} does not state {error}, which a plan needs") from None
    except (TypeError, ValueError, ZeroDivisionError) as error:
        said = f"{where}: {name} states impossible sizes ({first_line(error)})"
        raise UserError(said) from None


def _pythia(source: PretrainedSource) -> tuple[int, int, int] | None:
    """Return blocks, width and vocabulary of the Pythia model that a hub id means."""
    name = source.path.rsplit("/", 1)[-1].removesuffix("-deduped")
    found = None if is_local(source.path) else PYTHIA.get(name)
    return found and (found[0], found[1], found[3])


def model_config(source: PretrainedSource, where: str) -> dict[str, Any]:
    """Return a model's config.json, from a local folder, the hub's cache, or else the hub."""
    need = f"a plan needs the size of {source.path!r}"
    local = expanded(source.path) / "config.json"
    file = local if is_local(source.path) else _hub_config(source, where, need)
    return _read_described(file, f"{where}.path: {need}, and ")


def _cached_config(path: str, revision: str | None) -> Path | None:
    """Return a model's config.json in the hub's cache."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(path, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


def _hub_config(source: PretrainedSource, where: str, need: str, otherwise: str = "") -> Path:
    """Return the subject's config.json in the hub's cache, downloaded if it is not there."""
    import huggingface_hub

    path, revision = source.path, source.revision
    try:
        if (cached := _cached_config(path, revision)) is not None:
            return cached
        if not huggingface_hub.is_offline_mode():
            # The download would retry for half a minute; this asks once.
            huggingface_hub.HfApi().repo_info(path, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
        return Path(huggingface_hub.hf_hub_download(path, "config.json", revision=revision))
    except Exception as error:  # the HTTP client differs between versions of huggingface_hub
        raise UserError(
            f"{where}.path: {need}, but there is no such folder, and the config.json of {path!r} "
            f"is neither on the hub nor in its cache ({first_line(error)}){otherwise}"
        ) from None


def _gguf_header(file: Path, where: str, need: str, otherwise: str = "") -> dict[str, Any]:
    """Return the header of a GGUF file in the form of a `config.json`."""
    try:
        from gguf import GGUFReader
    except ImportError:
        raise UserError(
            f"{where}: {need}; reading it from a GGUF file needs gguf "
            f"(pip install {GGUF_PACKAGES}){otherwise}"
        ) from None
    try:
        reader = GGUFReader(file)
        family = reader.fields["general.architecture"].contents()
        described = {
            key: int(reader.fields[f"{family}.{name}"].contents())
            for key, name in GGUF_KEYS.items()
            if key in ("num_hidden_layers", "hidden_size") or f"{family}.{name}" in reader.fields
        }
    except (KeyError, ValueError, IndexError) as error:
        said = f"{where}: {file} is not a GGUF file of a language model: {error}"
        raise UserError(said) from None
    untied = any(tensor.name == "output.weight" for tensor in reader.tensors)
    if tokens := reader.fields.get("tokenizer.ggml.tokens"):
        described["vocab_size"] = len(tokens.data)
    return {**described, "tie_word_embeddings": not untied, "model_type": family}


def vocabulary(corpus: Corpus) -> int:
    """Return the vocabulary size of a corpus; about Pythia's if the tokenizer was not read yet."""
    tokenizer = corpus.tokenizer
    return tokenizer.vocab_size if isinstance(tokenizer, TrainedTokenizer) else 50_304
