"""Windows and firings of the sampled latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors import SafetensorError, safe_open

from nullsae import tables
from nullsae.core.errors import UserError
from nullsae.core.files import atomic_path, rebuild_command
from nullsae.core.tensor_files import header
from nullsae.latents.split import Split
from nullsae.latents.statistics import entropy_bits
from nullsae.latents.store import PIECE_FIRINGS, Firings, offsets_of
from nullsae.latents.windows import Draw


def activations_in(
    position: np.ndarray, value: np.ndarray, start: np.ndarray, length: int
) -> np.ndarray:
    """Return a latent's activations in stretches of the split that begin at `start` (int64 [n]).

    It fires with `value` (float32 [n_firings]) at `position` ([n_firings], ascending). Returns
    float32 [n, length].
    """
    dense = np.zeros((len(start), length), dtype=np.float32)
    bounds = np.searchsorted(position, np.stack([start, start + length]).astype(position.dtype))
    n = bounds[1] - bounds[0]
    row = np.repeat(np.arange(len(start)), n)
    firing = np.arange(int(n.sum())) + np.repeat(bounds[0] - offsets_of(n)[:-1], n)
    dense[row, position[firing].astype(np.int64) - start[row]] = value[firing]
    return dense


class WindowRows:
    """Collects rows of the table `windows`, latent by latent."""

    def __init__(
        self, split: Split, window_tokens: int, skipped: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Start empty.

        `skipped` maps positions to whether they never count, bool of their shape.
        """
        self._split, self._length, self._skipped = split, window_tokens, skipped
        self._parts: list[dict[str, np.ndarray]] = []

    def add(
        self, latent: int, draws: Sequence[Draw], position: np.ndarray, value: np.ndarray
    ) -> float | None:
        """Add the windows drawn for one latent.

        It fires with `value` (float32 [n_firings]) at `position` (integers [n_firings], ascending).
        Returns the entropy in bits of its activation over token ids in the explaining windows.
        """
        start = np.concatenate([draw.start for draw in draws])
        at = start[:, None] + np.arange(self._length)
        ids = self._split.ids[at]
        values = activations_in(position, value, start, self._length)

        def of_draws(given: list[Any], dtype: type) -> np.ndarray:
            return np.repeat(np.array(given, dtype), [len(draw.start) for draw in draws])

        self._parts.append(
            {
                "latent": np.full(len(start), latent),
                "window": np.concatenate([draw.window for draw in draws]),
                "pool": of_draws([draw.pool for draw in draws], object),
                "active": of_draws([draw.active for draw in draws], bool),
                "silent_kind": of_draws([draw.silent_kind for draw in draws], object),
                "quantile": np.concatenate(
                    [np.full(len(d.start), -1) if d.quantile is None else d.quantile for d in draws]
                ),
                "document": self._split.document[start],
                "start": start,
                "token_ids": ids,
                "activations": values,
                "skipped": self._skipped(at),
                "token_frequencies": self._split.frequency[ids],
            }
        )
        shown = of_draws([draw.pool == "explain" and draw.active for draw in draws], bool)
        return entropy_bits(values[shown].ravel().astype(np.float64), ids[shown].ravel())

    def table(self) -> pa.Table:
        """Return all rows in the order in which they were added."""
        schema = tables.cell_schema("windows")
        if not self._parts:
            return schema.empty_table()
        columns = {}
        for field in schema:
            joined = np.concatenate([part[field.name] for part in self._parts])
            if pa.types.is_list(field.type):
                offsets = pa.array(np.arange(0, joined.size + 1, self._length), pa.int32())
                inner = pa.array(joined.reshape(-1), field.type.value_type)
                columns[field.name] = pa.ListArray.from_arrays(offsets, inner)
            else:
                missing = joined < 0 if field.name == "quantile" else None
                columns[field.name] = pa.array(joined, field.type, mask=missing)
        return pa.table(columns)


def write_firings(path: Path, latents: np.ndarray, firings: Firings) -> None:
    """Write all firings of some latents (int64 [n], ascending), piece by piece, as safetensors.

    Keys: `latent` int32 [n], ascending; `offset` int64 [n + 1]; `position` uint32 (int64 from 2^32
    tokens on) and `value` float32. The firings of latent[i], by position, are at offset[i] to
    offset[i + 1]. Raises a `UserError` if the file cannot be written.
    """
    slices = [firings.of(latent) for latent in latents.tolist()]
    offset = offsets_of(np.array([part.stop - part.start for part in slices], dtype=np.int64))
    total = int(offset[-1])
    columns = (
        ("offset", "I64", [len(offset)]),
        ("position", "U32" if firings.position.dtype == np.uint32 else "I64", [total]),
        ("value", "F32", [total]),
        ("latent", "I32", [len(latents)]),
    )
    try:
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            stream.write(header(columns))
            stream.write(offset.astype("<i8").data)
            for given in (firings.position, firings.value):
                for part in slices:
                    for start in range(part.start, part.stop, PIECE_FIRINGS):
                        piece = given[start : min(start + PIECE_FIRINGS, part.stop)]
                        stream.write(np.ascontiguousarray(piece).data)
            stream.write(latents.astype("<i4").data)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None


@dataclass(frozen=True)
class FiringReader:
    """Reads `firings.safetensors` one latent at a time, without loading the rest."""

    path: Path
    latents: np.ndarray
    """int32 [n], ascending: the latents whose firings are in the file."""
    offset: np.ndarray
    """int64 [n + 1]."""

    @classmethod
    def open(cls, path: Path) -> FiringReader:
        """Read the list of latents.

        Raises a `UserError` with the command that rebuilds the file if it is missing, damaged or
        not a file of firings.
        """
        if not path.is_file():
            raise UserError(
                f"{path}: the file is missing; rebuild it with: {rebuild_command(path)}"
            )
        try:
            with safe_open(path, framework="numpy") as file:
                if set(file.keys()) != {"latent", "offset", "position", "value"}:
                    raise _damaged(path, f"has the keys {sorted(file.keys())}")
                latents, offset = file.get_tensor("latent"), file.get_tensor("offset")
                sizes = [file.get_slice(name).get_shape() for name in ("position", "value")]
        except (SafetensorError, OSError) as error:
            raise _damaged(path, str(error)) from None
        whole = offset.shape == (len(latents) + 1,) and offset[0] == 0
        if not whole or (np.diff(offset) < 0).any() or (np.diff(latents) <= 0).any():
            raise _damaged(path, "its offsets or latents are not in order")
        if sizes != [[int(offset[-1])]] * 2:
            raise _damaged(path, f"contains {sizes} firings, but its offsets end at {offset[-1]}")
        return cls(path, latents, offset)

    def of(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Read one latent's firings: positions (uint32 or int64 [n], ascending), values (float32).

        Raises a `UserError` if the latent was not sampled, or its firings are damaged.
        """
        place = int(np.searchsorted(self.latents, latent))
        if place == len(self.latents) or self.latents[place] != latent:
            raise UserError(
                f"{self.path}: no firings of latent {latent}; it contains only those of the "
                f"{len(self.latents)} sampled latents"
            )
        own = slice(int(self.offset[place]), int(self.offset[place + 1]))
        try:
            with safe_open(self.path, framework="numpy") as file:
                position, value = (file.get_slice(name)[own] for name in ("position", "value"))
        except (SafetensorError, OSError) as error:
            raise _damaged(self.path, str(error)) from None
        if (position[1:] <= position[:-1]).any() or not (value > 0).all():
            raise _damaged(self.path, f"the firings of latent {latent} are not in order")
        return position, value


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path}: damaged ({what}); rebuild it with: {rebuild_command(path)}")
