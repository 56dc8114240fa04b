"""Scores of explanations: how well a judge who has one tells active windows from silent ones.

The judge here is a formula: it reads P(active | token), or P(active | previous, token) of a pair
that the explanation knows, off the explanation's statistics.
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

from nullsae.errors import UserError
from nullsae.files import rebuild_command
from nullsae.judges import FuzzingScorer
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
    def previous(self) -> Ints:
        """The token before each one in its window, -1 before the first, [n_positions]."""
        previous = np.roll(self.tokens, 1)
        previous[self.starts[:-1]] = -1
        return previous

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
    # One SAE without such latents must not stop a study of many; `aggregate` stops where all are.
    if not table.num_rows:
        log.warning("%s: no latent passes the filter, so no scores", windows)
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
    maximum = np.repeat(judged.maximum, n_tokens)
    marked = judged.activations > mark_threshold * maximum
    # float32 rounds a share of its smallest numbers up to the whole: nothing would be marked.
    marked |= (judged.activations == maximum) & (maximum > 0)
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
    """The largest probability of firing over the positions shown of each window.

    A position has the probability of its pair (the token before it in the window, marked or not,
    and its own token), else that of its token, else the explanation's base probability: whatever
    the explanation knows first.

    Args:
        judged: the windows.
        explained: the table `explanations`, sorted by latent; has every judged latent.
        shown: bool [n_positions]; at least one per window.

    Returns:
        float64 [n_windows].
    """
    at = np.flatnonzero(shown)
    token, previous = judged.tokens[at], judged.previous[at]
    row = np.searchsorted(explained["latent"].to_numpy(), judged.latent)
    row = np.repeat(row, judged.n_tokens)[at]
    row_of_known, known, p_token = _entries(explained, "token_ids", "token_probabilities")
    row_of_pair, second, p_pair = _entries(explained, "pair_token_ids", "pair_probabilities")
    first = explained["pair_previous_ids"].combine_chunks().flatten().to_numpy()

    # A key holds a row or a place and one id, never two ids: int64 is enough for any vocabulary.
    stride = 1 + max(int(ids.max(initial=0)) for ids in (judged.tokens, known, first, second))
    known_key, pair_head = row_of_known * stride + known, row_of_pair * stride + second
    heads = np.unique(np.concatenate([known_key, pair_head]))
    # In float32 like the statistics: a base rate and a token at that rate must tie.
    base = explained["base_probability"].to_numpy().astype(np.float32)
    of_head = base[heads // stride]
    of_head[_find(heads, known_key)] = p_token
    head = _find(heads, row * stride + token)
    probability = np.where(head >= 0, np.append(of_head, np.float32(0))[head], base[row])

    pair_key = _find(heads, pair_head) * stride + first
    order = np.argsort(pair_key, kind="stable")  # linear where they ascend, as they do by custom
    pair = _find(pair_key[order], np.where(previous < 0, -1, head * stride + previous))
    probability = np.where(pair >= 0, np.append(p_pair[order], np.float32(0))[pair], probability)

    of_position = np.full(len(shown), -np.inf, dtype=np.float32)
    of_position[at] = probability
    return np.maximum.reduceat(of_position, judged.starts[:-1]).astype(np.float64)


def _entries(explained: pa.Table, ids: str, values: str) -> tuple[Ints, Ints, NDArray[np.float32]]:
    """Row, id and value of each entry of two columns of lists, end to end."""
    lists = explained[ids].combine_chunks()
    row = np.repeat(np.arange(explained.num_rows), lists.value_lengths().to_numpy())
    numbers = explained[values].combine_chunks().flatten().to_numpy()
    return row, lists.flatten().to_numpy().astype(np.int64), numbers


def _find(keys: Ints, wanted: Ints) -> Ints:
    """The place of each wanted key among ascending keys >= 0; -1 where it is not among them."""
    place = np.searchsorted(keys, wanted)
    closed = np.append(keys, np.iinfo(np.int64).min)  # a search past the end finds nothing
    return np.where(closed[place] == wanted, place, -1)


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
