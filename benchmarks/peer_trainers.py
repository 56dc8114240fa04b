"""The peers' half of quality.py and recovery.py, run by the Python of `.venv-peers`.

    python peer_trainers.py PEER ROWS.npy FOLDER --n-latents N --k K --batch-tokens B --seed S

trains a TopK SAE on the rows [tokens, d_model] float32, once through, by the peer's own training
loop at its shipped settings, and has the peer save it in FOLDER. Only the width, k, the batch and
the tokens are given. Imports nothing of nullsae.

sparsify's loop drives a language model, so it gets the stand-in of `peer_rows.py`. A warm-up longer
than a tenth of the run is cut to a tenth; only sparsify's Adam has one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor


def sparsify(x: Tensor, folder: Path, args: argparse.Namespace) -> None:
    """Train by EleutherAI's sparsify: sign descent with momentum, schedule-free, no AuxK."""
    from peer_rows import rows_trainer

    steps = len(x) // args.batch_tokens
    optimizer = {} if not args.adam else {"optimizer": "adam", "lr_warmup_steps": steps // 10}
    trainer = rows_trainer(
        x,
        n_latents=args.n_latents,
        k=args.k,
        batch_tokens=args.batch_tokens,
        seed=args.seed,
        folder=folder,
        **optimizer,
    )
    trainer.fit()
    for each in trainer.optimizers:
        if hasattr(each, "eval"):  # schedule-free optimizers keep two sets of weights
            each.eval()
    sae = trainer.saes["layers.0"]
    sae.set_decoder_norm_to_unit_norm()
    sae.save_to_disk(folder)


def saelens(x: Tensor, folder: Path, args: argparse.Namespace) -> None:
    """Train by SAELens: Adam at a constant 3e-4, AuxK after 1000 steps."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    sae = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=args.n_latents, k=args.k))
    config = SAETrainerConfig(
        total_training_samples=len(x) // args.batch_tokens * args.batch_tokens,
        train_batch_size_samples=args.batch_tokens,
        lr_end=SAETrainerConfig.lr,
        logger=LoggingConfig(log_to_wandb=False),
    )
    batches = iter(x.split(args.batch_tokens))
    SAETrainer(cfg=config, sae=sae, data_provider=batches).fit()
    sae.save_inference_model(folder)


def main() -> None:
    """Train one SAE."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=["sparsify", "saelens"])
    parser.add_argument("rows", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--n-latents", type=int, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--batch-tokens", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--adam", action="store_true", help="sparsify with its other optimizer")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    x = torch.from_numpy(np.load(args.rows))
    args.folder.mkdir(parents=True, exist_ok=True)
    {"sparsify": sparsify, "saelens": saelens}[args.peer](x, args.folder, args)


if __name__ == "__main__":
    main()
