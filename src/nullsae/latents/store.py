"""Sorts more firings by latent than fit into memory, on disk.

Firings come token by token. `FiringSorter` collects `RUN_FIRINGS` of them, sorts them by latent
and appends them to a file as a run, together with the number of firings of each latent. At the end,
it assembles one range of latents at a time from its stretch of each run. The numbers alone
determine where each firing goes, so nothing is compared.

Memory: about 40 bytes x `RUN_FIRINGS`, 40 bytes x `PIECE_FIRINGS` and 40 bytes per latent,
independent of the number of firings. Disk: 16 bytes per firing while runs are assembled, 8 after.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nullsae.core.errors import UserError

# Firings that are sorted in memory before they are written.
RUN_FIRINGS = 2**20
# Firings that are assembled, or described, at a time.
PIECE_FIRINGS = 2**19


@dataclass(frozen=True)
class Firings:
    """Firings of a range of latents, sorted by latent, then by position."""

    offsets: np.ndarray
    """int64 [n_latents + 1]: latent l has the firings offsets[l] to offsets[l + 1]."""
    position: np.ndarray
    """uint32 or int64 [n], flat token index in the split; may be memory-mapped."""
    value: np.ndarray
    """float32 [n], above 0; may be memory-mapped."""

    @property
    def n_latents(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> np.ndarray:
        """Firings of each latent, int64 [n_latents]."""
        return np.diff(self.offsets)

    @property
    def latent(self) -> np.ndarray:
        """The latent of each firing, int64 [n]."""
        return np.repeat(np.arange(self.n_latents), self.counts)

    def of(self, latent: int) -> slice:
        """Return the slice of one latent's firings."""
        return slice(int(self.offsets[latent]), int(self.offsets[latent + 1]))

    def pieces(self, context_tokens: int) -> Iterator[tuple[int, Firings]]:
        """Yield all firings in pieces of about `PIECE_FIRINGS`, copied into memory.

        A latent with more has pieces of its own that end at context boundaries, so that no window
        or pair of tokens is split. Yields (first latent, firings of it and of later ones).
        """
        most = max(PIECE_FIRINGS, context_tokens)
        for first, end in ranges(self.offsets, most):
            start, stop = int(self.offsets[first]), int(self.offsets[end])
            offsets = self.offsets[first : end + 1] - start
            while stop - start > most:
                context = int(self.position[start + most]) // context_tokens * context_tokens
                cut = start + int(np.searchsorted(self.position[start : start + most], context))
                yield first, self._copied(np.array([0, cut - start]), start, cut)
                start, offsets = cut, np.array([0, stop - cut])
            yield first, self._copied(offsets, start, stop)

    def _copied(self, offsets: np.ndarray, start: int, stop: int) -> Firings:
        return Firings(
            offsets, np.array(self.position[start:stop]), np.array(self.value[start:stop])
        )


def offsets_of(counts: np.ndarray) -> np.ndarray:
    """Return where adjacent stretches start, and where the last ends: int64 [n + 1]."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def ranges(offsets: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Cut latents into ranges [first, end) of at most `most` firings, or of one latent.

    `offsets`, int64 [n_latents + 1], are where the firings of each latent begin.
    """
    end = 0
    while (first := end) < len(offsets) - 1:
        end = int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1
        end = max(end, first + 1)
        yield first, end


def changes(*keys: np.ndarray) -> np.ndarray:
    """Mark where any of the keys [n] differs from the previous: bool [n], True at the first."""
    new = np.ones(len(keys[0]), dtype=bool)
    new[1:] = np.any([key[1:] != key[:-1] for key in keys], axis=0)
    return new


def order_by(keys: np.ndarray) -> np.ndarray:
    """Return the stable order of unsigned keys below 2^32: int64 [n].

    NumPy sorts 16-bit numbers by their digits, in linear time.
    """
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    if len(keys) and int(keys.max()) >= 2**16:
        order = order[np.argsort((keys >> 16).astype(np.uint16)[order], kind="stable")]
    return order


@contextmanager
def empty_folder(folder: Path) -> Iterator[Path]:
    """Provide an empty folder for temporary files, which is always deleted.

    Use the same name in every run, so that leftovers of a killed run are deleted too.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Columns:
    """Columns of numbers on disk that are appended to, then memory-mapped."""

    def __init__(self, folder: Path, name: str, **types: Any) -> None:
        """Start empty files `folder`/`name`.COLUMN; `types` has the dtype of each column."""
        self._types = {column: np.dtype(dtype) for column, dtype in types.items()}
        self._files = {column: folder / f"{name}.{column}" for column in types}
        self._streams = {name: file.open("wb") for name, file in self._files.items()}

    def append(self, **values: np.ndarray) -> None:
        """Append equally many numbers to each column.

        Raises a `UserError` for a full disk or another system error.
        """
        for column, array in values.items():
            try:
                self._streams[column].write(np.ascontiguousarray(array, self._types[column]).data)
                self._streams[column].flush()
            except OSError as error:
                raise UserError(
                    f"{self._files[column]}: cannot be written: {error.strerror or error}; "
                    f"collecting latents needs 16 bytes per firing here"
                ) from None

    def mapped(self) -> dict[str, np.ndarray]:
        """Return the columns, [n] each, memory-mapped; nothing can be appended after that."""
        for stream in self._streams.values():
            stream.close()
        return {
            # Plain arrays, because slices of memory maps take ten times as long.
            column: np.asarray(np.memmap(file, self._types[column], "r"))
            if file.stat().st_size
            else np.zeros(0, self._types[column])
            for column, file in self._files.items()
        }

    def delete(self) -> None:
        for file in self._files.values():
            file.unlink()


class FiringSorter:
    """Sorts firings that arrive token by token, by latent and then by position."""

    def __init__(self, folder: Path, *, n_latents: int, n_tokens: int) -> None:
        """Start empty; the caller deletes the folder."""
        self._folder, self._n_latents = folder, n_latents
        self._position_type = np.dtype(np.uint32 if n_tokens < 2**32 else np.int64)
        latent_type = np.uint16 if n_latents <= 2**16 else np.uint32
        self._latent = np.empty(RUN_FIRINGS, latent_type)
        self._position = np.empty(RUN_FIRINGS, self._position_type)
        self._value = np.empty(RUN_FIRINGS, np.float32)
        self._held = 0
        self._runs = Columns(
            folder, "runs", position=self._position_type, value=np.float32, count=np.uint32
        )
        self._last_position, self._in_order = -1, True

    def add(self, latent: np.ndarray, position: np.ndarray, value: np.ndarray) -> None:
        """Add firings: integers [n], flat positions [n], float32 [n] above 0.

        Raises a `UserError` if the disk is full.
        """
        while len(latent):
            room = min(RUN_FIRINGS - self._held, len(latent))
            part = slice(self._held, self._held + room)
            self._latent[part], self._position[part] = latent[:room], position[:room]
            self._value[part] = value[:room]
            self._held += room
            latent, position, value = latent[room:], position[room:], value[room:]
            if self._held == RUN_FIRINGS:
                self._write_run()

    def _write_run(self) -> None:
        held = slice(0, self._held)
        latent, position, value = self._latent[held], self._position[held], self._value[held]
        if self._held:
            rising = bool((position[1:] >= position[:-1]).all())
            self._in_order &= rising and int(position[0]) >= self._last_position
            self._last_position = int(position[-1])
        order = order_by(latent)
        counts = np.bincount(latent, minlength=self._n_latents)
        self._runs.append(position=position[order], value=value[order], count=counts)
        self._held = 0

    def sorted(self) -> Firings:
        """Return all firings, memory-mapped in the folder; nothing can be added after that.

        Raises a `UserError` if the disk is full.
        """
        self._write_run()
        del self._latent, self._position, self._value
        runs = self._runs.mapped()
        counts = runs["count"].reshape(-1, self._n_latents)
        starts = offsets_of(counts.sum(axis=1, dtype=np.int64))[:-1]
        offsets = offsets_of(counts.sum(axis=0, dtype=np.int64))
        store = Columns(self._folder, "sorted", position=self._position_type, value=np.float32)
        for first, end in ranges(offsets, PIECE_FIRINGS):
            of_runs = counts[:, first:end]
            if end == first + 1 and self._in_order:
                for run, n in enumerate(of_runs[:, 0].tolist()):
                    part = slice(starts[run], starts[run] + n)
                    store.append(position=runs["position"][part], value=runs["value"][part])
            else:
                store.append(**self._put_together(runs, starts, of_runs))
            starts = starts + of_runs.sum(axis=1, dtype=np.int64)
        self._runs.delete()
        return Firings(offsets, **store.mapped())

    def _put_together(
        self, runs: dict[str, np.ndarray], starts: np.ndarray, counts: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Assemble a range of n latents from its stretches of all runs, at `starts` [n_runs].

        `counts` [n_runs, n] has firings per run and latent.
        """
        offsets = offsets_of(counts.sum(axis=0, dtype=np.int64))
        position = np.empty(int(offsets[-1]), self._position_type)
        value = np.empty(int(offsets[-1]), np.float32)
        free = offsets[:-1].copy()
        for start, of_run in zip(starts, counts, strict=True):
            n = of_run.astype(np.int64)
            before = offsets_of(n)
            stretch = slice(start, start + before[-1])
            places = np.repeat(free - before[:-1], n) + np.arange(before[-1])
            position[places], value[places] = runs["position"][stretch], runs["value"][stretch]
            free += n
        if not self._in_order:
            latent = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
            order = np.lexsort((position, latent))
            position, value = position[order], value[order]
        return {"position": position, "value": value}
