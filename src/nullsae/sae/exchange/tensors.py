"""Tensors of an SAE's file, checked against its config."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nullsae.config.layouts import Shapes
from nullsae.core.errors import UserError, first_line

LEAST_NORM = 1e-8


def stored_tensors(weights: Path) -> dict[str, Tensor]:
    """Read all tensors of a file; a `.pt` only as data, by torch's weights-only unpickler.

    Raises:
        UserError: it is damaged, or contains more than tensors.
    """
    if weights.suffix == ".safetensors":
        try:
            found: dict[str, Tensor] = load_file(weights)
            return found
        except (SafetensorError, OSError) as error:
            raise UserError(f"{weights}: not readable as safetensors ({error})") from None
    try:
        data = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # anything that a damaged pickle makes its reader raise
        refused = "Weights only load failed" in str(error)
        reason = "it has other content" if refused else first_line(error)
        raise UserError(
            f"{weights}: not readable as tensors only ({reason}); other content of a pickle is "
            f"never run here"
        ) from None
    if not isinstance(data, dict):
        raise UserError(f"{weights}: contains a {type(data).__name__}, not tensors by name")
    return {str(name): tensor for name, tensor in data.items() if isinstance(tensor, Tensor)}


def fitting_tensors(
    stored: dict[str, Tensor], shapes: Shapes, weights: object, unused: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return the tensors of `shapes` as float32; only `unused` ones may be there too.

    Raises:
        UserError: a tensor is missing, unknown, of another shape, not floating point, or has NaN
            or infinite values; the message names `weights` and the tensor.
    """
    tensors = {name: tensor for name, tensor in stored.items() if name not in unused}
    for name in sorted(shapes.keys() | tensors.keys()):
        if name not in tensors:
            raise UserError(f"{weights}: {name} is missing")
        if name not in shapes:
            raise UserError(f"{weights}: {name} is unknown; expected tensors: {', '.join(shapes)}")
        tensor = tensors[name]
        if tuple(tensor.shape) != shapes[name]:
            raise UserError(
                f"{weights}: {name} is {tuple(tensor.shape)}, but the config next to it implies "
                f"{shapes[name]}"
            )
        if not tensor.is_floating_point():
            raise UserError(f"{weights}: {name} is {tensor.dtype}, not floating point")
        tensors[name] = tensor.float()
        # A latent with an infinite threshold never fires; other infinities end in NaN.
        bad = tensors[name].isnan() if name == "threshold" else ~tensors[name].isfinite()
        if bool(bad.any()):
            raise UserError(f"{weights}: {name} contains NaN or infinite values")
    return tensors


def uncentred_bias(w_enc: Tensor, b_enc: Tensor, b_dec: Tensor) -> Tensor:
    """Return the encoder's bias for inputs minus b_dec, which the file does not subtract.

    W x + b = W (x - b_dec) + (b + W b_dec), with w_enc [n_latents, d_model].
    """
    return (b_enc.double() + w_enc.double() @ b_dec.double()).float()


def folded_gate(
    w_enc: Tensor, b_gate: Tensor, b_mag: Tensor, r_mag: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Fold a gated encoder into a JumpReLU one: rows [n_latents, d_model], biases, thresholds.

    The gate u + b_gate > 0 is magnitude > b_mag - exp(r_mag) b_gate.
    """
    stretch = r_mag.exp()
    return w_enc * stretch[:, None], b_mag, (b_mag - stretch * b_gate).relu()


def with_unit_rows(w_enc: Tensor, b_enc: Tensor, w_dec: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return encoder, bias and decoder, [n_latents, ...] each, with decoder rows of norm 1.

    Codes grow by the factor by which rows shrink, so reconstructions are unchanged.
    """
    norm = w_dec.norm(dim=1).clamp_min(LEAST_NORM)
    return w_enc * norm[:, None], b_enc * norm, w_dec / norm[:, None]
