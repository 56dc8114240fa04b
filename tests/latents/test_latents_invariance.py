"""What the choice of a basis, of signs and of an order of latents must not change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from planted import Array, Cell, Study
from torch import Tensor

from nullsae.latents import causal_effects, effects, promoted
from nullsae.sae.autoencoder import Autoencoder
from small_chain import D_MODEL, VOCAB, tiny_model, tokens_of

SITE = "resid_post.1"
N_DIRECTIONS = 24
SETTINGS = {"n_sampled": 200, "causal_places": 8, "min_firings": 10}
# Parameters that read the residual stream, and those that write to it or are in it.
READING = (
    *("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"),
    *("query_key_value", "dense_h_to_4h", "embed_out", "lm_head"),
)
WRITING = ("o_proj", "down_proj", "attention.dense", "dense_4h_to_h")
TABLES = ("embed_tokens", "embed_in")


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rotation(*, keeps_ones: bool) -> Tensor:
    """Return a random rotation, float64; LayerNorms only allow one that keeps (1, ..., 1)."""
    if not keeps_ones:
        return torch.linalg.qr(drawn(D_MODEL, D_MODEL, seed=1)).Q
    ones = torch.ones(D_MODEL, 1, dtype=torch.float64)
    basis = torch.linalg.qr(torch.cat([ones, drawn(D_MODEL, D_MODEL - 1, seed=2)], dim=1)).Q
    inner = torch.eye(D_MODEL, dtype=torch.float64)
    inner[1:, 1:] = torch.linalg.qr(drawn(D_MODEL - 1, D_MODEL - 1, seed=3)).Q
    return basis @ inner @ basis.T


def model_of(family: str, turn: Tensor | None = None) -> Any:
    """Return a random model with norm gains 1 and its residual stream x replaced by `turn` x."""
    model = tiny_model(family, tie_word_embeddings=family == "llama")
    turn = torch.eye(D_MODEL, dtype=torch.float64) if turn is None else turn
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            part, _, kind = name.rpartition(".")
            values = parameter.double()
            if "norm" in part:
                values = torch.ones_like(values) if kind == "weight" else turn @ values
            elif part.endswith(TABLES) or (part.endswith(READING) and kind == "weight"):
                values = values @ turn.T
            elif part.endswith(WRITING):
                values = turn @ values
            parameter.copy_(values)
    return model


def signed(turn: Tensor | None = None, signs: Tensor | None = None) -> Autoencoder:
    """Return random directions, plus and minus, in a rotated basis, with the given signs."""
    directions = drawn(N_DIRECTIONS, D_MODEL, seed=4)
    mean = drawn(D_MODEL, seed=5)
    if signs is not None:
        directions = directions * signs[:, None]
    if turn is not None:
        directions, mean = directions @ turn.T, turn @ mean
    rows = torch.cat([directions, -directions]).float()
    return Autoencoder("topk", rows, torch.zeros(len(rows)), rows.clone(), mean.float(), k=4)


@pytest.fixture(scope="module", params=["llama", "gpt_neox"])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def study_of(family: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Study]:
    ids, documents = tokens_of(60, seed=2)

    def made(turn: Tensor | None = None) -> Study:
        root = tmp_path_factory.mktemp(family)
        return Study(root, model_of(family, turn), ids, documents, VOCAB)

    return made


@pytest.fixture(scope="module")
def plain(study_of: Callable[..., Study]) -> tuple[Study, Cell]:
    study = study_of()
    cell = study.cell(SITE, signed(), "plain", **SETTINGS)
    assert cell.coverage["n_sampled"] > 10
    return study, cell


def assert_same(found: Cell, wanted: Cell, names: list[str], order: Array | None = None) -> None:
    """Check that columns agree to float32's rounding; `order` maps latents of `wanted`."""
    order = np.arange(len(wanted.rows)) if order is None else order
    for name in names:
        if name in promoted.COLUMNS:
            for at, row in zip(order, wanted.rows, strict=True):
                own = found.rows[at][name]
                assert (own is None) == (row[name] is None)
                if own is not None:
                    assert own == pytest.approx(row[name], rel=1e-3)
            continue
        np.testing.assert_allclose(
            found.column(name)[order], wanted.column(name), rtol=1e-3, atol=1e-5, err_msg=name
        )


def columns(cell: Cell) -> list[str]:
    """Return all columns except random directions, which do not follow the basis."""
    return [name for name in cell.rows[0] if not name.endswith("_random")]


@pytest.mark.parametrize("kind", ["rotation", "sign"])
def test_another_basis_of_the_residual_stream_changes_no_column(
    kind: str, family: str, plain: tuple[Study, Cell], study_of: Callable[..., Study]
) -> None:
    turn = -torch.eye(D_MODEL, dtype=torch.float64)
    if kind == "rotation":
        turn = rotation(keeps_ones=family == "gpt_neox")
    found = study_of(turn).cell(SITE, signed(turn), "turned", **SETTINGS)
    names = columns(found)
    assert {*effects.COLUMNS[:1], *causal_effects.COLUMNS[:2], *promoted.COLUMNS} <= {*names}
    assert_same(found, plain[1], names)


def test_the_sign_of_directions_moves_latents_and_changes_none(plain: tuple[Study, Cell]) -> None:
    """A signed dictionary has each direction both ways, so a sign change swaps the two.

    Placebos, windows and the places of causal effects are drawn again, by a latent's number.
    """
    study, cell = plain
    flipped = np.arange(N_DIRECTIONS) % 3 == 0
    signs = torch.tensor(np.where(flipped, -1.0, 1.0))
    first = np.arange(N_DIRECTIONS) + N_DIRECTIONS * flipped
    order = np.concatenate([first, (first + N_DIRECTIONS) % (2 * N_DIRECTIONS)])
    found = study.cell(SITE, signed(signs=signs), "flipped", **SETTINGS)
    draws = {"latent", *causal_effects.COLUMNS, "explain_token_entropy_bits"}
    names = [n for n in columns(cell) if n not in draws and not n.endswith("_swapped")]
    assert {"next_token_auroc", "next_token_auroc_bigram", *promoted.COLUMNS} <= {*names}
    assert_same(found, cell, names, order)


def test_what_layer_norms_take_away_is_no_part_of_a_row(
    family: str, plain: tuple[Study, Cell]
) -> None:
    """All norms of a GPT-NeoX subtract the mean, and none of a Llama does."""
    study, cell = plain
    coder = signed()
    moved = replace(coder, w_dec=coder.w_dec + 0.5)
    found = study.cell(SITE, moved, "moved", **SETTINGS)
    own = [name for name in causal_effects.CHANGES if name in cell.rows[0]]
    names = ["next_token_auroc", "next_token_auroc_bigram", "promoted_tokens", *own]
    if family == "gpt_neox":
        assert_same(found, cell, names)
        return
    for name in ("next_token_auroc", *own):
        assert np.nanmax(np.abs(found.column(name) - cell.column(name))) > 1e-2
