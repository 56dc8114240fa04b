"""Products with sparse codes that never touch the zeros, and the choice of what is not zero.

A code is a set of hits: which latents are active at which token, and how much. Additions have a
fixed order, so results do not depend on the number of threads; none builds a [hits, d] tensor.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.sae.chunks import rows_at_once

# Groups of columns in the selection of the k largest: so many times k, rounded up to a multiple of
# what is compared at once. More cost a longer ranking of their maxima, fewer let more candidates
# through; with 4 one in seven is too many.
GROUPS_PER_ENTRY, GROUPS_MULTIPLE = 4, 64


@cache
def triton_kernels() -> ModuleType | None:
    """The same products for a GPU; None where there is no Triton (PyTorch for CUDA brings it)."""
    try:
        from nullsae.sae import triton_kernels as found
    except ImportError:
        return None
    return found


def gpu_kernels(given: Tensor) -> ModuleType | None:
    """What multiplies on the tensor's device, if that is a GPU and Triton is there."""
    return triton_kernels() if given.is_cuda else None


@dataclass(frozen=True)
class Hits:
    """Active latents of a batch, token by token; a token may have any number of them."""

    values: Tensor
    """[n_hits]."""
    latents: Tensor
    """int64 [n_hits]."""
    offsets: Tensor
    """int64 [tokens]: where each token's hits start."""

    @classmethod
    def of(cls, values: Tensor, indices: Tensor) -> Hits:
        """From k hits per token: values and int64 indices, both [tokens, k]."""
        offsets = torch.arange(0, values.numel(), values.shape[1], device=values.device)
        return cls(values.contiguous().view(-1), indices.contiguous().view(-1), offsets)

    @cached_property
    def tokens(self) -> Tensor:
        """The token of each hit, int64 [n_hits]."""
        tokens = torch.arange(len(self.offsets), device=self.offsets.device)
        return tokens.repeat_interleave(self._with_end().diff())

    def _with_end(self) -> Tensor:
        return torch.cat([self.offsets, self.offsets.new_tensor([len(self.latents)])])

    def decode(self, rows: Tensor) -> Tensor:
        """Sum of each token's `rows[latents]` weighted by `values`: [tokens, d]."""
        if gpu := gpu_kernels(self.values):
            decoded: Tensor = gpu.decode(self.values, self.latents, self.offsets, rows)
            return decoded
        return F.embedding_bag(
            self.latents, rows, self.offsets, per_sample_weights=self.values, mode="sum"
        )

    def dot_rows(self, dense: Tensor, rows: Tensor) -> Tensor:
        """Inner products of each token's vector [tokens, d] with its latents' rows: [n_hits]."""
        products: Tensor
        if gpu := gpu_kernels(dense):
            products = gpu.dot_rows(dense, self.latents, self.offsets, rows)
            return products
        if dense.device.type == "cpu":
            return self._sampled_product(dense, rows)
        # The derivative of `decode` by its weights, which PyTorch computes without gathering the
        # rows; 0 stands for the mode "sum".
        products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
            dense, rows.detach(), self.latents, self.offsets, self.tokens, 0
        )
        return products

    def _sampled_product(self, dense: Tensor, rows: Tensor) -> Tensor:
        """The same as the entries of dense @ rows.T where there are hits."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Sparse")  # of being new, and unchecked
            zeros, size = dense.new_zeros(len(self.latents)), (len(dense), len(rows))
            where = torch.sparse_csr_tensor(
                self._with_end(), self.latents, zeros, size=size, check_invariants=False
            )
            found = torch.sparse.sampled_addmm(where, dense, rows.detach().t(), beta=0.0)
        products: Tensor = found.values()
        return products


class HitsByLatent:
    """The hits of a batch, sorted by latent, for gradients of row matrices."""

    def __init__(self, hits: Hits, n_latents: int) -> None:
        # Stable: additions happen in token order on every device.
        self.order = stable_order(hits.latents, n_latents)
        self.tokens = hits.tokens.index_select(0, self.order)
        counts = torch.bincount(hits.latents, minlength=n_latents)
        self.offsets = counts.cumsum(0) - counts

    def row_gradient(self, weights: Tensor, dense: Tensor) -> Tensor:
        """Sum over hits of weight x the token's vector [tokens, d], per latent: [n_latents, d].

        `weights` [n_hits] are in the order of the hits.
        """
        if gpu := gpu_kernels(dense):
            found: Tensor = gpu.row_gradient(weights, self.order, self.tokens, self.offsets, dense)
            return found
        weights = weights.index_select(0, self.order)
        return F.embedding_bag(
            self.tokens, dense, self.offsets, per_sample_weights=weights, mode="sum"
        )

    def bias_gradient(self, weights: Tensor, n_tokens: int) -> Tensor:
        """Sum over hits of the weight, per latent: [n_latents]."""
        return self.row_gradient(weights, weights.new_ones(n_tokens, 1)).squeeze(1)


def stable_order(latents: Tensor, n_latents: int) -> Tensor:
    """The order that sorts latents int64 [n_hits], equal ones as they come: int64 [n_hits].

    Each latent is below n_latents, which is at most 2^32.
    """
    if latents.device.type != "cpu":
        return torch.argsort(latents, stable=True)
    # NumPy sorts numbers of 16 bits by their digits, in time linear in their number.
    keys = latents.numpy()
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    if n_latents > 2**16:
        order = order[np.argsort((keys >> 16).astype(np.uint16)[order], kind="stable")]
    return torch.from_numpy(order)


def encode_top_k(centred: Tensor, w_enc: Tensor, b_enc: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`top_k(centred @ w_enc.T + b_enc, k)`, holding the pre-activations of a few rows at once.

    `centred` is [tokens, d], `w_enc` [n_latents, d]; values and int64 indices are [tokens, k].
    """
    n_tokens, n_latents = len(centred), len(b_enc)
    values = centred.new_empty(n_tokens, k)
    indices = torch.empty_like(values, dtype=torch.int64)
    rows = max(1, min(rows_at_once(n_latents, centred.device.type), n_tokens))
    encode = encoder(w_enc, b_enc, rows)
    for start in range(0, n_tokens, rows):
        part = slice(start, start + rows)
        values[part], indices[part] = top_k(encode(centred[part]), k)
    return values, indices


def encoder(w_enc: Tensor, b_enc: Tensor, rows: int) -> Callable[[Tensor], Tensor]:
    """A function from x [n, d], n at most `rows`, to x @ w_enc.T + b_enc.

    What it returns may be overwritten by its next call.
    """
    if packs(w_enc):
        # Once for all chunks, and on many CPUs a faster product than the one of `addmm`.
        packed = torch.ops.mkldnn._reorder_linear_weight(w_enc, rows)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, b_enc, "none", [], "")
    # New pages cost more than what is written to them.
    buffer = w_enc.new_empty(rows, len(w_enc))
    return lambda x: torch.addmm(b_enc, x, w_enc.t(), out=buffer[: len(x)])


def packs(weight: Tensor) -> bool:
    """Whether oneDNN multiplies with this weight matrix."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest entries per row, rectified: (values, int64 indices), both [tokens, k].

    Exact. On the CPU a row's entries come in the order of their columns; which of equal ones are
    left out is not defined, but depends on nothing else than the row. No gradient flows back.
    `pre` is [tokens, n_latents], k at most n_latents.
    """
    pre = pre.detach()
    if pre.device.type != "cpu" or pre.dtype not in (torch.float32, torch.float64):
        values, indices = torch.topk(pre, k, dim=-1, sorted=False)
        return values.relu_(), indices
    values = pre.new_empty(len(pre), k)
    indices = torch.empty_like(values, dtype=torch.int64)
    rows = rows_at_once(pre.shape[1], pre.device.type)
    for start in range(0, len(pre), rows):
        part = slice(start, start + rows)
        largest_entries(pre[part].contiguous(), k, out=(values[part], indices[part]))
    return values.relu_(), indices


def positive(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The positive entries of rectified codes [n, n_latents], as values and int64 indices [n, m].

    m is the largest number in one row, at least 1; shorter rows are padded with values of 0.
    """
    most = int((codes > 0).sum(dim=1).max()) if len(codes) else 0
    # Sorted: then `decode` adds in an order that does not depend on the other tokens.
    values, indices = torch.topk(codes, max(1, most), dim=1, sorted=True)
    return values, indices


def largest_entries(rows: Tensor, k: int, *, out: tuple[Tensor, Tensor]) -> None:
    """The k largest entries per row, not rectified, in the order of their columns.

    The k-th largest of the maxima of disjoint groups of columns is at most the k-th largest entry.
    So the k largest entries are among the few that are not below it, of which those below the k-th
    largest are then left out. Rows where ties (or NaN) leave another number than k are given to
    `torch.topk`. Rows are [n, width], contiguous, on the CPU; `out` takes values and int64
    columns, both [n, k].
    """
    n, width = rows.shape
    entries = rows.numpy()
    found = np.flatnonzero(entries >= lower_bound(rows, k)[:, None])
    row = found // width
    counts = np.bincount(row, minlength=n)
    values = entries.ravel()[found]
    most = int(counts.max(initial=0))
    if most > k:
        # Each row's candidates side by side.
        table = np.full((n, most), -np.inf, dtype=entries.dtype)
        starts = counts.cumsum() - counts
        table.ravel()[np.arange(len(row)) + (np.arange(n) * most - starts)[row]] = values
        table.partition(most - k, axis=1)
        kept = np.flatnonzero(values >= table[:, most - k][row])
        found, row, values = found[kept], row[kept], values[kept]
        counts = np.bincount(row, minlength=n)
    regular = counts == k
    if regular.all():
        out[0].numpy()[:] = values.reshape(n, k)
        np.subtract(found.reshape(n, k), (np.arange(n) * width)[:, None], out=out[1].numpy())
        return
    chosen = regular[row]
    out[0].numpy()[regular] = values[chosen].reshape(-1, k)
    out[1].numpy()[regular] = (found - row * width)[chosen].reshape(-1, k)
    rest = torch.from_numpy(~regular)
    columns = torch.topk(rows[rest], k, dim=1).indices.sort(dim=1).values
    out[0][rest] = rows[rest].gather(1, columns)
    out[1][rest] = columns


def lower_bound(rows: Tensor, k: int) -> np.ndarray[Any, Any]:
    """Per row a value with at least k entries not below it, and few more: [n].

    It is the k-th largest of the maxima of groups of columns; where the width is not a multiple of
    the number of groups, the columns left over join the first groups.
    """
    n, width = rows.shape
    n_groups = -(-GROUPS_PER_ENTRY * k // GROUPS_MULTIPLE) * GROUPS_MULTIPLE
    if width < 2 * n_groups:
        n_groups, maxima = width, rows.clone()
    else:
        grouped = width // n_groups * n_groups
        maxima = rows[:, :grouped].view(n, -1, n_groups).amax(dim=1)
        rest = rows[:, grouped:]
        first = maxima[:, : rest.shape[1]]
        torch.maximum(first, rest, out=first)
    bounds = maxima.numpy()
    bounds.partition(n_groups - k, axis=1)
    # NaN if any is, so that no NaN is passed over.
    least: np.ndarray[Any, Any] = bounds[:, n_groups - k :].min(axis=1)
    return least


def decode(values: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """Sum of `rows[indices]` weighted by `values`, both [tokens, k]: [tokens, d]."""
    return F.embedding_bag(indices, rows, per_sample_weights=values, mode="sum")
