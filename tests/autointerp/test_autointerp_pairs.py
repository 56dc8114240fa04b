"""Tokens with their predecessors: statistics, text and judge, compared with slow references."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from autointerp_cells import (
    explain_params,
    explained,
    explanation,
    judged,
    planted_cell,
    score,
    window,
    windows_table,
    write_windows,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nullsae.autointerp import examples
from nullsae.autointerp.explain import explain_latents
from nullsae.autointerp.explainers.lexical import lexical_explanations
from nullsae.autointerp.explainers.swapped import swap_explanations
from nullsae.autointerp.scorers.asking import judge_by_tokens
from nullsae.tables import cell_schema, read_table

MAX_ID = 2**31 - 1  # the largest int32, the tables' type
Rows = list[dict[str, Any]]


def pairs_of(row: dict[str, Any]) -> dict[tuple[int, int], float]:
    """Return an explanation's pairs, by (previous, token)."""
    columns = (row["pair_previous_ids"], row["pair_token_ids"], row["pair_probabilities"])
    return {(a, b): p for a, b, p in zip(*columns, strict=True)}


def everywhere(rows: Rows) -> np.ndarray:
    return np.ones(sum(len(row["token_ids"]) for row in rows), bool)


# Slow references ---------------------------------------------------------------------------


def reference_explanation(rows: Rows, latent: int) -> dict[str, Any]:
    """Return the statistics of one latent, counted position by position."""
    tokens: dict[int, list[int]] = {}
    pairs: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        if row["latent"] != latent or row["pool"] != "explain":
            continue
        previous = None
        for token, activation in zip(row["token_ids"], row["activations"], strict=True):
            seen = [tokens.setdefault(token, [0, 0])]
            if previous is not None:
                seen.append(pairs.setdefault((previous, token), [0, 0]))
            for counts in seen:
                counts[0] += activation > 0
                counts[1] += 1
            previous = token
    base = sum(a for a, _ in tokens.values()) / sum(n for _, n in tokens.values())
    of_token = {t: (a + base) / (n + 1) for t, (a, n) in tokens.items()}
    of_pair = {pair: (a + of_token[pair[1]]) / (n + 1) for pair, (a, n) in pairs.items()}
    return {"base": base, "tokens": of_token, "pairs": of_pair}


def reference_judge(row: dict[str, Any], known: dict[str, Any], shown: list[bool]) -> float:
    """Return the largest probability over the shown positions of one window."""
    tokens = dict(zip(known["token_ids"], known["token_probabilities"], strict=True))
    pairs, ids = pairs_of(known), row["token_ids"]
    found = []
    for i, token in enumerate(ids):
        p = float(np.float32(known["base_probability"]))
        p = tokens.get(token, p)
        if i > 0:
            p = pairs.get((ids[i - 1], token), p)
        if shown[i]:
            found.append(p)
    return max(found)


@st.composite
def cells(draw: st.DrawFn) -> Rows:
    """Draw windows of latents, in both pools, of any lengths, over a vocabulary with large ids."""
    vocabulary = draw(st.sampled_from([[0, 1, 2], [5, 262_143, 0, 31], [MAX_ID, 0, MAX_ID - 1]]))
    positions = st.tuples(st.sampled_from(vocabulary), st.sampled_from([0.0, 0.0, 0.5, 2.0]))
    rows = []
    for latent in draw(st.sampled_from([[3], [0, 7], [2, 500_000, 9]])):
        for pool in ("explain", "score"):
            shown = st.lists(positions, min_size=1, max_size=7)
            for pairs in draw(st.lists(shown, min_size=1, max_size=5)):
                ids, activations = zip(*pairs, strict=True)
                rows.append(window(latent, len(rows), list(ids), list(activations), pool=pool))
    return draw(st.permutations(rows))


@given(rows=cells())
@settings(max_examples=60, deadline=None)
def test_statistics_equal_those_counted_position_by_position(
    tokenizer: Tokenizer, rows: Rows
) -> None:
    found = lexical_explanations(windows_table(rows), tokenizer, 3, "bigram").to_pylist()
    assert [row["latent"] for row in found] == sorted({row["latent"] for row in rows})
    for row in found:
        expected = reference_explanation(rows, row["latent"])
        assert row["base_probability"] == pytest.approx(expected["base"], rel=1e-12)
        assert row["token_ids"] == sorted(expected["tokens"])
        tokens = dict(zip(row["token_ids"], row["token_probabilities"], strict=True))
        assert tokens == pytest.approx(expected["tokens"], rel=1e-6)
        assert pairs_of(row) == pytest.approx(expected["pairs"], rel=1e-6)


@given(rows=cells(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_judge_equals_one_that_looks_up_position_by_position(
    tokenizer: Tokenizer, rows: Rows, data: st.DataObject
) -> None:
    table = lexical_explanations(windows_table(rows), tokenizer, 3, "bigram")
    if table.num_rows > 1 and data.draw(st.booleans()):
        table = swap_explanations(table, np.random.default_rng(0))
    scored = [row for row in rows if row["pool"] == "score"]
    scored.sort(key=lambda row: (row["latent"], row["window"]))
    generator = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    flags = [generator.random(len(row["token_ids"])) < 0.5 for row in scored]
    for shown in flags:
        shown[generator.integers(len(shown))] = True
    found = judge_by_tokens(judged(rows), table, np.concatenate(flags))
    known = {row["latent"]: row for row in table.to_pylist()}
    expected = [
        reference_judge(row, known[row["latent"]], shown.tolist())
        for row, shown in zip(scored, flags, strict=True)
    ]
    assert found.tolist() == expected


# Statistics --------------------------------------------------------------------------------


def test_pair_probability_is_smoothed_towards_that_of_its_token(tokenizer: Tokenizer) -> None:
    table = windows_table(
        [
            window(7, 0, [10, 11, 12, 11], [0.0, 2.0, 0.0, 0.0], pool="explain"),
            window(7, 1, [10, 11, 12, 11], [0.0, 1.0, 0.0, 0.0], pool="explain"),
        ]
    )
    (row,) = lexical_explanations(table, tokenizer, 10, "bigram").to_pylist()
    rate = 2 / 8
    p_11, p_12 = (2 + rate) / (4 + 1), (0 + rate) / (2 + 1)
    assert row["pair_previous_ids"] == [10, 12, 11]
    assert row["pair_token_ids"] == [11, 11, 12]
    expected = [(2 + p_11) / (2 + 1), (0 + p_11) / (2 + 1), (0 + p_12) / (2 + 1)]
    assert row["pair_probabilities"] == pytest.approx(expected, rel=1e-6)


def test_a_windows_first_token_counts_for_its_token_but_for_no_pair(tokenizer: Tokenizer) -> None:
    # Adjacent in the table and in the text, but (2, 3) spans two windows.
    rows = [
        window(1, 0, [1, 2], [0.0, 0.0], pool="explain"),
        window(1, 1, [3, 3, 4], [1.0, 1.0, 0.0], pool="explain"),
        window(2, 0, [5], [1.0], pool="explain"),
    ]
    first, second = lexical_explanations(windows_table(rows), tokenizer, 3, "bigram").to_pylist()
    assert list(pairs_of(first)) == [(1, 2), (3, 3), (3, 4)]
    p_3 = (2 + 2 / 5) / (2 + 1)
    assert first["token_probabilities"][2] == pytest.approx(p_3, rel=1e-6)
    assert pairs_of(first)[3, 3] == pytest.approx((1 + p_3) / (1 + 1), rel=1e-6)
    assert pairs_of(second) == {}


def test_context_token_writes_no_pairs_and_bigram_the_same_tokens(tokenizer: Tokenizer) -> None:
    table = windows_table(planted_cell(n_latents=3, n_windows=6, window_tokens=8, vocab_size=20))
    token = lexical_explanations(table, tokenizer, 3)
    bigram = lexical_explanations(table, tokenizer, 3, "bigram")
    for name in ("latent", "source_latent", "base_probability", "token_ids", "token_probabilities"):
        assert token[name].equals(bigram[name])
    for name in ("pair_previous_ids", "pair_token_ids", "pair_probabilities"):
        assert token[name].to_pylist() == [[], [], []]
        assert all(bigram[name].to_pylist())


def test_ids_of_the_largest_vocabulary_take_no_more_memory_than_small_ones(
    tokenizer: Tokenizer,
) -> None:
    """Only the order of ids may affect numbers and memory, not their size."""
    generator = np.random.default_rng(0)
    spread = np.sort(generator.choice(MAX_ID, 50, replace=False))
    spread[-1] = MAX_ID
    small: Rows = []
    for index in range(600):
        ids = generator.integers(0, 50, 16)
        activations = np.where(generator.random(16) < 0.1, 1.0, 0.0).tolist()
        pool = "explain" if index % 2 else "score"
        latent = 2_000_000 + index % 10
        small.append(window(latent, index, ids.tolist(), activations, pool=pool))
    large = [{**row, "token_ids": spread[row["token_ids"]].tolist()} for row in small]

    found, peaks = [], []
    for rows in (small, large):
        table, windows = windows_table(rows), judged(rows)
        tracemalloc.start()
        explanations = lexical_explanations(table, tokenizer, 3, "bigram")
        probability = judge_by_tokens(windows, explanations, np.ones(len(windows.tokens), bool))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        found.append((explanations, probability))
    (of_small, p_small), (of_large, p_large) = found
    assert p_small.tolist() == p_large.tolist()
    for name in ("base_probability", "token_probabilities", "pair_probabilities"):
        assert of_small[name].equals(of_large[name])
    for name in ("token_ids", "pair_previous_ids", "pair_token_ids"):
        expected = [spread[ids].tolist() for ids in of_small[name].to_pylist()]
        assert of_large[name].to_pylist() == expected
    assert peaks[1] < 1.2 * peaks[0] + 100_000


# Text --------------------------------------------------------------------------------------


def test_text_names_pairs_by_activation_mass_and_pools_the_others(tokenizer: Tokenizer) -> None:
    the, of, cat = (tokenizer.encode(word).ids[0] for word in (" the", " of", "c"))
    table = windows_table(
        [
            window(0, 0, [of, the, cat, the], [0.0, 6.0, 1.0, 0.0], pool="explain"),
            window(0, 1, [the, of, cat, cat], [3.0, 0.0, 0.0, 0.0], pool="explain"),
        ]
    )
    (row,) = lexical_explanations(table, tokenizer, 2, "bigram").to_pylist()
    rate = 3 / 8
    p_the = (2 + rate) / (3 + 1)
    others = (1 + rate) / (6 + 1)
    assert row["explanation"] == (
        f'fires on " the" after " of" (P {(1 + p_the) / 2:.2f}, 60% of its activation), '
        f'" the" first in a window (P {p_the:.2f}, 30%); other pairs P {others:.2f}'
    )


def test_the_text_about_a_latent_that_never_fires_makes_no_claim(tokenizer: Tokenizer) -> None:
    table = windows_table([window(0, 0, [1, 2], [0.0, 0.0], pool="explain")])
    (row,) = lexical_explanations(table, tokenizer, 2, "bigram").to_pylist()
    assert row["explanation"] == "did not fire in its explaining windows"
    assert row["pair_probabilities"] == [0]


# The judge ---------------------------------------------------------------------------------


def test_judge_backs_off_from_pair_to_token_to_base_rate() -> None:
    table = explained(explanation(1, {5: 0.5, 6: 0.25}, 0.125, {(9, 5): 0.75, (5, 6): 0.0}))
    windows = [
        ([9, 5], 0.75),  # the pair
        ([5, 9], 0.5),  # first in its window: the token
        ([8, 5], 0.5),  # an unseen pair: the token
        ([9, 9], 0.125),  # nothing known: the base rate
        ([6, 9], 0.25),
        ([7, 6], 0.25),
    ]
    rows = [window(1, i, ids, [1.0, 0.0]) for i, (ids, _) in enumerate(windows)]
    found = judge_by_tokens(judged(rows), table, everywhere(rows))
    assert found.tolist() == [p for _, p in windows]
    # The last token of one window is not the predecessor of the next one's first.
    rows = [window(1, 0, [1, 9], [1.0, 0.0]), window(1, 1, [5, 1], [1.0, 0.0])]
    assert judge_by_tokens(judged(rows), table, everywhere(rows)).tolist() == [0.125, 0.5]


def test_a_pair_may_lower_the_probability_of_its_token() -> None:
    table = explained(explanation(1, {5: 0.5}, 0.25, {(5, 5): 0.125}))
    windows = judged([window(1, 0, [5, 5], [1.0, 0.0])])
    only_second = np.array([False, True])
    assert judge_by_tokens(windows, table, only_second).tolist() == [0.125]


def test_a_pair_is_found_even_if_the_explanation_lacks_its_token() -> None:
    table = explained(
        explanation(1, {}, 0.25, {(4, 5): 0.75}),
        explanation(2, {5: 0.5}, 0.0, {(6, 5): 1.0}),
        explanation(3, {}, 0.125),
    )
    rows = [
        window(1, 0, [4, 5], [1.0, 0.0]),
        window(1, 1, [6, 5], [1.0, 0.0]),
        window(2, 2, [4, 5], [1.0, 0.0]),
        window(2, 3, [6, 5], [1.0, 0.0]),
        window(3, 4, [4, 5], [1.0, 0.0]),
    ]
    found = judge_by_tokens(judged(rows), table, everywhere(rows))
    assert found.tolist() == [0.75, 0.25, 0.5, 1.0, 0.125]


def test_fuzzing_takes_the_token_before_a_mark_whether_marked_or_not(tmp_path: Path) -> None:
    table = explained(explanation(1, {5: 0.25}, 0.0, {(9, 5): 0.75, (8, 9): 1.0}))
    rows = [
        window(1, 0, [8, 9, 5], [0.0, 0.0, 1.0]),  # only the last token is marked
        window(1, 1, [5, 9, 9], [1.0, 0.0, 0.0]),
    ]
    shown, _ = score(tmp_path, rows, table, kind="fuzzing")
    assert [(row["n_marked"], row["probability"]) for row in shown] == [(1, 0.75), (1, 0.25)]


# Latents of pairs --------------------------------------------------------------------------


def auroc(folder: Path, rows: Rows, tokenizer: Tokenizer, kind: str) -> dict[str, np.ndarray]:
    """Return the AUROC of each latent by context."""
    found = {}
    for context in ("token", "bigram"):
        table = lexical_explanations(windows_table(rows), tokenizer, 10, context)
        _, scores = score(folder, rows, table, f"{kind}_{context}_", kind=kind)
        found[context] = np.array([row["auroc"] for row in scores])
    return found


def pair_cell(seed: int = 0) -> Rows:
    """Return windows in which latent i fires on token 10 + i after token i.

    All windows contain both tokens once; in silent ones they are not neighbours.
    """
    generator = np.random.default_rng(seed)
    rows: Rows = []
    for latent in range(8):
        for pool in ("explain", "score"):
            for i in range(40):
                ids = generator.integers(20, 120, 16)
                at = int(generator.integers(1, 13))
                ids[at] = 10 + latent
                ids[at - 1 if i % 2 else at + 2] = latent
                fires = np.zeros(16)
                fires[at] = i % 2
                rows.append(window(latent, len(rows), ids.tolist(), fires.tolist(), pool=pool))
    return rows


@pytest.mark.parametrize("kind", ["detection", "fuzzing"])
def test_latents_of_a_pair_are_predicted_by_bigrams_but_not_by_tokens(
    tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    found = auroc(tmp_path, pair_cell(), tokenizer, kind)
    assert (found["bigram"] == 1).all()
    # Detection: every window contains the token. Fuzzing: silent windows are marked elsewhere.
    if kind == "detection":
        assert (found["token"] == 0.5).all()


@pytest.mark.parametrize("kind", ["detection", "fuzzing"])
def test_latents_of_a_token_are_predicted_equally_by_both(
    tmp_path: Path, tokenizer: Tokenizer, kind: str
) -> None:
    # Latent i fires on two of three occurrences of token i, after any token.
    generator = np.random.default_rng(0)
    rows: Rows = []
    for latent in range(20):
        for index in range(240):
            ids = generator.integers(0, 40, 16)
            fires = (ids == latent) & (generator.random(16) < 2 / 3)
            pool = "explain" if index % 2 else "score"
            row = window(latent, len(rows), ids.tolist(), fires.astype(float).tolist(), pool=pool)
            rows.append(row)
    found = auroc(tmp_path, rows, tokenizer, kind)
    assert found["token"].mean() > 0.85
    assert abs(found["token"].mean() - found["bigram"].mean()) < 0.02
    assert np.abs(found["token"] - found["bigram"]).max() < 0.06


# All explainers see the same windows -----------------------------------------------------------


def explain_all(folder: Path, rows: Rows, tokenizer_file: Path) -> dict[str, pa.Table]:
    """Return one SAE's explanations by four explainers, made by the verb."""
    source = write_windows(folder / "windows.parquet", rows)
    explainers: dict[str, dict[str, Any]] = {
        "token": {"kind": "lexical"},
        "bigram": {"kind": "lexical", "context": "bigram"},
        "swapped_token": {"kind": "swapped", "of": "token"},
        "swapped_bigram": {"kind": "swapped", "of": "bigram"},
    }
    for name, options in explainers.items():
        base = folder / f"{options['of']}.parquet" if "of" in options else None
        output = folder / f"{name}.parquet"
        explain_latents(explain_params(**options), source, tokenizer_file, output, base)
    schema = cell_schema("explanations")
    return {name: read_table(folder / f"{name}.parquet", schema) for name in explainers}


def shared_cell() -> Rows:
    """Return latents with windows of several marks, so that silent windows have a choice."""
    generator = np.random.default_rng(4)
    rows: Rows = []
    for latent in (3, 8, 11, 40, 41):
        for index in range(36):
            ids = generator.integers(0, 30, 12).tolist()
            fires = np.maximum(generator.normal(0, 1, 12), 0) if index % 3 else np.zeros(12)
            pool = "explain" if index % 2 else "score"
            rows.append(window(latent, len(rows), ids, fires.tolist(), pool=pool))
    return rows


@pytest.mark.parametrize("kind", ["detection", "fuzzing"])
def test_all_explainers_are_judged_on_the_same_windows_and_marks(
    tmp_path: Path, tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    marks: dict[int, list[bool]] = {}

    def spy(windows: examples.Examples, *args: Any) -> np.ndarray:
        found = fuzz_marks(windows, *args)
        marks.clear()
        for index, a, b in zip(
            windows.window, windows.starts[:-1], windows.starts[1:], strict=True
        ):
            marks[int(index)] = found[a:b].tolist()
        return found

    fuzz_marks = examples.fuzz_marks
    monkeypatch.setattr(examples, "fuzz_marks", spy)
    rows = shared_cell()
    tables = explain_all(tmp_path, rows, tokenizer_file)
    # An explainer without explanations for some latents.
    some = [3, 40]
    tables["fewer"] = tables["bigram"].take([0, 3])
    tables["fewer_swapped"] = swap_explanations(tables["fewer"], np.random.default_rng(0))

    judged_rows, judged_marks = {}, {}
    for name, table in tables.items():
        marks.clear()
        shown, _ = score(tmp_path, rows, table, f"{name}_", kind=kind)
        for row in shown:
            del row["probability"]
        judged_rows[name], judged_marks[name] = shown, dict(marks)
    expected, whole = judged_rows["token"], judged_marks["token"]
    assert len(expected) == 5 * 18
    assert bool(whole) == (kind == "fuzzing")
    if whole:
        assert len(set(map(sum, whole.values()))) > 2  # the number of marks varies
        assert [sum(whole[row["window"]]) for row in expected] == [r["n_marked"] for r in expected]
    for name in ("bigram", "swapped_token", "swapped_bigram"):
        assert judged_rows[name] == expected
        assert judged_marks[name] == whole
    part = [row for row in expected if row["latent"] in some]
    for name in ("fewer", "fewer_swapped"):
        assert judged_rows[name] == part
        assert judged_marks[name] == {r["window"]: whole[r["window"]] for r in part if whole}


@pytest.mark.parametrize("kind", ["detection", "fuzzing"])
def test_a_single_latent_has_no_swap_and_no_predictions_from_it(
    tmp_path: Path, tokenizer_file: Path, kind: str
) -> None:
    rows = [row for row in shared_cell() if row["latent"] == 8]
    tables = explain_all(tmp_path, rows, tokenizer_file)
    assert [tables[name].num_rows for name in tables] == [1, 1, 0, 0]
    assert score(tmp_path, rows, tables["swapped_bigram"], kind=kind) == ([], [])


def test_swapped_bigrams_keep_whole_rows_and_the_partners_of_swapped_tokens(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    tables = explain_all(tmp_path, shared_cell(), tokenizer_file)
    real = {row["latent"]: row for row in tables["bigram"].to_pylist()}
    swapped = tables["swapped_bigram"].to_pylist()
    assert sorted(row["source_latent"] for row in swapped) == sorted(real)
    for row in swapped:
        assert row["source_latent"] != row["latent"]
        assert row == {**real[row["source_latent"]], "latent": row["latent"]}
    partners = tables["swapped_token"]["source_latent"].to_pylist()
    assert [row["source_latent"] for row in swapped] == partners


def test_a_swap_of_pairs_is_at_chance(tmp_path: Path, tokenizer_file: Path) -> None:
    rows = pair_cell()
    tables = explain_all(tmp_path, rows, tokenizer_file)
    _, scores = score(tmp_path, rows, tables["swapped_bigram"], kind="detection")
    # 20 windows of each kind, 8 latents: standard error about 0.09 / sqrt(8); the bound is four.
    assert abs(np.mean([row["auroc"] for row in scores]) - 0.5) < 4 * 0.09 / np.sqrt(8)


# Latents of other dictionaries -----------------------------------------------------------------


def extreme_cell(rate: str) -> Rows:
    """Return a latent that fires almost nowhere, almost everywhere, or everywhere it is shown."""
    generator = np.random.default_rng(2)
    rows: Rows = []
    for latent in (0, 1):
        for index in range(40):
            ids = generator.integers(0, 25, 32)
            fires = np.zeros(32)
            if index % 4 > 1:
                if rate == "once":
                    fires[7] = 1e-30 if index == 2 else 1e-45
                elif rate == "half":
                    fires = np.maximum(generator.normal(0, 1, 32), 0)
                else:
                    fires[:] = 3e38
            if rate == "always" and index % 4 <= 1 and index % 2:
                continue  # this latent has no silent explaining window
            pool = "explain" if index % 2 else "score"
            rows.append(window(latent, len(rows), ids.tolist(), fires.tolist(), pool=pool))
    return rows


@pytest.mark.parametrize("rate", ["once", "half", "always"])
def test_base_rates_near_0_and_1_give_probabilities_and_no_warning(
    tmp_path: Path, tokenizer_file: Path, rate: str
) -> None:
    rows = extreme_cell(rate)
    tables = explain_all(tmp_path, rows, tokenizer_file)
    fuzzing = [{"kind": "fuzzing", "mark_threshold": share} for share in (0.0, 0.3, 0.99)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for table in tables.values():
            for column in ("token_probabilities", "pair_probabilities"):
                values = np.array([p for row in table[column].to_pylist() for p in row])
                assert ((values >= 0) & (values <= 1)).all()
            for text in table["explanation"].to_pylist():
                assert "nan" not in text
                assert "inf" not in text
            for scorer in (*fuzzing, {"kind": "detection"}):
                shown, scores = score(tmp_path, rows, table, **scorer)
                assert all(0 <= row["probability"] <= 1 for row in shown)
                assert all(0 <= row["auroc"] <= 1 for row in scores)
                if scorer in fuzzing:
                    assert all(row["n_marked"] > 0 for row in shown)
    for context in ("token", "bigram") if rate == "always" else ():
        assert tables[context]["base_probability"].to_pylist() == [1, 1]
        assert "other" in tables[context]["explanation"][0].as_py()


def test_a_latent_of_one_token_is_explained_by_it_and_predicted_perfectly(
    tmp_path: Path, tokenizer_file: Path
) -> None:
    """A token_lookup dictionary: the same activation at every occurrence of one token."""
    rows = planted_cell(n_latents=6, n_windows=30, window_tokens=16, vocab_size=100)
    rows = [{**row, "activations": [2.5 * (a > 0) for a in row["activations"]]} for row in rows]
    tables = explain_all(tmp_path, rows, tokenizer_file)
    for context in ("token", "bigram"):
        for kind in ("detection", "fuzzing"):
            _, scores = score(tmp_path, rows, tables[context], kind=kind)
            assert [row["auroc"] for row in scores] == [1.0] * 6
    for row in tables["token"].to_pylist():
        assert "100% of its activation)" in row["explanation"]


# Imports -----------------------------------------------------------------------------------


def test_a_job_of_half_a_second_imports_nothing_heavy() -> None:
    code = (
        "import sys, nullsae.autointerp.explain, nullsae.autointerp.score;"
        "heavy = {'torch', 'pandas', 'sklearn', 'transformers', 'scipy', 'openai', 'aiohttp'};"
        "print(*heavy & sys.modules.keys())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
