"""What all architectures share while they are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from nullsae.recipes import Sae
from nullsae.sae.autoencoder import PARAMETERS, Autoencoder
from nullsae.sae.kernels import Hits, HitsByLatent, top_k

Gradients = dict[str, Tensor]


@dataclass(frozen=True)
class Losses:
    """Parts of the training loss of one batch, and which latents fired."""

    fvu: float
    """Squared error over the batch's variance."""
    auxk: float
    """The same ratio for the residual as dead latents model it; 0 where there is no AuxK."""
    sparsity: float
    """The penalty on activity, weighted as in the loss; 0 where k sets the activity."""
    fired: Tensor
    """bool [n_latents]."""


class TrainedSae(ABC):
    """An SAE while it is trained: its weights, its loss and the loss' gradients.

    Inputs have a mean norm of sqrt(d_model). Decoder rows have unit norm: the trainer restores it
    after each step.

    Attributes:
        parameters: by their names on disk, and those that only training has. Changed in place.
        buffers: what the next step or the result depends on beside them.
    """

    def __init__(self, recipe: Sae, k: int, start: Autoencoder, *, auxk_coefficient: float) -> None:
        """Start from these weights.

        Args:
            recipe: of this architecture.
            k: latents active per token: exactly, on average, or as the target of a penalty.
            start: weights to start from; they are not copied.
            auxk_coefficient: weight of AuxK, where the architecture has it; 0 turns it off.
        """
        self.recipe, self.k = recipe, k
        self.parameters = {name: start.parameters()[name] for name in PARAMETERS}
        self.buffers: dict[str, Tensor] = {}
        self.auxk_k = recipe.auxk_k or max(1, start.d_model // 2)
        self.auxk_coefficient = auxk_coefficient

    @property
    def w_enc(self) -> Tensor:
        return self.parameters["encoder.weight"]

    @property
    def b_enc(self) -> Tensor:
        return self.parameters["encoder.bias"]

    @property
    def w_dec(self) -> Tensor:
        return self.parameters["W_dec"]

    @property
    def b_dec(self) -> Tensor:
        return self.parameters["b_dec"]

    @property
    def n_latents(self) -> int:
        return len(self.b_enc)

    @property
    def d_model(self) -> int:
        return len(self.b_dec)

    @abstractmethod
    def gradients(self, x: Tensor, dead: Tensor) -> tuple[Gradients, Losses]:
        """Loss of one batch and its exact gradients by all parameters.

        Args:
            x: [tokens, d_model], at least two different rows.
            dead: bool [n_latents], which latents AuxK may use.
        """

    @abstractmethod
    def autoencoder(self) -> Autoencoder:
        """The SAE as it stands, for use; it shares memory with the weights where it can."""


def variance(x: Tensor) -> Tensor:
    """Sum of squared deviations from the batch's mean, which losses are divided by."""
    return (x - x.mean(dim=0)).square().sum()


def fired(hits: Hits, n_latents: int) -> Tensor:
    """Which latents have a positive value in some hit, bool [n_latents]."""
    found = torch.zeros(n_latents, dtype=torch.bool, device=hits.values.device)
    found[hits.latents[hits.values > 0]] = True
    return found


def add_gradients(
    gradients: Gradients, sae: TrainedSae, centred: Tensor, hits: Hits, out: Tensor
) -> None:
    """Add the derivatives of sum(out * decode(hits)), through the hits alone.

    That b_dec is also added to a reconstruction is not counted here.

    Args:
        gradients: what they are added to; names that are missing are set.
        sae: the weights.
        centred: x - b_dec, [tokens, d_model], which the hits were encoded from.
        hits: rectified; those with a value of 0 pass no gradient to the encoder.
        out: derivative of the loss by the decoded hits, [tokens, d_model].
    """
    by_latent = HitsByLatent(hits, sae.n_latents)
    codes = hits.dot_rows(out, sae.w_dec) * (hits.values > 0)
    bias = by_latent.bias_gradient(codes, len(out))
    found = {
        "encoder.weight": by_latent.row_gradient(codes, centred),
        "encoder.bias": bias,
        "W_dec": by_latent.row_gradient(hits.values, out),
        "b_dec": -(bias @ sae.w_enc),
    }
    for name, value in found.items():
        gradients[name] = gradients[name].add_(value) if name in gradients else value


def add_auxk(
    gradients: Gradients,
    sae: TrainedSae,
    pre: Tensor,
    centred: Tensor,
    target: Tensor,
    scale: Tensor,
    dead: Tensor,
) -> float:
    """Add AuxK's gradients; returns its value.

    AuxK is |e - e^|^2 / variance for the residual e (held constant) as modelled by the `auxk_k`
    most active dead latents without b_dec. Its weight in the loss is
    auxk_coefficient * min(1, dead latents / auxk_k) (Gao et al. 2024, appendix A.2).

    Args:
        gradients: what they are added to.
        sae: the weights.
        pre: pre-activations, [tokens, n_latents].
        centred: x - b_dec.
        target: e, [tokens, d_model].
        scale: the batch's variance.
        dead: bool [n_latents].
    """
    dead_latents = dead.nonzero().squeeze(1)
    if not sae.auxk_coefficient or not len(dead_latents):
        return 0.0
    values, local = top_k(pre[:, dead_latents], min(sae.auxk_k, len(dead_latents)))
    hits = Hits.of(values, dead_latents[local])
    error = hits.decode(sae.w_dec) - target
    weight = sae.auxk_coefficient * min(1.0, len(dead_latents) / sae.auxk_k)
    add_gradients(gradients, sae, centred, hits, error * (2.0 * weight / scale))
    return float(error.square().sum() / scale)
