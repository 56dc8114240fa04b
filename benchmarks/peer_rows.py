"""A stand-in for the language model that sparsify's own loop drives, for the peers' scripts.

Run by the Python of `.venv-peers`; imports nothing of nullsae.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")

import torch
from sparsify import SaeConfig, TrainConfig, Trainer
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

SEQUENCE_TOKENS = 256


class RowsConfig(PretrainedConfig):
    """The config of a model of one layer."""

    model_type = "rows"
    num_hidden_layers = 1


class Rows(PreTrainedModel):
    """A model whose `layers.0` outputs the rows that `input_ids` name."""

    config_class = RowsConfig
    base_model_prefix = ""

    def __init__(self, rows: Tensor, before_batch: Callable[[], None]) -> None:
        super().__init__(RowsConfig())
        self.layers = nn.ModuleList([nn.Identity()])
        self.anchor = nn.Parameter(torch.zeros(1), requires_grad=False)
        self.rows, self.before_batch = rows, before_batch

    @property
    def dummy_inputs(self) -> dict[str, Tensor]:
        """An input by which sparsify finds the widths of the layers."""
        return {"input_ids": torch.zeros(1, 4, dtype=torch.long)}

    def forward(self, input_ids: Tensor, **_: object) -> Tensor:
        """Look up the rows."""
        self.before_batch()
        return self.layers[0](self.rows[input_ids])


class Ids(torch.utils.data.Dataset):
    """Row numbers, one sequence after another."""

    def __init__(self, n_tokens: int) -> None:
        self.n_sequences = n_tokens // SEQUENCE_TOKENS

    def __len__(self) -> int:
        return self.n_sequences

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        start = index * SEQUENCE_TOKENS
        return {"input_ids": torch.arange(start, start + SEQUENCE_TOKENS)}


class NoSave(Trainer):
    """A trainer that saves nothing by itself."""

    def save(self) -> None:
        """Do nothing."""


def rows_trainer(
    x: Tensor,
    *,
    n_latents: int,
    k: int,
    batch_tokens: int,
    seed: int,
    folder: Path | str,
    before_batch: Callable[[], None] = lambda: None,
    **settings: Any,
) -> NoSave:
    """Make sparsify's trainer of a TopK SAE on rows [tokens, d_model], in whole batches.

    `before_batch` is called when a batch is requested; `settings` go to its `TrainConfig`.
    """
    config = TrainConfig(
        SaeConfig(num_latents=n_latents, k=k),
        batch_size=batch_tokens // SEQUENCE_TOKENS,
        log_to_wandb=False,
        save_every=10**9,
        hookpoints=["layers.0"],
        init_seeds=[seed],
        save_dir=str(folder),
        **settings,
    )
    n_tokens = len(x) // batch_tokens * batch_tokens
    return NoSave(config, Ids(n_tokens), Rows(x, before_batch))
