"""Single shards: their bytes, their sums, and the records that certify them.

A shard is a safetensors file, `shard-00000.safetensors`. Its record, `shard-00000.json`, is written
after it, so that a run after a kill knows which shards are complete. The record contains the
shard's contribution to the manifest's statistics, and is deleted once a manifest covers all shards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from nullsae.activations.exclusion import Kept
from nullsae.config.activations import Exclude
from nullsae.core.errors import UserError
from nullsae.core.files import read_json, verify, write_json

SHARD = "shard-{:05d}.safetensors"
SHARD_FILE = re.compile(r"shard-\d+\.(safetensors|json)")
RECORD, RECORDS = "shard-{:05d}.json", "shard-*.json"
# Rows are permuted, summed, hashed and written while they are in the processor's cache. Sums of a
# shard are sums over such pieces, so another size changes their last bits.
PIECE_ROWS = 512
# A shard's own limit (by its median), times this, is below the split's with near certainty.
NEAR_LIMIT = 0.8


class ShardSums:
    """The sums over a shard's values in its record, added in the order of its rows.

    They are in float64, where neither values nor their squares overflow in any storage dtype. Only
    one piece at a time is converted: a float64 copy of the whole shard would dominate the cost.
    """

    def __init__(self, path: Path, d_model: int) -> None:
        self.path, self.n_tokens, self.norm_sum, self.square_sum = path, 0, 0.0, 0.0
        self.total = torch.zeros(d_model, dtype=torch.float64)

    def add(self, piece: Tensor, position: Tensor) -> None:
        """Add the next rows [at most PIECE_ROWS, d_model]; `position` int64 [n] covers all rows."""
        values = piece.double()
        norms = torch.linalg.vector_norm(values, dim=1)
        norm_sum = float(norms.sum())
        if not math.isfinite(norm_sum):
            row = self.n_tokens + int((~torch.isfinite(norms)).nonzero()[0])
            raise UserError(
                f"{self.path}: row {row} (token {int(position[row])}) is NaN or infinite; a "
                f"subject in float16 or a larger activations.dtype may be the cause"
            )
        self.total += values.sum(dim=0)
        self.norm_sum += norm_sum
        self.square_sum += float(norms.square().sum())
        self.n_tokens += len(piece)

    def save_record(self, key: str, checksum: str) -> None:
        """Certify the shard, which must be complete by now."""
        record = {"key": key, "file": self.path.name, "checksum": checksum}
        sums = {
            "n_tokens": self.n_tokens,
            "sum": self.total.tolist(),
            "norm_sum": self.norm_sum,
            "square_sum": self.square_sum,
        }
        write_json(self.path.with_suffix(".json"), record | sums)


@dataclass(frozen=True)
class Again:
    """How to write shards without their activations."""

    rows: Callable[[int], Tensor]
    """Recomputes one shard, [n, d_model] in its order and in the storage dtype."""
    exclude: Exclude
    context_tokens: int

    def likely(
        self, activations: Tensor, norms: Tensor, position: Tensor, order: Tensor | None
    ) -> dict[str, Tensor]:
        """Return tensors of the shard: `far`, the few rows that will probably be excluded, and ids.

        They save the manifest, which describes excluded tokens, a second pass. The shard's median
        stands in for that of the split. `activations` are still to be permuted by `order`; norms
        and positions already are.
        """
        exclude, above = self.exclude, self.exclude.norm_above_median
        if above is not None:
            exclude = exclude.model_copy(update={"norm_above_median": above * NEAR_LIMIT})
        rule, _ = Kept.fitted(exclude, lambda: [(norms, position)], self.context_tokens)
        rows = (~rule.mask(norms, position)).nonzero()[:, 0]
        return {"far": activations[rows if order is None else order[rows]], "far_row": rows}

    def left_out(self, index: int, file: Path, rows: Tensor) -> Tensor:
        """Return the activations of these rows of a shard, int64 [n] in ascending order."""
        with safe_open(file, framework="pt") as tensors:
            far: Tensor = tensors.get_tensor("far")
            row: Tensor = tensors.get_tensor("far_row")
        place = torch.searchsorted(row, rows).clamp_max(max(0, len(row) - 1))
        if len(row) and torch.equal(row[place], rows):
            return far[place]
        return self.rows(index)[rows]


def pieces(n: int) -> Iterator[slice]:
    """Yield slices of a shard of `n` rows, in the pieces that `ShardSums` adds."""
    for start in range(0, n, PIECE_ROWS):
        yield slice(start, start + PIECE_ROWS)


def norms(file: Path) -> tuple[Tensor, Tensor]:
    """Read norms float32 [n] and positions int64 [n] of a shard's rows."""
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor("norm"), tensors.get_tensor("position")


def finished_shards(
    folder: Path, *, key: str, among: Container[int] | None = None
) -> dict[int, int]:
    """Return the number of tokens in each complete shard of the same provenance, by index.

    These are the shards with a record, and those of a manifest whose other shards are damaged or
    missing, which get their records back. Without a key, no shard has the same provenance. With
    `among`, only these indices are checked: other jobs work on the others.
    """
    if not key:
        return {}
    found: dict[int, int] = {}
    manifest = _read(folder / "manifest.json")
    listed = [{**shard, "key": manifest.get("shards_key")} for shard in manifest.get("shards", ())]
    for record in (*map(_read, folder.glob(RECORDS)), *listed):
        if record.get("key") != key:
            continue
        file = folder / record["file"]
        if among is not None and shard_index(file) not in among:
            continue
        try:
            verify(file, record["checksum"], rebuild="")
        except UserError:
            continue
        if "sum" not in record:
            tensors = load_file(file)
            if "activations" not in tensors:
                continue  # recomputed when read: its sums are unknown
            sums = ShardSums(file, tensors["activations"].shape[1])
            for rows in pieces(len(tensors["position"])):
                sums.add(tensors["activations"][rows], tensors["position"])
            sums.save_record(key, record["checksum"])
        found[shard_index(file)] = record["n_tokens"]
    return found


def _read(file: Path) -> dict[str, Any]:
    """Read a JSON object; return an empty one if there is none."""
    try:
        found = read_json(file, rebuild="")
    except UserError:
        return {}
    return found if isinstance(found, dict) else {}


def shard_index(file: Path) -> int:
    """Return the number of a shard, from the name of its file or of its record."""
    return int(file.stem.removeprefix("shard-"))


def left_over(
    folder: Path, *, keep: Collection[int], among: Container[int] | None = None
) -> list[Path]:
    """Return the files of a site's folder that belong to none of these shards.

    With `among`, only the manifest and shards with these indices: the rest belongs to other jobs.
    Provenance files are not included: `SiteWriter` knows whether they are still true.
    """
    kept = {name.format(index) for index in keep for name in (SHARD, RECORD)}

    def own(file: Path) -> bool:
        if file.name.startswith("provenance"):
            return False
        if among is None or file.name == "manifest.json":
            return True
        return bool(SHARD_FILE.fullmatch(file.name)) and shard_index(file) in among

    files = folder.iterdir() if folder.is_dir() else ()
    return [file for file in files if file.name not in kept and own(file)]


def drop_records(folder: Path) -> None:
    """Delete the records of single shards once the manifest covers all of them."""
    for file in folder.glob(RECORDS):
        file.unlink()
