"""Scores of explanations: how well a judge who has one tells active windows from silent ones.

The judge here is a formula: it reads P(active | token) off the explanation's token statistics.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nullsae.config import FuzzingScorer
from nullsae.errors import UserError
from nullsae.files import rebuild_command
from nullsae.params import ScoreLatentsParams
from nullsae.randomness import Key, numpy_generator
from nullsae.tables import cell_schema, read_table, write_table

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

# A window counts as predicted active from here on (F1 and balanced accuracy).
DECISION_THRESHOLD = 0.5


@dataclass(frozen=True)
class Judged:
    """Windows of the scoring pool, sorted by (latent, window); positions of all, end to end."""

    latent: Ints
    """[n_windows]"""
    window: Ints
    """[n_windows]"""
    active: Flags
    """[n_windows]"""
    quantile: pa.Array
    """[n_windows], null for silent windows."""
    starts: Ints
    """[n_windows + 1]: window i is positions starts[i] to starts[i + 1]."""
    tokens: Ints
    """[n_positions]"""
    activations: NDArray[np.float32]
    """[n_positions]"""

    @property
    def n_tokens(self) -> Ints:
        """Length of each window, [n_windows]."""
        return np.diff(self.starts)

    @property
    def maximum(self) -> NDArray[np.float32]:
        """Largest activation of each window, [n_windows]."""
        return np.maximum.reduceat(self.activations, self.starts[:-1])


def score_latents(
    params: ScoreLatentsParams, windows: Path, explanations: Path, predictions: Path, scores: Path
) -> None:
    """Judge the scoring windows of each explained latent; write predictions and scores.

    Args:
        params: the rule's params.
        windows: the SAE's table `windows`.
        explanations: one explainer's table `explanations`.
        predictions: where the table `predictions` goes, sorted by (latent, window).
        scores: where the table `scores` goes, sorted by latent.

    Raises:
        UserError: a file is missing or damaged, or the SAE has no latent that can be scored.
    """
    table = read_table(windows, cell_schema("windows"))
    if not table.num_rows:
        raise UserError(
            f"{windows}: no latent fires often enough to be scored (latents.min_firings, "
            f"latents.min_pool_windows); lower them or raise corpora.*.eval_tokens"
        )
    explained = read_table(explanations, cell_schema("explanations")).sort_by("latent")
    if not explained.num_rows:
        log.warning("%s: no explanations, so no scores", explanations)
    judged = judged_windows(table, explained["latent"], source=windows)
    if isinstance(params.scorer, FuzzingScorer):
        shown = fuzz_marks(
            judged, params.scorer.mark_threshold, params.seed, "fuzz_marks", *params.keys.parts()
        )
        n_marked = np.add.reduceat(shown, judged.starts[:-1], dtype=np.int64)
    else:
        shown = np.ones(len(judged.tokens), dtype=np.bool_)
        n_marked = np.zeros(len(judged.latent), dtype=np.int64)
    probability = judge_by_tokens(judged, explained, shown)
    rows = [
        {"latent": latent, **classification_scores(judged.active[mine], probability[mine])}
        for latent in explained["latent"].to_pylist()
        for mine in [judged.latent == latent]
    ]
    write_table(
        predictions, predictions_table(judged, n_marked, probability), cell_schema("predictions")
    )
    write_table(scores, rows, cell_schema("scores"))


def judged_windows(table: pa.Table, latents: pa.ChunkedArray, *, source: Path | str) -> Judged:
    """Take the scoring windows of `latents` out of the table `windows`, sorted.

    Raises:
        UserError: a window's flag `active` contradicts its activations; names `source`.
    """
    wanted = pc.and_(
        pc.equal(table["pool"], "score"),
        pc.is_in(table["latent"], value_set=latents.combine_chunks()),
    )
    table = table.filter(wanted).sort_by([("latent", "ascending"), ("window", "ascending")])
    lists = table["token_ids"].combine_chunks()
    judged = Judged(
        latent=table["latent"].to_numpy(),
        window=table["window"].to_numpy(),
        active=table["active"].to_numpy(),
        quantile=table["quantile"].combine_chunks(),
        starts=np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy(), dtype=np.int64)]),
        tokens=lists.flatten().to_numpy().astype(np.int64),
        activations=table["activations"].combine_chunks().flatten().to_numpy(),
    )
    wrong = np.flatnonzero((judged.maximum > 0) != judged.active)
    if len(wrong):
        i = int(wrong[0])
        raise UserError(
            f"{source}: latent {judged.latent[i]}, window {judged.window[i]} is called "
            f"{'active' if judged.active[i] else 'silent'}, its largest activation is "
            f"{judged.maximum[i]:g}; rebuild it with: {rebuild_command(source)}"
        )
    return judged


def fuzz_marks(judged: Judged, mark_threshold: float, seed: int, purpose: str, *key: Key) -> Flags:
    """Choose the tokens that are marked in each window.

    Active windows: positions above `mark_threshold` times the window's largest activation.
    Silent windows: as many as one randomly drawn active window of the same latent has, so that
    the number of marks tells nothing, at positions drawn without replacement. Each silent window
    has a generator of its own, keyed by (seed, purpose, key, latent, window): positions change
    from window to window, and every explainer is judged on the same marks.

    Returns:
        bool [n_positions].
    """
    n_tokens = judged.n_tokens
    marked = judged.activations > mark_threshold * np.repeat(judged.maximum, n_tokens)
    n_marked = np.add.reduceat(marked, judged.starts[:-1], dtype=np.int64)
    for latent in np.unique(judged.latent).tolist():
        mine = judged.latent == latent
        sizes = n_marked[mine & judged.active]
        if not len(sizes):  # nothing to imitate
            sizes = np.ones(1, dtype=np.int64)
        for i in np.flatnonzero(mine & ~judged.active).tolist():
            generator = numpy_generator(seed, purpose, *key, latent, int(judged.window[i]))
            size = min(int(generator.choice(sizes)), int(n_tokens[i]))
            chosen = generator.choice(int(n_tokens[i]), size, replace=False)
            marked[judged.starts[i] + chosen] = True
    return marked


def judge_by_tokens(judged: Judged, explained: pa.Table, shown: Flags) -> Floats:
    """The largest P(active | token) over the positions shown of each window.

    Args:
        judged: the windows.
        explained: the table `explanations`, sorted by latent; has every judged latent.
        shown: bool [n_positions]; at least one per window.

    Returns:
        float64 [n_windows]. A token that the explanation does not know has its base probability.
    """
    lists = explained["token_ids"].combine_chunks()
    known = lists.flatten().to_numpy().astype(np.int64)
    values = explained["token_probabilities"].combine_chunks().flatten().to_numpy()
    # In float32 like the statistics: a base rate and a token at that rate must tie.
    base = explained["base_probability"].to_numpy().astype(np.float32)
    row = np.searchsorted(explained["latent"].to_numpy(), judged.latent)
    row_of_position = np.repeat(row, judged.n_tokens)

    # One id above all others closes each explanation, so that every search ends at an entry.
    stride = max(int(known.max(initial=0)), int(judged.tokens.max(initial=0))) + 2
    rows = np.arange(explained.num_rows)
    row_of_known = np.repeat(rows, lists.value_lengths().to_numpy())
    keys = np.concatenate([row_of_known * stride + known, rows * stride + stride - 1])
    values = np.concatenate([values, base])
    order = np.argsort(keys)
    wanted = row_of_position * stride + judged.tokens
    place = order[np.searchsorted(keys, wanted, sorter=order)]
    probability = np.where(keys[place] == wanted, values[place], base[row_of_position])
    probability = np.where(shown, probability, np.float32(-np.inf))
    return np.maximum.reduceat(probability, judged.starts[:-1]).astype(np.float64)


def classification_scores(active: Flags, probability: Floats) -> dict[str, Any]:
    """Scores of one latent's predictions, over the windows with a valid reply.

    AUROC is the chance that an active window has a larger probability than a silent one, ties
    counting one half (Mann-Whitney). AUPRC is average precision, sum of (R_n - R_{n-1}) P_n over
    the distinct probabilities from the largest down. F1 and balanced accuracy take a probability
    of at least 0.5 as a prediction of `active`. They equal scikit-learn's, whose import takes
    longer than all else in this stage.

    Args:
        active: bool [n_windows], the truth.
        probability: float [n_windows], the judge's; NaN: no valid reply.

    Returns:
        The columns of the table `scores` but `latent`. `n_active`, `n_silent` and `n_failed` add
        up to n_windows; scores are None when no active or no silent window is left.
    """
    valid = ~np.isnan(probability)
    truth, probability = active[valid], probability[valid]
    n_active, n_silent = int(truth.sum()), int((~truth).sum())
    result: dict[str, Any] = {
        "n_active": n_active,
        "n_silent": n_silent,
        "n_failed": int((~valid).sum()),
        "auroc": None,
        "auprc": None,
        "f1": None,
        "balanced_accuracy": None,
    }
    if not n_active or not n_silent:
        return result
    distinct, place = np.unique(-probability, return_inverse=True)
    hits = np.bincount(place[truth], minlength=len(distinct))
    false_alarms = np.bincount(place[~truth], minlength=len(distinct))
    hits_so_far, shown_so_far = np.cumsum(hits), np.cumsum(hits + false_alarms)
    wins = hits_so_far - hits / 2  # of active windows over each silent one of this probability
    result["auroc"] = float(false_alarms @ wins / (n_active * n_silent))
    result["auprc"] = float(hits @ (hits_so_far / shown_so_far) / n_active)

    predicted = probability >= DECISION_THRESHOLD
    true_active, true_silent = int((predicted & truth).sum()), int((~predicted & ~truth).sum())
    result["f1"] = 2 * true_active / (n_active + int(predicted.sum()))
    result["balanced_accuracy"] = (true_active / n_active + true_silent / n_silent) / 2
    return result


def predictions_table(judged: Judged, n_marked: Ints, probability: Floats) -> pa.Table:
    """The columns of the table `predictions`, all [n_windows]; a NaN probability becomes null."""
    return pa.table(
        {
            "latent": judged.latent,
            "window": judged.window,
            "active": judged.active,
            "quantile": judged.quantile,
            "n_marked": n_marked,
            "probability": pa.array(probability, mask=np.isnan(probability)),
        }
    )
