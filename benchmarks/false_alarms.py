"""How often two cells of one kind are told apart: `python benchmarks/false_alarms.py [STUDY]`.

STUDY is the folder of a finished study with several draws or seeds (`config/replicated.yaml`); by
default this folder. The script looks at all pairs of cells that differ only in the draw (two
randomizations of one kind) or only in the seed (two SAEs on one set of activations), and of
`trained` and `retrained` of one seed. It counts those whose difference is beyond the margin, as in
`contrasts` of one draw and seed: by the minimum-effect test at 1 - confidence, without a correction
for many tests, which would hide false alarms. The margin is that of the study, because it comes
from the trained arm. At most 7% of the pairs of a kind may be told apart, per metric; otherwise the
exit code is 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from nullsae import paths, tables
from nullsae.aggregation.arms import ArmKeys, Arms
from nullsae.aggregation.cells import GROUP_KEYS, Units
from nullsae.config.metrics import LEVELS, Metric, all_metrics
from nullsae.config.read import read_merged_config
from nullsae.config.study import Config
from nullsae.config.variants import VARIANTS
from nullsae.core.errors import UserError
from nullsae.statistics.baselines import applies
from nullsae.statistics.bootstrap import Arm, Resampler
from nullsae.statistics.contrasts import Estimate, estimate, spread_of_difference
from nullsae.statistics.effects import alpha_of
from nullsae.tables.cells import CELL_TABLES, SCORER_KEYS

MOST = 0.07
"""Share of pairs of one kind that may be told apart."""
KINDS = ("draws", "seeds", "retrained")
Cell = tuple[str, int, int]
"""Variant, draw and seed."""


class Found(NamedTuple):
    """The outcome for the pairs of one metric and kind."""

    metric: str
    kind: str
    n_pairs: int
    n_apart: int

    @property
    def share(self) -> float:
        """The share of tested pairs that were told apart."""
        return self.n_apart / self.n_pairs

    @property
    def is_alarm(self) -> bool:
        """Whether this share is too large."""
        return self.share > MOST


def read_sources(config: Config, root: Path) -> dict[str, list[Units]]:
    """Read the cells of a finished study from `results/tables`, by table.

    Raises:
        UserError: a table is missing, damaged or of another version.
    """
    wanted = {metric.table for metric in all_metrics()} | {"latents", "predictions"}
    sources: dict[str, list[Units]] = {}
    for table in (*LEVELS, "predictions"):
        is_scored = table in ("scores", "interpretability", "predictions")
        if table in wanted and (not is_scored or (config.explainers and config.scorers)):
            whole = tables.read_table(root / paths.TABLE.format(table=table), tables.SCHEMAS[table])
            sources[table] = list(_cells(table, whole))
    return sources


def _cells(table: str, whole: pa.Table) -> Iterator[Units]:
    """Split an aggregated table, in which the rows of each cell are contiguous, into its cells."""
    named = SCORER_KEYS if table == "interpretability" else CELL_TABLES[table][0]
    names = [name for name, _ in named]
    keys = list(zip(*(map(str, whole[name].to_pylist()) for name in names), strict=True))
    starts = [i for i in range(len(keys)) if i == 0 or keys[i] != keys[i - 1]]
    rest = whole.drop_columns(names)
    for start, end in zip(starts, [*starts[1:], len(keys)], strict=True):
        own = dict(zip(names, keys[start], strict=True))
        yield Units(own, rest.slice(start, end - start), LEVELS.get(table, "latent"))


def pairs_of_one_kind(cells: Iterable[Cell]) -> Iterator[tuple[str, Cell, Cell]]:
    """Yield (kind, cell, other) for cells (variant, draw, seed) that differ in one thing only."""
    for one, other in combinations(sorted(cells), 2):
        alike = [a == b for a, b in zip(one, other, strict=True)]
        if alike == [True, False, True] and not VARIANTS[one[0]].fixed:
            yield "draws", one, other
        elif alike == [True, True, False]:
            yield "seeds", one, other
        elif {one[0], other[0]} == {"trained", "retrained"} and one[2] == other[2]:
            yield "retrained", one, other


def false_alarms(config: Config, sources: dict[str, list[Units]]) -> list[Found]:
    """Return a row per metric and kind that has pairs, in display order."""
    statistics = config.statistics
    arms, resampler = Arms(sources, statistics), Resampler(config.seed, statistics.n_resamples)
    variants: dict[ArmKeys, set[str]] = {}
    for unit in (unit for units in sources.values() for unit in units):
        group = tuple(unit.keys.get(name) for name in GROUP_KEYS)
        variants.setdefault(group, set()).add(unit.keys["variant"])
    # Null dictionaries belong to one variant, and say nothing about models.
    groups = [group for group, found in variants.items() if found >= {*config.variants}]
    counts: dict[tuple[str, str], list[bool]] = {}
    for metric in all_metrics():
        for group in groups:
            for kind, apart in _of_group(config, metric, group, arms, resampler):
                counts.setdefault((metric.name, kind), []).append(apart)
    order = [(metric.name, kind) for metric in all_metrics() for kind in KINDS]
    return [Found(*key, len(counts[key]), sum(counts[key])) for key in order if key in counts]


def _of_group(
    config: Config, metric: Metric, group: ArmKeys, arms: Arms, resampler: Resampler
) -> Iterator[tuple[str, bool]]:
    """Return the kind of each tested pair in one comparison, and whether it is told apart."""
    statistics, explainer = config.statistics, group[GROUP_KEYS.index("explainer")]
    if not applies(metric, config, explainer) or group[2] not in config.saes:
        return
    if metric.form == "relative" and not arms.has_floor(metric, group):
        return
    whole = {variant: arms.arm(metric, group, variant) for variant in config.variants}
    trained = estimate(whole["trained"], metric, statistics, resampler).value
    if trained is None:
        return
    margin = statistics.margin(metric.name, trained)
    found: dict[Cell, Estimate] = {}
    for variant, arm in whole.items():
        for cell in arm.cells:
            alone = Arm((cell,), arm.statistic, arm.complement, arm.units_are_shared)
            one = estimate(alone, metric, statistics, resampler)
            if one.has_error:
                found[variant, cell.draw, cell.seed] = one
    for kind, one, other in pairs_of_one_kind(found):
        apart = _told_apart(found[one], found[other], margin, statistics.confidence)
        if apart is not None:
            yield kind, apart


def _told_apart(one: Estimate, other: Estimate, margin: float, confidence: float) -> bool | None:
    """Return whether a difference's interval is beyond the margin; None if there is none."""
    spread = spread_of_difference(one, other)
    if isinstance(spread, str):
        return None
    assert one.value is not None
    assert other.value is not None
    return spread.p_minimum_effect(other.value - one.value, margin) <= alpha_of(confidence)


def table(found: Sequence[Found]) -> str:
    """Format the results as text."""
    lines = [f"{'metric':30}{'kind':12}{'pairs':>7}{'apart':>7}{'share':>8}"]
    lines += [
        f"{row.metric:30}{row.kind:12}{row.n_pairs:7}{row.n_apart:7}{row.share:8.1%}"
        + (f"  more than {MOST:.0%}" if row.is_alarm else "")
        for row in found
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of a study; return 1 if a metric tells too many pairs of a kind apart."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("study", type=Path, nargs="?", default=Path())
    root = parser.parse_args(arguments).study
    try:
        config = read_merged_config([root / paths.RUN_CONFIG])
        found = false_alarms(config, read_sources(config, root))
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if not found:
        print(f"{root}: no two cells of one kind: draws or seeds of an SAE", file=sys.stderr)
        return 2
    print(table(found))
    return int(any(row.is_alarm for row in found))


if __name__ == "__main__":
    sys.exit(main())
