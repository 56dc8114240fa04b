"""Random orthogonal matrices, and random matrices with given singular values."""

from __future__ import annotations

import torch
from torch import Tensor


def haar_frame(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns, uniform (Haar) among all such frames.

    The Q of a Gaussian matrix, with the signs that make the diagonal of R positive: without them
    the distribution is the factorization's own (Mezzadri 2007, arXiv math-ph/0609050).

    Args:
        rows: length of each column.
        columns: at most `rows`; as many give an orthogonal matrix.
        generator: on the CPU.

    Returns:
        Float64 [rows, columns].
    """
    drawn = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    q, r = torch.linalg.qr(drawn)
    frame: Tensor = q * r.diagonal().sign()
    return frame


def with_spectrum_of(matrix: Tensor, generator: torch.Generator) -> Tensor:
    """U diag(s) V^T with the matrix' own singular values s, and U, V Haar-random.

    In float64: the last bits of a factorization depend on the machine, and rounding to the
    subject's precision hides them.

    Args:
        matrix: [rows, columns], any floating dtype.
        generator: on the CPU.

    Returns:
        Float64 of the same shape.
    """
    rows, columns = matrix.shape
    values = torch.linalg.svdvals(matrix.to(torch.float64))
    u = haar_frame(rows, len(values), generator)
    v = haar_frame(columns, len(values), generator)
    drawn: Tensor = (u * values) @ v.T
    return drawn
