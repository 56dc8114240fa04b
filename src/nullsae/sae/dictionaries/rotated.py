"""A given SAE in another frame: encoder and decoder turned by one random rotation.

This destroys what the SAE knows of the site's directions and keeps the relations between its rows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nullsae.core.registry import lazy
from nullsae.sae.dictionaries.derived import Derived
from nullsae.sae.later import Autoencoder, Tensor, moments, torch

if TYPE_CHECKING:
    from nullsae.sae import derivation
    from nullsae.subjects import changes
else:
    derivation, changes = lazy("nullsae.sae.derivation"), lazy("nullsae.subjects.changes")

SMALLEST_VARIANCE = 1e-6
"""Share of the largest variance below which a direction is left as it is, because float32 could
not represent it after whitening."""


class Rotated(Derived):
    """The unchanged SAE, in activations rotated about their mean."""

    name, position = "rotated", 8
    needs_encoder = True
    summary = "has the directions of another SAE, all turned by one random rotation"
    caption = (
        "Encoder and decoder of {made_from}, turned about the mean activation by one random "
        "rotation; nothing is trained. Cosines between its rows are those of {made_from}."
    )

    def derive(
        self, sae: Autoencoder, sample: Tensor, generator: Any
    ) -> tuple[Autoencoder, list[Any]]:
        turned = changes.haar_frame(sae.d_model, sae.d_model, generator)
        if torch.linalg.det(turned) < 0:
            turned[:, 0] *= -1  # a rotation, not a reflection
        mean = sample.double().mean(dim=0).cpu()
        kept = torch.eye(sae.d_model, dtype=torch.float64)
        return self.in_frame(sae, sample, mean, (turned, turned.t()), (kept, kept))

    def in_frame(
        self,
        sae: Autoencoder,
        sample: Tensor,
        mean: Tensor,
        frames: tuple[Tensor, Tensor],
        roots: tuple[Tensor, Tensor],
    ) -> tuple[Autoencoder, list[Any]]:
        """Return the SAE in another frame, with as many firings, and its gates.

        Args:
            sae: the given one.
            sample: as in `derive`.
            mean: float64 [d_model], the centre of rotation.
            frames: for activations as rows, from the SAE's frame and back to it.
            roots: of the metrics in which encoder and decoder rows keep their products.
        """
        made = derivation.in_other_frame(sae, mean, *frames)
        pairs = (sae.w_enc, made.w_enc, roots[0]), (sae.w_dec, made.w_dec, roots[1])
        gates = [
            derivation.geometry_gate(f"geometry of the {side}", *pair)
            for side, pair in zip(("encoder", "decoder"), pairs, strict=True)
        ]
        return derivation.with_firings_of(sae, made, sample), gates

    def derive_flops(self, d_model: int, n_latents: int, n_tokens: int) -> float:
        """Count operations to make a frame and use it."""
        return 10.0 * d_model**3 + 4.0 * n_latents * d_model**2


class RotatedWhitened(Rotated):
    """The same in whitened activations, which keeps the covariance of the site.

    With covariance C = U diag(v) U', encoder rows are rotated in the metric C, in which their
    length is the spread of their pre-activations, and decoder rows in its inverse.
    """

    name, position = "rotated_whitened", 9
    summary = "has them turned by one random rotation of the whitened activations"
    caption = (
        "Encoder and decoder of {made_from}, turned about the mean by one random rotation of the "
        "whitened activations; nothing is trained. Each latent's pre-activation keeps its mean and "
        "variance."
    )

    def derive(
        self, sae: Autoencoder, sample: Tensor, generator: Any
    ) -> tuple[Autoencoder, list[Any]]:
        found = moments.Moments(sae.d_model)
        for start in range(0, len(sample), derivation.BATCH_TOKENS):
            found.add(sample[start : start + derivation.BATCH_TOKENS])
        variance, directions = torch.linalg.eigh(found.covariance())
        wide = variance > SMALLEST_VARIANCE * variance.max()
        spread, u = variance[wide].sqrt(), directions[:, wide]
        rest = directions[:, ~wide] @ directions[:, ~wide].t()
        turned = changes.haar_frame(len(spread), len(spread), generator)
        there = (u / spread) @ turned @ (u * spread).t() + rest
        back = (u / spread) @ turned.t() @ (u * spread).t() + rest
        roots = (u * spread) @ u.t() + rest, (u / spread) @ u.t() + rest
        return self.in_frame(sae, sample, found.mean(), (there, back), roots)

    def derive_flops(self, d_model: int, n_latents: int, n_tokens: int) -> float:
        """Also count a covariance and its eigenvectors."""
        turning = super().derive_flops(d_model, n_latents, n_tokens)
        return turning + 2.0 * n_tokens * d_model**2 + 30.0 * d_model**3
