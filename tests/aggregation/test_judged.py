from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from nullsae import tables
from nullsae.aggregation.arms import Arms
from nullsae.aggregation.cells import Units
from nullsae.aggregation.judged import JudgedWindows
from nullsae.config.metrics import METRICS
from nullsae.config.statistics import Statistics
from nullsae.statistics.bootstrap import Resampler
from nullsae.statistics.contrasts import contrast_row, estimate
from nullsae.statistics.permutation import Permuter

KEYS = {
    **{"subject": "s", "variant": "trained", "draw": "0", "site": "resid_post.1"},
    **{"sae": "topk", "seed": "0", "explainer": "lexical", "scorer": "detection"},
}


def windows(latent: int, n: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return windows of five documents, every second one active; the last has no reply."""
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
    """Return scikit-learn's mean AUROC with each window weighted by its document."""
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
    # Latent 9 has no score and is not requested.
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
    # Pairs of a latent and a document, each independently.
    held = 0.0
    for latent in (2, 7):
        own = JudgedWindows([cell]).documents(cell, "auroc", np.array([latent]))
        assert own is not None
        held += float((own.effect**2).sum()) / 4
    assert found.held == pytest.approx(held, rel=1e-12)


def test_only_scores_of_windows_have_document_effects() -> None:
    rng = np.random.default_rng(2)
    cell = units(windows(1, 10, rng))
    judged = JudgedWindows([cell])
    assert judged.documents(cell, "auprc", np.array([1])) is not None
    assert judged.documents(cell, "is_abstract", np.array([1])) is None
    assert judged.documents(cell, "auroc", np.array([3])) is None
    other = Units({**KEYS, "explainer": "swapped"}, cell.table, "latent")
    assert judged.documents(other, "auroc", np.array([1])) is None
    assert JudgedWindows([units([])]).documents(cell, "auroc", np.array([1])) is None


def test_a_latent_whose_windows_are_of_one_kind_has_no_effect() -> None:
    rows = [{**row, "active": True} for row in windows(1, 10, np.random.default_rng(3))]
    assert JudgedWindows([units(rows)]).documents(units(rows), "auroc", np.array([1])) is None


def scores_of(rows: list[dict[str, Any]], keys: dict[str, str]) -> Units:
    """Return the table `scores` of these windows, with scikit-learn's AUROC."""
    found = []
    for latent in sorted({row["latent"] for row in rows}):
        own = [r for r in rows if r["latent"] == latent and r["probability"] is not None]
        truth, said = ([row[name] for row in own] for name in ("active", "probability"))
        auroc = roc_auc_score(truth, said)
        counts = {"n_active": sum(truth), "n_silent": len(truth) - sum(truth), "n_failed": 1}
        rest = dict.fromkeys(("auprc", "f1", "balanced_accuracy"), 0.5)
        found.append({"latent": latent, "auroc": auroc, **rest, **counts})
    schema = tables.cell_schema("scores")
    filled = [{name: row.get(name) for name in schema.names} for row in found]
    return Units(keys, pa.Table.from_pylist(filled, schema=schema), "latent")


def test_paired_differences_of_explanations_keep_the_level_of_documents() -> None:
    rng = np.random.default_rng(4)
    latents, keys = [1, 2, 3, 4, 5, 6], [KEYS, {**KEYS, "explainer": "swapped"}]
    real = [row for latent in latents for row in windows(latent, 41, rng)]
    # The same windows; two documents mislead only the real explanation.
    for row in real:
        if row["probability"] is not None and row["document"] in (0, 1):
            row["probability"] = float(row["active"] == (row["document"] == 0))
    null = [{**row, "probability": row["probability"] and float(rng.random())} for row in real]
    cells = [scores_of(rows, own) for rows, own in zip((real, null), keys, strict=True)]
    predictions = [
        Units(own, pa.Table.from_pylist(rows, schema=tables.cell_schema("predictions")), "latent")
        for rows, own in zip((real, null), keys, strict=True)
    ]
    shares = Units(
        KEYS, pa.table({"latent": latents, "firing_share": [0.1] * len(latents)}), "latent"
    )
    arms = Arms({"scores": cells, "predictions": predictions, "latents": [shares]}, Statistics())
    metric = METRICS["auroc"]()
    pair = arms.by_latent(metric, cells[0].arm, cells[1].arm)

    def moves(own: list[int]) -> np.ndarray:
        """Return the numerical slope of the mean difference by each document's weight."""
        slopes = [
            [
                weighted_mean(rows, own, 1 + step) - weighted_mean(rows, own, 1 - step)
                for rows in both
            ]
            for both in [(real, null)]
            for step in 1e-5 * np.eye(5)
        ]
        return np.diff(slopes)[:, 0] / 2e-5

    differences = cells[1].column("auroc")[0] - cells[0].column("auroc")[0]
    assert pair.between.cells[0].columns[0] == pytest.approx(differences)
    judged = [row["document"] for row in real if row["probability"] is not None]
    counts = np.bincount(judged)
    n = counts.sum() ** 2 / (counts**2).sum()
    each = np.array([moves([latent]) for latent in latents]) / len(latents)
    of_documents = n / (n - 1) * (each.sum(axis=0) ** 2).sum() - (each**2).sum()
    of_latents = differences.var(ddof=1) / len(latents)
    found = estimate(pair.between, metric, Statistics(), Resampler(0, 100))
    assert sum(part.variance for part in found.whole) == pytest.approx(of_latents)
    assert found.documents is not None
    row = contrast_row(
        *(estimate(arm, metric, Statistics(), Resampler(0, 100)) for arm in pair[:2]),
        *(metric, Statistics(), Permuter(0, 100)),
        names=("lexical", "swapped"),
        differences=found,
    )
    assert of_documents > of_latents / 10
    assert row["standard_error"] == pytest.approx(np.sqrt(of_latents + of_documents), rel=1e-6)
    assert row["speaks_of"] == "latents and documents of one draw and seed"
