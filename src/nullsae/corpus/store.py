"""Packed contexts on disk, as later stages read them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nullsae.core.errors import UserError
from nullsae.core.files import read_json, rebuild_command, verify
from nullsae.core.tensor_files import read_header

TOKENS_FILE = "tokens.safetensors"


@dataclass(frozen=True)
class Tokens:
    """One split of a corpus."""

    input_ids: NDArray[np.int32]
    """Token ids, [n_contexts, context_tokens]."""
    document_id: NDArray[np.int32]
    """Index of each token's document within the split, same shape. A separator belongs to the
    document that it ends, BOS to that of the next token."""
    manifest: dict[str, Any]
    """The content of manifest.json."""

    @property
    def n_bos(self) -> int:
        """Number of BOS tokens at the start of each context."""
        return len(self.bos_token_ids) if self.manifest.get("prepend_bos") else 0

    @property
    def bos_token_ids(self) -> list[int]:
        """The tokenizer's BOS, whether or not contexts begin with it; empty if there is none."""
        found: list[int] = self.manifest.get("bos_token_ids", [])
        return found

    @property
    def before_text(self) -> list[int]:
        """What `prepend_bos: true` puts before each context: BOS, or EOS if there is no BOS; empty
        if there is neither.
        """
        eos = self.manifest.get("eos_token_id")
        return self.bos_token_ids or ([] if eos is None else [eos])

    @property
    def bos_name(self) -> str:
        """The name of these tokens in messages."""
        return "BOS" if self.bos_token_ids else "EOS, for want of a BOS,"

    @property
    def largest_token_id(self) -> int:
        """Of the whole corpus, by its manifest, so that a model is checked against both splits; of
        this split if the manifest does not say.
        """
        found: int | None = self.manifest.get("largest_token_id")
        return int(self.input_ids.max()) if found is None else found

    @property
    def first_predicted(self) -> int:
        """Position of the first token of a context that a model's loss counts."""
        return max(1, self.n_bos)


def load_tokens(manifest_path: Path | str) -> Tokens:
    """Load the tokens next to a split's manifest, verified against it.

    They are mapped from the file: unread parts take no memory, and writing to them does not change
    the file.

    Raises:
        UserError: a file is missing or damaged; names it and the command that rebuilds it.
    """
    manifest_path = Path(manifest_path)
    rebuild = rebuild_command(manifest_path)
    manifest = read_json(manifest_path, rebuild=rebuild)
    if not isinstance(manifest, dict) or "tokens_checksum" not in manifest:
        raise UserError(f"{manifest_path}: not a corpus manifest; rebuild it with: {rebuild}")
    file = manifest_path.with_name(TOKENS_FILE)
    verify(file, manifest["tokens_checksum"], rebuild=rebuild)
    return map_tokens(file, manifest)


def map_tokens(file: Path, manifest: dict[str, Any]) -> Tokens:
    """Map the tokens of a file, without checking them against the manifest."""
    ids, documents = (_mapped(file, name) for name in ("input_ids", "document_id"))
    return Tokens(ids, documents, manifest)


def _mapped(file: Path, name: str) -> NDArray[np.int32]:
    """Map an int32 tensor of a safetensors file, which safetensors' NumPy reader would copy."""
    tensors, begin = read_header(file)
    if (entry := tensors.get(name)) is None:
        raise UserError(f"{file}: has no {name}; it is not the tokens of a corpus")
    shape = tuple(entry["shape"])
    if entry["dtype"] != "I32" or len(shape) != 2 or 0 in shape:
        raise UserError(f"{file}: {name} is {entry['dtype']} {list(shape)}, wanted I32 [n, tokens]")
    start = begin + entry["data_offsets"][0]
    # "c", because PyTorch warns about read-only arrays.
    mapped = np.memmap(file, dtype="<i4", mode="c", offset=start, shape=shape)
    # As a plain array, because slices of maps cost ten times as much.
    return mapped.view(np.ndarray)
