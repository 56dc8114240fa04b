"""SAEs made elsewhere: read from nullsae's, SAELens' and EleutherAI's sparsify's formats."""

from __future__ import annotations

import logging
import re
from glob import escape
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from nullsae.config.model_files import is_local
from nullsae.config.parse import parse_section
from nullsae.config.plain import read_object
from nullsae.config.sites import site_kind, site_layer
from nullsae.core.errors import UserError, first_line
from nullsae.core.folders import check_files
from nullsae.jobs.saes import pretrained_sae_path
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.exchange.formats import WEIGHTS, SaeLensConfig, Shapes, SparsifyConfig, hook_name
from nullsae.sae.files import load_sae

log = logging.getLogger(__name__)

HOOK = re.compile(
    r"^(?:hook_embed|blocks\.\d+\.(?:hook_(?:resid_pre|resid_mid|attn_out|mlp_out|resid_post)"
    r"|attn\.hook_z|mlp\.hook_in|mlp\.hook_post))$"
)


def read_pretrained(pretrained: str, site: str | None, *, where: str) -> Autoencoder:
    """Read an SAE that was made elsewhere, in nullsae's, SAELens' or sparsify's format.

    What such a file says beyond plain weights is folded into them: a b_dec that the encoder does
    not subtract, and codes scaled by the norms of decoder rows. Weights come back as float32.

    `pretrained` is a folder or hub id, and after `::` a folder within it; `{site}` and `{layer}`
    are filled in. Without a site they are not, and where the SAE was trained is not looked at.
    `where` is the config key that a message names. A `UserError` says that it cannot be had, or
    names the file and the key that is missing, unknown, damaged or asks for something that is not
    supported.
    """
    folder = _folder(pretrained, site, where)
    check_files(folder, where=where)
    there = sorted(file.name for file in folder.iterdir())
    found = [name for name in WEIGHTS.values() if name in there]
    if not found or "cfg.json" not in there:
        missing = " or ".join(WEIGHTS.values()) if "cfg.json" in there else "cfg.json"
        raise UserError(
            f"{where}: {str(folder)!r} holds no {missing} but {', '.join(there) or 'nothing'}; an "
            f"SAE is read from a cfg.json and safetensors"
        )
    weights, config_file = folder / found[0], folder / "cfg.json"
    try:
        config = read_object(config_file)
    except (OSError, ValueError) as error:
        raise UserError(f"{config_file}: not readable as JSON ({first_line(error)})") from None
    if weights.name == WEIGHTS["saelens"]:
        return _of_saelens(weights, config_file, config, site)
    if "d_in" in config:
        described = parse_section(SparsifyConfig, config, where=str(config_file))
        return described.autoencoder(_read_tensors(weights, described.shapes()))
    if "d_model" in config:
        return load_sae(config_file)[0]
    raise UserError(
        f"{config_file}: an unknown format: beside {weights.name}, sparsify has a key d_in here "
        f"and nullsae a key d_model"
    )


def _folder(pretrained: str, site: str | None, where: str) -> Path:
    """The folder that holds the SAE; a hub's is downloaded into its cache."""
    if site is None:
        path, _, inside = pretrained.partition("::")
    else:
        path, inside = pretrained_sae_path(pretrained, site)
    if is_local(path):
        folder = Path(path).expanduser() / inside
        if not folder.is_dir():
            raise UserError(
                f"{where}: {str(folder)!r} is no folder; give one that holds an SAE, or a hub id "
                f"such as EleutherAI/sae-pythia-70m-32k::layers.3"
            )
        return folder
    import huggingface_hub

    from nullsae.corpus.hub import check_repository

    check_repository(path, kind="model", revision=None, where=where)
    prefix = f"{escape(inside)}/" if inside else ""
    wanted = [prefix + name for name in ("cfg.json", *WEIGHTS.values())]
    try:
        folder = Path(huggingface_hub.snapshot_download(path, allow_patterns=wanted)) / inside
    except Exception as error:  # the HTTP client differs between versions of huggingface_hub
        raise UserError(
            f"{where}: {path!r} could not be fetched from the hub: {first_line(error)}"
        ) from None
    if not folder.is_dir():
        raise UserError(f"{where}: {path!r} on the hub holds no SAE in {inside!r}")
    return folder


def _of_saelens(weights: Path, file: Path, config: dict[str, Any], site: str | None) -> Autoencoder:
    # What the keys of an SAE for inference cannot say is refused.
    if "metadata" in config and "decoder_init_norm" in config:
        raise UserError(
            f"{file}: decoder_init_norm is a key of training checkpoints; save the SAE with "
            f"SAELens' save_inference_model"
        )
    activation = SaeLensConfig.old_activation(config)
    if activation not in ("relu", "topk"):
        raise UserError(f"{file}: activation_fn: {activation!r} is not one of relu, topk")
    described = parse_section(SaeLensConfig, SaeLensConfig.upgrade(config), where=str(file))
    if site is not None:
        _compare_hooks(described.metadata.get("hook_name"), site, file)
    # SAELens before version 6 wrote a factor per latent, all ones if it was not used.
    tensors = _read_tensors(weights, described.shapes(), ones=("scaling_factor",))
    return described.autoencoder(tensors)


def _compare_hooks(hook: Any, site: str, file: Path) -> None:
    layer, kind = site_layer(site), site_kind(site)
    twins = {"resid_post": f"resid_pre.{layer + 1}", "resid_pre": f"resid_post.{layer - 1}"}
    same = {hook_name(name) for name in (site, twins.get(kind, site))}
    # Names of other libraries' modules cannot be compared.
    if isinstance(hook, str) and HOOK.match(hook) and hook not in same:
        log.warning("%s: trained at %s, used at %s", file, hook, site)


def _read_tensors(weights: Path, shapes: Shapes, ones: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """All tensors of a file as float32, if they are those of `shapes`.

    Those of `ones` may be there too, and say nothing if they hold ones only.
    """
    try:
        stored = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights}: not readable as safetensors ({error})") from None
    tensors = {n: t for n, t in stored.items() if n not in ones or bool((t != 1).any())}
    for name in sorted(shapes.keys() | tensors.keys()):
        if name not in tensors:
            raise UserError(f"{weights}: {name} is missing")
        if name not in shapes:
            raise UserError(f"{weights}: {name} is unknown; it should hold {', '.join(shapes)}")
        tensor = tensors[name]
        if tuple(tensor.shape) != shapes[name]:
            raise UserError(
                f"{weights}: {name} is {tuple(tensor.shape)}, should be {shapes[name]} by cfg.json"
            )
        if not tensor.is_floating_point():
            raise UserError(f"{weights}: {name} is {tensor.dtype}, not floating point")
        tensors[name] = tensor.float()
        if bool(tensors[name].isnan().any()):
            raise UserError(f"{weights}: {name} holds NaN")
    return tensors
