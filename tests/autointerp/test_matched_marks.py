"""Wrong marks are as frequent as true ones, so that frequency reveals nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from autointerp_cells import judged, score_params, window
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from nullsae.autointerp.examples import (
    Examples,
    fuzz_marks,
    misplaced_marks,
    with_marks,
    wrong_marks,
)
from nullsae.autointerp.scorers.intruder import (
    IntruderScorer,
    frequency_judge,
    marked_octaves,
    marked_tasks,
)

N_TYPES, LENGTH = 1000, 32
# Zipf's law.
SHARE = 1 / np.arange(1, N_TYPES + 1)
SHARE /= SHARE.sum()
N_LATENTS, N_WINDOWS, N_QUANTILES = 12, 30, 3


def corpus(seed: int = 0) -> Examples:
    """Return latents that fire on tokens of a narrow frequency range, each on some of its range.

    Every fourth type of the range is the latent's own. Windows are drawn by Zipf's law; those that
    contain an own token are active there.
    """
    generator = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for latent in range(N_LATENTS):
        first = int(generator.integers(100, 250))
        own = np.arange(first, 2 * first, 4)
        n = {True: 0, False: 0}
        while min(n.values()) < N_WINDOWS:
            ids = generator.choice(N_TYPES, LENGTH, p=SHARE)
            fires = np.isin(ids, own) * generator.uniform(0.5, 1, LENGTH)
            active = bool(fires.any())
            if n[active] < N_WINDOWS:
                row = window(latent, len(rows), ids.tolist(), fires.tolist())
                row["quantile"] = n[active] % N_QUANTILES if active else None
                rows.append({**row, "token_frequencies": SHARE[ids].tolist()})
                n[active] += 1
    return judged(rows)


def all_alike(examples: Examples) -> Examples:
    """Return windows for which marks ignore frequency, because all tokens are equally near."""
    return replace(examples, frequencies=np.full_like(examples.frequencies, 0.5))


def octaves_of(examples: Examples) -> np.ndarray:
    """Return the mean log2 share of marked tokens, computed from the token ids."""
    of = np.log2(SHARE)[examples.tokens]
    pairs = zip(examples.starts[:-1], examples.starts[1:], strict=True)
    return np.array([of[a:b][examples.marked[a:b]].mean() for a, b in pairs])


def n_right(examples: Examples, is_matched: bool) -> tuple[int, int]:
    """Count questions in which the frequency judge names the intruder, and all questions."""
    params = score_params(kind="intruder", judge={"model": "m"})
    assert isinstance(params.scorer, IntruderScorer)
    marked = with_marks(examples, 0.3, "random", 0)
    tasks, shown = marked_tasks(params, params.scorer, marked if is_matched else all_alike(marked))
    shown = replace(shown, frequencies=examples.frequencies)
    generator, right = np.random.default_rng(1), 0
    for task in tasks:
        active = frequency_judge(marked_octaves(shown, task.rows))
        assert active.sum() == pytest.approx(len(task.rows) - 1)
        right += task.rows[generator.choice(len(active), p=1 - active)] == task.intruder
    return right, len(tasks)


def test_only_random_marks_let_the_frequency_judge_beat_chance() -> None:
    examples = corpus()
    right, n = n_right(examples, is_matched=True)
    assert n == N_LATENTS * N_QUANTILES * 2  # ten active windows per quantile, four per question
    low, high = binomtest(right, n).proportion_ci(0.95, "exact")
    assert low < 1 / 5 < high
    right, n = n_right(examples, is_matched=False)
    low, _ = binomtest(right, n).proportion_ci(0.999, "exact")
    assert low > 2 / 5


def test_frequency_reveals_random_marks_of_fuzzing_but_not_matched_ones() -> None:
    examples = corpus()
    aurocs = {}
    for name, given_examples in (("matched", examples), ("random", all_alike(examples))):
        marked = replace(examples, marked=fuzz_marks(given_examples, 0.3, 0, "fuzz_marks"))
        rarity = -octaves_of(marked)
        aurocs[name] = [
            roc_auc_score(examples.active[mine], rarity[mine])
            for mine in (examples.latent == latent for latent in range(N_LATENTS))
        ]
    # Mann-Whitney: each latent's AUROC has variance (m + n + 1) / (12 m n).
    error = np.sqrt((2 * N_WINDOWS + 1) / (12 * N_WINDOWS**2) / N_LATENTS)
    assert abs(np.mean(aurocs["matched"]) - 0.5) < 3 * error
    assert np.mean(aurocs["random"]) > 0.75


def test_the_judge_names_the_furthest_and_draws_within_a_factor_of_two() -> None:
    def named(*octaves: float) -> list[float]:
        found: list[float] = (1 - frequency_judge(np.array(octaves))).tolist()
        return found

    assert named(-8, -8, -8, -8, -3) == [0, 0, 0, 0, 1]
    assert named(-8, -3, -8, -8, -8) == [0, 1, 0, 0, 0]
    assert named(-8, -8.9, -8, -8, -8) == pytest.approx([1 / 5] * 5)
    assert named(-2, -8, -8, -14) == [0.5, 0, 0, 0.5]


# The rule of marks -------------------------------------------------------------------------


def oracle(targets: np.ndarray, offered: np.ndarray) -> set[tuple[float, ...]]:
    """Return every outcome of the rule, over all orders: the log frequencies taken, sorted."""
    if not len(targets) or not len(offered):
        return {()}
    found = set()
    for i in range(len(targets)):
        distance = np.abs(offered - targets[i])
        for j in np.flatnonzero(distance == distance.min()):
            rest = oracle(np.delete(targets, i), np.delete(offered, j))
            found |= {tuple(sorted((float(offered[j]), *more))) for more in rest}
    return found


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_each_true_mark_takes_the_nearest_remaining_token(seed: int) -> None:
    generator = np.random.default_rng(seed)
    shares = 2.0 ** -generator.integers(1, 9, (2, 6))
    fires = np.where(np.arange(6) < generator.integers(1, 4), 1.0, 0.0)
    rows = [window(0, 0, [0] * 6, fires.tolist()), window(0, 1, [0] * 6, [0.0] * 6)]
    skipped = generator.random(6) < 0.3
    rows = [{**r, "token_frequencies": s.tolist()} for r, s in zip(rows, shares, strict=True)]
    rows[1]["skipped"] = skipped.tolist()
    examples = judged(rows)
    marked = fuzz_marks(examples, 0.3, seed, "m")
    true, wrong = marked[:6], marked[6:]
    assert true.tolist() == (fires > 0).tolist()
    assert not (wrong & skipped).any()
    assert wrong.sum() == min(true.sum(), (~skipped).sum())
    taken = tuple(sorted(np.log2(shares[1][wrong]).tolist()))
    wanted = np.log2(shares[0][true])
    if wrong.sum() == true.sum():
        assert taken in oracle(wanted, np.log2(shares[1][~skipped]))


def test_marks_keep_their_number_even_if_no_token_is_near() -> None:
    rare, common = 2.0**-14, 0.25
    active = window(0, 0, [1] * 8, [1.0, 1.0, 1.0] + [0.0] * 5)
    rows = [{**active, "token_frequencies": [rare] * 3 + [common] * 5}]
    for index in range(1, 40):
        rows.append({**window(0, index, [2] * 8, [0.0] * 8), "token_frequencies": [common] * 8})
    examples = judged(rows)
    marked = fuzz_marks(examples, 0.3, 0, "m").reshape(-1, 8)
    assert (marked.sum(axis=1) == 3).all()
    assert len({tuple(row) for row in marked[1:].tolist()}) > 20  # all equally near, so random
    misplaced = misplaced_marks(replace(examples, marked=marked.ravel()), 0)
    assert np.flatnonzero(misplaced.reshape(-1, 8).sum(axis=1)).tolist() == [0]
    assert misplaced[:8].sum() == 3


def test_misplaced_marks_match_the_true_ones_of_their_own_window() -> None:
    examples = corpus()
    examples = examples.take(np.flatnonzero(examples.active))
    examples = with_marks(examples, 0.3, "misplaced", 0, "trained")
    # Each window appears twice, with its true marks first.
    true, wrong = (examples.take(np.arange(i, len(examples.latent), 2)) for i in (0, 1))
    assert true.window.tolist() == wrong.window.tolist()
    assert true.active.all()
    assert not wrong.active.any()
    assert true.n_marked.tolist() == wrong.n_marked.tolist()
    assert (true.activations[true.marked] > 0).all()
    assert not (wrong.activations[wrong.marked] > 0).any()
    gaps = octaves_of(true) - octaves_of(wrong)
    at_random = replace(wrong, marked=np.ones_like(wrong.marked))
    assert len(gaps) == N_LATENTS * N_WINDOWS
    assert np.abs(gaps).mean() < 0.5
    assert np.abs(octaves_of(true) - octaves_of(at_random)).mean() > 1.5


def test_marks_of_a_window_do_not_depend_on_other_silent_windows_or_latents() -> None:
    examples = corpus()
    whole = fuzz_marks(examples, 0.3, 0, "m", "trained")
    mine = np.flatnonzero(examples.latent == 5)
    kept = mine[examples.active[mine] | (np.arange(len(mine)) % 3 == 0)]
    part = examples.take(kept)
    marked = replace(examples, marked=whole).take(kept).marked
    np.testing.assert_array_equal(fuzz_marks(part, 0.3, 0, "m", "trained"), marked)
    assert (fuzz_marks(part, 0.3, 1, "m", "trained") != marked).any()

    params = score_params(kind="intruder", judge={"model": "m"})
    assert isinstance(params.scorer, IntruderScorer)
    tasks, shown = marked_tasks(params, params.scorer, replace(examples, marked=whole))
    alone, own = marked_tasks(params, params.scorer, replace(examples, marked=whole).take(mine))
    of_all = [task for task in tasks if task.intruder in mine]
    assert len(of_all) == len(alone) > 0
    for task, other in zip(of_all, alone, strict=True):
        np.testing.assert_array_equal(task.rows, mine[other.rows])
        np.testing.assert_array_equal(shown.take(task.rows).marked, own.take(other.rows).marked)


def test_an_intruder_imitates_a_window_of_its_list_only() -> None:
    """Two active windows, of rare and of common tokens: the list decides which is imitated."""
    rare, common = 2.0**-10, 2.0**-3
    rows = [
        {**window(0, i, [0] * 4, [1.0, 0.0, 0.0, 0.0]), "token_frequencies": [share] * 4}
        for i, share in enumerate((rare, common))
    ]
    mixed = [rare, common, rare, common]
    rows.append({**window(0, 2, [0] * 4, [0.0] * 4), "token_frequencies": mixed})
    examples = judged(rows)
    examples = replace(examples, marked=examples.activations > 0)
    for like, share in ((0, rare), (1, common)):
        marks = wrong_marks(examples, np.array([2]), [np.array([like])], 0, "m")
        assert examples.frequencies[marks].tolist() == [share]
