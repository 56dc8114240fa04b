"""Trained lower blocks, random upper ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nullsae.config.randomization import Randomization, Settings
from nullsae.config.variants import Look, Variant
from nullsae.core.errors import UserError
from nullsae.subjects.changes import REDRAWN, Change, block_parameters, change_weights


class Cascade(Variant):
    """By default the second half of the blocks is redrawn; parts outside the blocks are kept."""

    name = "cascade"
    position = 8
    group = "redrawn weights"
    text = "The first {kept} as trained, the blocks above redrawn as in rerandomized."
    look = Look(
        "#483c00",
        "#e4e490",
        "M0,-1L0.25,-0.3L1,-0.3L0.4,0.15L0.6,0.9L0,0.45L-0.6,0.9L-0.4,0.15L-1,-0.3L-0.25,-0.3Z",
        (3, 1),
    )
    reads = ("norm_parameters", "first_random_block")

    @classmethod
    def describe(cls, randomization: Randomization) -> str:
        first = randomization.first_random_block
        kept = "half of the blocks" if first is None else f"{first} blocks"
        return super().describe(randomization).format(kept=kept)

    @classmethod
    def resolve(cls, model: Any, settings: Settings, subject: str) -> Settings:
        from nullsae.subjects import families

        blocks, first = families.find_blocks(model), settings.first_random_block
        if first is None:
            first = len(blocks) // 2
        if first >= len(blocks):
            raise UserError(
                f"config: randomization.first_random_block: {first} is beyond the last block; "
                f"subject {subject!r} has {len(blocks)} blocks, 0 to {len(blocks) - 1}"
            )
        redrawn = {id(p) for p in blocks[first:].parameters()}
        for name, parameter in blocks[:first].named_parameters():
            if id(parameter) in redrawn:
                raise UserError(
                    f"config: randomization.first_random_block: {first}: subject {subject!r} uses "
                    f"the weights {name} (after its block's number) in later blocks too, so "
                    f"that they cannot be both kept and redrawn"
                )
        return settings.model_copy(update={"first_random_block": first})

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Change]:
        names = block_parameters(model, settings.first_random_block or 0)
        return change_weights(model, settings, REDRAWN, names=names)
