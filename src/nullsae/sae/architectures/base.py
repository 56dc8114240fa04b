"""What all architectures share while they are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nullsae.config.saes import Sae
from nullsae.sae.autoencoder import PARAMETERS, Autoencoder
from nullsae.sae.dictionaries import FROZEN
from nullsae.sae.kernels import Hits, HitsByLatent, chunk_rows, encode_top_k, top_k

Gradients = dict[str, Tensor]
# AuxK computes with all dead latents as matrices as long as they are so few for each one that is
# chosen: a product's operation costs this much less than one on a gathered row.
DENSE_PER_CHOSEN = 4
# Multi-TopK's second loss: with so many times k latents, and this weight (Gao et al. 2024, 4.2).
MULTI, MULTI_WEIGHT = 4, 1.0 / 8.0


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
        frozen: names of parameters that are not trained; `gradients` may leave them out.
    """

    DENSE_TENSORS: ClassVar[int] = 8
    """Tensors [tokens, n_latents] that `gradients` holds at once, at most."""

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
        self.frozen = FROZEN.get(recipe.dictionary, ())
        self.auxk_k = auxk_latents(recipe, start.d_model)
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

    @classmethod
    def step_bytes(
        cls, recipe: Sae, *, d_model: int, n_latents: int, k: int, device: str = "cpu"
    ) -> int:
        """The most memory that a training in float32 holds during a step, by its tensors.

        What the interpreter takes, and what an allocator keeps for later, comes on top. With B
        tokens in a batch, d = d_model, n = n_latents, D = `DENSE_TENSORS`, C tokens whose
        pre-activations are held at once (`chunk_rows`), K hits per token (k, and 4k more with
        `multi_topk`) and a = min(auxk_k, n), it is

            16 (2 d n + d + n)              weights, gradients, Adam's two moments
          + 4 d n                           the encoder once more, packed for the product
          + 4 D B n + 5 C n                 pre-activations of all tokens, of a chunk
          + 20 B d                          batch, centred, residual, target, error
          + 56 B K                          hits, in two orders
          + 8 d n + B max(56 a, 9 min(n, 4a))
                                            with AuxK, if all latents are dead

        bytes; `soft_frozen_decoder` adds 4 d n for the start that it is held to. Nothing grows with
        B K d.
        """
        batch, d, n = recipe.batch_tokens, d_model, n_latents
        hits = k + (min(MULTI * k, n) if recipe.multi_topk else 0)
        rows = min(batch, chunk_rows(n, torch.device(device)))
        total = 16 * (2 * d * n + d + n) + 4 * d * n + 4 * cls.DENSE_TENSORS * batch * n
        total += 5 * rows * n + 20 * batch * d + 56 * batch * hits
        if recipe.dictionary == "soft_frozen_decoder":
            total += 4 * d * n
        if recipe.auxk_coefficient:
            chosen = min(auxk_latents(recipe, d), n)
            few = min(n, DENSE_PER_CHOSEN * chosen)
            total += 8 * d * n + batch * max(56 * chosen, 9 * few)
        return total

    @abstractmethod
    def gradients(self, x: Tensor, dead: Tensor) -> tuple[Gradients, Losses]:
        """Loss of one batch and its exact gradients by all parameters that are not frozen.

        Args:
            x: [tokens, d_model], at least two different rows.
            dead: bool [n_latents], which latents AuxK may use.
        """

    @abstractmethod
    def autoencoder(self) -> Autoencoder:
        """The SAE as it stands, for use; it shares memory with the weights where it can."""


def auxk_latents(recipe: Sae, d_model: int) -> int:
    """Dead latents that AuxK chooses per token, if there are so many."""
    return recipe.auxk_k or max(1, d_model // 2)


def variance(x: Tensor) -> Tensor:
    """Sum of squared deviations from the batch's mean, which losses are divided by."""
    return square_sum(x - x.mean(dim=0))


def square_sum(x: Tensor) -> Tensor:
    """Sum of the squares of x [n, d], row by row: the same bits for any number of threads."""
    total: Tensor = torch.linalg.vector_norm(x, dim=1).square_().sum()
    return total


def fired(hits: Hits, n_latents: int) -> Tensor:
    """Which latents have a positive value in some hit, bool [n_latents]."""
    return hits.values.new_zeros(n_latents).index_add_(0, hits.latents, hits.values) > 0


def add_gradients(
    gradients: Gradients, sae: TrainedSae, centred: Tensor, hits: Hits, out: Tensor
) -> None:
    """Add the derivatives of sum(out * decode(hits)), through the hits alone.

    That b_dec is also added to a reconstruction is not counted here.

    Args:
        gradients: what they are added to; names that are missing are set, those of frozen
            parameters left out.
        sae: the weights.
        centred: x - b_dec, [tokens, d_model], which the hits were encoded from.
        hits: rectified; those with a value of 0 pass no gradient to the encoder.
        out: derivative of the loss by the decoded hits, [tokens, d_model].
    """
    by_latent = HitsByLatent(hits, sae.n_latents)
    if "W_dec" not in sae.frozen:
        add(gradients, "W_dec", by_latent.row_gradient(hits.values, out))
    if "encoder.weight" not in sae.frozen:
        codes = hits.dot_rows(out, sae.w_dec).mul_(hits.values > 0)
        bias = by_latent.bias_gradient(codes, len(out))
        add(gradients, "b_dec", -(bias @ sae.w_enc))
        add(gradients, "encoder.weight", by_latent.row_gradient(codes, centred))
        add(gradients, "encoder.bias", bias)


def add_fvu(
    gradients: Gradients,
    sae: TrainedSae,
    x: Tensor,
    centred: Tensor,
    hits: Hits,
    scale: Tensor,
    weight: float = 1.0,
) -> tuple[float, Tensor]:
    """Add the gradients of weight x FVU; returns FVU and x - x^, which AuxK is about.

    Args:
        gradients: what they are added to.
        sae: the weights.
        x: [tokens, d_model].
        centred: x - b_dec.
        hits: of all tokens; x^ is what they decode to, and b_dec.
        scale: the batch's variance.
        weight: of this part in the loss.
    """
    residual = hits.decode(sae.w_dec).add_(sae.b_dec).sub_(x)
    fvu = float(square_sum(residual) / scale)
    error = -residual
    out = residual.mul_(2.0 * weight / scale)
    add(gradients, "b_dec", out.sum(dim=0))
    add_gradients(gradients, sae, centred, hits, out)
    return fvu, error


def add(gradients: Gradients, name: str, value: Tensor) -> None:
    """Add to a gradient, or set the one that is missing."""
    gradients[name] = gradients[name].add_(value) if name in gradients else value


def add_auxk(
    gradients: Gradients,
    sae: TrainedSae,
    pre: Tensor | None,
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
        gradients: what they are added to, all of them there.
        sae: the weights.
        pre: pre-activations, [tokens, n_latents], or None: then those of the dead latents are
            computed.
        centred: x - b_dec.
        target: e, [tokens, d_model].
        scale: the batch's variance.
        dead: bool [n_latents].
    """
    rows = dead.nonzero().squeeze(1)
    if not sae.auxk_coefficient or not len(rows):
        return 0.0
    k = min(sae.auxk_k, len(rows))
    if pre is None:
        values, local = encode_top_k(centred, sae.w_enc[rows], sae.b_enc[rows], k)
    else:
        values, local = top_k(pre[:, rows], k)
    weight = 2.0 * sae.auxk_coefficient * min(1.0, len(rows) / sae.auxk_k) / scale
    if len(rows) > DENSE_PER_CHOSEN * k:
        hits = Hits.of(values, rows[local])
        error = hits.decode(sae.w_dec).sub_(target)
        value = float(square_sum(error) / scale)
        add_gradients(gradients, sae, centred, hits, error.mul_(weight))
        return value
    codes = values.new_zeros(len(centred), len(rows)).scatter_(1, local, values)
    w_dec = sae.w_dec[rows]
    error = torch.addmm(target, codes, w_dec, beta=-1)
    value = float(square_sum(error) / scale)
    out = error.mul_(weight)
    if "W_dec" not in sae.frozen:
        gradients["W_dec"].index_add_(0, rows, codes.t() @ out)
    if "encoder.weight" not in sae.frozen:
        slopes = (out @ w_dec.t()).mul_(codes > 0)
        bias = slopes.sum(dim=0)
        gradients["b_dec"] -= bias @ sae.w_enc[rows]
        gradients["encoder.weight"].index_add_(0, rows, slopes.t() @ centred)
        gradients["encoder.bias"].index_add_(0, rows, bias)
    return value
