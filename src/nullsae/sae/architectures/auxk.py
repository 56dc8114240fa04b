"""AuxK: dead latents model the residual, which revives them (Gao et al. 2024)."""

from __future__ import annotations

from typing import TypeVar

from pydantic import NonNegativeFloat, PositiveInt

from nullsae.sae.architectures.base import Gradients, LimitedSae, TrainedSae, square_sum
from nullsae.sae.later import Autoencoder, Tensor, kernels, torch

# AuxK computes with dense matrices of all dead latents up to this number per chosen latent: an
# operation of a dense product costs this much less than one on a gathered row.
DENSE_PER_CHOSEN = 4


class AuxKSae(LimitedSae):
    """Keys of an architecture with AuxK."""

    auxk_coefficient: NonNegativeFloat = 0.25
    """Weight of the AuxK loss, which lets dead latents model the residual."""
    auxk_k: PositiveInt | None = None
    """Dead latents used per token by AuxK; by default half the site's width."""

    def auxk_latents(self, d_model: int) -> int:
        """Return the number of dead latents that AuxK chooses per token, at most."""
        return self.auxk_k or max(1, d_model // 2)


A = TypeVar("A", bound=AuxKSae)


class RevivingSae(TrainedSae[A]):
    """An SAE in training whose dead latents are revived."""

    def __init__(self, recipe: A, k: int, start: Autoencoder) -> None:
        super().__init__(recipe, k, start)
        self.auxk_k = recipe.auxk_latents(start.d_model)
        # With a frozen encoder, dead latents stay dead, whatever their decoder rows learn.
        revivable = "encoder.weight" not in self.frozen
        self.auxk_coefficient = recipe.auxk_coefficient if revivable else 0.0

    @classmethod
    def step_bytes(
        cls, recipe: A, *, d_model: int, n_latents: int, k: int, device: str = "cpu"
    ) -> int:
        """Return the bytes of `TrainedSae.step_bytes` and, with AuxK, those for dead latents.

        AuxK adds 4 d n + B max(56 a, 9 min(n, 4a)) for a = min(auxk_k, n): rows of the encoder, and
        hits, if all latents are dead. How many are dead depends on the data.
        """
        total = super().step_bytes(recipe, d_model=d_model, n_latents=n_latents, k=k, device=device)
        if recipe.auxk_coefficient:
            chosen = min(recipe.auxk_latents(d_model), n_latents)
            few = min(n_latents, DENSE_PER_CHOSEN * chosen)
            total += 4 * d_model * n_latents + recipe.batch_tokens * max(56 * chosen, 9 * few)
        return total

    def add_auxk(
        self,
        gradients: Gradients,
        centred: Tensor,
        target: Tensor,
        scale: Tensor,
        dead: Tensor | None,
    ) -> float | Tensor:
        """Add AuxK's gradients; return its value.

        AuxK is |e - e^|^2 / variance, where e^ is the reconstruction of the residual e (held
        constant) by the `auxk_k` most active dead latents without b_dec. Its weight in the loss is
        auxk_coefficient * min(1, dead latents / auxk_k) (Gao et al. 2024, appendix A.2). `centred`
        is x - b_dec, `target` e, both [tokens, d_model]; `scale` is the variance.
        """
        if not self.auxk_coefficient or dead is None:
            return 0.0
        rows = dead.nonzero().squeeze(1)
        if not len(rows):
            return 0.0
        k = min(self.auxk_k, len(rows))
        weights = self.w_enc[rows], self.b_enc[rows]
        values, local = kernels.encode_top_k(centred, *weights, k, self.precision)
        weight = 2.0 * self.auxk_coefficient * min(1.0, len(rows) / self.auxk_k) / scale
        if len(rows) > DENSE_PER_CHOSEN * k:
            hits = kernels.Hits.of(values, rows[local])
            error = hits.decode(self.w_dec).sub_(target)
            value = square_sum(error) / scale
            self.add_gradients(gradients, centred, hits, error.mul_(weight))
            return value
        codes = values.new_zeros(len(centred), len(rows)).scatter_(1, local, values)
        w_dec = self.w_dec[rows]
        out = torch.addmm(target, codes, w_dec, beta=-1)
        value = square_sum(out) / scale
        out.mul_(weight)
        if "W_dec" not in self.frozen:
            gradients["W_dec"].index_add_(0, rows, codes.t() @ out)
        if "encoder.weight" not in self.frozen:
            slopes = (out @ w_dec.t()).mul_(codes > 0)
            bias = slopes.sum(dim=0)
            gradients["b_dec"] -= kernels.weighted_rows(bias, self.w_enc[rows])
            gradients["encoder.weight"].index_add_(0, rows, slopes.t() @ centred)
            gradients["encoder.bias"].index_add_(0, rows, bias)
        return value
