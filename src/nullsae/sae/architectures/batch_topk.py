"""BatchTopK: k latents per token on average over a batch (Bussmann et al. 2024, arXiv 2412.06410).

Which latents are active at a token depends on the other tokens of its batch, so the SAE for use
has a threshold instead: the average of the smallest value that was kept.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

from nullsae.config.compute import Precise
from nullsae.sae.architectures.auxk import AuxKSae, RevivingSae
from nullsae.sae.architectures.base import Gradients, Losses, TrainedSae, variance
from nullsae.sae.chunks import rows_at_once
from nullsae.sae.later import Autoencoder, Hits, Tensor, autoencoder, kernels, torch

# Of the running average of the threshold: it looks back over some 10 steps. The weights move: over
# 50 steps, an SAE of 244 steps was left with 6% fewer active latents than k.
THRESHOLD_DECAY = 0.9
# Entries of a chunk that stay at first, as a multiple of its share of the batch's hits, and the
# tokens of a chunk for each one that its cut is taken from.
SLACK, SAMPLED = 1.5, 4


class BatchTopKSae(AuxKSae):
    """A recipe; finished SAEs are `jumprelu`."""

    name, position, step_cost = "batch_topk", 2, 1.25
    summary = "keeps k per token on average"
    keeps_k = True

    @classmethod
    def training(cls) -> type[TrainedSae[Any]]:
        return BatchTopK


B = TypeVar("B", bound=BatchTopKSae)


class BatchTopK(RevivingSae[B]):
    """loss = FVU + weighted AuxK, gradients through the kept values only, both as in TopK.

    `buffers` hold the average of the smallest kept value and the weight behind it, by which it is
    divided: both start at 0.
    """

    LOW_PRECISION = "choice"

    def __init__(self, recipe: B, k: int, start: Autoencoder) -> None:
        super().__init__(recipe, k, start)
        for name in ("threshold", "threshold_weight"):
            self.buffers[name] = start.b_enc.new_zeros(())

    def gradients(self, x: Tensor, dead: Tensor | None) -> tuple[Gradients, Losses]:
        centred, hits = self._kept(x)
        scale = variance(x)
        gradients: Gradients = {}
        fvu, error = self.add_fvu(gradients, x, centred, hits, scale)
        auxk = self.add_auxk(gradients, centred, error, scale, dead)
        return gradients, Losses(fvu, auxk, 0.0, self.fired(hits))

    def _kept(self, x: Tensor) -> tuple[Tensor, Hits]:
        """X - b_dec, and the batch's hits, whose threshold is taken into the average."""
        centred = x - self.b_dec
        hits = self.chosen(centred, self.precision)
        if len(hits.values):
            average, weight = self.buffers["threshold"], self.buffers["threshold_weight"]
            average.lerp_(hits.values.min(), 1.0 - THRESHOLD_DECAY)
            weight.lerp_(torch.ones_like(weight), 1.0 - THRESHOLD_DECAY)
        return centred, hits

    def chosen(self, centred: Tensor, precision: Precise) -> Hits:
        return batch_top_k(centred, self.w_enc, self.b_enc, self.k * len(centred), precision)

    def autoencoder(self) -> Autoencoder:
        average, weight = self.buffers["threshold"], self.buffers["threshold_weight"]
        threshold = average / weight if weight > 0 else average
        tensors = {**self.parameters, "threshold": threshold.expand(self.n_latents).clone()}
        return autoencoder.Autoencoder.of(tensors, "jumprelu", None)


def batch_top_k(
    centred: Tensor, w_enc: Tensor, b_enc: Tensor, n_hits: int, precision: Precise = "float32"
) -> Hits:
    """The largest positive pre-activations of a batch; of equal ones those that come first.

    Exact. Nothing is sorted, and the pre-activations of a few tokens are held at once: of each
    such chunk the entries above a cut stay, where the cut leaves somewhat more than the chunk's
    share. A chunk whose cut turns out to be above the smallest entry that is kept of all is looked
    at again. `n_hits` is from 1 to tokens * n_latents; if fewer are positive, all of those come,
    token by token, in the order of the latents. Below float32, a product in that precision chooses
    somewhat more candidates, of which the largest of their values in float32 are kept.
    """
    n_tokens, n_latents = len(centred), len(b_enc)
    rows = min(n_tokens, rows_at_once(n_latents, centred.device.type))
    low = precision != "float32"
    n_found = min(math.ceil(kernels.CANDIDATES * n_hits), n_tokens * n_latents) if low else n_hits
    if low:
        encode = kernels.encoder(w_enc, b_enc, rows, precision)
    else:
        buffer = centred.new_empty(rows, n_latents)

        def encode(x: Tensor) -> Tensor:
            return torch.addmm(b_enc, x, w_enc.t(), out=buffer[: len(x)])

    def above(start: int, cut: float | None) -> tuple[float, Tensor, Tensor]:
        """A chunk's cut, and the places in the batch and values of what is not below it."""
        x = centred[start : start + rows]
        pre = encode(x)
        if cut is None:
            sample = pre[::SAMPLED]
            cut = lower_bound_of_all(sample, math.ceil(SLACK * n_found * len(sample) / n_tokens))
        entries = pre.flatten()
        found = entries >= cut if cut > 0 else entries > 0
        if found.is_cpu:  # NumPy is faster than nonzero there
            places = torch.from_numpy(np.flatnonzero(found.numpy()))
        else:
            places = found.nonzero().squeeze(1)
        return cut, places + start * n_latents, entries[places]

    def hits_at(places: Tensor, values: Tensor) -> Hits:
        counts = torch.bincount(places // n_latents, minlength=n_tokens)
        return kernels.Hits(values, places % n_latents, counts.cumsum(0) - counts)

    chunks = {start: above(start, None) for start in range(0, n_tokens, rows)}
    values = torch.cat([found for _, _, found in chunks.values()])
    least = nth_largest(values, n_found) if len(values) >= n_found else 0.0
    for start, (cut, _, _) in chunks.items():
        if cut > max(least, 0.0):
            chunks[start] = above(start, least)
    places = torch.cat([found for _, found, _ in chunks.values()])
    values = torch.cat([found for _, _, found in chunks.values()])
    if low:
        values = kernels.pre_activations(centred, w_enc, b_enc, hits_at(places, values))
        places, values = places[values > 0], values[values > 0]
    if len(values) > n_hits:
        least = nth_largest(values, n_hits)
        larger, equal = values > least, values == least
        keep = larger | (equal & (equal.cumsum(0) <= n_hits - larger.sum()))
        places, values = places[keep], values[keep]
    return hits_at(places, values)


def lower_bound_of_all(pre: Tensor, n: int) -> float:
    """A number with at least n entries of pre [tokens, n_latents] not below it, and few more.

    It is the n-th largest of the maxima of disjoint groups of entries; if n is more than the
    entries, the least of them is meant. Rows are contiguous.
    """
    n_tokens, n_latents = pre.shape
    n = min(n, pre.numel())
    size = max(1, min(n_latents, pre.numel() // (kernels.GROUPS_PER_ENTRY * n)))
    groups = n_latents // size
    maxima = pre[:, : groups * size].view(n_tokens, size, groups).amax(dim=1)
    return nth_largest(maxima.flatten(), n)


def nth_largest(values: Tensor, n: int) -> float:
    """The n-th largest of at least n values [m]."""
    if values.dtype == torch.bfloat16:
        values = values.float()
    return float(values.kthvalue(len(values) - n + 1).values)
