"""Randomized weights: each tensor is drawn on the CPU from its own keyed generator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nullsae.config.randomization import Settings
from nullsae.config.variants import VARIANTS
from nullsae.subjects.changes import Change, Draw


def randomize(
    model: Any,
    variant: str,
    settings: Settings | None = None,
    *,
    seed: int,
    subject: str,
    draw: int,
) -> dict[str, Change]:
    """Change a model's weights in place into one draw of a random variant.

    Buffers stay as they are. The draw of a tensor depends on its values, its name and the keys, not
    on its place among the others.

    Args:
        model: any Hugging Face decoder.
        variant: name of a variant that changes weights.
        settings: what it depends on of `randomization`.
        seed: the config's seed.
        subject: name of the subject.
        draw: index of the randomization.

    Returns:
        What was done to each changed tensor, by its name.
    """
    changes = dict(VARIANTS[variant].changes(model, settings or Settings()))
    key = draw_of(variant, seed=seed, subject=subject, draw=draw)
    with torch.no_grad():
        for change, names in by_change(changes).items():
            change.apply(model, names, key)
    return changes


def draw_of(variant: str, *, seed: int, subject: str, draw: int) -> Draw:
    """What keys the random numbers of one draw of a variant."""
    return Draw(seed, VARIANTS[variant].purpose or variant, subject, draw)


def by_change(changes: Mapping[str, Change]) -> dict[Change, set[str]]:
    """The names of the parameters that each change is made to."""
    return {
        change: {name for name, other in changes.items() if other is change}
        for change in dict.fromkeys(changes.values())
    }
