"""How a direction at a site moves the logits, found from the model's behaviour."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from nullsae.config.sites import PROJECTED, RESIDUAL, site_kind
from nullsae.core.devices import exact
from nullsae.subjects.families import text_config
from nullsae.subjects.loading import PROBE_TOKENS, Subject
from nullsae.subjects.site_gates import is_projected_plainly

# Allowed rounding between two forms of one number, as a share of it.
TOLERANCE = 1e-3


class NoDirectPathError(ValueError):
    """The part between the last block and the logits is not one norm and one matrix."""


@torch.inference_mode()
def direct_path(subject: Subject, site: str) -> Tensor:
    """Return the linear map from a site to the logits: float32 [vocab, width of the site].

    Row v times a direction is the direct effect of that direction on the logit of token v, up to a
    positive factor common to all tokens: the unembedding, the gain of the final norm, and its
    centring if it has one. Later scales and soft caps keep the order of tokens; biases are not
    effects of the direction. The norm is identified by what it and the head read, its form by its
    effect on probes, never by names. At `hook_z` and `mlp_post` the output projection comes first.

    Raises:
        NoDirectPathError: the model has another form, or the site is not written to the residual
            stream by one matrix; the message says which.
    """
    if site_kind(site) in RESIDUAL:
        return _from_stream(subject)
    if site_kind(site) not in PROJECTED:
        raise NoDirectPathError("the site is not in the residual stream and not written to it")
    if not is_projected_plainly(subject, site):
        raise NoDirectPathError("a norm follows the site's projection into the stream")
    path = _from_stream(subject)
    return path @ subject.point(site).matrix.to(path)


def _from_stream(subject: Subject) -> Tensor:
    """Return the map from the residual stream: float32 [vocab, d_model]."""
    model = subject.model
    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    d_model = text_config(model).hidden_size
    if not isinstance(weight, Tensor) or weight.ndim != 2 or weight.shape[1] != d_model:
        raise NoDirectPathError("the head is not one matrix that reads the residual stream")
    norm = _final_norm(subject, head)
    matrix = weight.to(subject.device, torch.float32)
    if norm is None:
        return matrix
    gain, centres = _form(norm, d_model)
    matrix = matrix * gain.to(matrix.device)
    return matrix - matrix.mean(dim=1, keepdim=True) if centres else matrix


def _final_norm(subject: Subject, head: nn.Module) -> nn.Module | None:
    """Return the module between the last block and the head; None if the head reads the block."""
    model = subject.model
    ids = torch.arange(PROBE_TOKENS)[None] % subject.recipe.get("vocab_size", PROBE_TOKENS)
    last = subject.block_outputs[-1]
    where: dict[str, Any] = {"split": "eval", "contexts": [0]}
    stream = subject.activations(ids, sites=[last], **where)[last]
    found: list[tuple[nn.Module, Tensor]] = []
    read: list[Tensor] = []

    def see(module: nn.Module, args: Any, output: Any) -> None:
        given = args[0] if args else None
        if not isinstance(given, Tensor) or given.numel() != stream.numel():
            return
        if isinstance(output, Tensor) and output.shape == given.shape:
            read_stream = torch.equal(given.reshape(stream.shape).to(stream.device), stream)
            found.extend([(module, output)] * read_stream)

    hooks = [m.register_forward_hook(see) for m in model.modules() if m is not head]
    hooks.append(head.register_forward_pre_hook(lambda _module, args: read.append(args[0])))
    try:
        subject.logits(ids, **where)
    finally:
        for hook in hooks:
            hook.remove()
    if not read or read[0].numel() != stream.numel():
        raise NoDirectPathError("the head does not read one row per token")
    # Last first, because norms of blocks that add nothing read the same. And norms before no norm:
    # one that gets centred tokens of equal size only scales them.
    for module, output in reversed(found):
        if _proportional(output.to(read[0].device), read[0]):
            return module
    if _proportional(stream.to(read[0].device), read[0]):
        return None
    raise NoDirectPathError("the part between the last block and the head is not one norm")


def _proportional(a: Tensor, b: Tensor) -> bool:
    """Whether b is a times a positive number."""
    a, b = exact(a).flatten(), exact(b).flatten()
    factor = (a @ b) / (a @ a)
    return bool(factor > 0) and bool((b - factor * a).norm() <= TOLERANCE * b.norm())


def _form(norm: nn.Module, d_model: int) -> tuple[Tensor, bool]:
    """Return the gain of a norm, float32 [d_model], and whether it subtracts the mean.

    A norm is x -> gain * (x - mean of x, or x) / (a number of the row) + bias. +1 and -1 in turn
    have mean 0 and size 1, so both kinds give the gain of each dimension. With an odd number of
    dimensions one stays at 0, and another one in a second probe.
    """
    norm = deepcopy(norm).float()
    first = next(norm.parameters(), torch.empty(0))
    probe = torch.ones(2, d_model, device=first.device)
    probe[:, 1::2] = -1
    if d_model % 2:
        probe[1] = -probe[1].roll(1)
        probe[0, -1] = probe[1, 0] = 0
    noise = torch.randn(4, d_model, generator=torch.Generator().manual_seed(0)).to(probe)
    rows = torch.cat([probe, torch.zeros_like(probe[:1]), torch.ones_like(probe[:1]), noise])
    out = norm(rows[None])[0]
    out = out - out[2]
    gain = torch.where(probe[0] != 0, out[0] * probe[0], out[1] * probe[1])
    centres = bool(out[3].abs().max() <= TOLERANCE * gain.abs().max())
    shape = gain * (noise - noise.mean(dim=1, keepdim=True) if centres else noise)
    for made, wanted in zip(out[4:], shape, strict=True):
        if not _proportional(wanted, made):
            raise NoDirectPathError(f"the final norm, {type(norm).__name__}, has another form")
    return gain, centres
