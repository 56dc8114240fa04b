"""Measure how well SAEs reconstruct with default settings: `python benchmarks/quality.py`.

Data are sparse combinations of known directions (`synthetic.bench_like`): 491,520 tokens of width
256, TopK SAEs of 2048 latents with k 32, batches of 4096. nullsae runs with its defaults, then with
one default at a time reverted; the peers run with their shipped settings. The script prints medians
over seeds (each with its own data and initialization) of the fraction of variance unexplained (FVU)
on 16,384 held-out tokens, and of the share of latents that never fire there.

    python benchmarks/quality.py --activations CELL SITE --n-latents 1024 --k 16 --batch-tokens 1024

uses the captured activations of a study instead, such as those in
`results/activations/subject=small/variant=trained/draw=0`; seeds then decide the order of the
tokens and the initialization.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from synthetic import bench_like, peers_at_hand, quality, train_ours, train_peer
from torch import Tensor

from nullsae.activations.store import SiteReader
from nullsae.config.saes import Sae, fill_in_recipe
from nullsae.core.randomness import torch_generator
from nullsae.sae.autoencoder import Autoencoder

HELDOUT_TOKENS = 16_384
Training = Callable[[Tensor, int], Autoencoder]
# Each row of the ablation: what is reverted, and the keys that do it.
ABLATIONS: dict[str, dict[str, Any]] = {
    "base_lr 2e-4 (Gao et al.)": {"base_lr": 2e-4},
    "base_lr 4e-3": {"base_lr": 4e-3},
    "adam_betas (0.9, 0.999)": {"adam_betas": (0.9, 0.999)},
    "no AuxK": {"auxk_coefficient": 0.0},
    "dead after 10 million tokens": {"dead_after_tokens": 10_000_000},
    "no warm-up": {"warmup_share": 0.0},
    "no decay": {"decay_share": 0.0},
    "no gradient clipping": {"grad_clip_norm": 1e9},
}


def ours(shape: dict[str, Any], *, tied_unit: bool = False, **changed: Any) -> Training:
    """Train by this package with these keys changed."""
    recipe = Sae.model_validate(fill_in_recipe({**shape, **changed}))
    return lambda x, seed: train_ours(x, recipe, seed=seed, tied_unit=tied_unit)


def theirs(peer: str, shape: dict[str, Any]) -> Training:
    """Train by a peer."""
    recipe = Sae.model_validate(shape)
    return lambda x, seed: train_peer(peer, x, recipe, seed=seed)


def trainings(shape: dict[str, Any], *, ablate: bool, peers: bool) -> dict[str, Training]:
    """Return what is compared, by name."""
    found = {"ours, defaults": ours(shape)}
    if ablate:
        found["  encoder rows start at length 1"] = ours(shape, tied_unit=True)
        found |= {f"  {name}": ours(shape, **keys) for name, keys in ABLATIONS.items()}
    found["ours, recipe: paper"] = ours(shape, recipe="paper")
    if peers:
        found |= {f"{name}, as shipped": theirs(name, shape) for name in peers_at_hand()}
    return found


def captured(cell: Path, site: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return `sae_train` in an order of this seed, and held-out tokens: float32 [n, d_model]."""
    train = SiteReader.open(cell / "split=sae_train" / "manifest.json", site)
    x = torch.cat([train.stored(index)[0].float() for index in range(train.n_shards)])
    order = torch.randperm(len(x), generator=torch_generator(seed, "quality_order"))
    heldout = SiteReader.open(cell / "split=eval" / "manifest.json", site)
    return x[order], next(heldout.batches(HELDOUT_TOKENS))[0].float()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=491_520)
    parser.add_argument("--n-latents", type=int, default=2048)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--activations", nargs=2, metavar=("CELL", "SITE"))
    parser.add_argument("--no-ablation", action="store_true")
    parser.add_argument("--no-peers", action="store_true")
    args = parser.parse_args()
    shape = {"n_latents": args.n_latents, "k": args.k, "batch_tokens": args.batch_tokens}
    rows: dict[str, list[tuple[float, float]]] = {}
    for seed in range(args.seeds):
        if args.activations:
            x, heldout = captured(Path(args.activations[0]), args.activations[1], seed)
            x = x[: args.tokens]
        else:
            data = bench_like(seed)
            x, heldout = data.tokens(args.tokens, "train"), data.tokens(HELDOUT_TOKENS, "heldout")
        compared = trainings(shape, ablate=not args.no_ablation, peers=not args.no_peers)
        for label, train in compared.items():
            fvu, dead = quality(train(x, seed), heldout)
            rows.setdefault(label, []).append((fvu, dead))
            print(f"seed {seed}: {label.strip()}: FVU {fvu:.4f}, dead {dead:.4f}", file=sys.stderr)
    print(f"{args.n_latents} latents, {len(x):,} tokens, medians of {args.seeds} seeds")
    print(f"{'':36}{'FVU':>8}{'of all seeds':>20}{'dead':>8}")
    for label, found in rows.items():
        fvus, shares = zip(*found, strict=True)
        spread = f"{min(fvus):.4f} to {max(fvus):.4f}"
        print(f"{label:36}{median(fvus):8.4f}{spread:>20}{median(shares):8.4f}")


if __name__ == "__main__":
    main()
