"""Transcoders: sparse codes of one site that replace what a model computes at another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nullsae.sae.autoencoder import PARAMETERS, Autoencoder, codings

SKIP = "W_skip"


@dataclass
class Transcoder(Autoencoder):
    """Weights of a transcoder (Dunefsky et al. 2024), or of one with a skip connection.

    The pre-activations are W_enc x + b_enc for x at the input site. The output for codes f is
    f W_dec + b_dec, plus W_skip x with a skip connection (Paulo et al. 2025, arXiv 2501.18823).

    Attributes:
        w_enc: encoder rows, [n_latents, d_model], of the input site's width.
        w_dec: decoder rows, [n_latents, d_out].
        b_dec: [d_out], added to the output, and not subtracted from the input.
        output_site: the site that the output replaces, such as `mlp_out.3`.
        w_skip: [d_out, d_model]; None without a skip connection.
    """

    output_site: str = ""
    w_skip: Tensor | None = None

    @property
    def transcodes(self) -> bool:
        return True

    @property
    def d_model(self) -> int:
        return self.w_enc.shape[1]

    def writes_at(self, site: str) -> str:
        return self.output_site

    def parameters(self) -> dict[str, Tensor]:
        skip = {} if self.w_skip is None else {SKIP: self.w_skip}
        return {**super().parameters(), **skip}

    @classmethod
    def of(
        cls,
        tensors: Mapping[str, Tensor],
        architecture: str,
        k: int | None,
        output_site: str = "",
    ) -> Transcoder:
        """Make a transcoder from tensors by their names on disk; ignores other architectures'."""
        w_enc, b_enc, w_dec, b_dec = (tensors[name] for name in PARAMETERS)
        own = {name: tensors[name] for name in codings()[architecture].own_tensors}
        skip = tensors.get(SKIP)
        return cls(
            *(architecture, w_enc, b_enc, w_dec, b_dec, k, own),
            output_site=output_site,
            w_skip=skip,
        )

    def to(self, device: torch.device) -> Transcoder:
        moved = {name: t.to(device) for name, t in self.parameters().items()}
        return self.of(moved, self.architecture, self.k, self.output_site)

    def encode(self, x: Tensor, token_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode activations of the input site, [tokens, d_model], like an SAE."""
        nothing = self.w_enc.new_zeros(self.d_model)
        weights = (self.w_enc, self.b_enc, self.w_dec, nothing)
        return Autoencoder(self.architecture, *weights, self.k, self.own).encode(x, token_ids)

    def decode(self, values: Tensor, indices: Tensor, x: Tensor | None = None) -> Tensor:
        """Decode codes to the output site, [tokens, d_out].

        x are the encoded activations. A skip connection needs them, and raises a `ValueError`
        without them.
        """
        decoded = super().decode(values, indices)
        if self.w_skip is None:
            return decoded
        if x is None:
            raise ValueError("a skip transcoder needs the encoded activations to decode: give x")
        return decoded + x @ self.w_skip.t()

    def scaled(self, factor: float) -> Transcoder:
        """Return the transcoder for inputs and outputs that are `factor` times as large."""
        own = {name: tensor * factor for name, tensor in self.own.items()}
        return replace(self, b_enc=self.b_enc * factor, b_dec=self.b_dec * factor, own=own)
