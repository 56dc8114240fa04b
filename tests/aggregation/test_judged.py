from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from nullsae import tables
from nullsae.aggregation.cells import Units
from nullsae.aggregation.judged import JudgedWindows

KEYS = {
    **{"subject": "s", "variant": "trained", "draw": "0", "site": "resid_post.1"},
    **{"sae": "topk", "seed": "0", "explainer": "lexical", "scorer": "detection"},
}


def windows(latent: int, n: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Windows of five documents, every second one active; the last has no reply."""
    return [
        {
            **{"latent": latent, "window": i, "document": int(rng.integers(5))},
            **{"active": i % 2 == 0, "silent_kind": None, "quantile": None, "n_marked": 0},
            "probability": None if i == n - 1 else float(rng.random()),
            "evidence": None,
        }
        for i in range(n)
    ]


def units(rows: list[dict[str, Any]]) -> Units:
    table = pa.Table.from_pylist(rows, schema=tables.cell_schema("predictions"))
    return Units(KEYS, table, "latent")


def weighted_mean(rows: list[dict[str, Any]], latents: list[int], weight: np.ndarray) -> float:
    """Scikit-learn's mean AUROC with each window weighted as its document."""
    found = []
    for latent in latents:
        own = [r for r in rows if r["latent"] == latent and r["probability"] is not None]
        truth, said = ([row[name] for row in own] for name in ("active", "probability"))
        found.append(
            roc_auc_score(truth, said, sample_weight=weight[[row["document"] for row in own]])
        )
    return float(np.mean(found))


def test_a_documents_effect_is_the_slope_of_the_mean_score_by_its_weight() -> None:
    rng = np.random.default_rng(1)
    rows = [row for latent in (7, 2, 9) for row in windows(latent, 21, rng)]
    # Latent 9 has no score: it is not asked for.
    cell = units(rows[::-1])
    found = JudgedWindows([cell]).documents(cell, "auroc", np.array([2, 7]))
    assert found is not None
    slopes = [
        weighted_mean(rows, [2, 7], 1 + step) - weighted_mean(rows, [2, 7], 1 - step)
        for step in 1e-5 * np.eye(5)
    ]
    assert found.effect == pytest.approx(np.array(slopes) / 2e-5, abs=1e-8)
    judged = [r["document"] for r in rows if r["latent"] != 9 and r["probability"] is not None]
    assert list(found.n_windows) == list(np.bincount(judged, minlength=5))
    # Pairs of a latent and a document, each by itself.
    held = 0.0
    for latent in (2, 7):
        own = JudgedWindows([cell]).documents(cell, "auroc", np.array([latent]))
        assert own is not None
        held += float((own.effect**2).sum()) / 4
    assert found.held == pytest.approx(held, rel=1e-12)


def test_only_scores_of_windows_have_documents() -> None:
    rng = np.random.default_rng(2)
    cell = units(windows(1, 10, rng))
    judged = JudgedWindows([cell])
    assert judged.documents(cell, "auprc", np.array([1])) is not None
    assert judged.documents(cell, "is_abstract", np.array([1])) is None
    assert judged.documents(cell, "auroc", np.array([3])) is None
    other = Units({**KEYS, "explainer": "swapped"}, cell.table, "latent")
    assert judged.documents(other, "auroc", np.array([1])) is None
    assert JudgedWindows([units([])]).documents(cell, "auroc", np.array([1])) is None


def test_a_latent_whose_windows_are_of_one_kind_moves_nothing() -> None:
    rows = [{**row, "active": True} for row in windows(1, 10, np.random.default_rng(3))]
    assert JudgedWindows([units(rows)]).documents(units(rows), "auroc", np.array([1])) is None
