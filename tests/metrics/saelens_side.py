"""SAELens' half of test_metrics_saelens.py, run by the Python of `.venv-peers`.

    python saelens_side.py FOLDER

reads `model/` (a Hugging Face checkpoint), `sae/` (in SAELens' own format) and `tokens.safetensors`
in FOLDER and writes `metrics.json`: what `sae_lens.evals` makes of them, and its KL divergence at
the positions that predict a token. Nothing of nullsae is imported.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sae_lens import SAE
from sae_lens.evals import EvalConfig, get_recons_loss, run_evals
from sae_lens.load_model import HookedProxyLM
from sae_lens.training.activation_scaler import ActivationScaler
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM


class Tokens:
    """Replaces SAELens' data set: the same contexts from their start, in batches."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self.context_size = tokens.shape[1]
        self.store_batch_size_prompts = 10
        self.reset_input_dataset()

    def reset_input_dataset(self) -> None:
        self.at = 0

    def get_batch_tokens(self, batch_size: int) -> Tensor:
        batch = self.tokens[self.at : self.at + batch_size]
        assert len(batch) == batch_size
        self.at += batch_size
        return batch


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    hook = (folder / "hook").read_text()
    model = HookedProxyLM(
        AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).eval(),
        None,
        hook_names=[hook],
    )
    sae = SAE.load_from_disk(folder / "sae", dtype="float32")
    sae.cfg.metadata.hook_name = hook
    tokens = load_file(folder / "tokens.safetensors")["input_ids"].long()
    store = Tokens(tokens)
    n_batches = len(tokens) // store.store_batch_size_prompts
    config = EvalConfig(
        n_eval_reconstruction_batches=n_batches,
        compute_kl=True,
        compute_ce_loss=True,
        n_eval_sparsity_variance_batches=n_batches,
        compute_l2_norms=True,
        compute_sparsity_metrics=True,
        compute_variance_metrics=True,
        compute_featurewise_density_statistics=True,
    )
    scaler = ActivationScaler()
    found, latents = run_evals(sae, store, model, scaler, config, exclude_special_tokens=False)
    metrics = {name: value for group in found.values() for name, value in group.items()}
    per_token = get_recons_loss(
        sae, model, scaler, tokens, compute_kl=True, compute_ce_loss=False, hook_name=hook
    )
    for name, values in per_token.items():
        metrics[f"{name}_where_predicted"] = float(values[:, :-1].mean())
    metrics["alive_share"] = sum(x > 0 for x in latents["feature_density"]) / sae.cfg.d_sae
    (folder / "metrics.json").write_text(json.dumps(metrics))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
