"""The half of test_releases.py that needs `sae_lens`, run by the Python of `.venv-peers`.

   python releases_side.py FOLDER

lays out an SAE for each loader in SAELens' list, on a hub on this machine; `sae_lens` and nullsae
read each by its release and id. Writes `results.safetensors`, codes and reconstructions of both,
and `said.json`: what each was made on, and lines of refusals.
"""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from local_hub import local_hub
from safetensors.torch import save, save_file
from torch import Tensor

D, WIDTH, K, HEADS = 12, 40, 5, 3
# gemma_2's code has these sizes; this is the smallest.
GEMMA_D, GEMMA_WIDTH = 2304, 4096
# A table has the hidden size of Qwen Scope's models, the repository's name has the width.
QWEN, QWEN_WIDTH = "Qwen3-1.7B-Base", 32 * 1024
GOODFIRE = "goodfire-llama-3.1-8b-instruct"
DEEPSEEK = "deepseek-r1-distill-llama-8b-qresearch"
Files = dict[str, bytes]


def drawn(seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(shape, generator=g) * 0.4 for name, shape in shapes.items()}
    return {n: t.abs() * 0.5 if "threshold" in n else t for n, t in found.items()}


def as_json(config: dict[str, Any]) -> bytes:
    return json.dumps(config).encode()


def as_pt(tensors: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


PLAIN = {"W_enc": (D, WIDTH), "b_enc": (WIDTH,), "W_dec": (WIDTH, D), "b_dec": (D,)}
LINEAR = {
    "encoder.weight": (WIDTH, D),
    "encoder.bias": (WIDTH,),
    "decoder.weight": (D, WIDTH),
    "decoder.bias": (D,),
}


def old_saelens(path: str, hook: str, **keys: Any) -> Files:
    """Return files as SAELens wrote them before version 6."""
    config = {"d_in": D, "d_sae": WIDTH, "dtype": "torch.float32", "hook_point": hook, **keys}
    config |= {"model_name": "gpt2-small", "context_size": 128, "prepend_bos": True}
    weights = drawn(1, PLAIN)
    return {f"{path}/cfg.json": as_json(config), f"{path}/sae_weights.safetensors": save(weights)}


def gemma_2(path: str) -> Files:
    shapes = {
        "w_enc": (GEMMA_D, GEMMA_WIDTH),
        "w_dec": (GEMMA_WIDTH, GEMMA_D),
        "b_enc": (GEMMA_WIDTH,),
        "b_dec": (GEMMA_D,),
        "threshold": (GEMMA_WIDTH,),
    }
    tensors, buffer = drawn(2, shapes), io.BytesIO()
    # For an SAE of the embedding, loading multiplies it by sqrt(d).
    tensors["w_dec"] *= 0.01
    # Only a few of so many latents fire, so that sums are as exact as those of the others.
    tensors["threshold"] += 1.5
    np.savez(buffer, **{n: t.numpy().astype(np.float16) for n, t in tensors.items()})
    return {f"{path}/params.npz": buffer.getvalue()}


def gemma_3(path: str, hook: str, hook_out: str | None = None) -> Files:
    tensors = drawn(3, {name.lower(): shape for name, shape in PLAIN.items()})
    tensors |= drawn(4, {"threshold": (WIDTH,)})
    model = "gemma-v3-270m-pt"
    config = {"architecture": "jump_relu", "model_name": model, "hf_hook_point_in": hook}
    if hook_out is not None:
        config |= {"hf_hook_point_out": hook_out, "affine_connection": "affine" in path}
    if "affine" in path:
        tensors |= drawn(14, {"affine_skip_connection": (D, D)})
    return {f"{path}/config.json": as_json(config), f"{path}/params.safetensors": save(tensors)}


def llama_scope(path: str) -> Files:
    config = {
        "d_model": D,
        "d_sae": WIDTH,
        "jump_relu_threshold": 0.3,
        "dataset_average_activation_norm": {"in": 2.5},
        "hook_point_in": "blocks.0.hook_resid_post",
    }
    weights = save(drawn(5, LINEAR))
    return {
        f"{path}/hyperparams.json": as_json(config),
        f"{path}/checkpoints/final.safetensors": weights,
    }


def llama_scope_r1_distill(path: str) -> Files:
    wide = {name: tuple(3 * D if n == WIDTH else n for n in LINEAR[name]) for name in LINEAR}
    tensors = drawn(6, {**wide, "log_jumprelu_threshold": (3 * D,)})
    config = {"d_model": D, "expansion_factor": 3, "hook_point_in": "blocks.0.hook_resid_post"}
    return {
        f"{path}/config.json": as_json(config),
        f"{path}/sae_weights.safetensors": save(tensors),
    }


def mwhanna(path: str) -> Files:
    folder = path.rpartition("/")[0]
    run = {"d_model": {"value": D}, "d_feature": {"value": WIDTH}, "batch_size": {"value": 4096}}
    shapes = {**PLAIN, "W_enc": (WIDTH, D)}
    return {
        f"{folder}wandb-config.yaml": as_json(run),
        f"{folder}config.yaml": as_json({"model_name": "Qwen/Qwen3-4B"}),
        path: save(drawn(15, shapes)),
    }


def qwen_scope(path: str) -> Files:
    width = QWEN_WIDTH
    shapes = {"W_enc": (width, D), "b_enc": (width,), "W_dec": (D, width), "b_dec": (D,)}
    return {path: as_pt(drawn(16, shapes))}


def dictionary_learning(path: str, dict_class: str, tensors: dict[str, Any]) -> Files:
    trainer = {
        "dict_class": dict_class,
        "activation_dim": D,
        "dict_size": WIDTH,
        "k": K,
        "layer": 3,
        "lm_name": "EleutherAI/pythia-70m-deduped",
        "submodule_name": "resid_post_layer_3",
    }
    config = {"trainer": trainer, "buffer": {"ctx_len": 128, "d_submodule": D}}
    return {f"{path}/config.json": as_json(config), f"{path}/ae.pt": as_pt(tensors)}


def of_class(dict_class: str) -> dict[str, Any]:
    """Return what a class of dictionary_learning saves."""
    scalar = {"k": torch.tensor(K), "threshold": torch.tensor(0.3)}
    linear = {name: LINEAR[name] for name in LINEAR if name != "decoder.bias"}
    if dict_class == "AutoEncoder":
        return drawn(7, {**linear, "bias": (D,)})
    if dict_class == "AutoEncoderTopK":
        return {**drawn(8, {**linear, "b_dec": (D,)}), **scalar}
    if dict_class == "BatchTopKSAE":
        return {**drawn(9, {**linear, "b_dec": (D,)}), **scalar}
    if dict_class == "GatedAutoEncoder":
        own = dict.fromkeys(("r_mag", "gate_bias", "mag_bias"), (WIDTH,))
        del linear["encoder.bias"]
        return drawn(10, {**linear, "decoder_bias": (D,), **own})
    if dict_class == "JumpReluAutoEncoder":
        return drawn(11, {**PLAIN, "threshold": (WIDTH,)})
    assert dict_class == "MatryoshkaBatchTopKSAE"
    groups = {"active_groups": torch.tensor(1), "group_indices": torch.tensor([0, WIDTH])}
    return {**drawn(12, PLAIN), **scalar, **groups}


AFFINE = (
    "gemma-scope-2-270m-pt-transcoders",
    "transcoder/layer_15_width_262k_l0_big_affine",
)
CLASSES = {
    "AutoEncoder": ("sae_bench_pythia70m_sweep_standard_ctx128_0712", "trainer_10"),
    "AutoEncoderTopK": ("sae_bench_pythia70m_sweep_topk_ctx128_0730", "trainer_0"),
    "BatchTopKSAE": ("saebench_gemma-2-2b_width-2pow12_date-0108", "trainer_0"),
    "GatedAutoEncoder": ("sae_bench_pythia70m_sweep_gated_ctx128_0730", "trainer_0"),
    "JumpReluAutoEncoder": ("saebench_gemma-2-2b_width-2pow14_date-0107", "trainer_0"),
    "MatryoshkaBatchTopKSAE": ("saebench_gemma-2-2b_width-2pow16_date-0107", "trainer_0"),
}


def cases(directory: Any) -> dict[str, tuple[str, str, Files]]:
    """Return release, id and files, by a name that begins with that of the loader."""

    def made(release: str, sae_id: str, files: Any) -> tuple[str, str, Files]:
        return release, sae_id, files(directory[release].saes_map[sae_id])

    hook = "blocks.2.hook_resid_pre"
    attention = "blocks.0.hook_z"
    found = {
        "sae_lens": made(
            "pythia-70m-deduped-res-sm",
            "blocks.0.hook_resid_pre",
            lambda p: old_saelens(p, "blocks.0.hook_resid_pre"),
        ),
        "sae_lens-centred": made("gpt2-small-res-jb", hook, lambda p: old_saelens(p, hook)),
        "sae_lens-factor": made(
            "gpt2-small-mlp-tm",
            "blocks.1.hook_mlp_out",
            lambda p: old_saelens(
                p, "blocks.1.hook_mlp_out", normalize_activations="expected_average_only_in"
            ),
        ),
        "sae_lens-norm": made(
            "mistral-7b-res-wg",
            "blocks.8.hook_resid_pre",
            lambda p: old_saelens(p, "blocks.8.hook_resid_pre"),
        ),
        "connor_rob_hook_z": made(
            "gpt2-small-hook-z-kk",
            attention,
            lambda p: {
                p: as_pt(drawn(13, PLAIN)),
                p.replace(".pt", "_cfg.json"): as_json(
                    {"act_size": D, "dict_size": WIDTH, "act_name": "blocks.0.attn.hook_z"}
                ),
            },
        ),
        "gemma_2": made("gemma-scope-2b-pt-res", "embedding/width_4k/average_l0_6", gemma_2),
        "gemma_3": made(
            "gemma-scope-2-270m-pt-res",
            "layer_12_width_16k_l0_big",
            lambda p: gemma_3(p, "model.layers.12.output"),
        ),
        "gemma_3-attention": made(
            "gemma-scope-2-270m-pt-att",
            "layer_12_width_16k_l0_big",
            lambda p: gemma_3(p, "model.layers.12.self_attn.o_proj.input"),
        ),
        "llama_scope": made("llama_scope_lxr_8x", "l0r_8x", llama_scope),
        "llama_scope_r1_distill": made(
            "llama_scope_r1_distill", "l0r_800m_slimpajama", llama_scope_r1_distill
        ),
    }
    norm = "model.layers.{}.{}_feedforward_layernorm.output"
    for name, release, sae_id, layer in (
        ("all", "gemma-scope-2-270m-pt-transcoders-all", "layer_0_width_16k_l0_big", 0),
        ("affine", *AFFINE, 15),
    ):
        hooks = (norm.format(layer, "pre"), norm.format(layer, "post"))
        found[f"gemma_3-transcoder-{name}"] = made(
            release, sae_id, lambda p, hooks=hooks: gemma_3(p, *hooks)
        )
    found["mwhanna_transcoder"] = made("mwhanna-qwen3-4b-transcoders", "layer_7", mwhanna)
    found["deepseek_r1"] = made(
        DEEPSEEK, "blocks.19.hook_resid_post", lambda p: {p: as_pt(drawn(17, LINEAR))}
    )
    coders = {name.replace(".", "_linear."): shape for name, shape in LINEAR.items()}
    found["goodfire"] = made(GOODFIRE, "layer_19", lambda p: {p: as_pt(drawn(18, coders))})
    found["qwen_scope"] = made("qwen-scope-3-1.7b-base-w32k-l50", "layer3", qwen_scope)
    for dict_class, (release, trainer) in CLASSES.items():
        ids = directory[release].saes_map
        found[f"dictionary_learning_1-{dict_class}"] = made(
            release,
            next(name for name in ids if name.endswith(trainer)),
            lambda p, c=dict_class: dictionary_learning(p, c, of_class(c)),
        )
    return found


REFUSED = {
    "gemma_2_transcoder": ("gemma-scope-2b-pt-transcoders", "layer_0/width_16k/average_l0_76"),
    "mntss_clt_layer_transcoder": ("mntss-gemma-2-2b-2.5m-clt-as-per-layer", "layer_0"),
    "temporal": ("temporal-sae-gemma-2-2b", "blocks.12.hook_resid_post"),
    "misspelt": ("gpt2-small-res-jp", "blocks.2.hook_resid_pre"),
    "unknown": ("gpt2-small-res-jb", "blocks.20.hook_resid_pre"),
    "repository": ("jbloom/GPT2-Small-SAEs-Reformatted", "blocks.2.hook_resid_pre"),
    "not_there": ("gpt2-small-res-jb", "blocks.3.hook_resid_pre"),
}


def compare(name: str, release: str, sae_id: str, results: dict[str, Tensor]) -> dict[str, Any]:
    """Compute codes and reconstructions of both; return what the SAE was made on."""
    from sae_lens import SAE

    from nullsae.config.hooks import site_of_hook
    from nullsae.config.pretrained import FromSaeLens
    from nullsae.sae.exchange.pretrained import read_with_origin

    given = FromSaeLens.model_validate({"saelens": {"release": release, "sae_id": sae_id}})
    ours, made_on = read_with_origin(given, None, where="config: saes.theirs.pretrained")
    theirs = SAE.from_pretrained(release, sae_id)
    x = torch.randn(48, ours.d_model, generator=torch.Generator().manual_seed(20)) + 0.5
    values, indices = ours.encode(x)
    codes = torch.zeros(len(x), ours.n_latents).scatter_add(1, indices, values)
    # Models with centred weights have activations without a mean.
    mean = x.mean(dim=1, keepdim=True) * made_on.centred
    seen = x - mean
    shape = (len(x), HEADS, -1) if theirs.cfg.reshape_activations == "hook_z" else x.shape
    with torch.no_grad():
        their_codes = theirs.encode(seen.reshape(shape))
        # Only `forward` adds a skip connection.
        decoded = theirs(seen) if ours.transcodes else theirs.decode(their_codes)
        decoded = decoded.reshape(x.shape) + mean
    results |= {
        f"{name}/ours/codes": codes,
        f"{name}/ours/reconstruction": ours.decode(values, indices, x),
        f"{name}/theirs/codes": their_codes,
        f"{name}/theirs/reconstruction": decoded,
    }
    site = site_of_hook(made_on.hook or "")
    return {**made_on.model_dump(), "site": site, "writes": ours.writes_at(site or "")}


def refusals() -> dict[str, str]:
    from nullsae.config.pretrained import FromSaeLens
    from nullsae.config.saelens_list import refuse_corrected
    from nullsae.core.errors import UserError
    from nullsae.sae.exchange.pretrained import read_pretrained

    said: dict[str, str] = {}
    try:
        refuse_corrected("jbloom/GPT2-Small-SAEs-Reformatted", "config: saes.theirs.pretrained")
    except UserError as error:
        said["corrected"] = str(error)
    refuse_corrected("ctigges/pythia-70m-deduped__res-sm_processed", "")
    for name, (release, sae_id) in REFUSED.items():
        given = FromSaeLens.model_validate({"saelens": {"release": release, "sae_id": sae_id}})
        try:
            read_pretrained(given, None, where="config: saes.theirs.pretrained")
        except UserError as error:
            said[name] = str(error)
    return said


def shrink() -> None:
    """Replace the sizes of large models in loaders' code by those of our files."""
    from sae_lens.loading import pretrained_sae_loaders as loaders
    from sae_lens.saes import sae

    own = sae.get_config_overrides
    sae.get_config_overrides = lambda release, sae_id: {  # type: ignore[attr-defined]
        **own(release, sae_id),
        **({"d_in": D, "d_sae": WIDTH} if release in (GOODFIRE, DEEPSEEK) else {}),
    }
    loaders.QWEN_SCOPE_MODEL_INFO[QWEN] = (loaders.QWEN_SCOPE_MODEL_INFO[QWEN][0], D)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    shrink()
    from sae_lens.loading import pretrained_sae_loaders
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    named = {release.conversion_func or "sae_lens" for release in directory.values()}
    results: dict[str, Tensor] = {}
    made = cases(directory)
    said = {
        "made_on": {n: compare(n, *given[:2], results) for n, given in made.items()},
        "refused": refusals(),
        "loaders": sorted(pretrained_sae_loaders.NAMED_PRETRAINED_SAE_LOADERS),
        "named": sorted(named),
    }
    save_file({n: t.contiguous() for n, t in results.items()}, folder / "results.safetensors")
    (folder / "said.json").write_text(json.dumps(said))


if __name__ == "__main__":
    from importlib.util import find_spec

    listing = Path(next(iter(find_spec("sae_lens").submodule_search_locations)))  # type: ignore[union-attr,arg-type]
    entries = yaml.load((listing / "pretrained_saes.yaml").read_text(), yaml.CSafeLoader)

    class Entry:
        def __init__(self, entry: Any) -> None:
            self.saes_map = {str(s["id"]): str(s["path"]) for s in entry["saes"]}
            self.repo_id = entry["repo_id"]

    served = {}
    places = {name: Entry(entry) for name, entry in entries.items()}
    for release, _, files in cases(places).values():
        served |= {f"{places[release].repo_id}/{name}": data for name, data in files.items()}
    with local_hub(served) as address:
        # The hub's libraries read it when they are imported.
        os.environ["HF_ENDPOINT"] = address
        main(Path(sys.argv[1]))
