"""The half of test_workflow_published.py that has `sae_lens`, run by the Python of `.venv-peers`.

    python published_side.py FOLDER

trains an SAE on `train` of FOLDER's `x.safetensors`, activations [tokens, d_model], as those under
`gpt2-small-res-jb` were: ReLU and L1, on a model with centred weights. Saves it as `published/`, and
what it makes of `heldout`, centred, as `results.safetensors`.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from sae_lens import SAE, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import SAEMetadata
from sae_lens.training.sae_trainer import SAETrainer
from safetensors.torch import load_file, save_file
from torch import Tensor

WIDTH, BATCH_TOKENS, STEPS = 32, 512, 1500
MADE_ON = {
    "model_name": "small",
    "hook_name": "blocks.0.hook_resid_post",
    "context_size": 32,
    "prepend_bos": False,
    "model_from_pretrained_kwargs": {"center_writing_weights": True},
}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = load_file(folder / "x.safetensors")
    # What centred weights give: LayerNorms take the mean off anyway.
    train, heldout = (found[n] - found[n].mean(dim=1, keepdim=True) for n in ("train", "heldout"))

    def batches() -> Iterator[Tensor]:
        for _ in itertools.count():
            yield from train[torch.randperm(len(train))].split(BATCH_TOKENS)

    sae = StandardTrainingSAE(
        StandardTrainingSAEConfig(
            d_in=train.shape[1],
            d_sae=WIDTH,
            l1_coefficient=0.5,
            normalize_activations="expected_average_only_in",
            metadata=SAEMetadata(**MADE_ON),
        )
    )
    config = SAETrainerConfig(
        total_training_samples=STEPS * BATCH_TOKENS,
        train_batch_size_samples=BATCH_TOKENS,
        lr=3e-3,
        lr_end=3e-3,
        n_batches_for_norm_estimate=20,
    )
    SAETrainer(config, sae, batches()).fit().save_inference_model(folder / "published")
    saved = SAE.load_from_disk(folder / "published")
    with torch.no_grad():
        codes = saved.encode(heldout)
        results = {"codes": codes, "reconstruction": saved.decode(codes)}
    save_file({n: t.contiguous() for n, t in results.items()}, folder / "results.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
