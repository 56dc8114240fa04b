"""Encodes activations, and sorts the firings of an SAE, batch by batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nullsae.latents.skipped import Skipped
from nullsae.latents.store import Firings, FiringSorter
from nullsae.sae.autoencoder import Autoencoder


class Sorting:
    """Sorts the firings of an SAE over a split, batch by batch.

    Firings on tokens that the settings skip are left out: the first of each context, BOS, and the
    ends of documents.
    """

    def __init__(self, coder: Autoencoder, skipped: Skipped, folder: Path) -> None:
        """Start empty, on the device of `coder`; `folder` is for files."""
        self.coder, self.skipped, self.folder = coder, skipped, folder
        self.n_skipped = np.zeros(2, dtype=np.int64)
        """Tokens that are left out, and their firings."""
        n_tokens = skipped.split.n_tokens
        self._sorter = FiringSorter(folder, n_latents=coder.n_latents, n_tokens=n_tokens)

    @torch.no_grad()
    def add(self, x: Tensor, at: Tensor) -> None:
        """Encode activations float32 [n, d_model] of the positions int64 [n].

        Raises a `UserError` if the disk is full.
        """
        position = at.numpy()
        ids = torch.from_numpy(self.skipped.split.ids[position].astype(np.int64))
        codes = self.coder.encode(x.to(self.coder.w_dec.device), ids)
        values, indices = (t.cpu().numpy() for t in codes)
        fires = values > 0
        skip = self.skipped.by_settings(position)
        self.n_skipped += skip.sum(), fires[skip].sum()
        fires[skip] = False
        hit = np.flatnonzero(fires)
        where = np.repeat(position, np.count_nonzero(fires, axis=1))
        self._sorter.add(indices.reshape(-1)[hit], where, values.reshape(-1)[hit])

    def sorted(self) -> Firings:
        """Return all firings, memory-mapped; nothing can be added after that.

        Raises a `UserError` if the disk is full.
        """
        return self._sorter.sorted()
