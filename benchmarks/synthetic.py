"""Activations from a known dictionary, and SAEs trained on them by nullsae and the peers.

Every number comes from a generator keyed by (seed, purpose). If a trainer shared the seed, a
Gaussian initial dictionary could *be* the true directions.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.config.saes import Sae
from nullsae.core.randomness import torch_generator
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.exchange.pretrained import read_pretrained
from nullsae.sae.initialization import initialize
from nullsae.sae.trainer import Trainer, evaluate

PEERS_PYTHON = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
PEERS = ("sparsify", "saelens")
SAMPLE_TOKENS = 32_768  # from which a training starts, as in `nullsae.sae.train_sae`
CHUNK_TOKENS = 8192


@dataclass(frozen=True)
class Planted:
    """Sparse combinations of known directions: x = mean + sum of magnitude x direction + noise.

    Magnitudes are 0.5 plus an exponential variable of mean 1. Noise is Gaussian with, per token, an
    expected norm of `noise` times the norm of the rest.
    """

    d_model: int
    n_directions: int
    active: float
    """Directions per token: exactly (`correlation` None), or on average."""
    exponent: float
    """Frequencies are proportional to 1 / (rank + 10)^exponent."""
    noise: float
    seed: int
    correlation: float | None = None
    """None: directions are drawn one by one, independently and with replacement. Otherwise each
    fires where a standard normal variable exceeds its own threshold, and the variables of each
    group of `group` directions have this correlation: topics, with the same frequencies."""
    group: int = 16

    def directions(self) -> Tensor:
        """Return the truth: unit rows, float32 [n_directions, d_model]."""
        g = torch_generator(self.seed, "planted_directions", self.d_model, self.n_directions)
        return F.normalize(torch.randn(self.n_directions, self.d_model, generator=g), dim=1)

    def mean(self) -> Tensor:
        """Return the offset of all tokens, float32 [d_model]."""
        g = torch_generator(self.seed, "planted_mean", self.d_model)
        return 0.5 * torch.randn(self.d_model, generator=g)

    def frequencies(self) -> Tensor:
        """Return the share of tokens with each direction, or its uses per token: [n_directions].

        In the correlated case no share is above a quarter, and ranks are spread over the groups.
        """
        zipf = 1.0 / (torch.arange(self.n_directions).double() + 10.0) ** self.exponent
        if self.correlation is None:
            return zipf / zipf.sum() * self.active
        shares = zipf
        for _ in range(50):  # raise the rest by what the cap removes
            shares = (shares * (self.active / shares.sum())).clamp(max=0.25)
        order = torch.randperm(
            self.n_directions, generator=torch_generator(self.seed, "planted_ranks")
        )
        return shares[order]

    def tokens(self, n: int, split: str) -> Tensor:
        """Return activations of a split, float32 [n, d_model]; tokens are independent."""
        directions, mean = self.directions(), self.mean()
        g = torch_generator(self.seed, "planted_tokens", split)
        draw = self._bags if self.correlation is None else self._topics
        parts = []
        for start in range(0, n, CHUNK_TOKENS):
            size = min(CHUNK_TOKENS, n - start)
            x = draw(size, directions, g) + mean
            noise = torch.randn(size, self.d_model, generator=g) / math.sqrt(self.d_model)
            parts.append(x + self.noise * x.norm(dim=1, keepdim=True) * noise)
        return torch.cat(parts)

    def _bags(self, n: int, directions: Tensor, g: torch.Generator) -> Tensor:
        shape = (n, round(self.active))
        drawn = torch.multinomial(
            self.frequencies().float(), shape[0] * shape[1], replacement=True, generator=g
        ).view(shape)
        magnitudes = torch.empty(shape).exponential_(1.0, generator=g) + 0.5
        return F.embedding_bag(drawn, directions, per_sample_weights=magnitudes, mode="sum")

    def _topics(self, n: int, directions: Tensor, g: torch.Generator) -> Tensor:
        assert self.correlation is not None
        normal = NormalDist()
        thresholds = torch.tensor([normal.inv_cdf(1.0 - float(p)) for p in self.frequencies()])
        n_groups = -(-self.n_directions // self.group)
        topics = torch.randn(n, n_groups, generator=g).repeat_interleave(self.group, dim=1)
        own = torch.randn(n, self.n_directions, generator=g)
        variables = own.mul_(math.sqrt(1.0 - self.correlation))
        variables += math.sqrt(self.correlation) * topics[:, : self.n_directions]
        magnitudes = torch.empty_like(own).exponential_(1.0, generator=g) + 0.5
        return (magnitudes * (variables > thresholds)) @ directions


def bench_like(seed: int, d_model: int = 256) -> Planted:
    """Return data on which trainers are compared: 24 of 16 d directions, 5% noise."""
    return Planted(d_model, 16 * d_model, active=24, exponent=0.9, noise=0.05, seed=seed)


def train_ours(
    x: Tensor,
    recipe: Sae,
    *,
    seed: int,
    tied_unit: bool = False,
) -> Autoencoder:
    """Train an SAE on the rows of x [tokens, d_model] in their order, like `train_sae`.

    Args:
        x: float32.
        recipe: with `n_latents`.
        seed: of the initial dictionary.
        tied_unit: for ablation: encoder rows start at unit length.
    """
    assert recipe.n_latents is not None
    sample = x[:SAMPLE_TOKENS]
    scale = math.sqrt(x.shape[1]) / float(sample.norm(dim=1).mean())
    generator = torch_generator(seed, "sae_init", "benchmark")
    start = initialize(
        sample * scale, n_latents=recipe.n_latents, k=recipe.kept, generator=generator
    )
    if tied_unit:
        start.w_enc = start.w_dec.clone()
    size = recipe.batch_tokens
    trainer = Trainer(recipe, len(x) // size, start, k=recipe.kept)
    for step in range(trainer.n_steps):
        trainer.train_step(x[step * size : (step + 1) * size] * scale)
    return trainer.sae.scaled(1.0 / scale)


def train_peer(peer: str, x: Tensor, recipe: Sae, *, seed: int) -> Autoencoder:
    """Train an SAE of the same width, k, batch and tokens by a peer at its shipped settings.

    Args:
        peer: one of `PEERS`.
        x: float32 [tokens, d_model].
        recipe: of which only these sizes are read.
        seed: for the peer's own generators.
    """
    with tempfile.TemporaryDirectory() as folder:
        rows, made = Path(folder) / "rows.npy", Path(folder) / "sae"
        np.save(rows, x.numpy())
        script = Path(__file__).with_name("peer_trainers.py")
        sizes = {
            "n-latents": recipe.n_latents,
            "k": recipe.kept,
            "batch-tokens": recipe.batch_tokens,
            "seed": seed,
        }
        options = [f"--{name}={value}" for name, value in sizes.items()]
        quiet = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_WAIT_POLICY": "PASSIVE"}
        done = subprocess.run(
            [PEERS_PYTHON, script, peer, rows, made, *options],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **quiet},
        )
        if done.returncode:
            sys.exit(f"{peer} failed with exit status {done.returncode}:\n{done.stderr[-2000:]}")
        return read_pretrained(str(made), "resid_post.0", where=peer)


def peers_at_hand() -> tuple[str, ...]:
    """Return the peers that are installed."""
    if PEERS_PYTHON.is_file():
        return PEERS
    print("peers are not installed (make .venv-peers/installed): ours alone", file=sys.stderr)
    return ()


def quality(sae: Autoencoder, heldout: Tensor) -> tuple[float, float]:
    """Return held-out FVU (fraction of variance unexplained) and the share of dead latents."""
    found = evaluate(sae, heldout)
    return 1.0 - found["heldout_explained_variance"], 1.0 - found["heldout_alive_share"]
