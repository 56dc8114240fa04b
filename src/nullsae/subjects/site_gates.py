"""Gates on sites: what was found by module names is tested on a few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from nullsae.config.sites import PROJECTED, site_kind, site_layer
from nullsae.core.errors import UserError
from nullsae.subjects.families import Point, attach, text_config
from nullsae.subjects.loading import PROBE_TOKENS, Subject

# What each part adds to the residual stream, by the input of its output projection.
PARTS = {"hook_z": "attn_out", "mlp_post": "mlp_out"}
ADDED = ("attn_out", "mlp_out", "resid_mid")


def verify_sites(subject: Subject, sites: Sequence[str], *, where: str) -> None:
    """Check that sites within blocks are what their names say.

    Sites that were not found, or failed a check, are refused; `where` is the config key that
    messages name.
    """
    for layer in sorted({site_layer(s) for s in sites if site_kind(s) in ADDED}):
        others = [kind for kind in ADDED if kind != "mlp_out" and f"{kind}.{layer}" in sites]
        _check_sum(subject, layer, where, needs_attention=bool(others))
    for site in sites:
        if site_kind(site) == "resid_mid":
            _check_order(subject, site_layer(site), where)
        if site_kind(site) in PROJECTED:
            _check_projection(subject, site, where)


def _probe(subject: Subject, sites: Sequence[str]) -> list[Tensor]:
    ids = torch.arange(PROBE_TOKENS)[None] % subject.recipe["vocab_size"]
    found = subject.activations(ids, split="eval", contexts=[0], sites=sites)
    return [found[site] for site in sites]


def _refuse(subject: Subject, where: str, sites: str, why: str) -> UserError:
    family = text_config(subject.model).model_type
    return UserError(f"{where}: {sites}: not supported for model_type {family!r}, {why}")


def _check_sum(subject: Subject, layer: int, where: str, *, needs_attention: bool) -> None:
    """Check that resid_pre + attn_out + mlp_out is resid_post, up to rounding of two additions.

    This holds for parallel and sequential residuals, but not if a block scales its parts or
    normalizes the sum. If attention is not needed and the block has none (hybrids such as Jamba mix
    tokens otherwise), any child of the block may take its place.
    """
    kinds = ["resid_pre", "mlp_out", "resid_post"]
    if not needs_attention and not _has_attention(subject, layer):
        parts = list(subject.blocks[layer].children())
    else:
        parts = []
        kinds.append("attn_out")
    children: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: object) -> None:
        found = output[0] if isinstance(output, tuple) and output else output
        if isinstance(found, Tensor):
            children.append(found.clone())

    with ExitStack() as hooks:
        for child in parts:
            hooks.callback(child.register_forward_hook(keep).remove)
        before, mlp, after, *added = _probe(subject, [f"{kind}.{layer}" for kind in kinds])
    candidates = added or [x.reshape(mlp.shape) for x in children if x.numel() == mlp.numel()]
    if not any(_add_up(before, one, mlp, after) for one in candidates):
        raise _refuse(
            *(subject, where, f"attn_out.{layer} and mlp_out.{layer}"),
            "whose blocks scale or normalize what they add (resid_pre + attn_out + mlp_out is not "
            "resid_post); take resid_pre and resid_post",
        )


def _has_attention(subject: Subject, layer: int) -> bool:
    try:
        subject.point(f"attn_out.{layer}")
    except UserError:
        return False
    return True


def _add_up(before: Tensor, attention: Tensor, mlp: Tensor, after: Tensor) -> bool:
    allowed = 2 * torch.finfo(after.dtype).eps
    before, attention, mlp, after = (x.float() for x in (before, attention, mlp, after))
    scale = before.abs() + attention.abs() + mlp.abs()
    return bool(((before + attention + mlp - after).abs() <= allowed * scale).all())


def _check_order(subject: Subject, layer: int, where: str) -> None:
    """Check that the MLP reads what the attention has added."""

    def nudge(x: Tensor) -> Tensor:
        # Not equal in all dimensions, because a norm that subtracts the mean would undo it.
        moved = x.clone()
        moved[..., ::2] += 1.0
        return moved

    (before,) = _probe(subject, [f"mlp_in.{layer}"])
    with attach(subject.point(f"attn_out.{layer}"), nudge):
        (after,) = _probe(subject, [f"mlp_in.{layer}"])
    if torch.equal(before, after):
        raise _refuse(
            *(subject, where, f"resid_mid.{layer}"),
            "whose attention and MLP read the same residual stream; take resid_pre and resid_post",
        )


def _check_projection(subject: Subject, site: str, where: str) -> None:
    """Check that the site, projected, is the output of its attention or its MLP."""
    if not is_projected_plainly(subject, site) and not _is_last_step(subject, site):
        raise _refuse(
            *(subject, where, site),
            "in which the module that reads it is not the last one of its part of the block",
        )


def is_projected_plainly(subject: Subject, site: str) -> bool:
    """Whether a site's projection is added to the residual stream unchanged.

    It is not if a norm follows, as in Gemma 3.
    """
    part = subject.point(f"{PARTS[site_kind(site)]}.{site_layer(site)}")
    return _same(subject, Point(subject.point(site).module), part)


def _is_last_step(subject: Subject, site: str) -> bool:
    """Whether a projection's output is that of the module around it."""
    last = subject.point(site).module
    modules = dict(subject.blocks[site_layer(site)].named_modules())
    path = next(name for name, module in modules.items() if module is last)
    around = path.rpartition(".")[0]
    return _same(subject, Point(last), Point(modules[around]))


def _same(subject: Subject, a: Point, b: Point) -> bool:
    """Whether the same values pass at two points, regardless of shape."""
    seen: dict[str, Tensor] = {}
    ids = torch.arange(PROBE_TOKENS)[None] % subject.recipe["vocab_size"]

    def keep(name: str, x: Tensor) -> None:
        seen[name] = x.flatten().clone()

    with attach(a, lambda x: keep("a", x)), attach(b, lambda x: keep("b", x)):
        subject.logits(ids, split="eval", contexts=[0])
    return torch.equal(seen["a"], seen["b"])
