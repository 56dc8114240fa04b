"""The other packages' half of test_sae_interchange.py, run by the Python of `.venv-peers`.

   python peers_side.py FOLDER

reads `x.safetensors` and every `ours/LAYOUT-NAME` in FOLDER, writes `theirs/LAYOUT-NAME` with
SAEs of each kind that the packages have, `again/LAYOUT-NAME` with ours as they save them again,
and `results.safetensors`: per folder the dense codes and the reconstructions of x. It imports
nothing of nullsae, so what is compared is what these packages do themselves.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    GatedTrainingSAE,
    GatedTrainingSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    JumpReLUTrainingSAE,
    JumpReLUTrainingSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    StandardTrainingSAE,
    StandardTrainingSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata, TrainStepInput
from safetensors.torch import load_file, save_file
from sparsify import SparseCoder, SparseCoderConfig
from torch import Tensor, nn

D, WIDTH, K, D_OUT = 12, 40, 5, 9
TRANSCODERS = (
    *("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder"),
)


def vary(sae: nn.Module, generator: torch.Generator) -> nn.Module:
    """Fill every tensor with different numbers, with decoder rows of different norms."""
    with torch.no_grad():
        for name, tensor in sae.named_parameters():
            drawn = torch.randn(tensor.shape, generator=generator)
            drawn = drawn.abs() * 0.5 if name == "threshold" else drawn * 0.4
            tensor.copy_(drawn.to(tensor.dtype))
    return sae


def train_threshold(sae: BatchTopKTrainingSAE, x: Tensor) -> BatchTopKTrainingSAE:
    """Train the threshold of a BatchTopK SAE."""
    for step in range(8):
        sae.training_forward_pass(
            TrainStepInput(
                sae_in=x,
                coefficients={},
                dead_neuron_mask=None,
                n_training_steps=step,
                is_logging_step=False,
            )
        )
    return sae


def saelens_saes(folder: Path, x: Tensor) -> None:
    g = torch.Generator().manual_seed(1)
    size = {"d_in": D, "d_sae": WIDTH}

    vary(TopKTrainingSAE(TopKTrainingSAEConfig(**size, k=K)), g).save_inference_model(
        folder / "saelens-topk"
    )
    for name, keys in {
        "topk-plain": {},
        "topk-rescaled": {"rescale_acts_by_decoder_norm": True},
        "topk-input": {"apply_b_dec_to_input": False},
    }.items():
        vary(TopKSAE(TopKSAEConfig(**size, k=K, **keys)), g).save_model(folder / f"saelens-{name}")

    for name, rescaled in (("batchtopk", True), ("batchtopk-plain", False)):
        config = BatchTopKTrainingSAEConfig(
            **size, k=3.5, topk_threshold_lr=0.5, rescale_acts_by_decoder_norm=rescaled
        )
        sae = train_threshold(vary(BatchTopKTrainingSAE(config), g), x)
        sae.save_inference_model(folder / f"saelens-{name}")

    jumprelu = vary(JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**size)), g)
    jumprelu.save_inference_model(folder / "saelens-jumprelu")
    half = JumpReLUTrainingSAEConfig(**size, dtype="bfloat16")
    vary(JumpReLUTrainingSAE(half), g).save_inference_model(folder / "saelens-jumprelu-bfloat16")

    inference = {
        "standard": StandardSAE,
        "gated": GatedSAE,
        "jumprelu": JumpReLUSAE,
        "topk": TopKSAE,
    }
    configs = (StandardSAEConfig, GatedSAEConfig, JumpReLUSAEConfig, TopKSAEConfig)
    for (name, kind), config_class in zip(inference.items(), configs, strict=True):
        for normalization in ("none", "layer_norm", "constant_norm_rescale"):
            for applied in (True, False):
                keys = {"normalize_activations": normalization, "apply_b_dec_to_input": applied}
                own = {"k": K} if name == "topk" else {}
                sae = vary(kind(config_class(**size, **keys, **own)), g)
                where = f"saelens-{name}-{normalization}-{'b_dec' if applied else 'plain'}"
                sae.save_model(folder / where)
    gated = vary(GatedTrainingSAE(GatedTrainingSAEConfig(**size)), g)
    gated.save_inference_model(folder / "saelens-gated")
    matryoshka = MatryoshkaBatchTopKTrainingSAEConfig(
        **size, k=3.5, matryoshka_widths=[10, 20, WIDTH], topk_threshold_lr=0.5
    )
    train_threshold(vary(MatryoshkaBatchTopKTrainingSAE(matryoshka), g), x).save_inference_model(
        folder / "saelens-matryoshka"
    )
    # What is folded in training is saved as a plain SAE.
    folded = vary(StandardTrainingSAE(StandardTrainingSAEConfig(**size)), g)
    folded.cfg.normalize_activations = "expected_average_only_in"
    folded.fold_activation_norm_scaling_factor(1.7)
    folded.save_inference_model(folder / "saelens-factor")
    whitened = vary(JumpReLUTrainingSAE(JumpReLUTrainingSAEConfig(**size)), g)
    root = torch.randn(D, D, generator=g) * 0.3 + torch.eye(D)
    whitened.fold_activation_whitening(torch.randn(D, generator=g), root, torch.linalg.inv(root))
    whitened.save_inference_model(folder / "saelens-whitened")

    for name, applied in (("standard", True), ("standard-input", False)):
        config = StandardSAEConfig(**size, apply_b_dec_to_input=applied)
        vary(StandardSAE(config), g).save_model(folder / f"saelens-{name}")

    # As versions before 6 wrote it: the flat config of the training run, no metadata.
    for name, keys in {
        "standard": {"hook_point": "blocks.1.hook_resid_pre", "apply_b_dec_to_input": False},
        "topk": {
            "activation_fn_str": "topk",
            "activation_fn_kwargs": {"k": K},
            "hook_name": "blocks.1.hook_resid_pre",
        },
    }.items():
        old = folder / f"saelens-old-{name}"
        vary(StandardSAE(StandardSAEConfig(**size)), g).save_model(old)
        weights = load_file(old / "sae_weights.safetensors")
        weights["scaling_factor"] = torch.ones(WIDTH)
        save_file(weights, old / "sae_weights.safetensors")
        run = {"model_name": "gpt2-small", "hook_point_layer": 1, "l1_coefficient": 8e-05}
        rest = {"dtype": "torch.float32", "device": "cpu", "seed": 42, "log_to_wandb": True}
        (old / "cfg.json").write_text(json.dumps({**run, **rest, **size, **keys}))


def saelens_transcoders(folder: Path) -> None:
    g = torch.Generator().manual_seed(3)
    size = {"d_in": D, "d_out": D_OUT, "d_sae": WIDTH, "apply_b_dec_to_input": False}
    hooks = {"hook_name": "blocks.1.mlp.hook_in", "hook_name_out": "blocks.1.hook_mlp_out"}
    for name in TRANSCODERS:
        kind, config_class = get_sae_class(name)
        config = config_class(**size, metadata=SAEMetadata(**hooks))
        vary(kind(config), g).save_model(folder / f"saelens-{name}")


def sparsify_saes(folder: Path) -> None:
    g = torch.Generator().manual_seed(2)
    wide, skip = {"num_latents": WIDTH}, {"transcode": True, "skip_connection": True}
    for name, keys in {
        "factor": {"num_latents": 0, "expansion_factor": 3},
        "width": {**wide, "multi_topk": True},
        "plain": {**wide, "normalize_decoder": False},
        "bfloat16": wide,
        "groupmax": {**wide, "activation": "groupmax"},
        # A transcoder's folder has the name of its module, or is that of a seed in it.
        "transcoder/layers.1.mlp": {**wide, "transcode": True},
        "skip_transcoder/layers.1.mlp": {**wide, **skip},
        "groupmax_skip_transcoder/layers.1.mlp/seed3": {**wide, **skip, "activation": "groupmax"},
    }.items():
        half = torch.bfloat16 if name == "bfloat16" else torch.float32
        coder = vary(SparseCoder(D, SparseCoderConfig(k=K, **keys), dtype=half), g)
        if coder.cfg.normalize_decoder:
            coder.set_decoder_norm_to_unit_norm()
        coder.save_to_disk(folder / f"sparsify-{name}")


@torch.no_grad()
def results(folder: Path, x: Tensor) -> tuple[dict[str, Tensor], SAE | SparseCoder]:
    if (folder / "sae_weights.safetensors").exists():
        # In float32 whatever the file's type, because weights are compared, not rounding.
        sae = SAE.load_from_disk(folder, dtype="float32")
        codes = sae.encode(x)
        # Only `forward` adds a skip connection.
        decoded = sae(x) if "transcoder" in folder.name else sae.decode(codes)
        return {"codes": codes, "reconstruction": decoded}, sae
    coder = SparseCoder.load_from_disk(folder).float()
    values, indices, _ = coder.encode(x)
    codes = torch.zeros(len(x), coder.num_latents).scatter(1, indices, values)
    decoded = coder(x).sae_out if coder.cfg.transcode else coder.decode(values, indices)
    return {"codes": codes, "reconstruction": decoded}, coder


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    x = load_file(folder / "x.safetensors")["x"]
    saelens_saes(folder / "theirs", x)
    saelens_transcoders(folder / "theirs")
    sparsify_saes(folder / "theirs")
    found = {}
    made = [*(folder / "theirs").rglob("cfg.json"), *(folder / "ours").rglob("cfg.json")]
    for own in sorted(file.parent for file in made):
        computed, sae = results(own, x)
        key = own.relative_to(folder)
        found |= {f"{key}/{name}": tensor.contiguous() for name, tensor in computed.items()}
        if own.parent.name == "ours":
            again = folder / "again" / own.name
            sae.save_model(again) if isinstance(sae, SAE) else sae.save_to_disk(again)
    save_file(found, folder / "results.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
