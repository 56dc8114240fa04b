from __future__ import annotations

import numpy as np
import pytest
import torch

from nullsae.latents import promoted
from nullsae.latents.promoted import COLUMNS, promoted_tokens

GENERATOR = torch.Generator().manual_seed(0)
PATH = torch.randn(40, 8, generator=GENERATOR)
ROWS = torch.randn(9, 8, generator=GENERATOR)


def test_neither_the_size_of_a_row_nor_what_all_logits_share_matters() -> None:
    found = promoted_tokens(ROWS, PATH, 5)
    shifted = promoted_tokens(3.5 * ROWS, 0.2 * (PATH + torch.randn(8, generator=GENERATOR)), 5)
    for end in ("promoted", "suppressed"):
        assert shifted[f"{end}_tokens"] == found[f"{end}_tokens"]
        expected = np.array(found[f"{end}_effects"])
        np.testing.assert_allclose(np.array(shifted[f"{end}_effects"]), expected, rtol=1e-4)


def test_the_negative_row_promotes_what_the_row_suppresses() -> None:
    own, other = promoted_tokens(ROWS, PATH, 5), promoted_tokens(-ROWS, PATH, 5)
    assert own["promoted_tokens"] == other["suppressed_tokens"]
    assert own["suppressed_tokens"] == other["promoted_tokens"]


def test_rows_are_processed_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = promoted_tokens(ROWS, PATH, 5)
    monkeypatch.setattr(promoted, "PIECE", 2 * len(PATH))
    pieces = promoted_tokens(ROWS, PATH, 5)
    for name in ("promoted_tokens", "suppressed_tokens"):
        assert pieces[name] == whole[name]


def test_a_token_is_at_one_end_only_and_the_strongest_come_first() -> None:
    found = promoted_tokens(ROWS, PATH[:7], 10)
    for i in range(len(ROWS)):
        up, down = (found[f"{end}_tokens"][i] for end in ("promoted", "suppressed"))
        assert up is not None
        assert down is not None
        assert len(up) == len(down) == 3
        assert not set(up) & set(down)
        assert found["promoted_effects"][i] == sorted(found["promoted_effects"][i] or [])[::-1]
        assert found["suppressed_effects"][i] == sorted(found["suppressed_effects"][i] or [])


def test_rows_without_effects_have_no_tokens() -> None:
    """Zeros, and what the final norm's centring subtracts, up to rounding."""
    rows = torch.stack([ROWS[0], torch.zeros(8), 0.3 * torch.ones(8)])
    found = promoted_tokens(rows, PATH - PATH.mean(dim=1, keepdim=True), 5)
    for name in COLUMNS:
        assert [own is None for own in found[name]] == [False, True, True]


def test_of_equal_effects_the_smaller_id_comes_first() -> None:
    path = torch.zeros(12, 8)
    path[[3, 9], 0] = 1
    path[[2, 7], 0] = -1
    found = promoted_tokens(torch.eye(8)[:1], path, 2)
    assert found["promoted_tokens"] == [[3, 9]]
    assert found["suppressed_tokens"] == [[2, 7]]
    # Eight effects of 0, two of 1 and two of -1: their variance is a third.
    assert found["promoted_effects"][0] == pytest.approx([3**0.5] * 2)
