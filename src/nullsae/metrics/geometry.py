"""Geometry of a dictionary: norms, how close its directions are, how many dimensions they fill."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullsae.core.devices import exact_device
from nullsae.core.randomness import torch_generator
from nullsae.sae.autoencoder import Autoencoder
from nullsae.tables import cell_schema

# Rows of a block of cosines: 16 MiB in float32.
BLOCK_ROWS = 2048


def decoder_geometry(sae: Autoencoder, seed: int) -> dict[str, Any]:
    """Compute the row of the table `geometry`.

    Decoder rows with norm 0 have no direction: they are counted (`n_zero_rows`) and left out of
    everything else. Undefined values are null: all of them without any row, the nearest cosines and
    their floor with a single row, the encoder's columns without an encoder (`token_lookup`). Biases
    are not used.

    decoder_norm_mean, decoder_norm_sd (with n in the denominator) and encoder_norm_mean summarize
    the rows' Euclidean norms. encoder_decoder_cosine_mean is the mean cosine of a latent's two
    rows, over latents for which both rows have a direction. nearest_cosine_*: `nearest_cosines`;
    random_nearest_cosine_mean is their mean over as many random directions of as many dimensions
    (normalized Gaussian vectors, keyed by the seed and these two numbers: one floor for all
    dictionaries of one shape). effective_rank: `effective_rank`.

    Takes n^2 d_model multiplications and additions for n rows. Memory besides the SAE: 8 n d_model
    bytes for the directions, 4 BLOCK_ROWS^2 for their cosines, 8 d_model^2 for the spectrum.

    Runs on the SAE's device if that has float64; `seed` is the config's.
    """
    sae = sae.to(exact_device(sae.w_dec.device))
    norms = row_norms(sae.w_dec)
    kept = norms > 0
    n = int(kept.sum())
    row: dict[str, Any] = dict.fromkeys(cell_schema("geometry").names)
    row |= {"n_latents": sae.n_latents, "n_zero_rows": sae.n_latents - n}
    if n:
        row["decoder_norm_mean"] = float(norms[kept].mean())
        row["decoder_norm_sd"] = float(norms[kept].std(correction=0))
        directions = unit_rows(sae.w_dec)
        row["effective_rank"] = effective_rank(directions)
    if n and len(sae.w_enc):
        encoder_norms = row_norms(sae.w_enc)
        row["encoder_norm_mean"] = float(encoder_norms[kept].mean())
        both = kept & (encoder_norms > 0)
        # A transcoder's rows are in two spaces.
        if bool(both.any()) and not sae.transcodes:
            products = torch.linalg.vecdot(sae.w_enc, sae.w_dec).double()
            cosines = products[both] / (encoder_norms[both] * norms[both])
            row["encoder_decoder_cosine_mean"] = float(cosines.mean())
    if n > 1:
        nearest = nearest_cosines(directions).double().cpu().numpy()
        row["nearest_cosine_mean"] = float(nearest.mean())
        row["nearest_cosine_median"] = float(np.median(nearest))
        row["nearest_cosine_p95"] = float(np.quantile(nearest, 0.95))
        del directions
        floor = random_directions(n, sae.w_dec.shape[1], seed, "nearest").to(sae.w_dec.device)
        row["random_nearest_cosine_mean"] = float(nearest_cosines(floor).double().mean())
    return row


def row_norms(rows: Tensor) -> Tensor:
    """Compute Euclidean norms of rows [n, d], summed in float64: [n]."""
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return norms


def unit_rows(rows: Tensor) -> Tensor:
    """Scale rows float32 [n, d] to norm 1 in their order, without those of norm 0."""
    norms = row_norms(rows)
    return rows[norms > 0].div_(norms[norms > 0, None])


def random_directions(n: int, d_model: int, seed: int, purpose: str) -> Tensor:
    """Draw random unit vectors float32 [n, d_model], uniform on the sphere, reproducibly."""
    generator = torch_generator(seed, "random_directions", purpose, n, d_model)
    return unit_rows(torch.randn(n, d_model, generator=generator))


def nearest_cosines(directions: Tensor) -> Tensor:
    """Return each row's largest cosine with another row: max over j != i of u_i . u_j, float32 [n].

    Rows are unit vectors float32 [n, d], n at least 2. Each pair of blocks is multiplied once and
    serves both.
    """
    n = len(directions)
    best = directions.new_full((n,), -torch.inf)
    for top in range(0, n, BLOCK_ROWS):
        rows = slice(top, top + BLOCK_ROWS)
        for left in range(top, n, BLOCK_ROWS):
            columns = slice(left, left + BLOCK_ROWS)
            cosines = directions[rows] @ directions[columns].t()
            if left == top:
                cosines.fill_diagonal_(-torch.inf)
            best[rows] = torch.maximum(best[rows], cosines.amax(dim=1))
            best[columns] = torch.maximum(best[columns], cosines.amax(dim=0))
    return best.clamp(-1.0, 1.0)


def effective_rank(directions: Tensor) -> float:
    """Compute exp(H(p)), p the eigenvalues of U^T U / n, which add up to 1, for unit rows U [n, d].

    Roy and Vetterli 2007, with squared instead of plain singular values. The mean is not
    subtracted: the origin of directions is 0, and a direction that all rows share counts as one
    dimension. The result is d_model for evenly spread directions, 1 if all are on a line.
    """
    products = directions.new_zeros((directions.shape[1],) * 2, dtype=torch.float64)
    for start in range(0, len(directions), BLOCK_ROWS):
        exact = directions[start : start + BLOCK_ROWS].double()
        products.addmm_(exact.t(), exact)
    share = torch.linalg.eigvalsh(products).clamp_min(0.0)
    share = share / share.sum()
    return float(torch.special.xlogy(share, share).sum().neg().exp())
