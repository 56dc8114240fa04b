"""Measure what the frequency of marked tokens reveals: `python benchmarks/marks.py [STUDY]`.

STUDY is the folder of a finished study with explainers `lexical` and `swapped`; by default this
folder. For each SAE, with wrong marks at random tokens and at tokens as frequent as the true ones,
the script prints AUROC of fuzzing with both explainers, and of `swapped` with `negatives:
misplaced`, and how often the frequency judge names the intruder among five. Intervals are 95%, over
latents.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import t

from nullsae import paths
from nullsae.autointerp.examples import Examples, Flags, Floats, examples_of, with_marks
from nullsae.autointerp.score import classification_scores
from nullsae.autointerp.scorers.asking import judge_by_tokens
from nullsae.autointerp.scorers.intruder import frequency_judge, marked_octaves, marked_tasks
from nullsae.config.parse import parse_section
from nullsae.jobs.autointerp import ScoreLatentsParams
from nullsae.tables import cell_schema, read_table

SCORER = {"kind": "intruder", "judge": {"model": "none"}}


def interval(values: Floats) -> str:
    """Return the mean of the values [n] and half the width of its interval."""
    half = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return f"{values.mean():.3f} ± {half:.3f}"


def by_latent(examples: Examples, statistic: Callable[[Flags], float | None]) -> Floats:
    """Compute a statistic of each latent's windows, without latents that have none."""
    found = (statistic(examples.latent == latent) for latent in np.unique(examples.latent))
    return np.array([value for value in found if value is not None])


def fuzzing(examples: Examples, explained: pa.Table) -> str:
    """Return AUROC of marked windows judged by token statistics."""
    probability = judge_by_tokens(examples, explained, examples.marked)
    return interval(
        by_latent(
            examples,
            lambda mine: classification_scores(examples.active[mine], probability[mine])["auroc"],
        )
    )


def intruders(
    examples: Examples, params: ScoreLatentsParams, frequencies: NDArray[np.float32]
) -> str:
    """Return how often the frequency judge is right, given `frequencies` [n_positions]."""
    tasks, marked = marked_tasks(params, params.scorer, examples)  # type: ignore[arg-type]
    shown = replace(marked, frequencies=frequencies)
    right: dict[int, list[float]] = {}
    for task in tasks:
        named = 1 - frequency_judge(marked_octaves(shown, task.rows))
        latent = int(examples.latent[task.intruder])
        right.setdefault(latent, []).append(float(named[task.rows == task.intruder].sum()))
    return interval(np.array([np.mean(one) for one in right.values()]))


def main() -> None:
    """Print a row for each SAE and way of marking."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", type=Path, nargs="?", default=Path())
    root = parser.parse_args().study
    print("variant, site, marks: swapped, lexical | misplaced: swapped | intruder found")
    for file in sorted(root.glob("results/latents/**/windows.parquet")):
        keys = paths.partition_keys(file.relative_to(root))
        table = read_table(file, cell_schema("windows"))
        told = {
            name: read_table(
                root / paths.EXPLANATIONS.format(**keys, explainer=name),
                cell_schema("explanations"),
            ).sort_by("latent")
            for name in ("swapped", "lexical")
        }
        typed = {**keys, "draw": int(keys["draw"]), "seed": int(keys["seed"])}
        data = {"seed": 0, "keys": typed, "scorer": SCORER}
        params = parse_section(ScoreLatentsParams, data, where="params")
        for name in ("random", "matched"):
            cells = {}
            for negatives in ("random", "misplaced"):
                found = examples_of(
                    table, told["swapped"]["latent"], negatives=negatives, source=file
                )
                known = found.frequencies
                if name == "random":  # as if all tokens were equally frequent
                    found = replace(found, frequencies=np.full_like(known, 0.5))
                cells[negatives] = with_marks(found, 0.3, negatives, 0, *params.keys.parts())
                if negatives == "random":
                    judged = intruders(cells[negatives], params, known)
            print(
                f"{keys['variant']}, {keys['site']}, {name}: "
                f"{fuzzing(cells['random'], told['swapped'])}, "
                f"{fuzzing(cells['random'], told['lexical'])} | "
                f"{fuzzing(cells['misplaced'], told['swapped'])} | {judged}",
                flush=True,
            )


if __name__ == "__main__":
    main()
