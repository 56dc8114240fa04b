"""Gates on forward passes: a row of activations depends on its own token, and on no later one.

A model that is not causal, or whose blocks pass on anything but [batch, tokens, d_model], gives
activations that look sound: finite, repeatable, and about the wrong tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullsae.core.devices import exact
from nullsae.subjects.families import token_tables
from nullsae.subjects.gates import Gate, failed, passed
from nullsae.subjects.loading import Subject

# Allowed rounding of a site's rows, as a share of their root mean square, if the shape of a batch
# determines which of several equivalent kernels computes it, and if it is the same. Many models
# compute norms and angles in float32 even if the rest is float64.
OTHER_SHAPE = {
    **dict.fromkeys((torch.float64, torch.float32), 1e-4),
    **{torch.bfloat16: 6e-2, torch.float16: 8e-3},
}
SAME_SHAPE = {
    **dict.fromkeys((torch.float64, torch.float32), 1e-5),
    **{torch.bfloat16: 8e-3, torch.float16: 1e-3},
}
# Added to one token's embedding, as a share of the root mean square of all.
NUDGE = 0.5


def forward_gates(subject: Subject, probe: Tensor) -> list[Gate]:
    """Run all gates, at the embedding and after each block.

    Args:
        subject: any variant, with its weights loaded.
        probe: int token ids [contexts, tokens] of `eval`, from its start; two contexts or more.
    """
    sites = ["embed", *subject.block_outputs]
    whole = _run(subject, probe, sites)
    if bad := next((site for site, x in whole.items() if not bool(x.isfinite().all())), None):
        return [
            failed(
                "finite",
                f"{bad}: NaN or infinite values: the weights are damaged, or too large for "
                f"{str(whole[bad].dtype).removeprefix('torch.')}",
            )
        ]
    if broken := _not_handed_on(subject, probe):
        return [broken]
    return [
        alone(subject, probe, whole),
        causal(subject, probe, whole),
        own_rows(subject, probe, whole),
    ]


def _not_handed_on(subject: Subject, probe: Tensor) -> Gate | None:
    """Return a failed gate if a block does not read what the one before it passes on.

    What was taken for blocks may be a part of each (XLM's attentions), or one of two streams.
    """
    written = subject.block_outputs[:-1]
    read = [f"resid_pre.{layer + 1}" for layer in range(len(written))]
    if not read:
        return None
    found = _run(subject, probe, [*written, *read])
    outputs = {site: found[site] for site in written}
    inputs = dict(zip(written, (found[site] for site in read), strict=True))
    if beyond := _first_beyond(SAME_SHAPE, outputs, inputs, np.s_[:], np.s_[:]):
        site, difference = beyond
        return failed(
            "handed on",
            f"{site}: the next block reads something else, {difference:.3g} of the norm away: "
            f"these are not whole blocks, or the model changes what passes between them",
        )
    return None


def alone(subject: Subject, probe: Tensor, whole: Mapping[str, Tensor]) -> Gate:
    """Check that the last context alone gives the same activations as among the others."""
    last = len(probe) - 1
    found = _run(subject, probe[last:], list(whole), first=last)
    if beyond := _first_beyond(OTHER_SHAPE, whole, found, np.s_[last:], np.s_[:]):
        site, difference = beyond
        return failed(
            "alone",
            f"{site}: a context alone differs by {difference:.3g} of the norm from the same "
            f"one in a batch: rows of the batch affect each other",
        )
    return passed("alone", f"{len(whole)} sites: one context alone is as in a batch")


def causal(subject: Subject, probe: Tensor, whole: Mapping[str, Tensor]) -> Gate:
    """Check that other tokens from a position on change nothing before it.

    Positions are the second token, the middle and the last one: a model may see later tokens only
    in a prefix, or within pieces that end in the middle.
    """
    positions = sorted({1, probe.shape[1] // 2, probe.shape[1] - 1})
    for at in positions:
        edited = probe.clone()
        edited[:, at:] = _another(probe[:, at:], int(probe.max()))
        found = _run(subject, edited, list(whole))
        if beyond := _first_beyond(SAME_SHAPE, whole, found, np.s_[:, :at], np.s_[:, :at]):
            site, difference = beyond
            return failed(
                "causal",
                f"{site}: other tokens from position {at} on change earlier rows by "
                f"{difference:.3g} of their norm: the model is not causal",
            )
    tried = ", ".join(map(str, positions))
    return passed("causal", f"edits from positions {tried} on change no row before them")


def own_rows(subject: Subject, probe: Tensor, whole: Mapping[str, Tensor]) -> Gate:
    """Check that a nudge to one token's embedding changes its row at every site, and no earlier."""
    at = probe.shape[1] // 2

    def nudge(_module: object, _inputs: object, output: Tensor) -> Tensor:
        size = output.float().square().mean().sqrt() * NUDGE
        moved = output.clone()
        # Not equal in all dimensions, because a norm that subtracts the mean would undo it.
        moved[:, at, ::2] += size.to(output.dtype)
        return moved

    handle = subject.model.get_input_embeddings().register_forward_hook(nudge)
    try:
        found = _run(subject, probe, list(whole))
    finally:
        handle.remove()
    for site, rows in whole.items():
        before = _difference(rows[:, :at], found[site][:, :at], rows)
        own = _difference(rows[:, at : at + 1], found[site][:, at : at + 1], rows)
        if not before <= SAME_SHAPE[rows.dtype]:
            return failed(
                "own rows",
                f"{site}: a nudge at position {at} changes rows before it by {before:.3g}",
            )
        if rows.abs().max() > 0 and not own > 0:
            return failed("own rows", f"{site}: a nudge at position {at} does not change its row")
    return passed("own rows", f"a nudge at position {at} changes its row at {len(whole)} sites")


def reads_no_text(
    subject: Subject, probe: Tensor, name: str = "reads no text", same: str = "noise"
) -> Gate:
    """Check that two texts with one noise give the same activations at every site, and logits.

    Token ids may reach a model by other ways than its input embedding: a table in each block
    (Gemma 3n), a router that looks them up. `name` is the gate's, `same` what both texts share.
    """
    sites = ["embed", *subject.block_outputs]
    other = _another(probe, int(probe.max()))
    contexts = range(len(probe))
    first, second = _run(subject, probe, sites), _run(subject, other, sites)
    has_head = subject.model.get_output_embeddings() is not None
    for text, found in ((probe, first), (other, second)) if has_head else ():
        found["logits"] = subject.logits(text, split="eval", contexts=contexts)
    if beyond := _first_beyond(SAME_SHAPE, first, second, np.s_[:], np.s_[:]):
        site, difference = beyond
        return failed(
            name,
            f"{site}: another text with the same {same} differs by {difference:.3g} of the "
            f"norm: token ids reach this model without passing an embedding table",
        )
    return passed(name, f"another text gives the same at {len(first)} places")


def all_tables(subject: Subject, probe: Tensor) -> Gate:
    """Check that changing the tables indexed by token ids changes all that distinguishes tokens.

    With one row for all tokens in each of them, two texts give the same activations.
    """

    def one_row(_module: object, _inputs: object, output: Tensor) -> Tensor:
        row = torch.linspace(-1, 1, output.shape[-1]).to(output)
        return row.expand_as(output).contiguous()  # some models write into it

    with ExitStack() as stack:
        for table in token_tables(subject.model).values():
            stack.callback(table.register_forward_hook(one_row).remove)
        return reads_no_text(subject, probe, "all tables", "embeddings")


def _run(
    subject: Subject, ids: Tensor, sites: Sequence[str], *, first: int = 0
) -> dict[str, Tensor]:
    contexts = range(first, first + len(ids))
    return subject.activations(ids, split="eval", contexts=contexts, sites=sites)


def _first_beyond(
    allowed: Mapping[torch.dtype, float],
    whole: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    of_whole: Any,
    of_found: Any,
) -> tuple[str, float] | None:
    """Return the first site where a part of `whole` and one of `found` differ by too much."""
    for site, rows in whole.items():
        difference = _difference(rows[of_whole], found[site][of_found], rows)
        if not difference <= allowed[rows.dtype]:
            return site, difference
    return None


def _another(ids: Tensor, largest: int) -> Tensor:
    """Return other token ids, each no larger than the largest."""
    return (ids + 1 + largest // 2) % (largest + 1)


def _difference(a: Tensor, b: Tensor, whole: Tensor) -> float:
    """Return the largest difference of a row over the root mean square of all; 0 / 0 is 0."""
    if a.numel() == 0:
        return 0.0
    size = float(exact(whole).square().sum(dim=-1).mean().sqrt())
    largest = float((exact(a) - exact(b)).norm(dim=-1).max())
    return largest / size if size else largest
