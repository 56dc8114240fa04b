"""Names of sites in other packages: TransformerLens hooks, module names, sparsify folders."""

from __future__ import annotations

import re

from nullsae.config.sites import SITE, site_kind, site_layer

# TransformerLens' hooks within block L, and our names of the same places.
_HOOKS = {
    "hook_resid_pre": "resid_pre",
    "hook_resid_mid": "resid_mid",
    "hook_resid_post": "resid_post",
    "hook_attn_out": "attn_out",
    "hook_mlp_out": "mlp_out",
    "attn.hook_z": "hook_z",
    "mlp.hook_in": "mlp_in",
    "mlp.hook_post": "mlp_post",
}
# The same in its newer models, TransformerBridge.
_BRIDGE_HOOKS = {
    "hook_in": "resid_pre",
    "ln2.hook_in": "resid_mid",
    "hook_out": "resid_post",
    "attn.o.hook_in": "hook_z",
    "mlp.out.hook_in": "mlp_post",
}
_BLOCK_HOOK = re.compile(r"blocks\.(\d+)\.(\S+)")
# The output projections of attention and the MLP.
_OUT_OF_HEADS = ("self_attn.o_proj", "self_attn.out_proj", "attn.c_proj", "attention.dense")
_OUT_OF_NEURONS = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "fc2")
# Modules of a block, by what follows its number: a module's output, or its `.input`.
_MODULES = {
    "": "resid_post",
    "mlp": "mlp_out",
    "feed_forward": "mlp_out",
    # Gemma 2 and 3: its output is added to the residual stream.
    "post_feedforward_layernorm": "mlp_out",
    "attention": "attn_out",
    "attn": "attn_out",
    "self_attn": "attn_out",
    "input": "resid_pre",
    **dict.fromkeys(_OUT_OF_HEADS, "attn_out"),
    **dict.fromkeys((f"{name}.input" for name in _OUT_OF_HEADS), "hook_z"),
    **dict.fromkeys(_OUT_OF_NEURONS, "mlp_out"),
    **dict.fromkeys((f"{name}.input" for name in _OUT_OF_NEURONS), "mlp_post"),
    # Gemma 2 and 3 again: the output of the MLP's first norm.
    **dict.fromkeys(("mlp.input", "feed_forward.input", "pre_feedforward_layernorm"), "mlp_in"),
}
_BLOCK = re.compile(r"(?:\w+\.)*?(?:layers|h|blocks)[._](\d+)(?:\.(\S+))?")
_EMBEDDINGS = re.compile(
    r"hook_embed|embed\.hook_out|(?:\w+\.)*(?:embed_tokens|embed_in|wte)(?:\.output)?"
)
# The list of blocks in models of Transformers, by `model_type`.
_BLOCKS = {
    "gpt2": "transformer.h",
    "gpt_neox": "gpt_neox.layers",
    "opt": "model.decoder.layers",
    **dict.fromkeys(
        ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3"),
        "model.layers",
    ),
}
# The attention module of each, `self_attn` elsewhere.
_ATTENTION = {"gpt2": "attn", "gpt_neox": "attention"}
# Models with a norm after attention and MLP, so that the outputs of these are not sites.
_NORMS_BEHIND = ("gemma2", "gemma3_text")


def site_of_hook(hook: str) -> str | None:
    """Return the site that another package's name means; None for an unknown name.

    `blocks.3.hook_resid_post`, `gpt_neox.layers.3`, `model.layers.3.output` and sparsify's
    `layers.3` are all `resid_post.3`, as is that name itself.
    """
    if SITE.match(hook):
        return hook
    # NNsight writes `model.layers[3].output[0]`.
    hook = re.sub(r"\[(\d+)\]", r".\1", hook).lstrip(".")
    hook = re.sub(r"\.(output|input)s?(\.0)*\Z", r".\1", hook)
    if _EMBEDDINGS.fullmatch(hook):
        return "embed"
    if found := _BLOCK_HOOK.fullmatch(hook):
        kind = _HOOKS.get(found[2], _BRIDGE_HOOKS.get(found[2]))
        if kind is not None or "hook" in found[2]:
            return kind and f"{kind}.{int(found[1])}"
    if found := _BLOCK.fullmatch(hook):
        module = (found[2] or "").removesuffix("output").removesuffix(".")
        if (kind := _MODULES.get(module)) is not None:
            return f"{kind}.{int(found[1])}"
    return None


def same_place(one: str, other: str) -> bool:
    """Return whether two sites have the same activations: block L's input is L - 1's output."""
    return _by_output(one) == _by_output(other)


def _by_output(site: str) -> str:
    if site_kind(site) == "resid_pre" and site_layer(site) > 0:
        return f"resid_post.{site_layer(site) - 1}"
    return site


def hook_name(site: str) -> str:
    """Return TransformerLens' name of a site."""
    hooks = {kind: hook for hook, kind in _HOOKS.items()}
    return (
        "hook_embed" if site == "embed" else f"blocks.{site_layer(site)}.{hooks[site_kind(site)]}"
    )


def module_name(site: str, model_type: str) -> str | None:
    """Return the Transformers module whose output, or `.input`, is the site.

    None if no module's is, or for an unknown `model_type`.
    """
    blocks, kind = _BLOCKS.get(model_type), site_kind(site)
    if blocks is None or kind == "embed":
        return None
    block = f"{blocks}.{site_layer(site)}"
    if kind in ("resid_pre", "resid_post"):
        return f"{block}.input" if kind == "resid_pre" else block
    if model_type in _NORMS_BEHIND or kind not in ("attn_out", "mlp_out") or model_type == "opt":
        return None
    return f"{block}.{'mlp' if kind == 'mlp_out' else _ATTENTION.get(model_type, 'self_attn')}"
