"""What a model's own files say about its size, without loading it."""

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

Source = TrainSource | PretrainedSource | GgufSource
HUB_TIMEOUT_SECONDS = 10.0
FOR_PATTERNS = "patterns of sites need the number of blocks"
# What families call the number of blocks and the width in their config.json.
LAYER_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
WIDTH_KEYS = ("hidden_size", "n_embd", "n_embed", "d_model", "model_dim")
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
# Weights of a file have at least half a byte each (in 4 bits), and some models use theirs twice.
WEIGHTS_PER_BYTE, SPARE_WEIGHTS = 4, 1 << 28
# Families whose MLP has two matrices; the others gate it by a third.
TWO_MATRICES = ("gpt_neox", "gpt2", "opt", "gptj", "gpt_neo", "bloom", "falcon", "phi", "codegen")
LEARNED_POSITIONS = ("gpt2", "opt", "gpt_neo")

# What a GGUF file calls the keys of a config.json.
GGUF_KEYS = {
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
}


@dataclass(frozen=True)
class Shape:
    """Size of a subject; None where its files do not say."""

    n_layers: int | None = None
    d_model: int | None = None


@dataclass(frozen=True)
class Size:
    """What a model is made of."""

    n_layers: int
    d_model: int
    vocab_size: int
    block_weights: int
    """Entries of the matrices of one block, which each token is multiplied with."""
    n_parameters: int
    """All, embeddings and norms included."""
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
        """Of a token, in float32, four times: as given, as float32, their logarithms, the loss."""
        return 16.0 * self.vocab_size

    @property
    def largest_tensor(self) -> int:
        """Entries of the largest tensor: the embedding, or a matrix of a usual MLP."""
        return self.d_model * max(self.vocab_size, 4 * self.d_model)

    def width(self, site: str) -> int:
        """Dimensions of a site."""
        own = {"hook_z": self.attention_width, "mlp_post": self.mlp_width}
        return own.get(site_kind(site), self.d_model)


def subject_shape(source: Source, *, where: str, fetch: bool) -> Shape:
    """The size of a subject.

    Args:
        source: where it comes from.
        where: its key in the config, for messages.
        fetch: whether a hub's config.json (from the cache, else downloaded) or a GGUF file's
            header (seconds) may be read; without it those subjects have an unknown size.

    Raises:
        UserError: a path that looks local and is no model folder, a GGUF file that is not there,
            or a hub that has to be asked and does not answer.
    """
    if isinstance(source, TrainSource):
        return Shape(source.n_layers, source.d_model)
    if isinstance(source, GgufSource):
        file = find_gguf(source, where=where)
        if not fetch:
            return Shape()
        return shape_of(_gguf_header(file, where, FOR_PATTERNS, "; or name each site"))
    if is_local(source.path):
        file = Path(source.path).expanduser() / "config.json"
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
    """A `config.json`, if a model can be so large; `where` begins the line of a `UserError`."""
    try:
        described = plain.read_object(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}{file}: {first_line(error)}") from None
    check_described(described, f"{where}{file}")
    return described


def check_described(described: dict[str, Any], where: str, weight_bytes: int | None = None) -> None:
    """Check the sizes that a Hugging Face `config.json` states, before a model is built of them.

    Args:
        described: what it states.
        where: the file, for messages.
        weight_bytes: the size of the files of weights, where that is known.

    Raises:
        UserError: no model is so large, or this one has not so many weights.
    """
    check_sizes(described, where)
    if weight_bytes is None:
        return
    with suppress(KeyError, TypeError, ValueError, ZeroDivisionError):
        n = described_size(described, "float32").n_parameters
        if n > WEIGHTS_PER_BYTE * weight_bytes + SPARE_WEIGHTS:
            raise UserError(
                f"{where}: describes a model of {n:.3g} weights, but its files of weights have "
                f"only {weight_bytes:,} bytes"
            )


def check_model(path: str, what: str, revision: str | None = None) -> None:
    """Check what the config.json of a model states, if it is on this machine.

    Args:
        path: local folder or hub id.
        what: the model, for messages.
        revision: of the hub.

    Raises:
        UserError: no model is so large, or this one has not so many weights; or it is no config.
    """
    file = Path(path) / "config.json" if is_local(path) else _cached_config(path, revision)
    if file is not None and file.is_file():  # whoever loads it says that it is missing
        described = _read_described(file, f"{what}: ")
        check_described(described, f"{what}: config.json", local_weight_bytes(path))


def local_weight_bytes(path: str) -> int | None:
    """Size of the files of weights in a local folder; None for the hub, or where there are none."""
    if not is_local(path):
        return None
    found = [file for kind in ("*.safetensors", "*.bin") for file in Path(path).glob(kind)]
    return sum(file.stat().st_size for file in found if file.is_file()) or None


def shape_of(described: dict[str, Any]) -> Shape:
    """The size that a Hugging Face `config.json` states; multimodal models nest the text's."""
    text = described.get("text_config", described)
    described = text if isinstance(text, dict) else described
    return Shape(_first(described, LAYER_KEYS), _first(described, WIDTH_KEYS))


def _first(described: dict[str, Any], keys: tuple[str, ...]) -> int | None:
    return next((described[key] for key in keys if isinstance(described.get(key), int)), None)


def neox_size(n_layers: int, d: int, vocab_size: int, dtype: str) -> Size:
    """A GPT-NeoX: 12 d^2 weights and 13 d biases and gains in a block, two embeddings, a norm."""
    n = n_layers * (12 * d * d + 13 * d) + 2 * vocab_size * d + 2 * d
    return Size(n_layers, d, vocab_size, 12 * d * d, n, d, 4 * d, dtype)


def described_size(described: dict[str, Any], dtype: str) -> Size:
    """The size that a Hugging Face `config.json` states.

    Raises:
        KeyError: it does not say how many blocks, how wide, or how many tokens.
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
    """The size of a subject, by its source, the corpus that it reads and the source's key.

    `model_size` says more; one that is trained here has the vocabulary of the corpus.
    """
    if isinstance(source, TrainSource):
        return neox_size(source.n_layers, source.d_model, vocabulary(corpus), "float32")
    return model_size(source, where)


def known_size(source: Source, corpus: Corpus) -> Size | None:
    """The size of a subject as far as it is known in no time, without a hub; None where it is not.

    A hub's config.json counts where it lies in the hub's cache; a GGUF file takes seconds to read.
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
    """The size of a model that was trained elsewhere.

    Pythia's are known; of other hub models the `config.json` is read, from the cache or the hub.

    Raises:
        UserError: a file that is missing or does not say; names the config key.
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
    """Blocks, width and vocabulary of the row of `PYTHIA` that a hub id means."""
    name = source.path.rsplit("/", 1)[-1].removesuffix("-deduped")
    found = None if is_local(source.path) else PYTHIA.get(name)
    return found and (found[0], found[1], found[3])


def model_config(source: PretrainedSource, where: str) -> dict[str, Any]:
    """A model's config.json: a local folder's, the hub cache's, else the hub's."""
    need = f"a plan needs the size of {source.path!r}"
    local = Path(source.path).expanduser() / "config.json"
    file = local if is_local(source.path) else _hub_config(source, where, need)
    return _read_described(file, f"{where}.path: {need}, and ")


def _cached_config(path: str, revision: str | None) -> Path | None:
    """A model's config.json in the hub's cache."""
    import huggingface_hub

    found = huggingface_hub.try_to_load_from_cache(path, "config.json", revision=revision)
    return Path(found) if isinstance(found, str) else None


def _hub_config(source: PretrainedSource, where: str, need: str, otherwise: str = "") -> Path:
    """The subject's config.json: what the hub's cache has, else downloaded into it."""
    import huggingface_hub

    path, revision = source.path, source.revision
    try:
        if (cached := _cached_config(path, revision)) is not None:
            return cached
        if not huggingface_hub.is_offline_mode():
            # The download would try for half a minute; this asks once.
            huggingface_hub.HfApi().repo_info(path, revision=revision, timeout=HUB_TIMEOUT_SECONDS)
        return Path(huggingface_hub.hf_hub_download(path, "config.json", revision=revision))
    except Exception as error:  # the HTTP client differs between versions of huggingface_hub
        raise UserError(
            f"{where}.path: {need}, but there is no such folder, and the config.json of {path!r} "
            f"is neither on the hub nor in its cache ({first_line(error)}){otherwise}"
        ) from None


def _gguf_header(file: Path, where: str, need: str, otherwise: str = "") -> dict[str, Any]:
    """What the header of a GGUF file says, as a `config.json` would."""
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
    """Token ids of a corpus; about that of Pythia for a tokenizer that was not read yet."""
    tokenizer = corpus.tokenizer
    return tokenizer.vocab_size if isinstance(tokenizer, TrainedTokenizer) else 50_304
