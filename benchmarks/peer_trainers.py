"""The peers' half of quality.py and recovery.py, run by the Python of `.venv-peers`.

    python peer_trainers.py PEER ROWS.npy FOLDER --n-latents N --k K --batch-tokens B --seed S

trains a TopK SAE on the rows [tokens, d_model] float32, once through, by the peer's own training
loop at the settings that it ships, and has the peer save it in FOLDER. Given are only the width, k,
the batch and the tokens. Nothing of nullsae is imported.

sparsify's loop drives a language model, so it gets a stand-in whose only layer looks the rows up.
A warm-up that is longer than a tenth of the run is cut to a tenth: only sparsify's Adam has one.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")

import numpy as np
import torch
from torch import Tensor, nn

SEQUENCE_TOKENS = 256


def sparsify(x: Tensor, folder: Path, args: argparse.Namespace) -> None:
    """EleutherAI's sparsify: sign descent with momentum, schedule-free, no AuxK."""
    from sparsify import SaeConfig, TrainConfig, Trainer
    from transformers import PretrainedConfig, PreTrainedModel

    sequences = args.batch_tokens // SEQUENCE_TOKENS

    class RowsConfig(PretrainedConfig):
        model_type = "rows"
        num_hidden_layers = 1

    class Rows(PreTrainedModel):
        """`layers.0` outputs the rows that `input_ids` names."""

        config_class = RowsConfig
        base_model_prefix = ""

        def __init__(self, config: RowsConfig) -> None:
            super().__init__(config)
            self.layers = nn.ModuleList([nn.Identity()])
            self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)

        @property
        def dummy_inputs(self) -> dict[str, Tensor]:
            return {"input_ids": torch.zeros(1, 4, dtype=torch.long)}

        def forward(self, input_ids: Tensor, **_: object) -> Tensor:
            return self.layers[0](x[input_ids])

    class Ids(torch.utils.data.Dataset):
        """Row numbers, one sequence after the other."""

        def __len__(self) -> int:
            return len(x) // args.batch_tokens * sequences

        def __getitem__(self, index: int) -> dict[str, Tensor]:
            start = index * SEQUENCE_TOKENS
            return {"input_ids": torch.arange(start, start + SEQUENCE_TOKENS)}

    class NoSave(Trainer):
        def save(self) -> None:
            """Without: the loop saves nothing of its own."""

    steps = len(x) // args.batch_tokens
    optimizer = {} if not args.adam else {"optimizer": "adam", "lr_warmup_steps": steps // 10}
    config = TrainConfig(
        SaeConfig(num_latents=args.n_latents, k=args.k),
        batch_size=sequences,
        log_to_wandb=False,
        save_every=10**9,
        hookpoints=["layers.0"],
        init_seeds=[args.seed],
        save_dir=str(folder),
        **optimizer,
    )
    trainer = NoSave(config, Ids(), Rows(RowsConfig()))
    trainer.fit()
    for each in trainer.optimizers:
        if hasattr(each, "eval"):  # schedule-free optimizers hold two sets of weights
            each.eval()
    sae = trainer.saes["layers.0"]
    sae.set_decoder_norm_to_unit_norm()
    sae.save_to_disk(folder)


def saelens(x: Tensor, folder: Path, args: argparse.Namespace) -> None:
    """SAELens: Adam at a constant 3e-4, AuxK after 1000 steps."""
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
    """Train one."""
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
