"""The outputs that a transcoder predicts: activations at a second site of the same tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nullsae.activations.store import SiteReader


@dataclass(frozen=True)
class OutputReader(SiteReader):
    """Activations of an output site; the tokens that count at the input count here too."""

    input: SiteReader = field(kw_only=True)

    @property
    def n_tokens(self) -> int:
        return self.input.n_tokens

    @property
    def n_excluded(self) -> int:
        return self.input.n_excluded

    def kept(self, index: int) -> Tensor:
        return self.input.kept(index)

    def mean(self) -> Tensor:
        """Return the mean over the tokens that count at the input; float64 [site's width]."""
        if not self.n_excluded and not super().n_excluded:
            return super().mean()
        total = torch.zeros(self.d_model, dtype=torch.float64)
        for y, _ in self.batches():
            total += y.double().sum(dim=0)
        return total / self.n_tokens


def outputs_of(reader: SiteReader, site: str, output_site: str) -> SiteReader:
    """Return the reader of the targets at `output_site`: `reader` itself for an SAE.

    Raises:
        UserError: the other site was not captured; names the file.
    """
    if output_site == site:
        return reader
    manifest = reader.folder.parent / "manifest.json"
    found = SiteReader.open(manifest, output_site, key=str(reader.manifest.get("key", "")))
    found.check()
    # Whatever computes one site of a split computes all.
    return OutputReader(found.folder, found.manifest, found.rebuild, reader.live, input=reader)


def both(
    reader: SiteReader, output: SiteReader, **keys: Any
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches of inputs, targets and positions; `keys` are those of `batches`."""
    if output is reader:
        for x, position in reader.batches(**keys):
            yield x, x, position
        return
    pairs = zip(reader.batches(**keys), output.batches(**keys), strict=True)
    for (x, position), (y, same) in pairs:
        assert torch.equal(position, same)
        yield x, y, position
