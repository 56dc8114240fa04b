"""Measure whether SAEs find a planted dictionary: `python benchmarks/recovery.py`.

There are two regimes of activations with known directions: Zipf frequencies, correlated topics,
noise. All SAEs of a regime get the same tokens, k and width; nullsae uses the default settings of
each architecture, the peers their shipped settings. The script prints medians over seeds (each with
its own directions, tokens and initialization) of

    recall     mean over true directions of the largest cosine with a decoder row (MMCS)
    found      share of true directions with a cosine above 0.9
    precision  mean over decoder rows that fire of the largest cosine with a true direction
    FVU, dead  fraction of variance unexplained, and latents that never fire, on held-out tokens
    L0         active latents per token there: k, or what a penalty leads to
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from synthetic import Planted, peers_at_hand, quality, train_ours, train_peer
from torch import Tensor

from nullsae.config.saes import ARCHITECTURES, Sae
from nullsae.core.randomness import torch_generator
from nullsae.sae.autoencoder import Autoencoder

HELDOUT_TOKENS = 16_384
FOUND_COSINE = 0.9


@dataclass(frozen=True)
class Regime:
    """Data, and the SAE to train on it."""

    d_model: int
    n_directions: int
    active: float
    exponent: float
    noise: float
    correlation: float
    n_latents: int
    k: int
    tokens: int

    def data(self, seed: int) -> Planted:
        """Return the activations of one seed."""
        return Planted(
            self.d_model,
            self.n_directions,
            self.active,
            self.exponent,
            self.noise,
            seed=seed,
            correlation=self.correlation,
        )


REGIMES = {
    "easy": Regime(
        d_model=128,
        n_directions=256,
        active=8,
        exponent=0.7,
        noise=0.05,
        correlation=0.2,
        n_latents=512,
        k=8,
        tokens=491_520,
    ),
    "hard": Regime(
        d_model=128,
        n_directions=1024,
        active=16,
        exponent=0.9,
        noise=0.1,
        correlation=0.5,
        n_latents=1024,
        k=16,
        tokens=491_520,
    ),
}


def recovery(sae: Autoencoder, truth: Tensor, heldout: Tensor) -> dict[str, float]:
    """Measure how close the decoder rows come to the truth.

    Args:
        sae: in the units of the activations.
        truth: unit rows [n_directions, d_model].
        heldout: activations [tokens, d_model], which decide what rows are in use.
    """
    fires = torch.zeros(sae.n_latents, dtype=torch.bool)
    active = 0
    for start in range(0, len(heldout), 4096):
        values, indices = sae.encode(heldout[start : start + 4096])
        fires[indices[values > 0]] = True
        active += int((values > 0).sum())
    cosines = truth @ F.normalize(sae.w_dec, dim=1).t()
    best = cosines.max(dim=1).values
    fvu, dead = quality(sae, heldout)
    return {
        "recall": float(best.mean()),
        "found": float((best > FOUND_COSINE).double().mean()),
        "precision": float(cosines[:, fires].max(dim=0).values.mean()) if fires.any() else 0.0,
        "FVU": fvu,
        "dead": dead,
        "L0": active / len(heldout),
    }


def chance(truth: Tensor, n_latents: int, seed: int) -> float:
    """Return the recall of random unit rows."""
    g = torch_generator(seed, "recovery_chance")
    rows = F.normalize(torch.randn(n_latents, truth.shape[1], generator=g), dim=1)
    return float((truth @ rows.t()).max(dim=1).values.mean())


def trainings(regime: Regime, seed: int) -> dict[str, Callable[[Tensor], Autoencoder]]:
    """Return what is compared, by name."""
    shape = {"n_latents": regime.n_latents, "k": regime.k}
    sizes = Sae.model_validate(shape)

    def ours(architecture: str) -> Callable[[Tensor], Autoencoder]:
        read = ARCHITECTURES[architecture].model_fields
        keys = {key: value for key, value in shape.items() if key in read}
        recipe = Sae.model_validate({**keys, "architecture": architecture})
        return lambda x: train_ours(x, recipe, seed=seed)

    def theirs(peer: str) -> Callable[[Tensor], Autoencoder]:
        return lambda x: train_peer(peer, x, sizes, seed=seed)

    found = {f"ours, {name}": ours(name) for name in ARCHITECTURES}
    return found | {f"{name}, as shipped": theirs(name) for name in peers_at_hand()}


def main() -> None:
    """Print a table per regime."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--regimes", nargs="+", choices=REGIMES, default=list(REGIMES))
    args = parser.parse_args()
    for name in args.regimes:
        regime = REGIMES[name]
        rows: dict[str, list[dict[str, float]]] = {}
        floor = []
        for seed in range(args.seeds):
            data = regime.data(seed)
            truth = data.directions()
            x, heldout = data.tokens(regime.tokens, "train"), data.tokens(HELDOUT_TOKENS, "heldout")
            floor.append(chance(truth, regime.n_latents, seed))
            for label, train in trainings(regime, seed).items():
                found = recovery(train(x), truth, heldout)
                rows.setdefault(label, []).append(found)
                print(f"{name}, seed {seed}: {label}: {found}", file=sys.stderr)
        print(f"\n{name}: {regime}, medians of {args.seeds} seeds")
        print(f"random rows would have a recall of {median(floor):.3f}")
        print(f"{'':24}" + "".join(f"{key:>11}" for key in next(iter(rows.values()))[0]))
        for label, each in rows.items():
            cells = (median(found[key] for found in each) for key in each[0])
            print(f"{label:24}" + "".join(f"{cell:11.3f}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
