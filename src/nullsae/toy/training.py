"""The SAE of the paper's toy models, trained for many sparsity coefficients in parallel."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.config.toy import ToyTraining

# As in the authors' code: a sample of equal entries is standardized to zeros.
STD_EPSILON = 1e-8


@dataclass(frozen=True)
class Weights:
    """C SAEs of one shape, float32."""

    encoder: Tensor
    """[C, d, n_latents]."""
    bias: Tensor
    """Encoder biases, [C, 1, n_latents]; the decoder has none."""
    decoder: Tensor
    """[C, n_latents, d], with unit rows in use."""

    def one(self, index: int) -> Weights:
        """Return the weights of one SAE."""
        return Weights(*(tensor[index : index + 1] for tensor in self.tensors))

    def to(self, device: torch.device) -> Weights:
        """Return the weights on a device."""
        return Weights(*(tensor.to(device) for tensor in self.tensors))

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return encoders, biases and decoders, in the shapes given above."""
        return self.encoder, self.bias, self.decoder


@dataclass(frozen=True)
class Standardized:
    """Vectors, each centred and divided by its own standard deviation."""

    z: Tensor
    """[n, d]."""
    mean: Tensor
    """[n, 1]."""
    std: Tensor
    """[n, 1], with d - 1 in the denominator."""

    def __getitem__(self, index: Tensor | slice) -> Standardized:
        return Standardized(self.z[index], self.mean[index], self.std[index])


def standardize(x: Tensor) -> Standardized:
    """Standardize each row of x [n, d]."""
    mean = x.mean(dim=1, keepdim=True)
    centred = x - mean
    std = centred.std(dim=1, keepdim=True)
    return Standardized(centred / (std + STD_EPSILON), mean, std)


def start_weights(d: int, n_latents: int, generator: torch.Generator) -> Weights:
    """Initialize one SAE: encoder as `torch.nn.Linear` starts, decoder orthogonal.

    `d` is the dimension of the input, `n_latents` the width, at least d.
    """
    bound = 1 / math.sqrt(d)
    encoder, bias = (
        (2 * torch.rand(shape, generator=generator) - 1) * bound
        for shape in ((1, d, n_latents), (1, 1, n_latents))
    )
    rows = torch.nn.init.orthogonal_(torch.empty(n_latents, d), generator=generator)
    return Weights(encoder, bias, F.normalize(rows, dim=1)[None])


def encode(weights: Weights, x: Standardized) -> Tensor:
    """Encode standardized vectors to codes [C, n, n_latents]: ReLU(z W + b)."""
    z = x.z.expand(len(weights.encoder), *x.z.shape)
    return F.relu(torch.baddbmm(weights.bias, z, weights.encoder))


def decode(weights: Weights, codes: Tensor, x: Standardized) -> Tensor:
    """Decode to reconstructions [C, n, d] in the units of the original vectors."""
    return torch.bmm(codes, weights.decoder) * x.std + x.mean


def train_together(
    x: Tensor,
    start: Weights,
    coefficients: Sequence[float],
    settings: ToyTraining,
    *,
    order: Callable[[int], Tensor],
    progress: Callable[[int, int, float], None] = lambda done, total, loss: None,
) -> Weights:
    """Train one SAE per coefficient, all from one start and on the same batches.

    The loss of each is mean |x - x^|^2 over entries plus its coefficient times mean |code|. The
    SAEs share only the data, so each equals one that was trained alone, up to rounding.

    Args:
        x: float32 [n, d], on the device to train on.
        start: one SAE, on the CPU or there.
        coefficients: weights of the penalty.
        settings: how to train.
        order: the order of the samples in an epoch, int64 [n].
        progress: called with steps done, steps in total, and the mean loss, once per epoch.

    Returns:
        The trained SAEs, in the order of the coefficients, decoder rows of unit norm.
    """
    scaled = standardize(x)
    n = len(coefficients)
    weights = Weights(*(tensor[:1].repeat(n, 1, 1).to(x.device) for tensor in start.tensors))
    penalty = torch.tensor(coefficients, dtype=x.dtype, device=x.device)
    for tensor in weights.tensors:
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(weights.tensors, lr=settings.lr, fused=True)
    steps_in_epoch = math.ceil(len(x) / settings.batch_samples)
    for epoch in range(settings.epochs):
        loss = torch.zeros(())
        for batch in torch.split(order(epoch).to(x.device), settings.batch_samples):
            _normalize_decoder(weights)
            some = scaled[batch]
            codes = encode(weights, some)
            error = decode(weights, codes, some) - x[batch]
            losses = error.square().mean(dim=(1, 2)) + penalty * codes.mean(dim=(1, 2))
            loss = losses.sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        done = (epoch + 1) * steps_in_epoch
        progress(done, settings.epochs * steps_in_epoch, float(loss.detach()) / len(coefficients))
    _normalize_decoder(weights)
    return Weights(*(tensor.detach() for tensor in weights.tensors))


@torch.no_grad()
def _normalize_decoder(weights: Weights) -> None:
    norms = torch.linalg.vector_norm(weights.decoder, dim=2, keepdim=True)
    weights.decoder.div_(norms.clamp_min(torch.finfo(norms.dtype).tiny))
