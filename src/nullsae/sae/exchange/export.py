"""SAEs written in the formats of other packages, SAELens and EleutherAI's sparsify."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from nullsae import paths
from nullsae.config.model_files import is_local
from nullsae.core.errors import UserError
from nullsae.core.files import atomic_path, read_json, rebuild_command, write_json
from nullsae.jobs.keys import CellKeys
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.exchange.formats import WEIGHTS, SaeLensConfig, SparsifyConfig, hook_name
from nullsae.sae.files import load_sae

# SAELens reads a file without a version, or of one below 6, as those of its older versions.
SAELENS_VERSION = "6.54.12"
Written = tuple[dict[str, Any], dict[str, Tensor]]


def export_sae(cfg_json: Path, layout: str, output: Path) -> None:
    """Write an SAE in the layout `saelens` or `sparsify`: two files in a folder that is made.

    A `UserError` says that there is no such layout, that it cannot hold this SAE, or that the
    folder holds another.
    """
    if layout not in LAYOUTS:
        raise UserError(f"--layout: {layout!r} is not one of {', '.join(LAYOUTS)}")
    sae, described = load_sae(cfg_json)
    if sae.transcodes:
        raise UserError(f"{cfg_json}: a transcoder; only SAEs can be exported")
    if sae.coding.reads_tokens:
        raise UserError(
            f"{cfg_json}: a {sae.architecture} dictionary reads token ids, not activations, which "
            f"neither format can say; it cannot be exported"
        )
    if sae.architecture not in HOLDS[layout]:
        raise UserError(
            f"{cfg_json}: {layout} holds {', '.join(HOLDS[layout])} SAEs only, and this is a "
            f"{sae.architecture} one; give --layout saelens"
        )
    others = [output / name for other, name in WEIGHTS.items() if other != layout]
    own = output.resolve() == cfg_json.parent.resolve()
    if own or any(file.exists() for file in others):
        raise UserError(f"--output: {str(output)!r} holds an SAE already; give another folder")
    config, tensors = LAYOUTS[layout](sae)
    if layout == "saelens":
        config["metadata"] |= {
            "hook_name": hook_name(described.keys.site),
            **_model_name(cfg_json, described.keys),
            "nullsae": described.model_dump(mode="json", include={"keys", "dictionary", "seed"}),
        }
    # The config makes the folder complete: an old one never stands beside new weights.
    (output / "cfg.json").unlink(missing_ok=True)
    with atomic_path(output / WEIGHTS[layout]) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
    write_json(output / "cfg.json", config)


def _model_name(cfg_json: Path, keys: CellKeys) -> dict[str, str]:
    """The hub id of the model that an SAE reads, if the results beside it say so."""
    depth, parents = len(Path(paths.SAE_CONFIG).parts), cfg_json.resolve().parents
    if keys.variant != "trained" or len(parents) < depth:
        return {}
    recipe = parents[depth - 1] / paths.RECIPE.format(**keys.model_dump())
    if not recipe.is_file():
        return {}
    name = read_json(recipe, rebuild=rebuild_command(recipe))["source"].get("path")
    return {} if name is None or is_local(name) else {"model_name": name}


def _sparsify(sae: Autoencoder) -> Written:
    """`cfg.json` and tensors of a `topk` SAE."""
    assert sae.k is not None
    config = SparsifyConfig(
        d_in=sae.d_model,
        k=sae.k,
        expansion_factor=max(1, sae.n_latents // sae.d_model),
        num_latents=sae.n_latents,
        normalize_decoder=bool((sae.w_dec.norm(dim=1) - 1).abs().max() < 1e-4),
    )
    return config.model_dump(exclude={"signed"}), sae.parameters()


def _saelens(sae: Autoencoder) -> Written:
    """`cfg.json` and tensors of an SAE of one of its architectures."""
    config = SaeLensConfig(
        architecture=sae.architecture,  # type: ignore[arg-type]
        d_in=sae.d_model,
        d_sae=sae.n_latents,
        apply_b_dec_to_input=True,
        k=sae.k,
        metadata={"sae_lens_version": SAELENS_VERSION, "sae_lens_training_version": None},
    )
    named = zip(("W_enc", "b_enc", "W_dec", "b_dec"), sae.weights, strict=True)
    tensors = {**dict(named), **sae.own, "W_enc": sae.w_enc.t()}
    of_topk = {"k", "rescale_acts_by_decoder_norm"}
    return config.model_dump(exclude=set() if sae.k is not None else of_topk), tensors


# Per layout: what writes it, and the architectures that it can hold.
LAYOUTS: dict[str, Callable[[Autoencoder], Written]] = {"saelens": _saelens, "sparsify": _sparsify}
HOLDS = {"saelens": ("topk", "jumprelu", "standard"), "sparsify": ("topk",)}
