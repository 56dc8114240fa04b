from __future__ import annotations

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullsae.activations.blocks import Batches, block_order, order_within


def stream(
    sizes: list[int], batch_tokens: int, epochs: int, *, seed: int = 0, start_step: int = 0
) -> list[list[int]]:
    """Return the batches that one SAE gets if blocks contain the numbers of their rows."""
    blocks = list(torch.arange(1, sum(sizes) + 1).split(sizes))
    batches = Batches(sum(sizes), batch_tokens, start_step=start_step)
    found: list[list[int]] = []
    for epoch in range(epochs):
        start = 0
        for index in block_order(seed, epoch, len(sizes)):
            stop = start + sizes[index]
            if batches.want(epoch, start, stop):
                x: Tensor = blocks[index][order_within(seed, epoch, index, sizes[index])]
                found += [part.tolist() for part in batches.cut(start, x)]
            start = stop
    return found


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    batch=st.integers(1, 14),
    epochs=st.integers(1, 3),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_an_epoch_repeats_no_token_and_a_resume_shifts_none(
    sizes: list[int], batch: int, epochs: int, data: st.DataObject
) -> None:
    n = sum(sizes)
    batch = min(batch, n)
    whole = stream(sizes, batch, epochs)
    per_epoch = n // batch
    assert [len(b) for b in whole] == [batch] * (per_epoch * epochs)
    for epoch in range(epochs):
        seen = list(itertools.chain(*whole[epoch * per_epoch : (epoch + 1) * per_epoch]))
        assert len(set(seen)) == per_epoch * batch
    start = data.draw(st.integers(0, len(whole)))
    assert stream(sizes, batch, epochs, start_step=start) == whole[start:]


def test_a_block_smaller_than_a_batch_gives_no_empty_batch() -> None:
    """torch.split returns one empty part for an empty tensor: its loss would be NaN."""
    assert [len(batch) for batch in stream([3, 3, 3], 4, 1)] == [4, 4]


def test_every_epoch_and_every_seed_has_its_own_order() -> None:
    def flat(seed: int) -> list[int]:
        return [v for b in stream([20] * 6, 10, 3, seed=seed) for v in b]

    one = flat(0)
    epochs = [one[:120], one[120:240], one[240:]]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    # The first epoch uses the permutation from the capture; later ones permute within blocks too.
    in_block = [[v for v in epoch if v <= 20] for epoch in epochs]
    assert in_block[0] == list(range(1, 21))
    assert len({tuple(part) for part in in_block}) == 3
    assert flat(0) == one
    assert flat(1) != one
