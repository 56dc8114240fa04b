"""The peers' half of train_step.py, run by the Python of `.venv-peers`.

    python peers_train_step.py PEER ROWS.npy --n-latents N --k K --batch-tokens B --threads T

trains a TopK SAE with Adam on the rows [tokens, d_model] float32, once through, by the peer's own
training loop, and prints one JSON line: CPU and wall milliseconds of each step, from one request
for a batch to the next, and peak memory. Imports nothing of nullsae.

`sparsify` drives a language model, so it gets a stand-in whose only layer looks the rows up, which
takes less than a millisecond. `saelens` is SAELens' default, with dense codes; `saelens-sparse` has
sparse ones, without the rescaling whose backward pass PyTorch lacks on the CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

LEARNING_RATE = 1e-3
Stamps = list[tuple[float, float]]


def stamp(stamps: Stamps) -> None:
    """Record the CPU and wall clocks, in seconds."""
    stamps.append((time.process_time(), time.perf_counter()))


def sparsify(x: Tensor, args: argparse.Namespace, stamps: Stamps) -> None:
    """Train by EleutherAI's sparsify."""
    from peer_rows import rows_trainer

    with tempfile.TemporaryDirectory() as folder:
        trainer = rows_trainer(
            x,
            n_latents=args.n_latents,
            k=args.k,
            batch_tokens=args.batch_tokens,
            seed=0,
            folder=folder,
            before_batch=lambda: stamp(stamps),
            optimizer="adam",
            lr=LEARNING_RATE,
            lr_warmup_steps=0,
        )
        stamps.clear()  # it inspects the widths of the layers first
        trainer.fit()


def saelens(x: Tensor, args: argparse.Namespace, stamps: Stamps) -> None:
    """Train by SAELens."""
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.topk_sae import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.training.sae_trainer import SAETrainer

    def batches() -> Iterator[Tensor]:
        for batch in x.split(args.batch_tokens):
            stamp(stamps)
            yield batch

    sparse = args.peer == "saelens-sparse"
    sae = TopKTrainingSAE(
        TopKTrainingSAEConfig(
            d_in=x.shape[1],
            d_sae=args.n_latents,
            k=args.k,
            use_sparse_activations=sparse,
            rescale_acts_by_decoder_norm=not sparse,
        )
    )
    config = SAETrainerConfig(
        total_training_samples=len(x),
        train_batch_size_samples=args.batch_tokens,
        lr=LEARNING_RATE,
        lr_end=LEARNING_RATE,
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(cfg=config, sae=sae, data_provider=batches()).fit()


def main() -> None:
    """Train one SAE."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=["sparsify", "saelens", "saelens-sparse"])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--n-latents", type=int, required=True)
    parser.add_argument("--k", type=int, required=True)
    parser.add_argument("--batch-tokens", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = torch.from_numpy(np.load(args.rows))
    stamps: Stamps = []
    with contextlib.redirect_stdout(sys.stderr):
        (sparsify if args.peer == "sparsify" else saelens)(x, args, stamps)
        stamp(stamps)
    cpu, wall = (np.diff(clock) * 1e3 for clock in zip(*stamps, strict=True))
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))
    print(json.dumps({"cpu_ms": cpu.tolist(), "wall_ms": wall.tolist(), "peak_mib": peak}))


if __name__ == "__main__":
    main()
