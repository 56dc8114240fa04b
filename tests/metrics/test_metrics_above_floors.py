"""The share explained above both floors, of activations and dictionaries made by hand.

The activation of token v is a direction of v plus, by chance, twice another direction or nothing,
which the token does not determine. The squared deviation from the mean is 7/8 + 1, and that from
the mean of the same token 1.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nullsae.config.statistics import Statistics
from nullsae.core.files import read_json, write_json
from nullsae.metrics.catalogue.reconstruction import AboveFloors
from nullsae.sae.autoencoder import Autoencoder
from nullsae.statistics.bootstrap import Arm, ArmCell, Resampler
from nullsae.statistics.contrasts import Estimate, estimate
from run_stages import evaluated
from small_chain import CONTEXT, D_MODEL, write_corpus, write_sae, write_site

SITE = "resid_post.1"
N_TOKENS, N_CONTEXTS, BEYOND = 8, 32, 8
N = N_CONTEXTS * CONTEXT
DEVIATION, LOOKED_UP = 7 / 8 + 1, 1.0


def activations(*, beyond: float) -> Tensor:
    """Return float32 [N, D_MODEL]; each token has the extra part every other time in a document."""
    x = torch.zeros(N, D_MODEL)
    x[torch.arange(N), torch.arange(N) % N_TOKENS] = 1
    x[:, BEYOND] = 2 * beyond * (torch.arange(N) // N_TOKENS % 2)
    return x


def copying() -> Autoencoder:
    """Return an SAE whose latents 0 to 7 are the tokens and whose latent 8 is the extra part."""
    rows = torch.eye(N_TOKENS + 1, D_MODEL)
    b_enc, b_dec = torch.zeros(len(rows)), torch.zeros(D_MODEL)
    return Autoencoder("topk", rows, b_enc, rows.clone(), b_dec, k=2)


def naming() -> Autoencoder:
    """Return an SAE with the tokens, and the mean of the extra part."""
    own = copying()
    mean = torch.eye(D_MODEL)[BEYOND]
    return replace(own, w_enc=own.w_enc[:8], b_enc=own.b_enc[:8], w_dec=own.w_dec[:8], b_dec=mean)


def silent() -> Autoencoder:
    """Return an SAE that always outputs the mean."""
    own = copying()
    return replace(own, w_enc=0 * own.w_enc, b_dec=activations(beyond=1.0).mean(dim=0))


def shuffled() -> Autoencoder:
    """Return an SAE with another token's row for each token."""
    own = copying()
    return replace(own, w_dec=torch.cat([own.w_dec[:8].roll(1, dims=0), own.w_dec[8:]]))


def measured(folder: Path, x: Tensor, coder: Autoencoder, gaussian_error: float = 1.5) -> Estimate:
    """Estimate like `aggregate`, with a Gaussian floor of the given error per token."""
    ids = np.arange(N, dtype=np.int32).reshape(N_CONTEXTS, CONTEXT) % N_TOKENS
    documents = np.repeat(np.arange(N_CONTEXTS, dtype=np.int32)[:, None], CONTEXT, axis=1)
    given: dict[str, Any] = {}
    for split in ("train", "eval"):
        given[f"{split}_tokens"] = write_corpus(folder / f"corpus/{split}", ids, documents)
        manifest = write_site(folder / split, x, [N], site=SITE)
        # Evaluated without a model, like sampled activations.
        own = manifest.parent / f"site={SITE}/manifest.json"
        write_json(own, {**read_json(own, rebuild=""), "fitted": {"key": "other"}})
        given[f"{split}_activations"] = manifest
    sae = write_sae(coder, folder / "sae", site=SITE)
    rows = evaluated(folder, sae=sae, model=None, fidelity_tokens=N, **given)["documents"]
    metric = AboveFloors()
    columns = {name: np.array([row[name] for row in rows], np.float64) for name in metric.columns}
    deviation = columns["squared_deviation"]
    floor = np.full(len(deviation), gaussian_error * CONTEXT), deviation
    own_cell = ArmCell(0, 0, (*metric.value(columns), *floor))
    arm = Arm((own_cell,), metric.form, complement=metric.complement, units_are_shared=True)
    return estimate(arm, metric, Statistics(), Resampler(0, 100))


@pytest.mark.parametrize(
    ("coder", "error"),
    [(copying(), 0.0), (naming(), LOOKED_UP), (silent(), DEVIATION), (shuffled(), 2.0)],
    ids=["copying", "naming", "silent", "shuffled"],
)
def test_known_dictionaries_reach_one_and_nought_and_fall_below(
    coder: Autoencoder, error: float, tmp_path: Path
) -> None:
    """FVU over the smaller floor is the error over the smaller error of the two floors."""
    x = activations(beyond=1.0)
    found = measured(tmp_path / "token", x, coder)
    assert found.value == pytest.approx(1 - error / LOOKED_UP, abs=1e-9)
    # Here the covariance allows more than the token.
    found = measured(tmp_path / "gaussian", x, coder, gaussian_error=0.5)
    assert found.value == pytest.approx(1 - error / 0.5, abs=1e-9)


@pytest.mark.parametrize("kind", ["rotation", "sign", "permutation"])
def test_neither_basis_nor_sign_nor_order_of_latents_changes_the_value(
    kind: str, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = activations(beyond=1.0) + 0.1 * torch.randn(N, D_MODEL, generator=generator)
    own = copying()
    turn, order = torch.eye(D_MODEL), torch.arange(own.n_latents)
    if kind == "rotation":
        turn = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator)).Q
    elif kind == "sign":
        turn = -turn
    else:
        order = torch.randperm(own.n_latents, generator=generator)
    there = replace(own, w_enc=own.w_enc[order] @ turn.T, w_dec=own.w_dec[order] @ turn.T)
    plain = measured(tmp_path / "plain", x, own)
    found = measured(tmp_path / "turned", x @ turn.T, there)
    assert plain.value is not None
    assert 0 < plain.value < 1
    assert found.value == pytest.approx(plain.value, rel=1e-5)


def test_where_the_token_tells_all_there_is_no_value_and_a_reason(tmp_path: Path) -> None:
    found = measured(tmp_path, activations(beyond=0.0), copying())
    assert found.value is None
    assert found.reason == "squared_deviation or what a floor leaves sums to 0"
