"""The tables `latents_ranked` and `beating_placebo`: each latent compared with those of nulls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from nullsae.aggregation.arms import Arms
from nullsae.aggregation.cells import Units
from nullsae.config.metrics import Direction, Metric, all_metrics
from nullsae.config.study import Config
from nullsae.config.variants import is_null
from nullsae.statistics.bootstrap import ArmCell
from nullsae.statistics.ranking import (
    LEVEL,
    Latents,
    fewest_nulls,
    n_nulls,
    p_values,
    q_values,
    ranking,
)
from nullsae.tables.study import LATENTS_RANKED

Rows = list[dict[str, Any]]
ALL = "all"
"""Value of the column `null` for the latents of all nulls together."""
MIXED = "nulls differ in the side on which trained is expected"


class _Comparison(NamedTuple):
    """The latents of a cell and those of a null, by one metric."""

    keys: dict[str, Any]
    """Keys of the cell, metric and null."""
    own: Latents
    null: Latents
    direction: Direction | None


def rank_latents(config: Config, sources: Mapping[str, Sequence[Units]]) -> tuple[pa.Table, Rows]:
    """Return the table `latents_ranked`, and the rows of `beating_placebo`.

    Single latents are listed for `trained` alone; those of positive controls are only counted.

    Args:
        config: of the study; rows follow its order.
        sources: cells by table, as `Arms` takes them.
    """
    parts, shares = [LATENTS_RANKED.empty_table()], []
    for comparison in _comparisons(config, Arms(sources, config.statistics)):
        keys, own, null, direction = comparison
        p = np.full(len(own.value), np.nan)
        if direction is not None:
            p = p_values(own, null, direction)
        q = q_values(p)
        n_tested, n_beating = int((~np.isnan(q)).sum()), int((q <= LEVEL).sum())
        shares.append(
            {**keys, "direction": direction, "n_latents": len(p), "n_tested": n_tested}
            | {"n_beating": n_beating}
            | {"share_beating_placebo": n_beating / n_tested if n_tested else None}
        )
        if keys["variant"] == "trained":
            parts.append(_ranked(comparison, p, q))
    return pa.concat_tables(parts), shares


def is_ranked(metric: Metric) -> bool:
    """Return whether single latents have values of a metric without asking a judge."""
    return metric.table == "latents" and metric.form == "mean" and metric.at_least is None


def _comparisons(config: Config, arms: Arms) -> Iterator[_Comparison]:
    """Yield comparisons of cells with the same site, recipe and seed; a null's draws are pooled."""
    places = [
        {"subject": subject, "site": site, "sae": sae}
        for subject, section in config.subjects.items()
        for site in section.sites
        for sae, recipe in config.saes.items()
        if recipe.is_made(site, "trained")
    ]
    for place in places:
        recipe = config.saes[place["sae"]]
        variants = [v for v in config.variants if recipe.is_made(place["site"], v)]
        present = [v for v in variants if config.draws_of(v, place["subject"])]
        for metric in filter(is_ranked, all_metrics()):
            found = {v: arms.arm(metric, (*place.values(), None, None), v).cells for v in present}
            for seed in config.saes[place["sae"]].seeds:
                cells = {v: [c for c in found[v] if c.seed == seed] for v in present}
                nulls = [*_nulls(metric, {v: _latents(cells[v]) for v in present if is_null(v)})]
                ours = [(v, cell) for v in present if not is_null(v) for cell in cells[v]]
                for variant, cell in ours:
                    keys = {**place, "variant": variant, "draw": cell.draw, "seed": seed}
                    own = _latents([cell])
                    for name, null, direction in nulls:
                        of = {**keys, "metric": metric.name, "null": name}
                        yield _Comparison(of, own, null, direction)


def _nulls(
    metric: Metric, latents: Mapping[str, Latents]
) -> Iterator[tuple[str, Latents, Direction | None]]:
    """Yield each null's latents with trained's expected side, then those of all nulls together."""
    for name, found in latents.items():
        yield name, found, metric.direction_against(name)
    if latents:
        together = Latents(
            *(np.concatenate(parts) for parts in zip(*latents.values(), strict=True))
        )
        sides = {metric.direction_against(name) for name in latents}
        yield ALL, together, sides.pop() if len(sides) == 1 else None


def _latents(cells: Iterable[ArmCell]) -> Latents:
    """Return the latents of cells that have a value and a firing rate."""
    parts = [Latents(np.empty(0, np.int64), np.empty(0), np.empty(0, np.int64))]
    for cell in cells:
        (value,) = cell.columns
        if cell.units is not None and cell.strata is not None:
            has = ~np.isnan(value)
            parts.append(Latents(cell.units[has], value[has], cell.strata[has]))
    return Latents(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _ranked(comparison: _Comparison, p: np.ndarray, q: np.ndarray) -> pa.Table:
    """Return rows of `latents_ranked`."""
    keys, own, null, direction = comparison
    order = ranking(own, q, direction)
    n_null = n_nulls(own, null)
    columns = {
        "latent": own.latent[order],
        "value": own.value[order],
        "n_null": n_null[order],
        "p": pa.array(p[order], from_pandas=True),
        "q": pa.array(q[order], from_pandas=True),
        "rank": np.arange(1, len(order) + 1),
        "reason": _reasons(n_null, direction).take(pa.array(order)),
    }
    constant = {**keys, "direction": direction}
    return pa.Table.from_arrays(
        [
            _repeated(constant[field.name], field.type, len(order))
            if field.name in constant
            else pa.array(columns[field.name])
            for field in LATENTS_RANKED
        ],
        schema=LATENTS_RANKED,
    )


def _reasons(n_null: np.ndarray, direction: Direction | None) -> pa.Array:
    """Return why latents have no p, from their numbers of null latents; null if they have one."""
    if direction is None:
        return pa.repeat(pa.scalar(MIXED), len(n_null))
    fewest = fewest_nulls(direction)
    counts, place = np.unique(n_null, return_inverse=True)
    texts = [
        f"{n} null latents at its firing rate, {fewest} needed" if n < fewest else None
        for n in counts.tolist()
    ]
    return pa.array(texts, pa.string()).take(pa.array(place))


@lru_cache(maxsize=32)
def _repeated(value: str | int | None, kind: pa.DataType, n: int) -> pa.Array:
    """Return a column of one value, cached because a cell's nulls share the values of its keys."""
    return pa.repeat(pa.scalar(value, kind), n)
