"""Where activations are read: names of sites, and patterns that stand for several.

`resid_post.L` is the output of block L (`hidden_states[L + 1]` in Transformers, except for the last
block, where that entry is normalized), `resid_pre.L` its input (`hidden_states[L]`), `resid_mid.L`
the residual stream between attention and MLP, `attn_out.L` and `mlp_out.L` what these two add to
it. `hook_z.L` is the input of the attention's output projection, with the heads concatenated;
`mlp_in.L` is the MLP's input, and `mlp_post.L` its neurons' activations, the input of the down
projection. `embed` is the output of the token embedding, before positions are added. Names are
those of TransformerLens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

# Sites in the residual stream, or added to it.
RESIDUAL = ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post")
# Inputs of output projections; their width is not that of the residual stream.
PROJECTED = ("hook_z", "mlp_post")
KINDS = (
    "resid_pre",
    "hook_z",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_post",
    "mlp_out",
    "resid_post",
)
_INDEX = r"(?:0|-?[1-9][0-9]*)"
_BLOCKS = rf"(?:\*|{_INDEX}(?:\.\.{_INDEX}(?:\.\.[1-9][0-9]*)?)?)"
SITE = re.compile(rf"^(?:embed|(?:{'|'.join(KINDS)})\.(?:0|[1-9][0-9]*))\Z")
PATTERN = re.compile(rf"^(?:embed|(?:{'|'.join(KINDS)})\.{_BLOCKS})\Z")
HOW = (
    f"write embed, or one of {', '.join(KINDS)} with a block: resid_post.3, resid_post.-1 (the "
    f"last), resid_post.* (all), resid_post.0..8 (both ends) or resid_post.0..-1..4 (every fourth)"
)


def site_kind(site: str) -> str:
    """Return `resid_post` for `resid_post.3`, and `embed` for `embed`."""
    return site.partition(".")[0]


def site_layer(site: str) -> int:
    """Return the block of a site; -1 for `embed`, which comes before block 0."""
    return -1 if site == "embed" else int(site.rpartition(".")[2])


def needs_depth(pattern: str) -> bool:
    """Return whether a pattern, such as `*` or `-1`, needs the number of blocks."""
    blocks = pattern.partition(".")[2]
    return "*" in blocks or "-" in blocks


def expand_sites(patterns: Iterable[str], n_layers: int | None) -> tuple[str, ...]:
    """Return the sites that patterns mean, each once, in order of first mention.

    Args:
        patterns: as matched by `PATTERN`.
        n_layers: number of blocks of the subject; None if unknown, in which case no pattern may
            need it (`needs_depth`).

    Raises:
        ValueError: a block is beyond the last, or a range is empty; names the pattern.
    """
    found: dict[str, None] = {}
    for pattern in patterns:
        if pattern == "embed":
            found[pattern] = None
            continue
        kind, _, blocks = pattern.partition(".")
        for block in _blocks(pattern, blocks, n_layers):
            found[f"{kind}.{block}"] = None
    return tuple(found)


def _blocks(pattern: str, blocks: str, n_layers: int | None) -> range:
    assert n_layers is not None or not needs_depth(pattern)
    if blocks == "*":
        return range(n_layers or 0)
    first, *rest = (int(part) for part in blocks.split(".."))
    last, step = (rest[0] if rest else first), (rest[1] if len(rest) > 1 else 1)
    ends = []
    for block in (first, last):
        if n_layers is None:
            ends.append(block)
            continue
        if not -n_layers <= block < n_layers:
            raise ValueError(
                f"{pattern} is beyond the last block; the subject has {n_layers} blocks, "
                f"0 to {n_layers - 1}"
            )
        ends.append(block % n_layers)
    if ends[0] > ends[1]:
        raise ValueError(f"{pattern} names no block: it starts at {ends[0]} and ends at {ends[1]}")
    return range(ends[0], ends[1] + 1, step)
