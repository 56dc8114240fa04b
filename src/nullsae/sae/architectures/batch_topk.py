"""BatchTopK: k latents per token on average over a batch (Bussmann et al. 2024, arXiv 2412.06410).

Which latents are active at a token depends on the other tokens of its batch. The finished SAE uses
a threshold instead: the average of the smallest kept value.
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

# Decay of the running average of the threshold, over some 10 steps. A longer average lags behind
# the weights: over 50 steps, an SAE of 244 steps had 6% fewer active latents than k.
THRESHOLD_DECAY = 0.9
# Entries of a chunk that stay at first, as a multiple of its share of the batch's hits; and one in
# how many tokens of a chunk its cut is taken from.
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

    `buffers` are the average of the smallest kept value and the weight it is divided by; both start
    at 0.
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
        """Return x - b_dec, and the batch's hits, whose threshold enters the average."""
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
    """Return the largest positive pre-activations of a batch; earlier ones win ties.

    The result is exact. Nothing is sorted, and only the pre-activations of a few tokens are kept at
    once. Of each such chunk the entries above a cut stay, where the cut leaves slightly more than
    the chunk's share. Chunks whose cut turns out to be above the smallest kept entry are computed
    again. `n_hits` is from 1 to tokens * n_latents; if fewer are positive, all of those are
    returned, token by token, in the order of the latents. Below float32, a product in that
    precision chooses slightly more candidates, and those with the largest float32 values are kept.
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
        """Return a chunk's cut, and the batch positions and values of entries not below it."""
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
    """Return a number with at least n entries of pre [tokens, n_latents] not below it, and few
    more.

    It is the n-th largest of the maxima of disjoint groups of entries, or the least entry if n
    exceeds their number. Rows are contiguous.
    """
    n_tokens, n_latents = pre.shape
    n = min(n, pre.numel())
    size = max(1, min(n_latents, pre.numel() // (kernels.GROUPS_PER_ENTRY * n)))
    groups = n_latents // size
    maxima = pre[:, : groups * size].view(n_tokens, size, groups).amax(dim=1)
    return nth_largest(maxima.flatten(), n)


def nth_largest(values: Tensor, n: int) -> float:
    """Return the n-th largest of at least n values [m]."""
    if values.dtype == torch.bfloat16:
        values = values.float()
    return float(values.kthvalue(len(values) - n + 1).values)
