from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_latents_statistics import CONTEXT, firings_of, random_case

from nullsae.latents import next_token
from nullsae.latents.next_token import Successors, next_token_aurocs
from nullsae.latents.split import Split

VOCAB, WIDTH = 9, 4


def effects(seed: int, n: int, *, ties: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows [n, WIDTH] and a path [VOCAB, WIDTH], whole numbers if effects should tie."""
    rng = np.random.default_rng(seed)
    drawn = [
        rng.integers(-1, 2, (k, WIDTH)) if ties else rng.normal(size=(k, WIDTH)) for k in (n, VOCAB)
    ]
    rows, path = (torch.tensor(numbers, dtype=torch.float32) for numbers in drawn)
    return rows, path


def by_loops(
    dense: np.ndarray, split: Split, effect: np.ndarray, latent: int, *, same_token: bool
) -> float:
    """Apply the definition literally: over firings, the share of next tokens below."""
    followed = [
        t
        for t in range(split.n_tokens - 1)
        if t // CONTEXT == (t + 1) // CONTEXT and split.document[t] == split.document[t + 1]
    ]
    shares = []
    for t in followed:
        if dense[t, latent] <= 0:
            continue
        q = [split.ids[s + 1] for s in followed if not same_token or split.ids[s] == split.ids[t]]
        mine = effect[split.ids[t + 1]]
        shares.append(np.mean([(effect[v] < mine) + 0.5 * (effect[v] == mine) for v in q]))
    return float(np.mean(shares)) if shares else float("nan")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_aurocs_are_those_of_loops_whatever_is_computed_together(
    seed: int, ties: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense, split = random_case(seed)
    latents = np.array([0, 2, 3, 4, 5])
    own, path = effects(seed, len(latents), ties=ties)
    each = [own, own.roll(1, dims=0)]
    wanted = [
        [
            by_loops(dense, split, effect[i], latent, same_token=same)
            for i, latent in enumerate(latents.tolist())
        ]
        for effect in ((rows @ path.T).numpy() for rows in each)
        for same in (False, True)
    ]
    for piece, ranked in ((1, 1), (30, 10), (30, 30), (2**21, 20)):
        monkeypatch.setattr(next_token, "PIECE", piece)
        monkeypatch.setitem(next_token.RANKED, "cpu", ranked)
        firings, successors = firings_of(dense), Successors.of(split)
        found = next_token_aurocs(each, path, firings, latents, successors)
        values = [of for aurocs in found for of in (aurocs.unigram, aurocs.bigram)]
        np.testing.assert_allclose(values, wanted, rtol=1e-12)


def test_a_row_that_knows_the_next_token_has_one_and_its_negative_nought() -> None:
    # Tokens 0 to 4 in turn: firings on 3 are followed by 4, those on 4 by 0.
    ids = np.tile(np.arange(5, dtype=np.int32), 40)
    split = Split(ids, np.zeros(200, np.int32), 50, None, Path("manifest.json"))
    dense = np.zeros((200, 2), np.float32)
    dense[ids == 3, 0] = dense[ids == 4, 1] = 1
    path = torch.eye(5)
    up, down = next_token_aurocs(
        *([path[[4, 0]], -path[[4, 0]]], path, firings_of(dense), np.arange(2)),
        Successors.of(split),
    )
    # The next token itself is nearly a fifth of q, and counts half.
    following = ids[1:][np.arange(199) % 50 != 49]
    for latent, token in enumerate((4, 0)):
        half = (following == token).mean() / 2
        assert up.unigram[latent] == pytest.approx(1 - half)
        assert down.unigram[latent] == pytest.approx(half)
    # Only one token follows the same token, so there is nothing to tell.
    assert up.bigram.tolist() == [0.5, 0.5]


def test_random_rows_are_within_three_standard_errors_of_a_half() -> None:
    rng = np.random.default_rng(0)
    ids = rng.choice(50, 20_000, p=rng.dirichlet(np.ones(50))).astype(np.int32)
    split = Split(ids, np.zeros(len(ids), np.int32), 100, None, Path("manifest.json"))
    dense = np.maximum(rng.normal(-1.5, 1, (len(ids), 200)), 0).astype(np.float32)
    rows, path = (torch.tensor(rng.normal(size=(n, 8)), dtype=torch.float32) for n in (200, 50))
    (found,) = next_token_aurocs(
        [rows], path, firings_of(dense), np.arange(200), Successors.of(split)
    )
    for values in found:
        assert abs(values.mean() - 0.5) < 3 * values.std() / np.sqrt(len(values))


def test_sign_and_order_of_latents_turn_the_values_with_them() -> None:
    dense, split = random_case(1)
    latents, successors = np.arange(5), Successors.of(split)
    rows, path = effects(5, 5, ties=False)
    here = next_token_aurocs([rows, -rows, 7 * rows], path, firings_of(dense), latents, successors)
    order = np.array([3, 0, 4, 1, 2])
    (there,) = next_token_aurocs(
        [rows[order]], path, firings_of(dense[:, order]), latents, successors
    )
    rotation = torch.linalg.qr(
        torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0))
    )
    (turned,) = next_token_aurocs(
        *([rows @ rotation.Q], path @ rotation.Q, firings_of(dense), latents, successors)
    )
    for values in range(2):
        np.testing.assert_allclose(here[1][values], 1 - here[0][values])
        np.testing.assert_array_equal(here[2][values], here[0][values])
        np.testing.assert_array_equal(there[values], here[0][values][order])
        np.testing.assert_allclose(turned[values], here[0][values], atol=1e-12)


def test_a_direction_that_nothing_reads_says_nothing() -> None:
    """What the final norm's centring subtracts, up to rounding, makes no token more likely."""
    dense, split = random_case(2)
    _, path = effects(5, 5, ties=False)
    rows = torch.tensor([[0.3] * WIDTH, [0.0] * WIDTH, [1.0, -1.0, 0.0, 0.0]])
    (found,) = next_token_aurocs(
        *([rows], path - path.mean(dim=1, keepdim=True), firings_of(dense[:, [0, 2, 3]])),
        *(np.arange(3), Successors.of(split)),
    )
    for values in found:
        assert values[:2].tolist() == [0.5, 0.5]
        assert values[2] != 0.5


def test_no_pair_reaches_over_the_end_of_a_context_or_a_document() -> None:
    ids = np.array([1, 2, 3, 1, 2, 3, 1, 2], np.int32)
    split = Split(ids, np.array([0, 0, 0, 0, 1, 1, 1, 2], np.int32), 4, None, Path("m.json"))
    found = Successors.of(split)
    assert [p >= 0 for p in found.pair] == [True, True, True, False, True, True, False, False]
    pairs = dict(
        zip(zip(found.first.tolist(), found.second.tolist(), strict=True), found.count, strict=True)
    )
    assert pairs == {(1, 2): 1, (2, 3): 2, (3, 1): 2}
