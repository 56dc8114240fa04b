"""What toy SAEs are trained on: sparse sums, word vectors, Gaussian controls, random networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.config.toy import SharkeySource, WordVectorsSource
from nullsae.core.errors import UserError
from nullsae.core.folders import expanded
from nullsae.core.moments import Moments
from nullsae.core.randomness import torch_generator
from nullsae.jobs.toy import TrainToyParams

MIN_VECTORS = 20
Generators = Callable[[str], torch.Generator]


@dataclass(frozen=True)
class Samples:
    """Vectors to train on, with their true features if these are known."""

    x: Tensor
    """Float32 [n, d]."""
    directions: Tensor | None = None
    """The true features, float32 [n_true_features, d] with unit rows, if the vectors are sums of
    them; else None."""
    images: Tensor | None = None
    """The random network's output for each true feature alone, with unit rows, if the vectors are
    its outputs. These are not true features, because the outputs are not sums of them."""
    mean_active: float | None = None
    """Mean number of true features active in a sample, counted."""


def make_samples(params: TrainToyParams) -> Samples:
    """Make the vectors of one job, which depend only on the source, the data and the seed.

    Raises:
        UserError: a file of word vectors is missing or not in GloVe's format.
    """
    keys, source = params.keys, params.source

    def generators(purpose: str) -> torch.Generator:
        return torch_generator(params.seed, purpose, keys.source, keys.seed)

    if isinstance(source, SharkeySource):
        made = sharkey(source, generators)
    else:
        made = Samples(read_word_vectors(source))
    if keys.data in ("gaussian", "mlp_of_gaussian"):
        assert params.gaussian is not None
        made = Samples(gaussian_control(made.x, params.gaussian, generators("toy_gaussian")))
    if keys.data in ("mlp_of_data", "mlp_of_gaussian"):
        assert params.mlp_hidden_factor is not None
        network = random_network(made.x.shape[1], params.mlp_hidden_factor, generators("toy_mlp"))
        images = None if made.directions is None else F.normalize(network(made.directions), dim=1)
        made = Samples(network(made.x), images=images, mean_active=made.mean_active)
    return made


def sharkey(source: SharkeySource, generators: Generators) -> Samples:
    """Make sums of sparse true features with correlated, unequal probabilities.

    Sharkey, Braun and Millidge 2022, "Taking features out of superposition with sparse
    autoencoders", as in the appendix of arXiv 2501.17727: unit directions; a sample's normals are
    N(0, A A^T) with A of standard normals; `activation_probabilities` turns them into
    probabilities; active features have a coefficient from U[0, 1).
    """
    n, d, m = source.n_samples, source.d_input, source.n_true_features
    normals = torch.randn(m, d, dtype=torch.float64, generator=generators("toy_directions"))
    directions = F.normalize(normals, dim=1)
    mixing = mixing_matrix(source, generators("toy_covariance"))
    noise = torch.randn(n, m, dtype=torch.float64, generator=generators("toy_normals"))
    p = activation_probabilities(source, noise @ mixing.T)
    active = torch.rand(n, m, dtype=torch.float64, generator=generators("toy_active")) < p
    sizes = torch.rand(n, m, dtype=torch.float64, generator=generators("toy_coefficients"))
    x = (active * sizes) @ directions
    mean_active = float(active.sum(dim=1).double().mean())
    return Samples(x.float(), directions.float(), mean_active=mean_active)


def mixing_matrix(source: SharkeySource, generator: torch.Generator) -> Tensor:
    """Draw A of the normals' covariance A A^T, float64 [n_true_features, n_true_features].

    Entries are standard normal; with `normalize_covariance` rows have unit norm, so that the
    covariance has ones on its diagonal. A g has that covariance for standard normals g.
    """
    m = source.n_true_features
    mixing = torch.randn(m, m, dtype=torch.float64, generator=generator)
    return F.normalize(mixing, dim=1) if source.normalize_covariance else mixing


def activation_probabilities(source: SharkeySource, normals: Tensor) -> Tensor:
    """Return each true feature's probability in each sample, from z float64 [n, n_true_features].

    Phi(z_i)^(exponent * i) with i from 0, rescaled so that each sample's probabilities add up to
    `mean_active`, then clipped at 1, which lowers the sum.
    """
    exponents = source.probability_exponent * torch.arange(normals.shape[1], dtype=torch.float64)
    p = torch.special.ndtr(normals) ** exponents
    scaled: Tensor = p * (source.mean_active / p.sum(dim=1, keepdim=True))
    return scaled.clamp(max=1.0)


def gaussian_control(
    x: Tensor, how: Literal["matched", "scalar"], generator: torch.Generator
) -> Tensor:
    """Draw as many normal vectors as `x` has, float32 [n, d].

    `matched` vectors have the mean and covariance of `x`; `scalar` ones have i.i.d. entries with
    the mean and standard deviation of all entries of `x`.
    """
    noise = torch.randn(x.shape, dtype=torch.float64, generator=generator)
    if how == "scalar":
        exact = x.double()
        return torch.add(exact.mean(), exact.std(correction=0) * noise).float()
    moments = Moments(x.shape[1])
    moments.add(x)
    values, vectors = torch.linalg.eigh(moments.covariance())
    root: Tensor = vectors * values.clamp_min(0.0).sqrt()
    return (moments.mean() + noise @ root.T).float()


def random_network(
    d: int, hidden_factor: int, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """Make an untrained network d -> hidden_factor * d -> d with ReLU, initialized like PyTorch.

    It takes and returns float32 [n, d]. Weights and biases of `torch.nn.Linear` are U(-b, b) with
    b = 1 / sqrt(inputs).
    """
    hidden = hidden_factor * d

    def draw(n_inputs: int, *shape: int) -> Tensor:
        return (2 * torch.rand(*shape, generator=generator) - 1) / math.sqrt(n_inputs)

    inner, inner_bias = draw(d, hidden, d), draw(d, hidden)
    outer, outer_bias = draw(hidden, d, hidden), draw(hidden, d)

    def network(x: Tensor) -> Tensor:
        return F.linear(F.relu(F.linear(x, inner, inner_bias)), outer, outer_bias)

    return network


def read_word_vectors(source: WordVectorsSource) -> Tensor:
    """Read the vectors of a text file, float32 [n, d]: each line has a word and d numbers.

    The first line determines d. Words may contain spaces, as some of GloVe's do.

    Raises:
        UserError: the file is missing, too short, or a line is not in this format; names the file
            and the line.
    """
    path = expanded(source.path)
    rows: list[np.ndarray] = []
    try:
        with open(path, encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if len(rows) == source.max_vectors:
                    break
                d = len(rows[0]) if rows else len(line.split()) - 1
                rows.append(_vector(line, d, f"{path}: line {number}"))
    except OSError as error:
        raise UserError(
            f"{path}: {error.strerror}; toy.sources.*.path names a text file of word vectors"
        ) from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: line {len(rows) + 1}: not text in UTF-8") from None
    if len(rows) < MIN_VECTORS:
        raise UserError(f"{path}: {len(rows)} word vectors; at least {MIN_VECTORS} are needed")
    return torch.from_numpy(np.stack(rows))


def _vector(line: str, d: int, where: str) -> np.ndarray:
    if d < 2:
        raise UserError(
            f"{where}: {line.strip()[:40]!r} is not a word and its numbers (at least 2), "
            f"separated by spaces"
        )
    word_and_numbers = line.rstrip().rsplit(" ", d)
    if len(word_and_numbers) != d + 1 or not word_and_numbers[0]:
        found = max(0, len(line.split()) - 1)
        raise UserError(f"{where}: {found} numbers after the word; the first line has {d}")
    try:
        vector = np.array(word_and_numbers[1:], dtype=np.float32)
    except ValueError as error:
        raise UserError(f"{where}: not a number ({error})") from None
    if not np.isfinite(vector).all():
        raise UserError(f"{where}: has a number that is not finite")
    return vector
