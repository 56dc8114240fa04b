"""The part of test_workflow_published.py that needs `sae_lens`, run by Python of `.venv-peers`.

    python published_side.py FOLDER RELEASE SAE_ID

trains an SAE on `train` of FOLDER's `x.safetensors`, activations [tokens, d_model], like those of
`gpt2-small-res-jb`: ReLU and L1, on a model with centred weights. It saves the SAE, serves its
files at the release's address on a local hub, and lets `sae_lens` download it from there into the
cache of HF_HOME. It writes that SAE's output for `heldout`, centred, as `results.safetensors`.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from local_hub import local_hub
from safetensors.torch import load_file, save_file
from torch import Tensor

WIDTH, BATCH_TOKENS, STEPS = 32, 512, 800


def train(x: Tensor, release: str, sae_id: str, folder: Path) -> dict[str, Path]:
    """Train and save an SAE; return its files by their paths on the hub."""
    from sae_lens import StandardTrainingSAE, StandardTrainingSAEConfig
    from sae_lens.config import SAETrainerConfig
    from sae_lens.loading.pretrained_saes_directory import get_repo_id_and_folder_name
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    def batches() -> Iterator[Tensor]:
        for _ in itertools.count():
            yield from x[torch.randperm(len(x))].split(BATCH_TOKENS)

    made_on = SAEMetadata(
        model_name="gpt2-small", hook_name=sae_id, context_size=32, prepend_bos=False
    )
    sae = StandardTrainingSAE(
        StandardTrainingSAEConfig(
            d_in=x.shape[1],
            d_sae=WIDTH,
            l1_coefficient=0.5,
            normalize_activations="expected_average_only_in",
            metadata=made_on,
        )
    )
    config = SAETrainerConfig(
        total_training_samples=STEPS * BATCH_TOKENS,
        train_batch_size_samples=BATCH_TOKENS,
        lr=3e-3,
        lr_end=3e-3,
        n_batches_for_norm_estimate=20,
    )
    SAETrainer(config, sae, batches()).fit().save_inference_model(folder)
    place = "/".join(get_repo_id_and_folder_name(release, sae_id))
    return {f"{place}/{file.name}": file for file in folder.iterdir()}


def main(folder: Path, release: str, sae_id: str, served: dict[str, bytes]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = load_file(folder / "x.safetensors")
    # As centred weights give them: LayerNorms subtract the mean anyway.
    x, heldout = (found[n] - found[n].mean(dim=1, keepdim=True) for n in ("train", "heldout"))
    files = train(x, release, sae_id, folder / "saved")
    served |= {place: file.read_bytes() for place, file in files.items()}

    from sae_lens import SAE

    sae = SAE.from_pretrained(release, sae_id)
    with torch.no_grad():
        codes = sae.encode(heldout)
        results = {"codes": codes, "reconstruction": sae.decode(codes)}
    save_file({n: t.contiguous() for n, t in results.items()}, folder / "results.safetensors")


if __name__ == "__main__":
    served: dict[str, bytes] = {}
    with local_hub(served) as address:
        # The hub's libraries read it on import.
        os.environ["HF_ENDPOINT"] = address
        main(Path(sys.argv[1]), *sys.argv[2:4], served)
