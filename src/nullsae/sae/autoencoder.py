"""What every SAE does, wherever it came from: activations to sparse codes and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.sae.kernels import chunk_rows, decode, encoder, packs, top_k

Architecture = Literal["topk", "jumprelu", "standard", "token_lookup"]
PARAMETERS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


@dataclass
class Autoencoder:
    """Weights of an SAE and what they do to activations.

    The pre-activations are W_enc (x - b_dec) + b_enc. `topk` keeps the k largest, rectified;
    `standard` rectifies; `jumprelu` keeps those above a threshold per latent (Rajamanoharan et al.
    2024), which is also what a BatchTopK SAE does after training. `token_lookup` does not look at
    x: the latent of the token's id is active, by the length of that token's direction, its
    `encoder.bias`.

    Attributes:
        architecture: which of these.
        w_enc: encoder rows, [n_latents, d_model]; `token_lookup` has none, [0, d_model].
        b_enc: [n_latents].
        w_dec: decoder rows, [n_latents, d_model].
        b_dec: [d_model], subtracted from the input once and added to the output once.
        k: latents kept per token, `topk` only.
        threshold: [n_latents], `jumprelu` only.
    """

    architecture: Architecture
    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    k: int | None = None
    threshold: Tensor | None = None

    @property
    def n_latents(self) -> int:
        return len(self.b_enc)

    @property
    def d_model(self) -> int:
        return len(self.b_dec)

    def parameters(self) -> dict[str, Tensor]:
        """The tensors by their names on disk."""
        named = dict(zip(PARAMETERS, (self.w_enc, self.b_enc, self.w_dec, self.b_dec), strict=True))
        return named if self.threshold is None else {**named, "threshold": self.threshold}

    @classmethod
    def of(
        cls, tensors: Mapping[str, Tensor], architecture: Architecture, k: int | None
    ) -> Autoencoder:
        """From tensors by their names on disk."""
        w_enc, b_enc, w_dec, b_dec = (tensors[name] for name in PARAMETERS)
        return cls(architecture, w_enc, b_enc, w_dec, b_dec, k, tensors.get("threshold"))

    def to(self, device: torch.device) -> Autoencoder:
        """The same SAE on another device."""
        moved = {name: t.to(device) for name, t in self.parameters().items()}
        return Autoencoder.of(moved, self.architecture, self.k)

    def encode(self, x: Tensor, token_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Activations to codes, of some tokens after the others, whatever their number.

        A token's code does not depend on the tokens beside it, but for the padding of an SAE that
        is not `topk`: to the bit on a CPU, whose float32 products are oneDNN's.

        Args:
            x: [tokens, d_model].
            token_ids: int64 [tokens]; only `token_lookup` reads them.

        Returns:
            Values and int64 indices, both [tokens, m]. A value of 0 means that the latent did not
            fire. m is k, or the largest number of active latents among these tokens.

        Raises:
            ValueError: `token_lookup` without token ids.
        """
        if self.architecture == "token_lookup":
            if token_ids is None:
                raise ValueError("a token_lookup dictionary needs the tokens' ids")
            indices = token_ids.to(x.device, torch.int64)[:, None]
            return self.b_enc[indices], indices
        parts = [self._select(pre) for pre in self._pre_activations(x - self.b_dec)]
        # Room for the token with the most; what is added has the value 0.
        width = max(values.shape[1] for values, _ in parts)
        values, indices = (
            torch.cat([F.pad(part[i], (0, width - part[i].shape[1])) for part in parts])
            for i in range(2)
        )
        return values, indices

    def _pre_activations(self, centred: Tensor) -> Iterator[Tensor]:
        """Of some tokens after the others, [n, n_latents] each; one overwrites the one before."""
        rows = chunk_rows(self.n_latents, centred.device)
        if not packs(self.w_enc):
            rows = max(1, min(rows, len(centred)))
        # Packed for so many rows whatever there is: the packing decides how products are rounded.
        product = encoder(self.w_enc, self.b_enc, rows)
        # At least one piece, also of nothing.
        for start in range(0, max(1, len(centred)), rows):
            yield product(centred[start : start + rows])

    def _select(self, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Codes from pre-activations: values and indices, both [n, m]."""
        if self.architecture == "topk":
            assert self.k is not None
            return top_k(pre, self.k)
        post = pre.relu()
        if self.threshold is not None:
            post *= pre > self.threshold
        most = int((post > 0).sum(dim=1).max()) if len(post) else 0
        # Sorted: then `decode` adds in an order that does not depend on the other tokens.
        values, indices = torch.topk(post, max(1, most), dim=1, sorted=True)
        return values, indices

    def decode(self, values: Tensor, indices: Tensor) -> Tensor:
        """Codes to reconstructions [tokens, d_model]."""
        return decode(values, indices, self.w_dec) + self.b_dec

    def scaled(self, factor: float) -> Autoencoder:
        """The SAE for inputs that are `factor` times as large, with codes to match.

        Encoder and decoder rows are homogeneous; only biases and thresholds carry the scale.
        """
        threshold = None if self.threshold is None else self.threshold * factor
        return replace(
            self, b_enc=self.b_enc * factor, b_dec=self.b_dec * factor, threshold=threshold
        )
