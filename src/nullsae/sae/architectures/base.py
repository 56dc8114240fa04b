"""The part of training that all architectures share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Generic, Literal, Self, TypeVar

from pydantic import PositiveInt

from nullsae.config.compute import Precise
from nullsae.config.saes import Sae
from nullsae.sae.chunks import rows_at_once
from nullsae.sae.later import Autoencoder, Hits, Tensor, autoencoder, kernels, torch

R = TypeVar("R", bound=Sae)
Gradients = dict[str, Tensor]


class LimitedSae(Sae):
    """Keys of an architecture whose activity is set by k."""

    k: PositiveInt | None = None
    """Latents active per token: exactly (`topk`), on average (`batch_topk`, `matryoshka`) or as
    the target of the penalty (`jumprelu`); by default 32, and 1 for `token_lookup`."""

    @property
    def given_k(self) -> int | None:
        return self.k

    @property
    def kept(self) -> int:
        return self.k or self.origin.default_k

    def with_l0(self, l0: float) -> Self:
        return self.model_copy(update={"k": max(1, round(l0))})


class Losses:
    """Parts of the training loss of one batch, and which latents fired, bool [n_latents].

    Reading a part waits for the GPU that computes it.
    """

    def __init__(
        self, fvu: float | Tensor, auxk: float | Tensor, sparsity: float | Tensor, fired: Tensor
    ) -> None:
        self._parts, self.fired = (fvu, auxk, sparsity), fired

    @property
    def fvu(self) -> float:
        """Squared error over the batch's variance."""
        return float(self._parts[0])

    @property
    def auxk(self) -> float:
        """The same ratio for the residual modelled by dead latents; 0 without AuxK."""
        return float(self._parts[1])

    @property
    def sparsity(self) -> float:
        """The penalty on activity, weighted as in the loss; 0 if k sets the activity."""
        return float(self._parts[2])


class TrainedSae(ABC, Generic[R]):
    """An SAE in training: its weights, its loss and the loss' gradients.

    Inputs have a mean norm of sqrt(d_model). Decoder rows have unit norm, which the trainer
    restores after each step.

    Attributes:
        parameters: by their names on disk, including those that only training has. Changed in
            place.
        buffers: other tensors that the next step or the result depends on.
        frozen: names of parameters that are not trained; `gradients` may leave them out.
        precision: of the products that `LOW_PRECISION` names.
    """

    DENSE_TENSORS: ClassVar[int] = 8
    """Maximal number of tensors [tokens, n_latents] that `gradients` keeps at once."""
    LOW_PRECISION: ClassVar[Literal["choice", "tf32", "none"]] = "none"
    """What a `compute.precision` below float32 applies to: the product that chooses latents, which
    `chosen` then provides; all products, in TensorFloat-32 at most; or nothing, if rounding would
    decide what is active or change the gradient of a threshold."""

    def __init__(self, recipe: R, k: int, start: Autoencoder) -> None:
        """Start from these weights without copying them.

        k latents are active per token: exactly, on average, or as the target of a penalty.
        """
        self.recipe, self.k = recipe, k
        self.w_enc, self.b_enc, self.w_dec, self.b_dec = weights = start.weights
        self.parameters = dict(zip(autoencoder.PARAMETERS, weights, strict=True))
        self.n_latents, self.d_model = self.w_dec.shape
        self.buffers: dict[str, Tensor] = {}
        self.precision: Precise = "float32"
        self.frozen = recipe.origin.frozen

    @classmethod
    def step_bytes(
        cls, recipe: R, *, d_model: int, n_latents: int, k: int, device: str = "cpu"
    ) -> int:
        """Return the most memory that tensors take during a step of training in float32.

        The interpreter and the allocator's reserve come on top. With B tokens in a batch, d =
        d_model, n = n_latents, D = `DENSE_TENSORS`, C tokens whose pre-activations are kept at once
        (`rows_at_once`) and K hits per token (`hits`), it is

            16 (2 d n + d + n)              weights, gradients, Adam's two moments
          + 4 d n                           a copy of the encoder, packed for the product
          + 4 D B n + 5 C n                 pre-activations of all tokens, of a chunk
          + 20 B d                          batch, centred, residual, target, error
          + 56 B K                          hits, in two orders

        bytes, plus what an architecture adds. A dictionary that is kept near its start adds 4 d n
        for the start. Nothing grows with B K d.
        """
        batch, d, n = recipe.batch_tokens, d_model, n_latents
        rows = min(batch, rows_at_once(n, device))
        total = 16 * (2 * d * n + d + n) + 4 * d * n + 4 * cls.DENSE_TENSORS * batch * n
        total += 5 * rows * n + 20 * batch * d + 56 * batch * cls.hits(recipe, k, n)
        return total + 4 * d * n * recipe.origin.held

    @classmethod
    def hits(cls, recipe: R, k: int, n_latents: int) -> int:
        """Return the hits per token that a step works with."""
        return k

    @abstractmethod
    def gradients(self, x: Tensor, dead: Tensor | None) -> tuple[Gradients, Losses]:
        """Return the loss of a batch and its exact gradients by all parameters that are not frozen.

        x [tokens, d_model] has at least two different rows. AuxK may use `dead` bool [n_latents],
        which is None if no latent is dead.
        """

    @classmethod
    def precision_of(cls, precision: Precise) -> Precise:
        """Return the precision of this architecture for a `compute.precision`."""
        if precision == "float32" or cls.LOW_PRECISION == "none":
            return "float32"
        return precision if cls.LOW_PRECISION == "choice" else "tf32"

    def chosen(self, centred: Tensor, precision: Precise) -> Hits:
        """Return the hits chosen by a product in this precision, as `LOW_PRECISION` allows.

        `centred` is x - b_dec [tokens, d_model].
        """
        raise NotImplementedError

    @abstractmethod
    def autoencoder(self) -> Autoencoder:
        """Return the SAE for use; it shares memory with the weights if possible."""

    def fired(self, hits: Hits) -> Tensor:
        """Return which latents have a positive value in some hit, bool [n_latents]."""
        return hits.values.new_zeros(self.n_latents).index_add_(0, hits.latents, hits.values) > 0

    def add_gradients(self, gradients: Gradients, centred: Tensor, hits: Hits, out: Tensor) -> None:
        """Add the derivatives of sum(out * decode(hits)), taken only through the hits.

        They do not include the b_dec that is added to a reconstruction. `centred` and `out` are
        [tokens, d_model]: x - b_dec, from which the hits were encoded, and the derivative of the
        loss by the decoded hits. Hits with a value of 0 pass no gradient to the encoder.
        """
        by_latent = kernels.HitsByLatent(hits, self.n_latents)
        if "W_dec" not in self.frozen:
            add(gradients, "W_dec", by_latent.row_gradient(hits.values, out))
        if "encoder.weight" not in self.frozen:
            codes = hits.dot_rows(out, self.w_dec).mul_(hits.values > 0)
            bias = by_latent.bias_gradient(codes, len(out))
            add(gradients, "b_dec", -kernels.weighted_rows(bias, self.w_enc))
            add(gradients, "encoder.weight", by_latent.row_gradient(codes, centred))
            add(gradients, "encoder.bias", bias)

    def add_fvu(
        self,
        gradients: Gradients,
        x: Tensor,
        centred: Tensor,
        hits: Hits,
        scale: Tensor,
        weight: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        """Add the gradients of weight x FVU; return FVU and x - x^, the residual for AuxK.

        x^ is the decoded hits of all tokens plus b_dec; `scale` is the batch's variance.
        """
        residual = hits.decode(self.w_dec).add_(self.b_dec).sub_(x)
        fvu = square_sum(residual) / scale
        error = -residual
        out = residual.mul_(2.0 * weight / scale)
        add(gradients, "b_dec", out.sum(dim=0))
        self.add_gradients(gradients, centred, hits, out)
        return fvu, error


def add(gradients: Gradients, name: str, value: Tensor) -> None:
    """Add to a gradient, or set it if it is missing."""
    gradients[name] = gradients[name].add_(value) if name in gradients else value


def variance(x: Tensor) -> Tensor:
    """Return the sum of squared deviations from the batch's mean, the denominator of losses."""
    return square_sum(x - x.mean(dim=0))


def square_sum(x: Tensor) -> Tensor:
    """Sum the squares of x [n, d] row by row, bit-identical for any number of threads."""
    total: Tensor = torch.linalg.vector_norm(x, dim=1).square_().sum()
    return total
