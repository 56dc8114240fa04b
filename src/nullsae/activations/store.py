"""Shards of activations: safetensors files next to a manifest that certifies them.

A site's folder contains `shard-00000.safetensors` ... with the keys `activations` [n, d_model],
`norm` float32 [n] and `position` int64 [n], the flat index (context * context_tokens + offset) of
each row's token in its split, and `manifest.json`, written last. Shards contain all tokens;
`excluded` in the manifest defines which of them count, and its statistics cover only those.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nullsae.activations import shards
from nullsae.activations.batches import Batcher, Live
from nullsae.activations.exclusion import Kept, LeftOut, row_norms
from nullsae.config.activations import Exclude
from nullsae.core import provenance as makers
from nullsae.core.errors import UserError
from nullsae.core.files import atomic_path, read_json, rebuild_command, verify, write_json
from nullsae.core.tensor_files import header
from nullsae.core.tensor_pieces import TYPES

# Tokens that are read and summed together; another number changes the last bits of sums.
BATCH_TOKENS = 4096
# Makers of some of a site's shards, if several jobs share it.
PART_OF_PROVENANCE = "provenance-{}.json"
# Relative difference allowed between stored norms and those recomputed on another device.
NORM_TOLERANCE = 0.05


class SiteWriter:
    """Writes the shards of one site, each with a record of its checksum and sums next to it.

    The manifest is made only from files on disk: it is the same however often writing was
    interrupted, and memory does not grow with the number of shards.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dtype: str,
        key: str = "",
        keep: Collection[int] = (),
        among: Container[int] | None = None,
        again: shards.Again | None = None,
    ) -> None:
        """Start, or continue after the shards that `finished_shards` found; delete all other files.

        Args:
            folder: of the site.
            dtype: storage dtype, by its name in the config.
            key: provenance of the shards.
            keep: shards that exist already.
            among: the shards that this job makes, if other jobs make others; else all.
            again: if given, shards contain norms and positions alone, and this recomputes the rest.
        """
        self.folder, self.dtype, self.key, self.again = folder, dtype, key, again
        self.resumes, self.shared, self.recorded = bool(keep), among is not None, False
        for file in shards.left_over(folder, keep=keep, among=among):
            # Another job may have deleted an outdated manifest meanwhile.
            file.unlink(missing_ok=True)

    def write(
        self, index: int, activations: Tensor, position: Tensor, order: Tensor | None = None
    ) -> None:
        """Write one shard.

        Args:
            index: its number; shards may be written in any order.
            activations: [n, d_model] in the storage dtype, on the CPU.
            position: int64 [n].
            order: int64 [n], the row of `activations` at each place of the shard; identity if None.

        Raises:
            UserError: NaN or infinite activations, with the shard and the row, or a file that
                cannot be written; no part of the shard remains.
        """
        path = self.folder / shards.SHARD.format(index)
        sums = shards.ShardSums(path, activations.shape[1])
        # Of the intended bytes, so that readers detect errors of the disk.
        digest = xxhash.xxh3_128()
        placed = position if order is None else position[order]
        try:
            with atomic_path(path) as temporary, open(temporary, "wb") as stream:

                def put(data: bytes | memoryview) -> None:
                    digest.update(data)
                    stream.write(data)

                def put_rows(*, keep: bool) -> None:
                    for part in shards.pieces(len(placed)):
                        piece = activations[part]
                        if order is not None:
                            # Copies whole rows; indexing would copy number by number.
                            piece = activations.index_select(0, order[part])
                        sums.add(piece, placed)
                        if keep:
                            put(piece.contiguous().view(torch.uint8).numpy().data)

                norms = row_norms(activations)
                norms = norms if order is None else norms[order]
                stored = {"norm": norms, "position": placed}
                if self.again is None:
                    stored["activations"] = activations
                else:
                    put_rows(keep=False)
                    stored |= self.again.likely(activations, norms, placed, order)
                # safetensors orders tensors by falling alignment.
                rows = sorted(stored.items(), key=lambda row: (-row[1].itemsize, row[0]))
                put(header((name, TYPES[x.dtype], x.shape) for name, x in rows))
                for name, x in rows:
                    if name == "activations":
                        put_rows(keep=True)
                    else:
                        put(x.contiguous().view(torch.uint8).numpy().data)
            # Before the record, so that no certified shard has an unknown maker.
            self._record_maker(index)
            sums.save_record(self.key, digest.hexdigest())
        except OSError as error:
            raise UserError(
                f"{path}: cannot be written: {error.strerror or error}; finished shards are kept, "
                f"and the same command continues after them"
            ) from None

    def _record_maker(self, index: int) -> None:
        """Record the maker with its first shard, because the job may be killed later."""
        if self.recorded:
            return
        self.recorded = True
        # Jobs that share a site have separate files, as two may write at the same time.
        name = PART_OF_PROVENANCE.format(f"{index:05d}") if self.shared else makers.FILE
        makers.record(self.folder, key=self.key, resumes=self.resumes, name=name)

    def _join_makers(self) -> None:
        """List the makers that shared the site in one file."""
        if parts := sorted(self.folder.glob(PART_OF_PROVENANCE.format("*"))):
            makers.record(self.folder, key=self.key, resumes=True, parts=parts, own=False)
            for part in parts:
                part.unlink()

    def finish(
        self, *, context_tokens: int = 1, exclude: Exclude | None = None, **provenance: Any
    ) -> LeftOut:
        """Write the site's manifest, which makes the shards count as complete.

        By default no token is excluded. Returns the excluded ones.

        Raises:
            UserError: more than half of the tokens are excluded.
        """
        total = torch.zeros(0, dtype=torch.float64)
        norm_sum, square_sum, n_tokens = 0.0, 0.0, 0
        listed: list[dict[str, Any]] = []
        for index in range(sum(1 for _ in self.folder.glob(shards.RECORDS))):
            record = read_json(self.folder / shards.RECORD.format(index), rebuild="")
            added = torch.tensor(record["sum"], dtype=torch.float64)
            total = total + added if len(total) else added
            norm_sum += record["norm_sum"]
            square_sum += record["square_sum"]
            n_tokens += record["n_tokens"]
            listed.append({name: record[name] for name in ("file", "n_tokens", "checksum")})
        files = [self.folder / shard["file"] for shard in listed]
        exclude = exclude or Exclude(norm_above_median=None)
        rule, median = Kept.fitted(exclude, lambda: map(shards.norms, files), context_tokens)
        left_out = LeftOut(n_tokens, total, norm_sum, square_sum)
        for index, file in enumerate(files):
            norm, position = shards.norms(file)
            if not bool((kept := rule.mask(norm, position)).all()):
                rows = (~kept).nonzero()[:, 0]
                if self.again is None:
                    left_out.add(load_file(file)["activations"][rows], position[rows])
                else:
                    left_out.add(self.again.left_out(index, file, rows), position[rows])
        if left_out.n_excluded > n_tokens / 2:
            raise UserError(
                f"{self.folder}: activations.exclude leaves out {left_out.n_excluded} of "
                f"{n_tokens} tokens; lower start_tokens or raise norm_above_median"
            )
        manifest = {
            **provenance,
            "shards_key": self.key,
            "context_tokens": context_tokens,
            "dtype": self.dtype,
            "d_model": len(total),
            "n_tokens": n_tokens - left_out.n_excluded,
            "mean": left_out.mean.tolist(),
            "mean_norm": left_out.mean_norm,
            "variance": left_out.variance,
            "excluded": {
                **exclude.model_dump(),
                "n_tokens": left_out.n_excluded,
                "variance_share": left_out.variance_share,
                "median_norm": median,
                "norm_limit": None if rule.norm_limit == math.inf else rule.norm_limit,
            },
            "shards": listed,
        }
        self._join_makers()
        write_json(self.folder / "manifest.json", manifest)
        shards.drop_records(self.folder)
        return left_out


@dataclass(frozen=True)
class SiteReader:
    """Reads one site's shards; `check` compares them with the manifest."""

    folder: Path
    manifest: dict[str, Any]
    rebuild: str
    live: Live | None = field(default=None, compare=False)
    """Computes the activations if shards do not store them: `passes.open_site`."""

    @classmethod
    def open(cls, split_manifest: Path, site: str, *, key: str = "") -> SiteReader:
        """Open one site of a captured split, by the `manifest.json` of the split's folder.

        With a key, this must be the provenance of the activations.

        Raises:
            UserError: missing, or made from another config; names the file and the command that
                rebuilds it.
        """
        folder = split_manifest.parent / f"site={site}"
        rebuild = rebuild_command(split_manifest)
        manifest = read_json(folder / "manifest.json", rebuild=rebuild)
        if key and (found := manifest.get("key")) != key:
            raise UserError(
                f"{folder / 'manifest.json'}: made from another config (key {found}, "
                f"wanted {key}); rebuild it with: {rebuild}"
            )
        if "excluded" not in manifest:
            raise UserError(
                f"{folder / 'manifest.json'}: lacks the key `excluded`; rebuild it with: {rebuild}"
            )
        return cls(folder, manifest, rebuild)

    def file(self, index: int) -> Path:
        """Return the path of one shard."""
        return self.folder / str(self.manifest["shards"][index]["file"])

    @property
    def d_model(self) -> int:
        return int(self.manifest["d_model"])

    @property
    def n_tokens(self) -> int:
        """Number of tokens that count."""
        return int(self.manifest["n_tokens"])

    @property
    def n_excluded(self) -> int:
        """Number of excluded tokens."""
        return int(self.manifest["excluded"]["n_tokens"])

    @cached_property
    def rule(self) -> Kept:
        """The rule for which tokens count."""
        return Kept.of(self.manifest)

    @property
    def n_shards(self) -> int:
        return len(self.manifest["shards"])

    @property
    def is_constant(self) -> bool:
        """Whether all tokens that count have the same activation, so no variance to explain."""
        return not self.manifest["variance"]

    def mean(self) -> Tensor:
        """Return the mean over the tokens of the split that count, float64 [d_model]."""
        return torch.tensor(self.manifest["mean"], dtype=torch.float64)

    def check(self) -> None:
        """Verify every shard's bytes.

        Raises:
            UserError: a shard is missing or damaged; names it and the command that rebuilds it.
        """
        for index, shard in enumerate(self.manifest["shards"]):
            verify(self.file(index), shard["checksum"], rebuild=self.rebuild)

    def stored(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one shard: activations [n, d_model] in the storage dtype, position int64 [n].

        It contains all tokens: `kept` tells which count. Both tensors are mapped from the file, so
        parts that are never accessed are never read; or they are computed (see `checked`).

        Raises:
            UserError: the file cannot be read, or the computed activations differ.
        """
        if self.live is not None:
            site = str(self.manifest["site"])
            return self.checked(index, self.live.rows(index, [site])[site])
        path = self.file(index)
        try:
            tensors = load_file(path)
            return tensors["activations"], tensors["position"]
        except (SafetensorError, OSError, KeyError) as error:
            raise UserError(f"{path}: {error}; rebuild it with: {self.rebuild}") from None

    def checked(self, index: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return computed activations and positions, after a check of their norms.

        Other devices or libraries round differently; another model or text is refused.
        """
        norm, position = shards.norms(self.file(index))
        if not torch.allclose(row_norms(x).cpu(), norm, rtol=NORM_TOLERANCE, atol=0.0):
            raise UserError(
                f"{self.file(index)}: the model's activations differ from those captured; "
                f"rebuild it with: {self.rebuild}"
            )
        return x, position

    def kept(self, index: int) -> Tensor:
        """Return which tokens of a shard count, bool [n].

        Raises:
            UserError: the file cannot be read.
        """
        try:
            return self.rule.mask(*shards.norms(self.file(index)))
        except (SafetensorError, OSError) as error:
            raise UserError(
                f"{self.file(index)}: {error}; rebuild it with: {self.rebuild}"
            ) from None

    def batches(
        self,
        batch_tokens: int | None = None,
        *,
        max_tokens: int | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tokens that count, in stored order, in batches of `batch_tokens`.

        By default of `BATCH_TOKENS`; the last may be smaller. Batches cross the ends of shards, so
        that shard sizes never change a result.

        Yields:
            (activations float32 [n, d_model], position int64 [n]), which must not be modified.

        Raises:
            UserError: as `stored`.
        """
        rest = self.n_tokens if max_tokens is None else min(max_tokens, self.n_tokens)
        batcher = Batcher(batch_tokens or BATCH_TOKENS)
        for index in range(self.n_shards):
            if rest <= 0:
                break
            x, position = self.stored(index)
            if self.n_excluded and not bool((kept := self.kept(index)).all()):
                x, position = x[kept], position[kept]
            x, position = x[:rest], position[:rest]
            rest -= len(x)
            for rows, at in batcher.cut(x, position):
                yield rows, at
        for rows, at in batcher.rest():
            yield rows, at

    def excluded_positions(self) -> Tensor:
        """Return flat positions of the excluded tokens, int64 [n], in stored order."""
        found = [torch.zeros(0, dtype=torch.int64)]
        for index in range(self.n_shards if self.n_excluded else 0):
            norm, position = shards.norms(self.file(index))
            found.append(position[~self.rule.mask(norm, position)])
        return torch.cat(found)


def is_complete(folder: Path, *, key: str) -> bool:
    """Return whether a site's folder has complete, undamaged shards of the same provenance."""
    try:
        manifest = read_json(folder / "manifest.json", rebuild="")
        if manifest.get("key") != key:
            return False
        SiteReader(folder, manifest, "").check()
    except UserError:
        return False
    return True


def document_of(position: Tensor, document_id: np.ndarray) -> np.ndarray:
    """Return the documents of tokens at flat positions; `document_id` is [n_contexts, tokens]."""
    return np.take(document_id, position.numpy())
