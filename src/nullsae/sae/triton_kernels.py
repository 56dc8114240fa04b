"""The sparse products of `kernels` on a GPU, in Triton.

Functions take the contents of `Hits` and `HitsByLatent` and have the same meaning; rows and dense
may have any floating type. All additions have a fixed order without atomics, so repeated calls are
bit-identical. Sums are float32 (float64 if all arguments are); results have the wider type of the
two factors. Indices are not checked, since this would wait for the device; autograd does not see
through.

Grids. `decode` has a program per token and block of at most 512 columns, `dot_rows` one per token,
`row_gradient` one per latent and block of columns. Blocks of columns are the slow axis: at 16,384
tokens the 32 MiB that one block reads repeatedly stay in the cache of a data centre GPU. Addresses
have 64 bits, because n_latents * d exceeds 2^31.

Balance. Firing rates differ by orders of magnitude (about as 1 / rank), and a single program for a
latent that fires on every token would still run when all others are done. So the hits, sorted by
latent, are also cut into windows of a fixed number of hits. A latent with at most that many hits is
summed by one program. A longer one has one program per window that it reaches into, whose sums are
stored and then added window by window. A window contains hits of at most two such latents: that of
its first hit and that of its last.

Memory of a TopK training step while no latent is dead, in bytes, for N latents, d dimensions, T
tokens with k hits each, C = `rows_at_once(N, "cuda")` and W = `windows(T k)` windows (at most
4,096): 32 N d for weights, Adam's two moments and gradients in float32, 8 W d for partial sums of
long latents, 24 T d for input, residual and the like, 60 T k for values, indices and their order.
The choice takes 4 C N in float32 for the pre-activations of a chunk (at most 1 GiB), and in
bfloat16 2 C N, and 2 (N + C) d for the factors; and 20 C sqrt(k N) for the groups that it ranks.
N = 262,144, d = 4096, T = 16,384 and k = 32: 34.4 + 0.1 + 1.6 + 0.0 + (0.5 + 2.2) + 0.1 = 38.9 GB.

Time, for a product of P operations and B bytes per second. PyTorch's `topk` of float32 moves 24 N
bytes a token: 12 P / (B d) of the encoder's product. In two stages, of bfloat16, N entries are
written and read once, 4 N bytes a token: 2 P / (B d), at P = 800e12, B = 4.3e12 and d = 4096 a
tenth. The sparse products of a step move about 8 (T k + N) d bytes, and the candidates of a choice
in low precision 5 T k d more.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MOST_COLUMNS = 512
HITS = tl.constexpr(8)
"""Rows that a program fetches at once."""
LEAST_WINDOW = 256
MOST_WINDOWS = 4096


@triton.jit
def weighted_sum(
    weights: tl.tensor,
    order: tl.tensor,
    indices: tl.tensor,
    rows: tl.tensor,
    start: tl.tensor,
    stop: tl.tensor,
    d: tl.tensor,
    columns: tl.tensor,
    SUM: tl.constexpr,
) -> tl.tensor:
    """Sum weights[order[h]] * rows[indices[h], columns] over start <= h < stop.

    Without an order (None), weights are in the order of the hits.
    """
    total = tl.zeros([columns.shape[0]], SUM)
    for first in range(start, stop, HITS):
        hits = first + tl.arange(0, HITS)
        there = hits < stop
        places = hits
        if order is not None:
            places = tl.load(order + hits, mask=there, other=0)
        weight = tl.load(weights + places, mask=there, other=0).to(SUM)
        row = tl.load(indices + hits, mask=there, other=0).to(tl.int64)
        inside = there[:, None] & (columns < d)[None, :]
        tile = tl.load(rows + row[:, None] * d + columns[None, :], mask=inside, other=0).to(SUM)
        total += tl.sum(weight[:, None] * tile, axis=0)
    return total


@triton.jit
def end_of(offsets: tl.tensor, index: tl.tensor, n: tl.tensor, n_hits: tl.tensor) -> tl.tensor:
    """Return where the hits of one of n tokens or latents end."""
    return tl.load(offsets + index + 1, mask=index + 1 < n, other=n_hits)


@triton.jit
def decode_kernel(
    out: tl.tensor,
    values: tl.tensor,
    latents: tl.tensor,
    offsets: tl.tensor,
    rows: tl.tensor,
    n_tokens: tl.tensor,
    n_hits: tl.tensor,
    d: tl.tensor,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """One token, one block of columns."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    start = tl.load(offsets + token)
    stop = end_of(offsets, token, n_tokens, n_hits)
    total = weighted_sum(values, None, latents, rows, start, stop, d, columns, SUM)
    tl.store(out + token * d + columns, total, mask=columns < d)


@triton.jit
def dot_rows_kernel(
    out: tl.tensor,
    dense: tl.tensor,
    latents: tl.tensor,
    offsets: tl.tensor,
    rows: tl.tensor,
    n_tokens: tl.tensor,
    n_hits: tl.tensor,
    d: tl.tensor,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """All hits of one token."""
    token = tl.program_id(0).to(tl.int64)
    start = tl.load(offsets + token)
    stop = end_of(offsets, token, n_tokens, n_hits)
    for first in range(start, stop, HITS):
        hits = first + tl.arange(0, HITS)
        there = hits < stop
        row = tl.load(latents + hits, mask=there, other=0).to(tl.int64)
        total = tl.zeros([HITS, COLUMNS], SUM)
        for column in range(0, d, COLUMNS):
            columns = column + tl.arange(0, COLUMNS)
            inside = columns < d
            vector = tl.load(dense + token * d + columns, mask=inside, other=0).to(SUM)
            both = there[:, None] & inside[None, :]
            tile = tl.load(rows + row[:, None] * d + columns[None, :], mask=both, other=0).to(SUM)
            total += vector[None, :] * tile
        tl.store(out + hits, tl.sum(total, axis=1), mask=there)


@triton.jit
def long_parts_kernel(
    parts: tl.tensor,
    weights: tl.tensor,
    order: tl.tensor,
    tokens: tl.tensor,
    offsets: tl.tensor,
    border_latents: tl.tensor,
    dense: tl.tensor,
    n_latents: tl.tensor,
    n_hits: tl.tensor,
    d: tl.tensor,
    window_hits: tl.tensor,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """One window's share of a long latent: that of its first hit (side 0) or last one (side 1)."""
    window = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    side = tl.program_id(2)
    latent = tl.load(border_latents + 2 * window + side)
    other = tl.load(border_latents + 2 * window)
    start = tl.load(offsets + latent)
    stop = end_of(offsets, latent, n_latents, n_hits)
    if (stop - start > window_hits) & ((side == 0) | (latent != other)):
        first = tl.maximum(start, window * window_hits)
        last = tl.minimum(stop, (window + 1) * window_hits)
        total = weighted_sum(weights, order, tokens, dense, first, last, d, columns, SUM)
        tl.store(parts + (2 * window + side) * d + columns, total, mask=columns < d)


@triton.jit
def row_gradient_kernel(
    out: tl.tensor,
    parts: tl.tensor,
    weights: tl.tensor,
    order: tl.tensor,
    tokens: tl.tensor,
    offsets: tl.tensor,
    dense: tl.tensor,
    n_latents: tl.tensor,
    n_hits: tl.tensor,
    d: tl.tensor,
    window_hits: tl.tensor,
    COLUMNS: tl.constexpr,
    SUM: tl.constexpr,
) -> None:
    """One latent, one block of columns: its hits, or the shares of a long one."""
    latent = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < d
    start = tl.load(offsets + latent)
    stop = end_of(offsets, latent, n_latents, n_hits)
    if stop - start <= window_hits:
        total = weighted_sum(weights, order, tokens, dense, start, stop, d, columns, SUM)
    else:
        total = tl.zeros([COLUMNS], SUM)
        for window in range(start // window_hits, (stop - 1) // window_hits + 1):
            # Only in its first window can other latents precede a long one.
            side = (window * window_hits < start).to(tl.int64)
            total += tl.load(parts + (2 * window + side) * d + columns, mask=inside, other=0)
    tl.store(out + latent * d + columns, total, mask=inside)


def where_they_lie(launch: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Launch on the GPU of the first argument; Triton would use the current one."""

    @wraps(launch)
    def launched(first: Tensor, *others: Tensor) -> Tensor:
        with torch.cuda.device_of(first):  # type: ignore[no-untyped-call]
            return launch(first, *others)

    return launched


@where_they_lie
def decode(values: Tensor, latents: Tensor, offsets: Tensor, rows: Tensor) -> Tensor:
    """Sum each token's `rows[latents]` weighted by `values`: [tokens, d].

    `values` and int64 `latents` are [n_hits], `rows` [n_latents, d]; int64 `offsets` [tokens] is
    where each token's hits start.
    """
    d = rows.shape[1]
    out = rows.new_empty(len(offsets), d, dtype=torch.promote_types(values.dtype, rows.dtype))
    if out.numel():
        decode_kernel[(len(offsets), triton.cdiv(d, columns_of(d)))](
            *(out, values.contiguous(), latents.contiguous(), offsets, rows.contiguous()),
            *(len(offsets), len(latents), d),
            **options(d, rows.dtype, out.dtype),
        )
    return out


@where_they_lie
def dot_rows(dense: Tensor, latents: Tensor, offsets: Tensor, rows: Tensor) -> Tensor:
    """Compute products of each token's vector in `dense` with its latents' rows: [n_hits].

    `dense` is [tokens, d]; the other arguments are as for `decode`.
    """
    d = rows.shape[1]
    out = rows.new_zeros(len(latents), dtype=torch.promote_types(dense.dtype, rows.dtype))
    if out.numel():
        dot_rows_kernel[(len(offsets),)](
            *(out, dense.contiguous(), latents.contiguous(), offsets, rows.contiguous()),
            *(len(offsets), len(latents), d),
            **options(d, rows.dtype, out.dtype),
        )
    return out


@where_they_lie
def row_gradient(
    weights: Tensor, order: Tensor, tokens: Tensor, offsets: Tensor, dense: Tensor
) -> Tensor:
    """Sum weight x the token's vector in `dense` [tokens, d] over hits: [n_latents, d].

    `weights` [n_hits] are in the order of the hits; int64 `order` [n_hits] sorts them by latent,
    `tokens` is the token of each in that order, `offsets` [n_latents] where each latent's start.
    """
    d, n_latents, n_hits = dense.shape[1], len(offsets), len(order)
    out = dense.new_empty(n_latents, d, dtype=torch.promote_types(weights.dtype, dense.dtype))
    if not out.numel():
        return out
    settings = options(d, dense.dtype, out.dtype)
    hits = (weights.contiguous(), order, tokens, offsets)
    dense = dense.contiguous()
    window_hits, n_windows = windows(n_hits)
    sums = torch.float64 if out.dtype == torch.float64 else torch.float32
    parts = dense.new_empty(max(1, n_windows), 2, d, dtype=sums)
    if n_windows:
        starts = torch.arange(0, n_hits, window_hits, device=order.device)
        borders = torch.stack([starts, (starts + window_hits).clamp_(max=n_hits) - 1], dim=1)
        # Of latents that start at one place, only the last has hits.
        border_latents = torch.searchsorted(offsets, borders, right=True) - 1
        long_parts_kernel[(n_windows, triton.cdiv(d, columns_of(d)), 2)](
            parts, *hits, border_latents, dense, n_latents, n_hits, d, window_hits, **settings
        )
    row_gradient_kernel[(n_latents, triton.cdiv(d, columns_of(d)))](
        out, parts, *hits, dense, n_latents, n_hits, d, window_hits, **settings
    )
    return out


def windows(n_hits: int) -> tuple[int, int]:
    """Return hits per window and number of windows, for `row_gradient`."""
    least = triton.next_power_of_2(triton.cdiv(n_hits, MOST_WINDOWS)) if n_hits else 0
    size = max(LEAST_WINDOW, least)
    return size, triton.cdiv(n_hits, size)


def columns_of(d: int) -> int:
    """Return the columns of a program."""
    return min(MOST_COLUMNS, max(16, int(triton.next_power_of_2(d))))


def options(d: int, rows: torch.dtype, result: torch.dtype) -> dict[str, Any]:
    """Return what a kernel is compiled for: width and type of the rows, type of the result."""
    columns = columns_of(d)
    return {
        "COLUMNS": columns,
        "SUM": tl.float64 if result == torch.float64 else tl.float32,
        # A thread reads 16 bytes of each row, so sums over hits stay within a thread.
        "num_warps": max(1, columns * rows.itemsize // (32 * 16)),
    }
