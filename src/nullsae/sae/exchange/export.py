"""SAEs written in the formats of other packages, SAELens and EleutherAI's sparsify."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from nullsae import paths
from nullsae.config.hooks import hook_name, module_name
from nullsae.config.layouts import LAYOUTS as EVERY
from nullsae.config.model_files import is_local
from nullsae.core.errors import UserError
from nullsae.core.files import atomic_path, read_json, rebuild_command, write_json
from nullsae.jobs.keys import CellKeys
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.exchange.layouts.saelens import SaeLens
from nullsae.sae.exchange.layouts.sparsify import Sparsify
from nullsae.sae.files import load_sae

# SAELens reads a file with no version, or one below 6, as from its older versions.
SAELENS_VERSION = "6.54.12"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
Written = tuple[dict[str, Any], dict[str, Tensor]]


def export_sae(cfg_json: Path, layout: str, output: Path) -> None:
    """Write an SAE in the layout `saelens` or `sparsify`: two files in a new folder.

    If the results around the SAE contain its model, the files name it and the module of its site,
    and the tokenizer is copied next to the weights.

    Raises a `UserError` if the layout does not exist or cannot represent this SAE, or the folder
    contains another.
    """
    if layout not in LAYOUTS:
        raise UserError(f"--layout: {layout!r} is not one of {', '.join(LAYOUTS)}")
    sae, described = load_sae(cfg_json)
    if sae.transcodes:
        raise UserError(f"{cfg_json}: a transcoder; only SAEs can be exported")
    if sae.coding.reads_tokens:
        raise UserError(
            f"{cfg_json}: a {sae.architecture} dictionary reads token ids, not activations; no "
            f"format supports this"
        )
    if sae.architecture not in HOLDS[layout]:
        held = ", ".join(HOLDS[layout])
        raise UserError(
            f"{cfg_json}: {layout} supports only {held} SAEs, but this is of kind "
            f"{sae.architecture}"
        )
    if layout == "sparsify" and sae.normalization != "none":
        raise UserError(
            f"{cfg_json}: sparsify has no normalization, but this SAE has {sae.normalization}; "
            f"give --layout saelens"
        )
    others = [output / name for n, other in EVERY.items() if n != layout for name in other.weights]
    own = output.resolve() == cfg_json.parent.resolve()
    if own or any(file.exists() for file in others if file.name not in EVERY[layout].weights):
        raise UserError(f"--output: {str(output)!r} already contains an SAE; give another folder")
    config, tensors = LAYOUTS[layout](sae)
    model = _model_folder(cfg_json, described.keys)
    if layout == "saelens":
        config["metadata"] |= {
            "hook_name": hook_name(described.keys.site),
            **_model_metadata(model, described.keys),
            "nullsae": described.model_dump(mode="json", include={"keys", "dictionary", "seed"}),
        }
    # The config makes the folder complete, so an old one must never accompany new weights.
    (output / "cfg.json").unlink(missing_ok=True)
    with atomic_path(output / EVERY[layout].weights[0]) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    beside = [] if model is None else [model / name for name in TOKENIZER_FILES]
    for file in beside:
        if file.is_file():
            with atomic_path(output / file.name) as temporary:
                shutil.copyfile(file, temporary)
    write_json(output / "cfg.json", config)


def _model_folder(cfg_json: Path, keys: CellKeys) -> Path | None:
    """Find the folder of the weights that an SAE reads, if its results contain it."""
    depth, parents = len(Path(paths.SAE_CONFIG).parts), cfg_json.resolve().parents
    if len(parents) < depth:
        return None
    folder = parents[depth - 1] / paths.MODEL.format(**keys.model_dump())
    return folder if folder.is_dir() else None


def _model_metadata(folder: Path | None, keys: CellKeys) -> dict[str, str]:
    """Return the model's hub id, if it is as published, and its module name for the site."""
    found: dict[str, str] = {}
    if folder is None:
        return found
    recipe, config = folder / "recipe.json", folder / "config.json"
    if keys.variant == "trained" and recipe.is_file():
        name = read_json(recipe, rebuild=rebuild_command(recipe))["source"].get("path")
        if name is not None and not is_local(name):
            found["model_name"] = name
    if config.is_file():
        kind = read_json(config, rebuild=rebuild_command(config)).get("model_type", "")
        if (module := module_name(keys.site, kind)) is not None:
            found["hf_hook_name"] = module
    return found


def _sparsify(sae: Autoencoder) -> Written:
    """Return `cfg.json` and tensors of a `topk` or `groupmax` SAE."""
    assert sae.k is not None
    config = Sparsify(
        d_in=sae.d_model,
        k=sae.k,
        expansion_factor=max(1, sae.n_latents // sae.d_model),
        num_latents=sae.n_latents,
        activation=sae.architecture,  # type: ignore[arg-type]
        normalize_decoder=bool((sae.w_dec.norm(dim=1) - 1).abs().max() < 1e-4),
    )
    return config.model_dump(exclude={"signed"}), sae.parameters()


def _saelens(sae: Autoencoder) -> Written:
    """Return `cfg.json` and tensors of an SAE of one of SAELens' architectures."""
    metadata: dict[str, Any] = {
        "sae_lens_version": SAELENS_VERSION,
        "sae_lens_training_version": None,
    }
    if sae.normalization == "centre":
        metadata["model_from_pretrained_kwargs"] = {"center_writing_weights": True}
    config = SaeLens(
        architecture=sae.architecture,  # type: ignore[arg-type]
        d_in=sae.d_model,
        d_sae=sae.n_latents,
        apply_b_dec_to_input=True,
        k=sae.k,
        normalize_activations="none" if sae.normalization == "centre" else sae.normalization,
        metadata=metadata,
    )
    named = zip(("W_enc", "b_enc", "W_dec", "b_dec"), sae.weights, strict=True)
    tensors = {**dict(named), **sae.own, "W_enc": sae.w_enc.t()}
    of_topk = {"k", "rescale_acts_by_decoder_norm"}
    return config.model_dump(exclude=set() if sae.k is not None else of_topk), tensors


# For each layout: what writes it, and the architectures that it supports.
LAYOUTS: dict[str, Callable[[Autoencoder], Written]] = {"saelens": _saelens, "sparsify": _sparsify}
HOLDS = {"saelens": ("topk", "jumprelu", "standard"), "sparsify": ("topk", "groupmax")}
