"""Reconstruction metrics as float64 sums per document, and their totals."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullsae.core.devices import exact
from nullsae.core.moments import ROUNDING

SUMS = ("squared_error", "squared_deviation", "cosine", "l0", "l1", "norm")


def explained(error: float, deviation: float) -> float | None:
    """Compute 1 - sum |x - x^|^2 / sum |x - mean|^2; None if nothing varies."""
    return 1.0 - error / deviation if deviation else None


class ReconstructionSums:
    """Sums streamed over a split; results do not depend on how the tokens are batched."""

    def __init__(self, *, mean: Tensor, n_documents: int, n_latents: int) -> None:
        """Start at zero; `mean` float64 [d_model] is the mean activation of the whole split."""
        self.mean, self.n_documents = mean, n_documents
        self.by_document = {name: np.zeros(n_documents) for name in ("n_tokens", *SUMS)}
        self.output_norms = 0.0
        self.fired = np.zeros(n_latents, dtype=bool)

    def add(
        self, x: Tensor, output: Tensor, values: Tensor, indices: Tensor, documents: np.ndarray
    ) -> None:
        """Add tokens: activations x and their reconstructions [n, d_model].

        Codes are `values` [n, k], 0 if a latent did not fire, and `indices` int64 [n, k].
        `documents` int [n] gives the document of each token.
        """
        x, output = exact(x).cpu(), exact(output).cpu()
        norm, output_norm = x.norm(dim=1), output.norm(dim=1)
        product = (norm * output_norm).clamp_min(torch.finfo(torch.float64).tiny)
        deviation = (x - self.mean).square().sum(dim=1)
        per_token = {
            "squared_error": (x - output).square().sum(dim=1),
            # Without variation, the mean is off by rounding.
            "squared_deviation": torch.where(deviation > ROUNDING * norm**2, deviation, 0.0),
            "cosine": (x * output).sum(dim=1) / product,
            "l0": (values != 0).sum(dim=1).cpu().double(),
            "l1": exact(values).abs().sum(dim=1).cpu(),
            "norm": norm,
        }
        for name, token_values in per_token.items():
            np.add.at(self.by_document[name], documents, token_values.numpy())
        np.add.at(self.by_document["n_tokens"], documents, 1.0)
        self.output_norms += float(output_norm.sum())
        self.fired[indices[values != 0].cpu().numpy()] = True

    def totals(self) -> dict[str, Any]:
        """Return the metrics of the split.

        explained_variance = 1 - sum |x - x^|^2 / sum |x - mean|^2: 0 for predicting the mean, 1 for
        a perfect copy, None without variance. l2_ratio is the mean norm of the output over that of
        the input, None if the latter is 0. cosine, l0, l1 are means over tokens; alive_share counts
        latents that fired at least once.
        """
        sums = {name: float(values.sum()) for name, values in self.by_document.items()}
        n = sums["n_tokens"]
        return {
            "n_tokens": int(n),
            "explained_variance": explained(sums["squared_error"], sums["squared_deviation"]),
            **{name: sums[name] / n for name in ("cosine", "l0", "l1")},
            "l2_ratio": self.output_norms / sums["norm"] if sums["norm"] else None,
            "alive_share": float(self.fired.mean()),
            "mean_norm": sums["norm"] / n,
        }

    def documents(self) -> list[dict[str, Any]]:
        """Return rows of the table `documents` for documents with tokens, in order."""
        sums, n_tokens = self.by_document, self.by_document["n_tokens"]
        return [
            {"document": int(document), "n_tokens": int(n_tokens[document])}
            | {name: float(sums[name][document]) for name in SUMS}
            for document in np.flatnonzero(n_tokens)
        ]
