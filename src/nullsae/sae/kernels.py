"""Products with sparse codes that skip zeros, and the choice of the nonzero codes.

A code is a set of hits: which latents are active at which token, and how much. Additions have a
fixed order, so results do not depend on the number of threads. No [hits, d] tensor is built.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.config.compute import Precise
from nullsae.sae.chunks import rows_at_once

# Groups of columns in the selection of the k largest: this many times k, rounded up to a multiple
# of what is compared at once. More groups make ranking their maxima slower, fewer let more
# candidates through; with 4, one in seven is too many.
GROUPS_PER_ENTRY, GROUPS_MULTIPLE = 4, 64
# A product in low precision chooses this many candidates for each kept one.
CANDIDATES = 1.25
# Groups with fewer columns are not worth a selection in two stages.
LEAST_GROUP = 4


def weighted_rows(weights: Tensor, rows: Tensor) -> Tensor:
    """Compute weights [n] @ rows [n, d] on one thread of a CPU.

    MKL splits such a product among threads, so its order of addition depends on their number.
    """
    threads = torch.get_num_threads()
    if rows.device.type != "cpu" or threads == 1:
        return weights @ rows
    torch.set_num_threads(1)
    try:
        return weights @ rows
    finally:
        torch.set_num_threads(threads)


@cache
def triton_kernels() -> ModuleType | None:
    """Return the same products for a GPU; None without Triton, which PyTorch for CUDA includes."""
    try:
        from nullsae.sae import triton_kernels as found
    except ImportError:
        return None
    return found


def gpu_kernels(given: Tensor) -> ModuleType | None:
    """Return the GPU kernels for a tensor's device; None if it is not a GPU or lacks Triton."""
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
        """Make hits from k per token: values and int64 indices, both [tokens, k]."""
        offsets = torch.arange(0, values.numel(), values.shape[1], device=values.device)
        return cls(values.contiguous().view(-1), indices.contiguous().view(-1), offsets)

    @cached_property
    def tokens(self) -> Tensor:
        """The token of each hit, int64 [n_hits]."""
        tokens = torch.arange(len(self.offsets), device=self.offsets.device)
        # The size is known here; asking the device for it would block.
        size = len(self.latents)
        return tokens.repeat_interleave(self._with_end().diff(), output_size=size)

    def _with_end(self) -> Tensor:
        # A tensor made from a number would be sent to the device, which blocks.
        return F.pad(self.offsets, (0, 1), value=len(self.latents))

    def decode(self, rows: Tensor) -> Tensor:
        """Sum each token's `rows[latents]` weighted by `values`: [tokens, d]."""
        if gpu := gpu_kernels(self.values):
            decoded: Tensor = gpu.decode(self.values, self.latents, self.offsets, rows)
            return decoded
        return F.embedding_bag(
            self.latents, rows, self.offsets, per_sample_weights=self.values, mode="sum"
        )

    def dot_rows(self, dense: Tensor, rows: Tensor) -> Tensor:
        """Compute products of each token's vector [tokens, d] with its latents' rows: [n_hits]."""
        products: Tensor
        if gpu := gpu_kernels(dense):
            products = gpu.dot_rows(dense, self.latents, self.offsets, rows)
        elif dense.device.type == "cpu":
            # The entries of dense @ rows.T where there are hits.
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse")  # that it is new and unchecked
                zeros, size = dense.new_zeros(len(self.latents)), (len(dense), len(rows))
                where = torch.sparse_csr_tensor(
                    self._with_end(), self.latents, zeros, size=size, check_invariants=False
                )
                found = torch.sparse.sampled_addmm(where, dense, rows.detach().t(), beta=0.0)
            products = found.values()
        else:
            # The derivative of `decode` by its weights, which PyTorch computes without gathering
            # the rows; 0 is the mode "sum".
            products = torch.ops.aten._embedding_bag_per_sample_weights_backward(
                dense, rows.detach(), self.latents, self.offsets, self.tokens, 0
            )
        return products


class HitsByLatent:
    """The hits of a batch, sorted by latent, for gradients of row matrices."""

    def __init__(self, hits: Hits, n_latents: int) -> None:
        # Stable, so that additions happen in token order on every device.
        self.order = stable_order(hits.latents, n_latents)
        self.tokens = hits.tokens.index_select(0, self.order)
        if hits.latents.device.type == "cpu":
            counts = torch.bincount(hits.latents, minlength=n_latents)
            self.offsets = counts.cumsum(0) - counts
        else:  # bincount would wait for the device
            self.offsets = starts_of(hits.latents.index_select(0, self.order), n_latents)

    def row_gradient(self, weights: Tensor, dense: Tensor) -> Tensor:
        """Sum weight x the token's vector [tokens, d] over hits, per latent: [n_latents, d].

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
        """Sum the weights over hits, per latent: [n_latents]."""
        return self.row_gradient(weights, weights.new_ones(n_tokens, 1)).squeeze(1)


def starts_of(ordered: Tensor, n_latents: int) -> Tensor:
    """Return where each latent's entries start, or would, in sorted latents int64 [n_hits]."""
    return torch.searchsorted(ordered, torch.arange(n_latents, device=ordered.device))


def stable_order(latents: Tensor, n_latents: int) -> Tensor:
    """Return the stable order that sorts latents int64 [n_hits]: int64 [n_hits].

    Each latent is below n_latents, which is at most 2^32.
    """
    if latents.device.type != "cpu":
        return torch.argsort(latents, stable=True)
    # NumPy sorts 16-bit numbers by their digits, in linear time.
    keys = latents.numpy()
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    if n_latents > 2**16:
        order = order[np.argsort((keys >> 16).astype(np.uint16)[order], kind="stable")]
    return torch.from_numpy(order)


def encode_top_k(
    centred: Tensor, w_enc: Tensor, b_enc: Tensor, k: int, precision: Precise = "float32"
) -> tuple[Tensor, Tensor]:
    """Compute `top_k(centred @ w_enc.T + b_enc, k)`, some rows of pre-activations at a time.

    Below float32, a product in that precision chooses slightly more than k candidates per token.
    Their pre-activations are computed again in float32, and the k largest are kept. `centred` is
    [tokens, d], `w_enc` [n_latents, d]; values and int64 indices are [tokens, k].
    """
    n_tokens, n_latents = len(centred), len(b_enc)
    low = precision != "float32"
    most = min(math.ceil(CANDIDATES * k), n_latents) if low else k
    values = centred.new_empty(n_tokens, most)
    indices = torch.empty_like(values, dtype=torch.int64)
    rows = max(1, min(rows_at_once(n_latents, centred.device.type), n_tokens))
    encode = encoder(w_enc, b_enc, rows, precision)
    for start in range(0, n_tokens, rows):
        part = slice(start, start + rows)
        values[part], indices[part] = top_k(encode(centred[part]), most)
    if not low:
        return values, indices
    values = pre_activations(centred, w_enc, b_enc, Hits.of(values, indices)).view(-1, most)
    values, places = top_k(values, k)
    return values, indices.gather(1, places)


def pre_activations(centred: Tensor, w_enc: Tensor, b_enc: Tensor, hits: Hits) -> Tensor:
    """Compute those of hits, not rectified, in the precision of the weights: [n_hits]."""
    return hits.dot_rows(centred, w_enc).add_(b_enc.index_select(0, hits.latents))


def differing_share(found: Hits, exact: Hits, n_latents: int) -> float:
    """Return the share of active latents that are not active in `exact`; 0 if none is active."""
    places = [(h.tokens * n_latents + h.latents)[h.values > 0] for h in (found, exact)]
    return 1.0 - int(torch.isin(*places).sum()) / len(places[0]) if len(places[0]) else 0.0


def encoder(
    w_enc: Tensor, b_enc: Tensor, rows: int, precision: Precise = "float32"
) -> Callable[[Tensor], Tensor]:
    """Return a function from x [n, d], n at most `rows`, to x @ w_enc.T + b_enc.

    Its next call may overwrite what it returned. In bfloat16, factors and results are rounded to
    that type, and sums are float32. On a GPU the tensor cores compute this, with results of that
    type. Elsewhere it is a product of rounded factors, with results of the weights' type.
    """
    if precision == "bfloat16":
        weight, bias = w_enc.bfloat16(), b_enc.bfloat16()
        if has_tensor_cores(w_enc):
            low = weight.new_empty(rows, len(weight))
            return lambda x: torch.addmm(bias, x.bfloat16(), weight.t(), out=low[: len(x)])
        rounded = encoder(weight.to(w_enc.dtype), bias.to(w_enc.dtype), rows)
        return lambda x: rounded(x.bfloat16().to(x.dtype)).bfloat16().to(x.dtype)
    if precision == "tf32":
        plain = encoder(w_enc, b_enc, rows)

        def by_tensor_float(x: Tensor) -> Tensor:
            with tensor_float():
                return plain(x)

        return by_tensor_float
    if packs(w_enc):
        # Once for all chunks, and on many CPUs a faster product than that of `addmm`.
        packed = torch.ops.mkldnn._reorder_linear_weight(w_enc, rows)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, b_enc, "none", [], "")
    # New memory pages cost more than writing to them.
    buffer = w_enc.new_empty(rows, len(w_enc))
    return lambda x: torch.addmm(b_enc, x, w_enc.t(), out=buffer[: len(x)])


def has_tensor_cores(given: Tensor) -> bool:
    """Whether products of bfloat16 are fast on the tensor's device."""
    return given.is_cuda


@contextmanager
def tensor_float(used: bool = True) -> Iterator[None]:
    """Use TensorFloat-32 for products of float32 within the block, on a GPU that has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if used else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def packs(weight: Tensor) -> bool:
    """Whether oneDNN multiplies with this weight matrix."""
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    )


def top_k(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest entries per row, rectified: (values, int64 indices), both [tokens, k].

    The result is exact. On the CPU a row's entries are ordered by column. Which of several equal
    entries are left out is not defined, but depends only on the row. No gradient flows back.
    `pre` is [tokens, n_latents], k at most n_latents.
    """
    pre = pre.detach()
    if pre.device.type != "cpu" or pre.dtype not in (torch.float32, torch.float64):
        values, indices = top_k_in_two_stages(pre, k)
        return values.relu_(), indices
    values = pre.new_empty(len(pre), k)
    indices = torch.empty_like(values, dtype=torch.int64)
    rows = rows_at_once(pre.shape[1], pre.device.type)
    for start in range(0, len(pre), rows):
        part = slice(start, start + rows)
        largest_entries(pre[part].contiguous(), k, out=(values[part], indices[part]))
    return values.relu_(), indices


def top_k_in_two_stages(pre: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest entries per row, unordered: values and int64 columns [n, k].

    They are not rectified. The result is exact, and `pre` [n, width] is read once rather than
    sorted. Among disjoint groups of s columns, only the k with the largest maxima can contain any
    of the k largest entries. So width / s maxima are ranked, then the k s entries of those groups;
    s = sqrt(width / k) makes the two numbers equal.
    """
    n, width = pre.shape
    size = math.isqrt(width // k)
    if size < LEAST_GROUP:
        values, columns = torch.topk(pre, k, dim=1, sorted=False)
        return values, columns
    n_groups = width // size
    # Group g has every n_groups-th column from g on, so that adjacent threads read adjacent
    # columns.
    whole = width // n_groups * n_groups
    maxima = pre[:, :whole].view(n, width // n_groups, n_groups).amax(dim=1)
    if rest := width - whole:
        first = maxima[:, :rest]
        torch.maximum(first, pre[:, whole:], out=first)
    groups = torch.topk(maxima, k, dim=1, sorted=False).indices
    starts = torch.arange(0, width, n_groups, device=pre.device)
    columns = (groups[:, None, :] + starts[:, None]).flatten(1)
    beyond = columns >= width
    entries = pre.gather(1, columns.clamp_(max=width - 1))
    if rest:
        entries.masked_fill_(beyond, -math.inf)
    values, places = torch.topk(entries, k, dim=1, sorted=False)
    return values, columns.gather(1, places)


def positive(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positive entries of rectified codes [n, n_latents]: values, int64 indices [n, m].

    m is the largest number in one row, at least 1; shorter rows are padded with values of 0.
    """
    most = int((codes > 0).sum(dim=1).max()) if len(codes) else 0
    # Sorted, so that `decode` adds in an order that does not depend on the other tokens.
    values, indices = torch.topk(codes, max(1, most), dim=1, sorted=True)
    return values, indices


def largest_entries(rows: Tensor, k: int, *, out: tuple[Tensor, Tensor]) -> None:
    """Find the k largest entries per row, not rectified, in the order of their columns.

    The k-th largest of the maxima of disjoint groups of columns is at most the k-th largest entry.
    So the k largest entries are among the few that are not below it; those below the k-th largest
    are then dropped. Rows where ties (or NaN) leave another number than k go to `torch.topk`. Rows
    are [n, width], contiguous, on the CPU; `out` receives values and int64 columns, both [n, k].
    """
    n, width = rows.shape
    entries = rows.numpy()
    found = np.flatnonzero(entries >= lower_bound(rows, k)[:, None])
    row = found // width
    counts = np.bincount(row, minlength=n)
    values = entries.ravel()[found]
    most = int(counts.max(initial=0))
    if most > k:
        # Each row's candidates next to each other.
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
    """Return, per row, a value with at least k entries not below it, and few more: [n].

    It is the k-th largest of the maxima of groups of columns. If the number of groups does not
    divide the width, the remaining columns join the first groups.
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
    # NaN if any entry is NaN, so that none is missed.
    least: np.ndarray[Any, Any] = bounds[:, n_groups - k :].min(axis=1)
    return least


def decode(values: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """Sum `rows[indices]` weighted by `values`, both [tokens, k]: [tokens, d]."""
    return F.embedding_bag(indices, rows, per_sample_weights=values, mode="sum")
