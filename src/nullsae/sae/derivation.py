"""Tools that derive dictionaries from a given SAE, and the gates for what these must keep."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from nullsae.config.dictionaries import Dictionary
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.chunks import SORTED_ENTRIES
from nullsae.sae.normalization import normalize
from nullsae.subjects.gates import SAMPLED_ROWS, Gate, judged, require

# Share by which rates and L0 may differ from those of the given SAE.
SLACK = 0.05
# Products that differ by less than this share of their range are equal.
EQUAL = 1e-6
# Rounding error of float32 weights in a product of rows, relative to their lengths.
GEOMETRY_SLACK = 1e-3
# Tokens encoded at once, and tokens on which the shift of `with_firings_of` is found.
BATCH_TOKENS, SHIFT_TOKENS = 4096, 4096


@torch.no_grad()
def derive(
    origin: Dictionary,
    sae: Autoencoder,
    sample: Tensor,
    heldout: Tensor,
    generator: torch.Generator,
    where: str,
) -> tuple[Autoencoder, list[Gate]]:
    """Make a dictionary from an SAE; return it with the gates that it passed.

    Args:
        origin: one that is `derived`.
        sae: the given SAE.
        sample: activations to make it from, float32 [tokens, d_model], on the device of `sae`.
        heldout: other activations, on which the null must have the L0 of the SAE.
        generator: draws on the CPU.
        where: prefix of messages.

    Raises:
        UserError: a gate failed.
    """
    # If an SAE normalizes each activation, its weights are in the space of the normalized ones.
    inner = normalize(sae.normalization, sample).y if sae.normalization != "none" else sample
    made, gates = origin.derive(replace(sae, normalization="none"), inner, generator)
    made = replace(made, normalization=sae.normalization)
    if origin.is_null:
        gates.append(l0_gate(*(float(firing_counts(s, heldout).sum()) for s in (sae, made))))
    require(gates, where)
    return made, gates


def firing_counts(sae: Autoencoder, x: Tensor, token_ids: Tensor | None = None) -> Tensor:
    """Count the tokens of x [tokens, d_model] that each latent fires on: int64 [n_latents].

    x and the int64 ids [tokens], for an SAE that reads them, may be on another device.
    """
    device = sae.w_dec.device
    counts = torch.zeros(sae.n_latents, dtype=torch.int64, device=device)
    for start in range(0, len(x), BATCH_TOKENS):
        part = slice(start, start + BATCH_TOKENS)
        ids = None if token_ids is None else token_ids[part]
        values, indices = sae.encode(x[part].to(device), ids)
        counts += torch.bincount(indices[values > 0], minlength=sae.n_latents)
    return counts


def in_other_frame(sae: Autoencoder, mean: Tensor, there: Tensor, back: Tensor) -> Autoencoder:
    """Return the SAE that works in another frame about the mean m of activations x.

    Its codes are those of the given SAE for m + (x - m) `back`. The given SAE's reconstruction y of
    these becomes m + (y - m) `there`. Both matrices are float64 [d_model, d_model], for activations
    as rows, and inverse to each other; the mean is float64 [d_model].
    """
    exact = [tensor.cpu().double() for tensor in (sae.w_enc, sae.w_dec, sae.b_dec)]
    moved = exact[0] @ back.t(), exact[1] @ there, mean + (exact[2] - mean) @ there
    w_enc, w_dec, b_dec = (tensor.float().to(sae.w_dec.device) for tensor in moved)
    return replace(sae, w_enc=w_enc, w_dec=w_dec, b_dec=b_dec)


def with_firings_of(sae: Autoencoder, made: Autoencoder, sample: Tensor) -> Autoencoder:
    """Shift all encoder biases of `made` by one number, so that it fires as often as `sae`.

    SAEs that keep k latents per token are unchanged. The shift is found on tokens spread over the
    sample.
    """
    if made.k is not None:
        return made
    x = sample[:: max(1, len(sample) // SHIFT_TOKENS)][:SHIFT_TOKENS]
    wanted = int(firing_counts(sae, x).sum())
    margin = torch.addmm(made.b_enc, x - made.b_dec, made.w_enc.t())
    if "threshold" in made.own:
        margin -= made.own["threshold"].clamp_min(0)
    if wanted >= margin.numel():
        return made
    # Between the last one that should fire and the first that should not; below all if none should.
    falling = margin.neg_().flatten()
    if not wanted:
        return replace(made, b_enc=made.b_enc + (falling.min() - 1.0).clamp_max(0.0))
    last, next_one = (falling.kthvalue(rank).values for rank in (wanted, wanted + 1))
    return replace(made, b_enc=made.b_enc + (last + next_one) / 2)


def thresholds(x: Tensor, rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return, per row, the number that the given count of its products with x exceeds.

    It is float32 [n], in the middle between two products; far above all of them for a count of 0.
    x is [tokens, d_model], rows are [n, d_model], counts int64 [n]. Also returns how many products
    of each row equal that number, up to rounding: int64 [n]. They exceed it together or not at all,
    as when text repeats itself.
    """
    found, equal = [], []
    n_rows = max(1, SORTED_ENTRIES // len(x))
    for start in range(0, len(rows), n_rows):
        part = slice(start, start + n_rows)
        ordered = _falling(rows[part] @ x.t())
        reach = ordered[:, :1] - ordered[:, -1:] + 1.0
        ordered = torch.cat([ordered[:, :1] + reach, ordered, ordered[:, -1:] - reach], dim=1)
        index = counts[part, None]
        middle = (ordered.gather(1, index) + ordered.gather(1, index + 1)) / 2
        found.append(middle[:, 0])
        equal.append(((ordered - middle).abs() <= EQUAL * reach).sum(dim=1))
    return torch.cat(found), torch.cat(equal)


def _falling(x: Tensor) -> Tensor:
    """Sort rows [n, m] in falling order. On a CPU, NumPy is ten times faster than PyTorch."""
    if x.device.type != "cpu":
        return x.sort(dim=1, descending=True).values
    return torch.from_numpy(np.sort(x.numpy(), axis=1)).flip(1)


def best_factor(sae: Autoencoder, x: Tensor) -> float:
    """Return the factor on all codes that reconstructs x best; 1 if there are no codes."""
    by, square = 0.0, 0.0
    for start in range(0, len(x), BATCH_TOKENS):
        batch = x[start : start + BATCH_TOKENS]
        change = (sae.decode(*sae.encode(batch)) - sae.b_dec).double()
        by += float(((batch - sae.b_dec).double() * change).sum())
        square += float(change.square().sum())
    return by / square if by > 0 else 1.0


def geometry_gate(name: str, before: Tensor, after: Tensor, root: Tensor) -> Gate:
    """Check that products of rows are kept: those of some rows with all, over their lengths.

    Rows are [n, d_model], before and after. Products are taken in the metric whose symmetric root
    is given, float64 [d_model, d_model].
    """
    some = torch.linspace(0, len(before) - 1, min(SAMPLED_ROWS, len(before))).long()
    products = []
    for rows in (before, after):
        exact = rows.cpu().double() @ root
        products.append(exact[some] @ exact.t())
        length = exact.norm(dim=1)
    scale = length[some, None] * length
    error = float(((products[1] - products[0]).abs() / scale.clamp_min(1e-300)).max())
    return judged(name, error <= GEOMETRY_SLACK, f"products of rows are off by {error:.1e}")


def rates_gate(wanted: Tensor, found: Tensor, equal: Tensor, n_tokens: int) -> Gate:
    """Check that each latent fires on as many tokens as it should, within a share.

    `equal` counts its tokens that no threshold can separate there.
    """
    off = (found - wanted).abs() > torch.maximum(SLACK * wanted, equal)
    detail = f"rates on {n_tokens:,} tokens differ by at most {SLACK:.0%}"
    if bool(off.any()):
        first = int(off.nonzero()[0])
        detail = (
            f"{int(off.sum())} latents are off by more than {SLACK:.0%}; latent {first} fires on "
            f"{int(found[first])} of {n_tokens:,} tokens, should be {int(wanted[first])}"
        )
    return judged("rates", not bool(off.any()), detail)


def l0_gate(wanted: float, found: float) -> Gate:
    """Check that an SAE has as many firings as another on the same tokens, within a share."""
    share = found / wanted - 1.0 if wanted else float(found > 0)
    detail = (
        f"L0 on held-out tokens differs by {share:+.1%}; at most {SLACK:.0%} is allowed. The "
        "sample is too small, or the text of eval differs from that of sae_train"
    )
    return judged("l0", abs(share) <= SLACK, detail)
