"""Where the sites are in a transformer: read from its module tree, with one table of hints."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nullsae.config.model_limits import CONTEXT_LIMITS, longest_context
from nullsae.config.sites import site_kind, site_layer
from nullsae.core.errors import UserError

# Names of a block's children; the first that exists counts. The module whose output is added to the
# residual stream is wanted, so a norm after a part precedes the part itself.
NORMS_BEHIND_MLP = ("post_feedforward_layernorm", "post_mlp_layernorm")
ATTENTIONS = ("self_attn", "attn", "attention", "self_attention", "linear_attn")
MLPS = ("mlp", "feed_forward", "ffn", "block_sparse_moe")
PARTS = {
    "attn_out": ("post_self_attn_layernorm", "post_attention_layernorm", *ATTENTIONS),
    "mlp_in": (*MLPS, "fc1"),
    "mlp_out": (*NORMS_BEHIND_MLP, *MLPS, "fc2"),
}
# The last matrix of an attention or an MLP: the parts, and its name in them. A mixture of experts
# has none that all tokens pass.
PROJECTIONS = {
    "hook_z": (ATTENTIONS, ("o_proj", "out_proj", "dense", "c_proj", "attention.out_proj")),
    "mlp_post": (MLPS, ("down_proj", "dense_4h_to_h", "c_proj", "fc2", "fc_out", "w2")),
}
# By config.model_type, for families in which those names are not what is added: here the parts get
# the residual stream as an argument and return the sum.
HINTS = {
    "bloom": {"attn_out": "self_attention.dense", "mlp_out": "mlp.dense_4h_to_h"},
    "mpt": {"mlp_out": "ffn.down_proj"},
}

# Tokens of the pass that shows which tables token ids index.
PROBE_TOKENS = 8


@dataclass(frozen=True)
class Point:
    """Where a site's tensor passes: into a module, or out of it."""

    module: nn.Module
    before: bool = False
    added_to: Point | None = None
    """The point where its addend passes earlier; the site is the sum of both."""

    @property
    def reads(self) -> int | None:
        """Input dimensions of a matrix: a `Linear`, or GPT-2's `Conv1D`."""
        found = getattr(self.module, "in_features", getattr(self.module, "nx", None))
        return found if isinstance(found, int) else None

    @property
    def matrix(self) -> Tensor:
        """Weights of a matrix, [outputs, inputs]."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight if hasattr(self.module, "in_features") else weight.t()


def text_config(model: Any) -> Any:
    """Return the config of the language model, which multimodal models nest."""
    return model.config.get_text_config(decoder=True)


def token_tables(model: Any) -> dict[str, nn.Embedding]:
    """Return the lookup tables that token ids index in a forward pass, by module name.

    The input embedding is always one. Others are found by their inputs rather than by name: if
    there are any other tables (positions, tables of each block), a short pass shows which get ids.
    """
    own = model.get_input_embeddings()
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    if set(found.values()) <= {own}:
        return found
    # Descending, unlike the inputs of a table of positions.
    ids = torch.arange(PROBE_TOKENS, 0, -1, device=own.weight.device)[None]
    seen: set[str] = set()
    handles = [
        module.register_forward_pre_hook(partial(_see_ids, seen, name, ids), with_kwargs=True)
        for name, module in found.items()
    ]
    try:
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return {name: module for name, module in found.items() if module is own or name in seen}


def _see_ids(
    seen: set[str], name: str, ids: Tensor, _module: nn.Module, args: Any, keys: dict[str, Any]
) -> None:
    given = args[0] if args else keys.get("input")
    # Some models flatten them.
    if isinstance(given, Tensor) and torch.equal(given.flatten().to(ids), ids.flatten()):
        seen.add(name)


def context_limit(model: Any) -> int | None:
    """Return the most tokens that a model reads at once, by any name; None without a limit."""
    config = text_config(model)
    return longest_context({name: getattr(config, name, None) for name in CONTEXT_LIMITS})


def find_blocks(model: Any) -> nn.ModuleList:
    """Return the list of transformer blocks: the outermost `ModuleList` with one entry per layer.

    Raises a `UserError` that names what was looked for if there is none.
    """
    n_layers = getattr(text_config(model), "num_hidden_layers", None)
    lists = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        looked_for = f"found no list of {n_layers} blocks (config.num_hidden_layers)"
        if n_layers is None:
            looked_for = "its config has no num_hidden_layers"
        raise UserError(f"subject of class {type(model).__name__}: not supported; {looked_for}")
    return min(lists, key=lambda entry: entry[:2])[2]


def find_site(model: Any, site: str) -> Point:
    """Return the place in a model where a site's tensor passes.

    Raises a `UserError` that lists the names looked for if the block has no such part.
    """
    kind = site_kind(site)
    if kind == "embed":
        return Point(model.get_input_embeddings())
    block = find_blocks(model)[site_layer(site)]
    if kind in ("resid_pre", "resid_post"):
        return Point(block, before=kind == "resid_pre")
    if kind == "resid_mid":
        attention = find_site(model, f"attn_out.{site_layer(site)}")
        return replace(attention, added_to=Point(block, before=True))
    family = text_config(model).model_type
    children = dict(block.named_modules())
    if kind in PROJECTIONS:
        parts, matrices = PROJECTIONS[kind]
        names = tuple(f"{part}.{matrix}" for part in parts for matrix in matrices)
        names += ("fc2",) if kind == "mlp_post" else ()
        wanted = f"{', '.join(matrices)} in {', '.join(parts)}"
    else:
        hint = HINTS.get(family, {}).get(kind)
        names = (hint,) if hint is not None else PARTS[kind]
        if not any(name in children for name in NORMS_BEHIND_MLP):
            # Without the other norm, this one precedes the MLP rather than following attention
            # (Llama).
            names = tuple(name for name in names if name != "post_attention_layernorm")
        wanted = ", ".join(names)
    for name in names:
        if name in children:
            point = Point(children[name], before=kind in (*PROJECTIONS, "mlp_in"))
            if kind not in PROJECTIONS or point.reads:
                return point
    raise UserError(
        f"site {site}: not found in a subject of class {type(model).__name__} (model_type "
        f"{family!r}); looked for {wanted} in its {type(block).__name__}"
    )


def attach(point: Point, see: Callable[[Tensor], Tensor | None]) -> ExitStack:
    """Show `see` what passes at a point, and replace it by what that returns, if anything.

    This lasts until the returned stack is closed.
    """
    hooks = ExitStack()
    if point.added_to is None:
        hooks.callback(_attach(point, see).remove)
        return hooks
    before: list[Tensor] = []

    def see_sum(x: Tensor) -> Tensor | None:
        whole = before.pop() + x
        new = see(whole)
        # The addend changes by as much as the sum, and stays bit-identical if the sum does.
        return None if new is None else x + (new - whole)

    hooks.callback(_attach(point.added_to, before.append).remove)
    hooks.callback(_attach(point, see_sum).remove)
    return hooks


def _attach(point: Point, see: Callable[[Tensor], Tensor | None]) -> RemovableHandle:
    if point.before:

        def enter(_module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            name = "hidden_states" if "hidden_states" in kwargs else next(iter(kwargs), "")
            new = see(args[0] if args else kwargs[name])
            if new is None:
                return None
            return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, name: new})

        return point.module.register_forward_pre_hook(enter, with_kwargs=True)

    def leave(_module: nn.Module, _args: Any, output: Any) -> Any:
        whole = isinstance(output, Tensor)
        new = see(output if whole else output[0])
        return new if new is None or whole else (new, *output[1:])

    return point.module.register_forward_hook(leave)
