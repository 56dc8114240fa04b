from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from autointerp_cells import (
    byte_tokenizer,
    explain_params,
    explained,
    explanation,
    judged,
    planted_cell,
    score,
    window,
    write_windows,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from nullsae.autointerp.classification import classification_scores, window_influences
from nullsae.autointerp.examples import Examples, fuzz_marks
from nullsae.autointerp.explain import explain_latents
from nullsae.autointerp.score import Judged, predictions_table
from nullsae.autointerp.scorers.asking import judge_by_tokens
from nullsae.core.errors import UserError
from nullsae.tables import cell_schema, read_table, write_table

Planted = tuple[list[dict[str, Any]], dict[str, pa.Table]]

FORMULA = {"n_labels": 0, "judge": None, "prompt_hash": None, "placebo_auroc": None}
NONE = {"auroc": None, "auprc": None, "f1": None, "balanced_accuracy": None}


def marks_of(windows: Examples, marked: np.ndarray) -> list[list[int]]:
    return [
        np.flatnonzero(marked[start:stop]).tolist()
        for start, stop in zip(windows.starts[:-1], windows.starts[1:], strict=True)
    ]


# Scores ------------------------------------------------------------------------------------


def test_scores_of_a_small_example_equal_those_found_by_hand() -> None:
    active = np.array([True, True, True, False, False])
    probability = np.array([0.9, 0.5, 0.2, 0.5, 0.1])
    scores = classification_scores(active, probability)
    # 6 pairs: 0.9 wins 2, 0.5 ties 1 and wins 1, 0.2 wins 1.
    assert scores["auroc"] == pytest.approx(4.5 / 6)
    # Down to 0.9: 1 of 1; to 0.5: 2 of 3; to 0.2: 3 of 4. Each adds a third of recall.
    assert scores["auprc"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert scores["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert scores["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert (scores["n_active"], scores["n_silent"], scores["n_failed"]) == (3, 2, 0)


@pytest.mark.parametrize("decimals", [1, 12])
def test_a_windows_influence_is_the_slope_of_scikit_learns_score_by_its_weight(
    decimals: int,
) -> None:
    rng = np.random.default_rng(5)
    active = np.arange(15) % 3 > 0
    probability = (rng.random(15) + 0.3 * active).clip(0, 1).round(decimals)
    found = window_influences(active, probability)
    theirs = {
        "auroc": (sklearn_metrics.roc_auc_score, probability),
        "auprc": (sklearn_metrics.average_precision_score, probability),
        "f1": (sklearn_metrics.f1_score, probability >= 0.5),
        "balanced_accuracy": (sklearn_metrics.balanced_accuracy_score, probability >= 0.5),
    }
    assert found.keys() == theirs.keys()
    step = 1e-5 * np.eye(15)
    for name, (their, said) in theirs.items():
        slopes = [
            their(active, said, sample_weight=1 + row) - their(active, said, sample_weight=1 - row)
            for row in step
        ]
        assert found[name] == pytest.approx(np.array(slopes) / 2e-5, abs=1e-7)
        assert found[name].sum() == pytest.approx(0, abs=1e-12)


predictions = st.lists(
    st.tuples(st.booleans(), st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))),
    min_size=2,
    max_size=60,
).filter(lambda pairs: len({truth for truth, _ in pairs}) == 2)


@given(pairs=predictions)
@settings(deadline=None)
def test_scores_equal_those_of_scikit_learn(pairs: list[tuple[bool, float]]) -> None:
    active = np.array([truth for truth, _ in pairs])
    probability = np.array([p for _, p in pairs])
    scores = classification_scores(active, probability)
    predicted = probability >= 0.5
    expected = {
        "auroc": sklearn_metrics.roc_auc_score(active, probability),
        "auprc": sklearn_metrics.average_precision_score(active, probability),
        "f1": sklearn_metrics.f1_score(active, predicted),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(active, predicted),
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("constant", [0.0, 0.3, 0.5, 1.0])
def test_a_constant_judge_gets_chance_level_exactly(constant: float) -> None:
    active = np.arange(10) < 3
    scores = classification_scores(active, np.full(10, constant))
    assert scores["auroc"] == 0.5
    assert scores["auprc"] == pytest.approx(0.3)
    assert scores["balanced_accuracy"] == 0.5


def test_failed_replies_are_counted_and_never_enter_a_score() -> None:
    active = np.array([True, True, False, False, True, False])
    probability = np.array([0.9, 0.4, 0.5, 0.1, np.nan, np.nan])
    kept = classification_scores(active[:4], probability[:4])
    assert classification_scores(active, probability) == {**kept, "n_failed": 2}


@pytest.mark.parametrize(
    ("active", "probability", "counts"),
    [
        ([True, True], [0.1, 0.9], (2, 0, 0)),
        ([False, False], [0.1, 0.9], (0, 2, 0)),
        ([True, False], [0.9, np.nan], (1, 0, 1)),
        ([True, False], [np.nan, np.nan], (0, 0, 2)),
        ([], [], (0, 0, 0)),
    ],
)
def test_a_missing_class_gives_null_scores_without_a_warning(
    active: list[bool], probability: list[float], counts: tuple[int, int, int]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = classification_scores(np.array(active, bool), np.array(probability, float))
    assert scores == {
        **dict(zip(("n_active", "n_silent", "n_failed"), counts, strict=True)),
        **NONE,
    }


# The judge ---------------------------------------------------------------------------------


def test_detection_takes_the_largest_probability_and_the_base_rate_of_unseen_tokens() -> None:
    rows = [
        window(1, 0, [5, 6], [1.0, 0.0]),
        window(1, 1, [6, 99], [0.0, 0.0]),
        window(2, 2, [5, 5], [1.0, 0.0]),
        window(2, 3, [0, 7], [0.0, 0.0]),
    ]
    table = explained(
        explanation(1, {5: 0.75, 6: 0.125}, 0.25), explanation(2, {0: 0.5, 5: 0.25}, 0.0)
    )
    windows = judged(rows)
    everywhere = np.ones(len(windows.tokens), bool)
    assert judge_by_tokens(windows, table, everywhere).tolist() == [0.75, 0.25, 0.25, 0.5]
    only_second = np.tile([False, True], 4)
    assert judge_by_tokens(windows, table, only_second).tolist() == [0.125, 0.25, 0.25, 0.0]


def test_a_token_at_the_base_rate_ties_with_an_unseen_one() -> None:
    table = explained(explanation(1, {5: 0.1}, 0.1))  # 0.1 differs in float32
    windows = judged([window(1, 0, [5, 5], [1.0, 0.0]), window(1, 1, [9, 9], [0.0, 0.0])])
    first, second = judge_by_tokens(windows, table, np.ones(4, bool))
    assert first == second


def test_an_explanation_without_tokens_gives_its_base_rate() -> None:
    windows = judged([window(1, 0, [5, 5], [1.0, 0.0])])
    table = explained(explanation(1, {}, 0.25))
    assert judge_by_tokens(windows, table, np.ones(2, bool)).tolist() == [0.25]


# Marks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threshold", "expected"), [(0.0, [0, 1, 2]), (0.3, [0, 2]), (0.5, [2])])
def test_active_windows_are_marked_above_a_share_of_their_own_maximum(
    threshold: float, expected: list[int]
) -> None:
    windows = judged(
        [
            window(1, 0, [1, 2, 3, 4], [2.0, 1.2, 4.0, 0.0]),
            window(1, 1, [1, 2, 3, 4], [0.0, 0.02, 0.0, 0.0]),
        ]
    )
    assert marks_of(windows, fuzz_marks(windows, threshold, 0, "m")) == [expected, [1]]


def fuzz_cell(n_silent: int) -> list[dict[str, Any]]:
    """Return one latent: of its four active windows, three have one mark and one has five."""
    fires = [[1.0] + [0.0] * 15] * 3 + [[1.0] * 5 + [0.0] * 11]
    rows = [window(8, i, [i] * 16, activations) for i, activations in enumerate(fires)]
    return rows + [window(8, i, [i] * 16, [0.0] * 16) for i in range(4, 4 + n_silent)]


def test_silent_windows_are_marked_as_often_as_a_random_active_window() -> None:
    windows = judged(fuzz_cell(2000))
    marks = marks_of(windows, fuzz_marks(windows, 0.3, 0, "m"))[4:]
    sizes = np.array([len(m) for m in marks])
    assert set(sizes) == {1, 5}
    # binomial(2000, 1/4), with standard deviation 19.4; the bound is 5 of them.
    assert abs((sizes == 5).sum() - 500) < 97
    # Every position is equally likely: 4000 expected marks over 16 positions.
    counts = np.bincount(np.concatenate(marks), minlength=16)
    assert np.abs(counts - sizes.sum() / 16).max() < 5 * np.sqrt(sizes.sum() / 16)


def test_fuzz_marks_differ_from_window_to_window() -> None:
    windows = judged(fuzz_cell(200))
    marks = marks_of(windows, fuzz_marks(windows, 0.3, 0, "m"))[4:]
    of_one = {m[0] for m in marks if len(m) == 1}
    of_five = {tuple(m) for m in marks if len(m) == 5}
    assert of_one == set(range(16))
    assert len(of_five) > 0.9 * sum(len(m) == 5 for m in marks)


def test_fuzz_marks_of_a_window_do_not_depend_on_other_windows_or_latents() -> None:
    rows = fuzz_cell(50)
    whole = judged(rows)
    marks = dict(zip(whole.window, marks_of(whole, fuzz_marks(whole, 0.3, 0, "m")), strict=True))
    other = [{**row, "latent": 9, "window": row["window"] + 500} for row in rows]
    part = judged([*other, *rows[:10][::-1]])
    found = marks_of(part, fuzz_marks(part, 0.3, 0, "m"))
    for index, mark in zip(part.window, found, strict=True):
        if index < 500:
            assert mark == marks[index]


def test_fuzz_marks_depend_on_the_seed_the_cell_and_the_latent() -> None:
    windows = judged(fuzz_cell(50))
    renamed = judged([{**row, "latent": 9} for row in fuzz_cell(50)])
    marks = [
        fuzz_marks(windows, 0.3, 0, "m", "trained").tolist(),
        fuzz_marks(windows, 0.3, 1, "m", "trained").tolist(),
        fuzz_marks(windows, 0.3, 0, "m", "step0").tolist(),
        fuzz_marks(renamed, 0.3, 0, "m", "trained").tolist(),
    ]
    assert all(a != b for i, a in enumerate(marks) for b in marks[i + 1 :])


def test_more_marks_than_a_short_window_has_positions_mark_all_of_it() -> None:
    windows = judged([window(1, 0, [1, 2, 3], [1.0, 1.0, 1.0]), window(1, 1, [1, 2], [0.0, 0.0])])
    assert marks_of(windows, fuzz_marks(windows, 0.3, 0, "m")) == [[0, 1, 2], [0, 1]]


def test_a_latent_without_active_scoring_windows_still_has_marks_and_null_scores(
    tmp_path: Path,
) -> None:
    rows = [window(1, 0, [1, 2], [0.0, 0.0]), window(1, 1, [3, 4], [0.0, 0.0])]
    shown, (row,) = score(tmp_path, rows, explained(explanation(1, {}, 0.2)), kind="fuzzing")
    assert [p["n_marked"] for p in shown] == [1, 1]
    assert row == {"latent": 1, "n_active": 0, "n_silent": 2, "n_failed": 0, **NONE, **FORMULA}


def test_a_failed_reply_is_a_null_in_the_predictions_not_a_number(tmp_path: Path) -> None:
    windows = judged([window(1, 0, [5, 5], [1.0, 0.0]), window(1, 1, [5, 5], [0.0, 0.0])])
    table = predictions_table(windows, Judged(np.array([np.nan, 0.0]), [None, "label"]))
    write_table(tmp_path / "predictions.parquet", table, cell_schema("predictions"))
    found = read_table(tmp_path / "predictions.parquet", cell_schema("predictions"))
    assert found["probability"].to_pylist() == [None, 0.0]
    assert found["evidence"].to_pylist() == [None, "label"]


# The verb ----------------------------------------------------------------------------------


def test_a_small_cell_gives_the_tables_worked_out_by_hand(tmp_path: Path) -> None:
    rows = [
        window(1, 3, [6, 6], [0.0, 0.0]),
        window(1, 0, [5, 6], [1.0, 0.2]),
        window(1, 2, [9, 6], [0.0, 0.0]),
        window(1, 1, [6, 6], [1.0, 0.9]),
        window(1, 4, [5, 5], [1.0, 0.0], pool="explain"),
        window(2, 5, [5, 5], [1.0, 0.0]),  # not explained
    ]
    table = explained(explanation(1, {5: 0.75, 6: 0.125}, 0.25))
    shown, (row,) = score(tmp_path, rows, table, kind="detection")
    assert shown == [
        {
            "latent": 1,
            "window": index,
            "document": 1,
            "active": active,
            "silent_kind": None if active else "random",
            "quantile": 0 if active else None,
            "n_marked": 0,
            "probability": probability,
            "evidence": "statistics",
        }
        for index, active, probability in [
            (0, True, 0.75),
            (1, True, 0.125),
            (2, False, 0.25),
            (3, False, 0.125),
        ]
    ]
    assert row["auroc"] == pytest.approx(2.5 / 4)
    assert row["auprc"] == pytest.approx((1 + 2 / 4) / 2)
    assert (row["f1"], row["balanced_accuracy"]) == (pytest.approx(2 / 3), 0.75)
    shown, _ = score(tmp_path, rows, table, kind="fuzzing", mark_threshold=0.5)
    assert [p["n_marked"] for p in shown[:2]] == [1, 2]
    assert [p["probability"] for p in shown[:2]] == [0.75, 0.125]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Return a planted cell whose latents fire once per active window, with both explainers."""
    folder = tmp_path_factory.mktemp("planted")
    rows = planted_cell(n_latents=30, n_windows=40, window_tokens=16, vocab_size=400)
    rows = [row for row in rows if sum(a > 0 for a in row["activations"]) < 2]
    source = write_windows(folder / "windows.parquet", rows)
    tokenizer = byte_tokenizer(folder / "tokenizer.json")
    lexical, swapped = folder / "lexical.parquet", folder / "swapped.parquet"
    explain_latents(explain_params(kind="lexical"), source, tokenizer, lexical, None)
    params = explain_params(kind="swapped", of="lexical")
    explain_latents(params, source, tokenizer, swapped, lexical)
    schema = cell_schema("explanations")
    return rows, {"lexical": read_table(lexical, schema), "swapped": read_table(swapped, schema)}


@pytest.mark.parametrize("kind", ["detection", "fuzzing"])
def test_a_one_token_latent_is_predicted_perfectly_and_its_swap_is_at_chance(
    tmp_path: Path, planted: Planted, kind: str
) -> None:
    rows, tables = planted
    _, real = score(tmp_path, rows, tables["lexical"], kind=kind)
    assert len(real) == 30
    for row in real:
        assert (row["auroc"], row["auprc"]) == (1.0, 1.0)
    _, placebo = score(tmp_path, rows, tables["swapped"], kind=kind)
    # Detection: the standard error of one AUROC of 20 + 10 windows is about 0.11. Fuzzing: all
    # active windows show one token, so a latent's AUROC is nearly uniform, with deviation 0.29. The
    # bound is four standard errors of the mean over 30 latents.
    tolerance = {"detection": 4 * 0.11, "fuzzing": 4 * 0.29}[kind] / np.sqrt(30)
    assert abs(np.mean([row["auroc"] for row in placebo]) - 0.5) < tolerance


def test_explainers_are_judged_on_the_same_marks(tmp_path: Path, planted: Planted) -> None:
    rows, tables = planted
    # Token ids are replaced by positions: a probability that grows with the position then reveals
    # the last mark of each window, for any explainer.
    rows = [{**row, "token_ids": list(range(16))} for row in rows]
    found = []
    for sign, name in ((1, "up"), (-1, "down")):
        ramp = {t: 0.5 + sign * (t - 8) / 32 for t in range(16)}
        table = explained(
            *(explanation(latent, ramp, 0.0) for latent in tables["lexical"]["latent"].to_pylist())
        )
        shown, _ = score(tmp_path, rows, table, name, kind="fuzzing")
        found.append([(p["n_marked"], round((p["probability"] - 0.5) * sign * 32)) for p in shown])
    up, down = found
    assert [n for n, _ in up] == [n for n, _ in down] == [1] * len(up)
    assert [place for _, place in up] == [place for _, place in down]
    assert len({place for _, place in up}) == 16


def test_tables_do_not_depend_on_row_order(tmp_path: Path, planted: Planted) -> None:
    rows, tables = planted
    order = np.random.default_rng(3).permutation(len(rows))
    score(tmp_path, rows, tables["swapped"], "a_", kind="fuzzing")
    shuffled = tables["swapped"].take(np.arange(30)[::-1])
    score(tmp_path, [rows[i] for i in order], shuffled, "b_", kind="fuzzing")
    for table in ("predictions", "scores"):
        first = (tmp_path / f"a_{table}.parquet").read_bytes()
        assert first == (tmp_path / f"b_{table}.parquet").read_bytes()


@pytest.mark.parametrize("kind", ["detection", "fuzzing"])
def test_a_cell_without_any_latent_gives_empty_tables_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    with caplog.at_level(logging.WARNING):
        assert score(tmp_path, [], explained(), kind=kind) == ([], [])
    assert "no latent passes the filter" in caplog.text


@pytest.mark.parametrize("kind", ["detection", "fuzzing"])
def test_no_explanations_of_a_lone_latent_give_empty_tables_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    rows = [window(1, 0, [1, 2], [1.0, 0.0]), window(1, 1, [1, 2], [0.0, 0.0])]
    with caplog.at_level(logging.WARNING):
        assert score(tmp_path, rows, explained(), kind=kind) == ([], [])
    assert "no explanations" in caplog.text


@pytest.mark.parametrize(
    ("claimed", "activations", "message"),
    [(False, [0.0, 0.5], "is called silent.*is 0.5"), (True, [0.0, 0.0], "is called active.*is 0")],
)
def test_a_window_whose_flag_contradicts_its_activations_is_refused(
    tmp_path: Path, claimed: bool, activations: list[float], message: str
) -> None:
    rows = [{**window(1, 6, [1, 2], activations), "active": claimed}]
    with pytest.raises(UserError, match=f"latent 1, window 6 {message}"):
        score(tmp_path, rows, explained(explanation(1, {}, 0.1)), kind="fuzzing")
