"""Shards of activations: safetensors files beside a manifest that vouches for them.

A site's folder holds `shard-00000.safetensors` ... with the keys `activations` [n, d_model] and
`position` int64 [n], the flat index (context * context_tokens + offset) of each row's token in
its split, and `manifest.json`, written last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from nullsae.errors import UserError
from nullsae.files import atomic_path, checksum, read_json, rebuild_command, verify, write_json


class SiteWriter:
    """Writes the shards of one site and keeps the running statistics of what it wrote."""

    def __init__(self, folder: Path, *, dtype: str, d_model: int) -> None:
        self.folder = folder
        self.dtype = dtype
        self.sum = torch.zeros(d_model, dtype=torch.float64)
        self.norm_sum = 0.0
        self.n_tokens = 0
        self.shards: list[dict[str, Any]] = []
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            old.unlink()

    def write(self, activations: Tensor, position: Tensor) -> None:
        """Append a shard.

        Args:
            activations: [n, d_model] in the storage dtype, on the CPU.
            position: int64 [n].

        Raises:
            UserError: NaN or infinite activations; names the shard and the row.
        """
        path = self.folder / f"shard-{len(self.shards):05d}.safetensors"
        values = activations.double()
        norms = values.norm(dim=1)
        if not bool(torch.isfinite(norms).all()):
            row = int((~torch.isfinite(norms)).nonzero()[0])
            raise UserError(
                f"{path}: row {row} (token {int(position[row])}) is NaN or infinite; a subject in "
                f"float16 or a larger activations.dtype may be the cause"
            )
        self.sum += values.sum(dim=0)
        self.norm_sum += float(norms.sum())
        self.n_tokens += len(activations)
        with atomic_path(path) as temporary:
            save_file({"activations": activations, "position": position}, temporary)
        self.shards.append(
            {"file": path.name, "n_tokens": len(activations), "checksum": checksum(path)}
        )

    def finish(self, **provenance: Any) -> None:
        """Write the site's manifest: from now on the shards count as complete."""
        write_json(
            self.folder / "manifest.json",
            {
                **provenance,
                "dtype": self.dtype,
                "d_model": len(self.sum),
                "n_tokens": self.n_tokens,
                "mean": (self.sum / self.n_tokens).tolist(),
                "mean_norm": self.norm_sum / self.n_tokens,
                "shards": self.shards,
            },
        )


@dataclass(frozen=True)
class SiteReader:
    """Reads one site's shards, each verified against the manifest before its first use."""

    folder: Path
    manifest: dict[str, Any]
    rebuild: str

    @classmethod
    def open(cls, split_manifest: Path, site: str, *, key: str = "") -> SiteReader:
        """Open one site of a captured split.

        Args:
            split_manifest: `manifest.json` of the split's folder.
            site: name of the site.
            key: if given, the provenance that the activations must have.

        Raises:
            UserError: missing, or made from another config; names the file and the command that
                rebuilds it.
        """
        folder = split_manifest.parent / f"site={site}"
        rebuild = rebuild_command(split_manifest)
        manifest = read_json(folder / "manifest.json", rebuild=rebuild)
        found = manifest.get("key")
        if key and found != key:
            raise UserError(
                f"{folder / 'manifest.json'}: made from another config (key {found}, "
                f"wanted {key}); rebuild it with: {rebuild}"
            )
        return cls(folder=folder, manifest=manifest, rebuild=rebuild)

    @property
    def d_model(self) -> int:
        return int(self.manifest["d_model"])

    @property
    def n_tokens(self) -> int:
        return int(self.manifest["n_tokens"])

    @property
    def n_shards(self) -> int:
        return len(self.manifest["shards"])

    def mean(self) -> Tensor:
        """Mean activation over the split, float64 [d_model]."""
        return torch.tensor(self.manifest["mean"], dtype=torch.float64)

    def check(self) -> None:
        """Verify every shard's bytes.

        Raises:
            UserError: a shard is missing or damaged; names it and the command that rebuilds it.
        """
        for shard in self.manifest["shards"]:
            verify(self.folder / shard["file"], shard["checksum"], rebuild=self.rebuild)

    def shard(self, index: int) -> tuple[Tensor, Tensor]:
        """One shard as (activations float32 [n, d_model], position int64 [n]).

        Raises:
            UserError: the file cannot be read.
        """
        path = self.folder / self.manifest["shards"][index]["file"]
        try:
            tensors = load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: {error}; rebuild it with: {self.rebuild}") from None
        return tensors["activations"].float(), tensors["position"]

    def batches(
        self, batch_tokens: int, *, max_tokens: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """All tokens in stored order, in batches of exactly `batch_tokens` but for the last.

        Batches do not stop at the ends of shards, so shard sizes never change a result.
        """
        rest = self.n_tokens if max_tokens is None else min(max_tokens, self.n_tokens)
        held: list[tuple[Tensor, Tensor]] = []
        n_held = 0
        for index in range(self.n_shards):
            if rest <= 0:
                break
            x, position = self.shard(index)
            x, position = x[:rest], position[:rest]
            rest -= len(x)
            held.append((x, position))
            n_held += len(x)
            while n_held >= batch_tokens:
                x = torch.cat([part for part, _ in held])
                position = torch.cat([part for _, part in held])
                yield x[:batch_tokens], position[:batch_tokens]
                held = [(x[batch_tokens:], position[batch_tokens:])]
                n_held = len(held[0][0])
        if n_held:
            yield torch.cat([part for part, _ in held]), torch.cat([part for _, part in held])


def is_complete(folder: Path, *, key: str) -> bool:
    """Whether a site's folder holds whole, undamaged shards of the same provenance."""
    try:
        manifest = read_json(folder / "manifest.json", rebuild="")
        if manifest.get("key") != key:
            return False
        SiteReader(folder=folder, manifest=manifest, rebuild="").check()
    except UserError:
        return False
    return True


def document_of(position: Tensor, document_id: np.ndarray) -> np.ndarray:
    """Documents of tokens by their flat positions; `document_id` is [n_contexts, tokens]."""
    documents: np.ndarray = document_id.reshape(-1)[position.numpy()]
    return documents
