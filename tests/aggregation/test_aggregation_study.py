from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import scipy.stats
import yaml

from nullsae import paths, tables
from nullsae.aggregation import aggregate, read_costs
from nullsae.aggregation.answer import read_answer
from nullsae.config.metrics import all_metrics
from nullsae.config.parse import parse_config
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.corpus.ngram import caution
from nullsae.jobs.grid import cell_files
from nullsae.statistics.effects import holm
from nullsae.statistics.verdicts import verdict
from nullsae.tables.cells import CELL_TABLES
from nullsae.tables.study import COSTS

CONFIG = Path(__file__).parents[2] / "config.yaml"
FILLERS = {pa.int64(): 1, pa.float64(): 0.5, pa.string(): "text", pa.bool_(): True}

# Squared error of three documents, per draw of each variant. The deviations are 10, 20, 30.
SQUARED_ERRORS = {
    "trained": [[1.0, 2.0, 6.0]],
    "rerandomized": [[5.0, 8.0, 17.0], [4.0, 9.0, 11.0]],
}
# Squared error of the mean per token id, in tenths of the deviation.
LOOKED_UP = {"rerandomized": 5.5}
AUROCS = {
    "trained": [[0.9, 0.8, None, 0.7]],
    "rerandomized": [[0.6, 0.5, 0.7, 0.4], [0.8, None, None, 0.6]],
}


def study(*, variants: list[str] = ["trained", "rerandomized"], **changes: Any) -> Config:  # noqa: B006
    data = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    data["subjects"]["small"]["sites"] = ["resid_post.1"]
    data["explainers"] = {"lexical": {"kind": "lexical"}}
    data["scorers"] = {"detection": {"kind": "detection"}}
    data["evaluation"]["gaussian_floors"] = False
    data["statistics"] = {"n_resamples": 400, "confidence": 0.9}
    data["evaluation"] = {"gaussian_floors": False}
    return parse_config(data | {"variants": variants, "draws": 2} | changes)


def filled(table: str, **values: Any) -> dict[str, Any]:
    schema = tables.cell_schema(table)
    row = {
        field.name: [] if pa.types.is_list(field.type) else FILLERS[field.type] for field in schema
    }
    return row | values


def rows_of(table: str, keys: dict[str, str]) -> list[dict[str, Any]]:
    if "variant" not in keys:
        return [filled(table)]
    variant, draw = keys["variant"], int(keys["draw"])
    if table == "documents":
        return [
            filled(
                table,
                document=7 - i,
                n_tokens=4,
                squared_error=error,
                squared_deviation=10.0 * (i + 1),
                token_lookup_error=LOOKED_UP.get(variant, 10.0) * (i + 1),
                l0=float(i),
                # Zeroing costs trained 4, 3 and 2 nats a token, the others nothing.
                fidelity_tokens=10,
                ce_clean=20.0,
                ce_sae=22.0 + i,
                ce_zero=60.0 - 10 * i if variant == "trained" else 20.0,
            )
            for i, error in enumerate(SQUARED_ERRORS[variant][draw])
        ]
    if table == "latents":
        # Latent 3 does not pass the filter, so its numbers must not count. Latent 2 has no judge,
        # but its tokens are known.
        return [
            filled(
                table,
                latent=i,
                passes_filter=i != 3,
                sampled=i < 2,
                firing_share=0.02 if i < 2 else 0.2,
                peak_token_share=0.1 * (i + 1) + (variant == "rerandomized") * 0.3 * (i + draw),
                explain_token_entropy_bits=None,
                token_entropy_corrected_bits=float("nan") if draw else 2.0 + i,
            )
            for i in range(4)
        ]
    if table == "scores":
        found = AUROCS[variant][draw]
        return [filled(table, latent=i, auroc=value) for i, value in enumerate(found)]
    return [filled(table)]


def write_tree(config: Config, root: Path, *, shuffled: bool = False) -> None:
    for table, files in cell_files(config).items():
        for file in files:
            rows = rows_of(table, paths.partition_keys(file))
            if shuffled:
                random.Random(file).shuffle(rows)
            tables.write_table(root / file, rows, tables.cell_schema(table))


def read(root: Path, table: str, stage: str = "model") -> list[dict[str, Any]]:
    path = root / paths.TABLE.format(table=table)
    rows = tables.read_table(path, tables.SCHEMAS[table]).to_pylist()
    return [row for row in rows if row.get("stage", stage) == stage]


def only(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    found = [row for row in rows if wanted.items() <= row.items()]
    assert len(found) == 1, f"{len(found)} rows match {wanted}"
    return found[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A folder with = in its name is not a partition key.
    root = tmp_path_factory.mktemp("study") / "subject=elsewhere"
    write_tree(study(), root)
    aggregate(study(), root)
    return root


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("written")
    write_tree(study(), root)
    return root


@pytest.fixture
def cells(written: Path, tmp_path: Path) -> Path:
    """The cells of the study, for tests that replace files (and never write into one)."""
    shutil.copytree(written, tmp_path, dirs_exist_ok=True, copy_function=os.link)
    return tmp_path


def test_every_table_is_written_with_its_schema(root: Path) -> None:
    for table in tables.AGGREGATED:
        schema = pq.read_schema(root / paths.TABLE.format(table=table))
        assert schema.equals(tables.SCHEMAS[table], check_metadata=False)
        units = {f.name: f.metadata for f in tables.SCHEMAS[table] if f.metadata}
        assert {f.name: f.metadata for f in schema if f.name in units} == units
    assert not (root / paths.TABLE.format(table="windows")).exists()


def test_keys_come_from_the_path_and_cells_in_config_order(root: Path) -> None:
    rows = read(root, "documents")
    found = [(row["subject"], row["variant"], row["draw"], row["document"]) for row in rows]
    expected = [("trained", 0), ("rerandomized", 0), ("rerandomized", 1)]
    assert found == [("small", *cell, document) for cell in expected for document in (7, 6, 5)]
    score = read(root, "scores")[0]
    keys = ("site", "sae", "seed", "explainer", "scorer")
    assert [score[key] for key in keys] == ["resid_post.1", "topk", 0, "lexical", "detection"]


def test_values_are_the_hand_computed_ones(root: Path) -> None:
    summaries, contrasts = read(root, "summaries"), read(root, "contrasts")
    # 1 - 9/60; the mean over draws of 30/60 and 24/60, subtracted from 1.
    of_variance = only(contrasts, metric="explained_variance")
    assert of_variance["real_value"] == pytest.approx(0.85, abs=1e-12)
    assert of_variance["value"] == pytest.approx(0.55, abs=1e-12)
    assert of_variance["difference"] == pytest.approx(-0.30, abs=1e-12)
    # Trained documents explain 0.9, 0.9, 0.8; the others 0.5, 0.6, 13/30 and 0.6, 0.55, 19/30.
    assert of_variance["probability_of_superiority"] == 1.0
    assert (of_variance["n_draws"], of_variance["n_seeds"]) == (2, 1)
    assert (of_variance["real_n_units"], of_variance["n_units"]) == (3, 3)
    assert (of_variance["explainer"], of_variance["scorer"]) == (None, None)
    assert of_variance["unit"] == "document"

    of_auroc = only(contrasts, metric="auroc")
    # Means 0.8; (0.55 + 0.7) / 2: nulls are left out, each draw has the same weight.
    assert of_auroc["real_value"] == pytest.approx(0.8, abs=1e-12)
    assert of_auroc["value"] == pytest.approx(0.625, abs=1e-12)
    # Of 3 x 6 pairs, 15 are won outright; 0.8 = 0.8 and 0.7 = 0.7 tie; 0.7 < 0.8 is lost.
    assert of_auroc["probability_of_superiority"] == pytest.approx(16 / 18, abs=1e-12)
    assert (of_auroc["real_n_units"], of_auroc["n_units"]) == (3, 6)
    assert (of_auroc["explainer"], of_auroc["scorer"]) == ("lexical", "detection")

    peak = only(summaries, metric="peak_token_share", variant="rerandomized")
    # Passing latents: 0.1, 0.5, 0.9 in draw 0; 0.4, 0.8, 1.2 in draw 1.
    assert peak["value"] == pytest.approx((0.5 + 0.8) / 2, abs=1e-12)
    assert (peak["n_draws"], peak["n_seeds"], peak["n_units"]) == (2, 1, 6)
    trained = only(summaries, metric="peak_token_share", variant="trained")
    assert trained["value"] == pytest.approx(0.2, abs=1e-12)
    assert trained["low"] < 0.2 < trained["high"]


def test_only_metrics_with_their_own_passes_or_windows_are_limited_to_sampled_latents() -> None:
    sampled = [m.name for m in all_metrics() if m.table == "latents" and m.among == "sampled"]
    assert sorted(sampled) == [
        *("ablation_ce_gain_nats", "ablation_kl_log_ratio", "addition_gain_nats"),
        *("explain_token_entropy_bits", "token_injection_rate"),
    ]


def test_documents_widen_the_interval_of_a_score_and_pair_its_contrast(tmp_path: Path) -> None:
    """Four latents are judged on the same windows of six documents in all cells."""
    write_tree(study(draws=1), tmp_path)
    rng = np.random.default_rng(3)
    shown = rng.normal(size=(4, 24)) + np.repeat(rng.normal(size=6), 4)
    documents = np.repeat(np.arange(6), 4)
    for file in cell_files(study(draws=1))["predictions"]:
        rows = [
            filled(
                "predictions",
                **{"latent": latent, "window": i, "document": int(documents[i])},
                **{"active": i % 2 == 0, "probability": 1 / (1 + np.exp(-shown[latent, i]))},
            )
            for latent in range(4)
            for i in range(24)
        ]
        tables.write_table(tmp_path / file, rows, tables.cell_schema("predictions"))
    aggregate(study(draws=1), tmp_path)
    contrast = only(read(tmp_path, "contrasts"), metric="auroc")
    assert contrast["speaks_of"] == "latents and documents of one draw and seed"
    scores = np.array([0.9, 0.8, 0.7])  # of latents 0, 1 and 3
    effects = []
    for latent in (0, 1, 3):
        active, silent = shown[latent, ::2], shown[latent, 1::2]
        wins = active[:, None] > silent
        moved = np.zeros(24)
        moved[::2] = (wins.mean(axis=1) - wins.mean()) / 12
        moved[1::2] = (wins.mean(axis=0) - wins.mean()) / 12
        effects.append(np.bincount(documents, moved) / 3)
    of_documents = 6 / 5 * (np.sum(effects, axis=0) ** 2).sum() - np.square(effects).sum()
    latents = scores.var(ddof=1) / 3
    assert of_documents > latents / 2
    summary = only(read(tmp_path, "summaries"), metric="auroc", variant="trained")
    df = (latents + of_documents) ** 2 / (latents**2 / 2 + of_documents**2 / 5)
    width = 2 * scipy.stats.t.ppf(0.95, df) * np.sqrt(latents + of_documents)
    # Skewness shifts the interval more than it widens it.
    assert summary["high"] - summary["low"] == pytest.approx(width, rel=0.1)
    # Both arms have the same windows, so documents are equally hard for both.
    null = np.array([0.6, 0.5, 0.7, 0.4])
    assert contrast["standard_error"] < np.sqrt(latents + null.var(ddof=1) / 4 + of_documents / 2)


def test_failed_windows_are_counted_over_all_cells_of_an_arm(cells: Path) -> None:
    counts = {"trained": (30, 10, 0), "rerandomized": (20, 10, 10)}
    for file in cell_files(study())["scores"]:
        keys = paths.partition_keys(file)
        active, silent, failed = counts[keys["variant"]]
        rows = [
            {**row, "n_active": active, "n_silent": silent, "n_failed": failed * int(keys["draw"])}
            for row in rows_of("scores", keys)
        ]
        tables.write_table(cells / file, rows, tables.cell_schema("scores"))
    aggregate(study(), cells)
    contrast = only(read(cells, "contrasts"), metric="auroc")
    # Four latents each: 30 windows in draw 0; 40 in draw 1, of which 10 failed.
    assert (contrast["real_n_failed"], contrast["n_failed"]) == (0, 40)
    assert contrast["answered_share"] == pytest.approx(240 / 280)
    summary = only(read(cells, "summaries"), metric="auroc", variant="rerandomized")
    assert (summary["n_failed"], summary["answered_share"]) == (40, contrast["answered_share"])
    found = only(read(cells, "verdicts"), metric="auroc")
    assert found["answered_share"] == contrast["answered_share"]
    assert "rests on 86% of the windows" in found["reason"]
    for table in ("summaries", "contrasts"):
        assert {row["n_failed"] for row in read(cells, table) if row["scorer"] is None} == {None}


def test_the_interval_of_the_trained_arm_is_the_same_everywhere(root: Path) -> None:
    summary = only(read(root, "summaries"), metric="auroc", variant="trained")
    contrast = only(read(root, "contrasts"), metric="auroc")
    assert (contrast["real_low"], contrast["real_high"]) == (summary["low"], summary["high"])


def test_documents_are_paired_between_variants(root: Path) -> None:
    # With 3 documents there are 27 possible resamples; the two draws differ as well.
    error = {v: np.array(e) for v, e in SQUARED_ERRORS.items()}
    trained, draws = [], []
    for i in np.ndindex(3, 3, 3):
        below = 10.0 * (np.array(i) + 1).sum()
        trained.append(1 - error["trained"][0, list(i)].sum() / below)
        draws.append(1 - error["rerandomized"][:, list(i)].sum(axis=1) / below)
    both = np.array(draws)
    difference = both.mean(axis=1) - np.array(trained)
    interaction = (both - both.mean(axis=1, keepdims=True)).var(axis=0).sum() / 2
    of_documents = 3 / 2 * max(0.0, difference.var() - interaction)
    of_draws = np.var([30 / 60, 24 / 60], ddof=1) / 2
    found = only(read(root, "contrasts"), metric="explained_variance")
    assert found["standard_error"] == pytest.approx(np.sqrt(of_documents + of_draws), rel=0.05)
    assert found["difference_low"] < found["difference"] < found["difference_high"]
    # Unpaired, the difficulty of documents would count as well.
    apart = 3 / 2 * (both.mean(axis=1).var() + np.var(trained))
    assert apart > 2 * of_documents


def test_one_row_per_comparison_in_display_order(root: Path) -> None:
    # Without floors and with one explainer, these have nothing to be compared with.
    absent = {"above_floors", "gain_over_lexical", "discrimination"}
    names = [metric.name for metric in all_metrics() if metric.name not in absent]
    assert [row["metric"] for row in read(root, "contrasts")] == names
    assert [row["metric"] for row in read(root, "verdicts")] == names
    pairs = [(row["metric"], row["variant"]) for row in read(root, "summaries")]
    assert pairs == [(name, variant) for name in names for variant in SQUARED_ERRORS]


def test_metrics_without_numbers_are_null_and_inconclusive(root: Path) -> None:
    contrasts, verdicts = read(root, "contrasts"), read(root, "verdicts")
    nulls = only(contrasts, metric="explain_token_entropy_bits")
    assert nulls["real_value"] is nulls["difference"] is nulls["is_beyond_margin"] is None
    assert nulls["margin"] is None
    assert "explain_token_entropy_bits is null for all 2 latents" in nulls["reason"]
    nans = only(contrasts, metric="token_entropy_bits")
    assert nans["real_value"] == pytest.approx(3.0)
    assert nans["value"] is None
    assert "NaN or infinite token_entropy_corrected_bits in draw 1, seed 0" in nans["reason"]
    for name in ("explain_token_entropy_bits", "token_entropy_bits", "f1"):
        assert only(verdicts, metric=name)["verdict"] == "inconclusive"
    for row in contrasts:
        numbers = [value for value in row.values() if isinstance(value, float)]
        assert np.isfinite(numbers).all()
        assert (row["p_minimum_effect"] is None) <= (row["reason"] is not None)
        assert (row["p_minimum_effect_holm"] is None) == (row["is_beyond_margin"] is None)


def test_verdicts_follow_from_the_contrasts(root: Path) -> None:
    metrics = {metric.name: metric for metric in all_metrics()}
    contrasts, verdicts = read(root, "contrasts"), read(root, "verdicts")
    for contrast, found in zip(contrasts, verdicts, strict=True):
        metric = metrics[contrast["metric"]]
        assert (found["verdict"], found["reason"]) == verdict(contrast, metric, 0.9)
        assert found["difference_low"] == contrast["difference_low"]
    assert any("could have detected" in row["reason"] for row in verdicts)
    # In one draw no latent has an entropy, so the other draw remains.
    one = {"abstract_share", "entropy_auroc_correlation"}
    for row in verdicts:
        assert row["is_replicated"] == (row["metric"] not in one)
        assert (row["scope"] == "this randomization") == (row["metric"] in one)


def test_power_counts_the_verdicts_of_each_metric(root: Path) -> None:
    rows = read(root, "discriminating_power")
    verdicts = read(root, "verdicts")
    assert [row["metric"] for row in rows] == list(dict.fromkeys(v["metric"] for v in verdicts))
    for row in rows:
        words = [v["verdict"] for v in verdicts if v["metric"] == row["metric"]]
        for word in ("separates", "reversed", "equivalent", "inconclusive"):
            assert row[f"n_{word}"] == words.count(word)
        assert row["n_contrasts"] == len(words)


def test_zeroing_without_harm_gives_no_ce_score(root: Path) -> None:
    trained = only(read(root, "summaries"), metric="ce_score", variant="trained")
    # (60 + 50 + 40 - 22 - 23 - 24) / (40 + 30 + 20)
    assert trained["value"] == pytest.approx(81 / 90, abs=1e-12)
    row = only(read(root, "contrasts"), metric="ce_score")
    assert (row["value"], row["difference"], row["p_value"]) == (None, None, None)
    assert row["reason"] == "rerandomized: zeroing the site does no clear harm in draw 0, seed 0"


def test_matched_firing_rates_are_compared_in_addition(root: Path) -> None:
    row = only(read(root, "contrasts"), metric="peak_token_share")
    # Passing latents 0 and 1 fire on 2% of tokens in each cell, latent 2 on 20%.
    assert row["n_matched"] == 2
    assert row["matched_real_value"] == pytest.approx(0.15, abs=1e-12)
    assert row["matched_value"] == pytest.approx((0.3 + 0.6) / 2, abs=1e-12)
    assert row["matched_reason"] is None
    assert row["matched_difference_low"] < 0.3 < row["matched_difference_high"]
    auroc = only(read(root, "contrasts"), metric="auroc")
    # Draw 1 of rerandomized has no AUROC for latent 1.
    assert (auroc["n_matched"], auroc["matched_value"]) == (None, None)
    assert "no half-decade" in auroc["matched_reason"]
    assert only(read(root, "contrasts"), metric="cosine")["matched_reason"]


@pytest.mark.parametrize(("loss", "warned"), [(2.9, False), (3.1, True), (4.0, True)])
def test_a_subject_no_better_than_bigrams_is_a_warning_at_every_number(
    cells: Path, loss: float, warned: bool
) -> None:
    for file in cell_files(study())["models"]:
        trained = "variant=trained" in str(file)
        # A null is expected to be no better.
        row = filled("models", heldout_loss_nats=loss if trained else 9.0, bigram_loss_nats=3.1)
        tables.write_table(cells / file, [row], tables.cell_schema("models"))
    aggregate(study(), cells)
    for table in ("contrasts", "verdicts"):
        found = {row["warning"] for row in read(cells, table)}
        assert found == {caution(loss, 3.1)}
        assert (None in found) is not warned


def test_a_null_whose_site_has_no_variance_is_null_with_that_reason(cells: Path) -> None:
    for file in cell_files(study())["documents"]:
        rows = rows_of("documents", paths.partition_keys(file))
        if "variant=rerandomized" in str(file):
            rows = [row | {"squared_error": 0.0, "squared_deviation": 0.0} for row in rows]
        tables.write_table(cells / file, rows, tables.cell_schema("documents"))
    aggregate(study(), cells)
    row = only(read(cells, "contrasts"), metric="explained_variance")
    assert (row["value"], row["difference"]) == (None, None)
    assert row["real_value"] is not None
    assert "the site has no variance in draw 0, seed 0" in row["reason"]
    assert only(read(cells, "verdicts"), metric="explained_variance")["verdict"] == "inconclusive"
    assert only(read(cells, "contrasts"), metric="cosine")["difference"] is not None


def test_it_is_stated_what_an_interval_speaks_of(root: Path) -> None:
    row = only(read(root, "contrasts"), metric="auroc")
    assert row["speaks_of"] == "draws of rerandomized, latents of one draw and seed of trained"
    row = only(read(root, "contrasts"), metric="cosine")
    assert row["speaks_of"].startswith("draws and documents of rerandomized")
    reason = only(read(root, "verdicts"), metric="auroc")["reason"]
    assert "(the interval generalizes to draws of rerandomized, latents of one draw" in reason


def test_holm_counts_all_contrasts_of_a_metric_of_an_sae(tmp_path: Path) -> None:
    scorers = {"detection": {"kind": "detection"}, "fuzzing": {"kind": "fuzzing"}}
    config = study(scorers=scorers, explainers={"a": {"kind": "lexical"}, "b": {"kind": "lexical"}})
    write_tree(config, tmp_path)
    aggregate(config, tmp_path)
    rows = [row for row in read(tmp_path, "contrasts") if row["metric"] == "auroc"]
    groups = [(row["explainer"], row["scorer"]) for row in rows]
    assert groups == [(e, s) for e in ("a", "b") for s in scorers]
    for test in ("minimum_effect", "equivalence"):
        p = [row[f"p_{test}"] for row in rows]
        assert [row[f"p_{test}_holm"] for row in rows] == pytest.approx(holm(p), rel=1e-12)
        assert min(row[f"p_{test}_holm"] for row in rows) == pytest.approx(min(1, 4 * min(p)))
    named = {(row["family"], row["n_family"]) for row in rows}
    assert named == {("model: auroc of topk, small", 4)}


def test_exchanged_explanations_are_their_own_family(root: Path, tmp_path: Path) -> None:
    swapped = {"kind": "swapped", "of": "lexical"}
    config = study(explainers={"lexical": {"kind": "lexical"}, "swapped": swapped})
    write_tree(config, tmp_path)
    aggregate(config, tmp_path)
    before = only(read(root, "contrasts"), metric="auroc")
    own, placebo = (
        only(read(tmp_path, "contrasts"), metric="auroc", explainer=name)
        for name in ("lexical", "swapped")
    )
    assert placebo["family"] == "model: auroc of topk, small, exchanged explanations"
    assert (own["family"], own["n_family"]) == ("model: auroc of topk, small", 1)
    # They do not weaken other contrasts.
    for test in ("p_minimum_effect_holm", "p_equivalence_holm"):
        assert own[test] == before[test]


def test_positive_controls_are_their_own_family(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SQUARED_ERRORS, "retrained", [[1.1, 2.1, 5.9], [0.9, 2.2, 6.3]])
    aurocs = [[0.9, 0.8, 0.8, 0.7], [0.85, None, None, 0.72]]
    monkeypatch.setitem(AUROCS, "retrained", aurocs)
    config = study(variants=["trained", "retrained", "rerandomized"])
    write_tree(config, tmp_path)
    aggregate(config, tmp_path)
    rows = read(tmp_path, "contrasts")
    before = only(read(root, "contrasts"), metric="auroc")
    null, control = (
        only(rows, metric="auroc", variant=variant) for variant in ("rerandomized", "retrained")
    )
    assert control["family"] == "model: auroc of topk, small, positive controls"
    assert control["scope"] == "retrainings from other seeds"
    assert (null["family"], null["n_family"]) == ("model: auroc of topk, small", 1)
    for test in ("p_minimum_effect_holm", "p_equivalence_holm"):
        assert control[test] is not None
        assert null[test] == before[test]


def of_arms(table: str, root: Path, config: Config, **values: dict[str, Any]) -> None:
    """Rewrite a table's cells with a column's value for each variant."""
    for file in cell_files(config)[table]:
        variant = paths.partition_keys(file)["variant"]
        row = filled(table, **{name: of[variant] for name, of in values.items()})
        tables.write_table(root / file, [row], tables.cell_schema(table))


@pytest.mark.parametrize(
    ("tokens", "l0", "problem"),
    [
        ((1000, 1500), (16.0, 16.0), None),
        ((1000, 1501), (16.0, 16.0), "saw 1,000 training tokens, those of rerandomized 1,501"),
        ((1501, 1000), (16.0, 16.0), "they differ by more than 1.5 times"),
        ((1000, 1000), (20.0, 22.0), None),
        ((1000, 1000), (20.0, 22.1), "L0 is 20 in trained and 22.1 in rerandomized"),
        ((1000, 1000), (20.0, 17.9), "they differ by more than 10%"),
    ],
)
def test_arms_of_unequal_training_or_l0_get_no_verdict(
    cells: Path, tokens: tuple[int, int], l0: tuple[float, float], problem: str | None
) -> None:
    config = study()
    names = ("trained", "rerandomized")
    of_arms("history", cells, config, tokens=dict(zip(names, tokens, strict=True)))
    of_arms("reconstruction", cells, config, l0=dict(zip(names, l0, strict=True)))
    aggregate(config, cells)
    for row in read(cells, "contrasts"):
        assert (row["real_training_tokens"], row["training_tokens"]) == tokens
        assert (row["real_l0"], row["l0"]) == pytest.approx(l0)
        assert problem is None or row["n_family"] == 0
        assert (row["not_comparable"] or "").count(problem or "no problem") == (problem is not None)
    found = read(cells, "verdicts")
    assert {row["verdict"] == "none" for row in found} == {problem is not None}
    assert all((problem or "") in row["reason"] for row in found)
    counts = read(cells, "discriminating_power")
    assert all((row["n_none"] == row["n_contrasts"]) == (problem is not None) for row in counts)
    answer = read_answer(cells)
    lacks = [sentence for sentence in answer.sentences if "comparable SAEs" in sentence]
    assert len(lacks) == (problem is not None)
    assert problem is None or {one.tier for one in answer.findings} == {"undecided"}
    if problem is not None:
        allowed = {"max_training_token_ratio": None, "max_l0_difference": None, "n_resamples": 400}
        aggregate(study(statistics=allowed), cells)
        assert "none" not in {row["verdict"] for row in read(cells, "verdicts")}


@pytest.mark.parametrize(
    ("trained", "null", "problem"),
    [("bfloat16", "float32", True), ("bfloat16", "bfloat16", False), (None, "tf32", False)],
)
def test_arms_of_unequal_precision_get_no_verdict(
    cells: Path, trained: str | None, null: str, problem: bool
) -> None:
    """An SAE that was not trained here has a null precision and is still compared."""
    config = study()
    of_arms("history", cells, config, precision={"trained": trained, "rerandomized": null})
    aggregate(config, cells)
    told = "SAEs of trained were trained in bfloat16, those of rerandomized in float32"
    for row in read(cells, "contrasts"):
        assert (told in (row["not_comparable"] or "")) == problem
    assert {row["verdict"] == "none" for row in read(cells, "verdicts")} == {problem}


def test_an_sae_of_unknown_training_gets_no_verdict_unless_allowed(cells: Path) -> None:
    config = study()
    (topk,) = config.saes.values()
    given = {"saes": {"topk": topk.model_copy(update={"pretrained": "someone/their-sae"})}}
    aggregate(config.model_copy(update=given), cells)
    found = read(cells, "verdicts")
    assert {row["verdict"] for row in found} == {"none"}
    assert "number of training tokens is not known" in found[0]["reason"]
    assert read(cells, "contrasts")[0]["real_training_tokens"] is None
    allowed = study(statistics={"max_training_token_ratio": None}).model_copy(update=given)
    aggregate(allowed, cells)
    assert "none" not in {row["verdict"] for row in read(cells, "verdicts")}


def test_the_same_inputs_give_the_same_bytes_and_row_order_does_not_matter(
    root: Path, tmp_path: Path
) -> None:
    config = study()
    write_tree(config, tmp_path, shuffled=True)
    aggregate(config, tmp_path)
    computed = ("summaries", "contrasts", "verdicts", "interpretability", "discriminating_power")
    for table in computed:
        name = paths.TABLE.format(table=table)
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes()
    before = {p.name: p.read_bytes() for p in (root / "results/tables").iterdir()}
    aggregate(config, root)
    assert {p.name: p.read_bytes() for p in (root / "results/tables").iterdir()} == before


def test_another_variant_leaves_the_numbers_of_the_first_alone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SQUARED_ERRORS, "step0", [[9.0, 9.0, 9.0]])
    monkeypatch.setitem(AUROCS, "step0", [[0.5, 0.6]])
    config = study(variants=["step0", "rerandomized", "trained"])
    write_tree(config, tmp_path)
    aggregate(config, tmp_path)
    # These depend on the number of variants, or on which latents all of them have.
    apart = ("detectable_difference", "n_matched", "n_family")
    for metric in ("explained_variance", "auroc"):
        old = only(read(root, "contrasts"), metric=metric)
        new = only(read(tmp_path, "contrasts"), metric=metric, variant="rerandomized")
        kept = [k for k in old if k not in apart and not k.startswith(("matched", "is_"))]
        kept = [k for k in kept if not k.endswith("_holm")]
        assert [new[k] for k in kept] == [old[k] for k in kept]


def test_above_floors_takes_the_smaller_floor_of_each_variants_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    floors = {
        "gaussian@trained": [[4.0, 4.0, 10.0]],
        "gaussian@rerandomized": [[6.0, 9.0, 19.0], [5.0, 10.0, 17.0]],
    }
    for name, errors in floors.items():
        monkeypatch.setitem(SQUARED_ERRORS, name, errors)
    config = study(evaluation={"gaussian_floors": True})
    write_tree(config, tmp_path)
    aggregate(config, tmp_path)
    row = only(read(tmp_path, "contrasts"), metric="above_floors")
    # FVU 9/60, the Gaussian's 18/60, token means 60/60. For rerandomized 30/60 and 24/60, the
    # Gaussian's 34/60 and 32/60, token means 33/60: the smaller one in the first draw only.
    assert row["real_value"] == pytest.approx(0.5, abs=1e-12)
    assert row["value"] == pytest.approx(1 - (30 / 33 + 24 / 32) / 2, abs=1e-12)
    assert row["p_value"] is not None
    assert row["unit"] == "document"
    # A floor is not a variant and has no row of its own.
    for table in ("summaries", "contrasts", "verdicts"):
        assert {r["variant"] for r in read(tmp_path, table)} <= {"trained", "rerandomized"}
    assert {r["variant"] for r in read(tmp_path, "documents")} == {*SQUARED_ERRORS}
    plain = only(read(tmp_path, "contrasts"), metric="explained_variance")
    assert plain["real_value"] == pytest.approx(0.85, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "errors", "expected"),
    [
        ("a perfect copy", [0.0, 0.0, 0.0], 1.0),
        ("the token lookup itself", [5.5, 11.0, 16.5], 0.0),
        ("the mean", [10.0, 20.0, 30.0], 1 - 60 / 33),
    ],
)
def test_above_floors_of_known_dictionaries(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    errors: list[float],
    expected: float,
) -> None:
    monkeypatch.setitem(SQUARED_ERRORS, "rerandomized", [errors, errors])
    monkeypatch.setitem(SQUARED_ERRORS, "gaussian@trained", [[4.0, 4.0, 10.0]])
    monkeypatch.setitem(SQUARED_ERRORS, "gaussian@rerandomized", [[6.0, 12.0, 18.0]] * 2)
    config = study(evaluation={"gaussian_floors": True})
    write_tree(config, tmp_path)
    aggregate(config, tmp_path)
    row = only(read(tmp_path, "contrasts"), metric="above_floors")
    assert row["value"] == pytest.approx(expected, abs=1e-12), name


def test_the_gaussian_variant_is_the_floor_of_trained_and_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SQUARED_ERRORS, "gaussian", [[4.0, 4.0, 10.0], [9.0, 9.0, 9.0]])
    monkeypatch.setitem(AUROCS, "gaussian", [[0.5, 0.6], [0.5, 0.7]])
    config = study(variants=["trained", "gaussian"])
    write_tree(config, tmp_path)
    aggregate(config, tmp_path)
    row = only(read(tmp_path, "contrasts"), metric="above_floors")
    assert row["real_value"] == pytest.approx(0.5, abs=1e-12)
    assert (row["value"], row["p_value"]) == (None, None)
    assert row["reason"] == "gaussian: no Gaussian floor of draw 0, seed 0"


def along_training(config: Config, shares: list[float]) -> Config:
    (topk,) = config.saes.values()
    return config.model_copy(
        update={"saes": {"topk": topk.model_copy(update={"checkpoints": shares})}}
    )


def test_saes_along_their_training_are_in_no_contrast(root: Path, tmp_path: Path) -> None:
    config = along_training(study(), [0.1, 0.5])
    write_tree(config, tmp_path)
    aggregate(config, tmp_path)
    # Under Holm, more contrasts would raise every p.
    for table in ("contrasts", "verdicts"):
        name = paths.TABLE.format(table=table)
        assert (tmp_path / name).read_bytes() == (root / name).read_bytes()
    names = ["topk@0.1", "topk@0.5", "topk"]
    for table in ("reconstruction", "latents", "scores", "history", "coverage", "summaries"):
        found = read(tmp_path, table)
        assert list(dict.fromkeys(row["sae"] for row in found)) == names, table
        # As text, because NaN is not equal to itself.
        assert str([row for row in found if row["sae"] == "topk"]) == str(read(root, table))
    for metric in ("auroc", "explained_variance"):
        rows = [row for row in read(tmp_path, "summaries") if row["metric"] == metric]
        values = {(row["sae"], row["variant"]): row["value"] for row in rows}
        # Every cell has the same random numbers.
        for name in names:
            for variant in SQUARED_ERRORS:
                assert values[name, variant] == values["topk", variant]
        assert all(row["low"] is not None for row in rows)


def test_another_dictionary_does_not_change_conclusions_about_this_one(
    root: Path, tmp_path: Path
) -> None:
    config = study()
    (topk,) = config.saes.values()
    config = config.model_copy(update={"saes": {"topk": topk, "another": topk}})
    write_tree(config, tmp_path)
    aggregate(config, tmp_path)
    for table in ("contrasts", "verdicts"):
        found = read(tmp_path, table)
        assert {row["sae"] for row in found} == {"topk", "another"}
        assert str([row for row in found if row["sae"] == "topk"]) == str(read(root, table))


def test_no_table_of_the_study_contains_times(root: Path) -> None:
    """Two runs of one config give identical tables."""
    for table, measured in tables.MEASURED.items():
        assert set(measured) < set(tables.cell_schema(table).names)
        found = pq.read_schema(root / paths.TABLE.format(table=table)).names
        kept = [name for name in tables.cell_schema(table).names if name not in measured]
        assert found == [*(name for name, _ in CELL_TABLES[table][0]), *kept]


def test_a_study_of_the_trained_subject_alone_has_no_contrasts(tmp_path: Path) -> None:
    config = study(variants=["trained"])
    write_tree(config, tmp_path)
    aggregate(config, tmp_path)
    assert read(tmp_path, "contrasts") == read(tmp_path, "verdicts") == []
    assert read(tmp_path, "discriminating_power") == []
    assert len(read(tmp_path, "summaries")) == len(all_metrics()) - 3


def test_a_study_without_surviving_latents_is_reported_not_rejected(cells: Path) -> None:
    config = study()
    for file in cell_files(config)["scores"]:
        tables.write_table(cells / file, [], tables.cell_schema("scores"))
    aggregate(config, cells)
    assert read(cells, "scores") == []
    found = only(read(cells, "verdicts"), metric="auroc")
    assert found["verdict"] == "inconclusive"
    assert "no latents" in found["reason"]


def test_a_study_in_which_no_latent_can_be_scored_is_one_line(cells: Path) -> None:
    config = study()
    first, *others = cell_files(config)["coverage"]
    empty = [filled("coverage", n_sampled=0)]
    for file in others:
        tables.write_table(cells / file, empty, tables.cell_schema("coverage"))
    aggregate(config, cells)  # one cell has some
    tables.write_table(cells / first, empty, tables.cell_schema("coverage"))
    with pytest.raises(UserError, match=r"^config: latents\.min_firings") as caught:
        aggregate(config, cells)
    assert "\n" not in str(caught.value)
    unscored = study(explainers={}, scorers={})
    aggregate(unscored, cells)


def test_a_missing_cell_is_named(cells: Path) -> None:
    config = study()
    missing = cells / cell_files(config)["scores"][-1]
    missing.unlink()
    with pytest.raises(UserError, match="the file is missing") as caught:
        aggregate(config, cells)
    assert str(missing) in str(caught.value)


def test_documents_of_another_split_are_refused(cells: Path) -> None:
    config = study()
    file = cell_files(config)["documents"][-1]
    rows = rows_of("documents", paths.partition_keys(file))
    rows[0]["document"] = 12
    tables.write_table(cells / file, rows, tables.cell_schema("documents"))
    with pytest.raises(UserError, match="3 documents that are not the 3 of") as caught:
        aggregate(config, cells)
    assert str(caught.value).startswith(file)


SNAKEMAKE_HEADER = (
    "s\th:m:s\tmax_rss\tmax_vms\tmax_uss\tmax_pss\tio_in\tio_out\tmean_load\tcpu_time\n"
)


def test_costs_are_read_from_snakemakes_own_files(tmp_path: Path) -> None:
    folder = tmp_path / "results/benchmarks"
    no_data = "\t-" * 6
    files = {
        "train_sae/subject=small/draw=0.tsv": f"93784.25\t1 day, 2:03:04\t512.50{no_data}\t7",
        "train_sae/subject=small/site=resid_post.1.tsv": "0.31\t0:00:00" + "\tNA" * 8,
        "aggregate/all.tsv": "2.00\t0:00:02\t-\t-\t-\t-\t-\t-\t0.00\t0",
    }
    for name, line in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(SNAKEMAKE_HEADER + line + "\n")
    names = ("rule", "keys", "wall_seconds", "cpu_seconds", "max_rss_mib")
    assert [tuple(row[name] for name in names) for row in read_costs(tmp_path)] == [
        ("aggregate", "all", 2.0, 0.0, None),
        ("train_sae", "subject=small/draw=0", 93784.25, 7.0, 512.5),
        ("train_sae", "subject=small/site=resid_post.1", 0.31, None, None),
    ]
    tables.write_table(tmp_path / paths.COSTS, read_costs(tmp_path), COSTS)
    assert tables.read_table(tmp_path / paths.COSTS, COSTS).num_rows == 3


def test_costs_of_a_study_run_by_hand_are_an_empty_table(root: Path) -> None:
    assert tables.read_table(root / paths.COSTS, COSTS).num_rows == 0


@pytest.mark.parametrize("text", ["", "seconds\n3\n", "s\tmax_rss\tcpu_time\nabc\t1\t1\n"])
def test_a_foreign_benchmark_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "results/benchmarks/report/all.tsv"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError, match="not a benchmark file") as caught:
        read_costs(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_answer_follows_from_the_written_contrasts_without_placebos(root: Path) -> None:
    verdicts = read(root, "verdicts")
    found = read_answer(root)
    # An unmeasured metric is not mentioned.
    told = {
        (row["metric"], row["explainer"], row["scorer"])
        for row in read(root, "contrasts")
        if row["value"] is not None or row["real_value"] is not None
    }
    expected = {key for key in told if key[1] != "swapped"}
    assert {(one.metric, one.explainer, one.scorer) for one in found.findings} == expected
    for one in found.findings:
        own = [row for row in verdicts if row["metric"] == one.metric]
        own = [
            row for row in own if (row["explainer"], row["scorer"]) == (one.explainer, one.scorer)
        ]
        assert sum(sum(each.verdicts.values()) for each in one.against) == len(own)
    assert 1 <= len(found.sentences) <= 6
