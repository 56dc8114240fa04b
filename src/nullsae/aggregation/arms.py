"""The arms of a metric, from the cells of its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from nullsae.aggregation.cells import Units
from nullsae.aggregation.judged import JudgedWindows
from nullsae.config.metrics import Metric
from nullsae.config.statistics import Statistics
from nullsae.config.variants import GAUSSIAN, floor_name
from nullsae.statistics.bootstrap import Arm, ArmCell, Flags, Floats
from nullsae.statistics.matching import half_decades

ArmKeys = tuple[str | None, ...]


class Pair(NamedTuple):
    """Two arms with the same latents."""

    real: Arm
    null: Arm
    between: Arm
    """Null minus real, latent by latent."""


class Arms:
    """All cells of a study, by arm."""

    def __init__(self, sources: Mapping[str, Sequence[Units]], statistics: Statistics) -> None:
        """Group cells by table, in config order, including those of floors."""
        self._statistics = statistics
        self._cells: dict[str, dict[ArmKeys, list[Units]]] = {}
        for table, cells in sources.items():
            arms = self._cells.setdefault(table, {})
            for cell in cells:
                arms.setdefault(cell.arm, []).append(cell)
        self._latents = {cell.sae: cell for cell in sources.get("latents", ())}
        self._judged = JudgedWindows(sources.get("predictions", ()))

    def has_floor(self, metric: Metric, keys: ArmKeys) -> bool:
        """Return whether the trained arm of a comparison has a Gaussian floor."""
        return bool(self._floors(metric, (*keys, "trained")))

    def arm(self, metric: Metric, keys: ArmKeys, variant: str) -> Arm:
        """Return the arm of one variant in a comparison (subject, site, sae, explainer, scorer)."""
        cells = self._cells[metric.table][(*keys, variant)]
        own = tuple(self._cell(metric, cell) for cell in cells)
        return Arm(own, metric.form, metric.complement, metric.unit == "document")

    def by_latent(self, metric: Metric, own: ArmKeys, other: ArmKeys) -> Pair:
        """Return two arms of the same SAEs, such as of two explainers, latent by latent.

        Only latents with values in both, on equally many windows, count. Document effects on the
        differences are known if they are known for both.
        """
        cells = self._cells[metric.table]
        twins = {cell.sae: cell for cell in cells[other]}
        pairs = [(cell, twins[cell.sae]) for cell in cells[own] if cell.sae in twins]
        one = [self._cell(metric, a, among=_as_in(metric, a, b)) for a, b in pairs]
        two = [self._cell(metric, b, among=_as_in(metric, b, a)) for a, b in pairs]
        arms = Arm(tuple(one), metric.form), Arm(tuple(two), metric.form)
        between = []
        for cell, real, both in zip(differences(*arms).cells, one, pairs, strict=True):
            moved = None
            if real.documents is not None and real.units is not None:
                moved = self._judged.differences(both, metric.columns[0], real.units)
            between.append(replace(cell, documents=moved))
        return Pair(*arms, Arm(tuple(between)))

    def by_placebo(self, metric: Metric, keys: ArmKeys, placebo: str) -> Pair:
        """Return the arms of a metric and of one of its placebos, for latents with both values."""
        columns = metric.placebos[placebo]
        one, two = [], []
        for cell in self._cells[metric.table][keys]:
            has = [
                np.logical_and.reduce([cell.column(n)[1] for n in c])
                for c in (columns, metric.columns)
            ]
            one.append(self._cell(metric, cell, among=has[0]))
            two.append(self._cell(metric, cell, among=has[1], columns=columns))
        arms = Arm(tuple(one), metric.form), Arm(tuple(two), metric.form)
        return Pair(*arms, differences(*arms))

    def _floors(self, metric: Metric, arm: ArmKeys) -> dict[tuple[int, int], Units]:
        """Return the floors of a variant's cells by draw and seed; `trained` may use `gaussian`."""
        *group, variant = arm
        assert variant is not None
        names = [floor_name(variant), *([GAUSSIAN] if variant == "trained" else [])]
        for name in names:
            if cells := self._cells[metric.table].get((*group, name)):
                return {(int(c.keys["draw"]), int(c.keys["seed"])): c for c in cells}
        return {}

    def _cell(
        self,
        metric: Metric,
        cell: Units,
        *,
        among: Flags | None = None,
        columns: Sequence[str] | None = None,
    ) -> ArmCell:
        """Return the units of one cell, without rows in which a column is null.

        Args:
            metric: defines which rows count.
            cell: of its table.
            among: bool [n_units], the rows that count; by default all.
            columns: replacements for the metric's own columns, in the same order.
        """
        columns = columns or metric.columns
        draw, seed = int(cell.keys["draw"]), int(cell.keys["seed"])
        kept = np.ones(len(cell.ids), dtype=bool)
        if metric.table == "latents":
            kept = cell.column(metric.among)[0] == 1
        n_rows = int(kept.sum())
        for name in columns:
            kept &= cell.column(name)[1]
        n_null = n_rows - int(kept.sum())
        if among is not None:
            kept &= among
        values, undefined = self._values(metric, cell, kept, columns)
        where = f"draw {draw}, seed {seed}"
        reason = undefined and f"{undefined} in {where}"
        if reason is None and metric.form == "relative":
            floor = self._floors(metric, cell.arm).get((draw, seed))
            if floor is None:
                reason = f"no Gaussian floor of {where}"
            else:
                values += self._values(metric, floor, kept, columns)[0][:2]
        units, strata = cell.ids[kept], None
        if metric.unit == "latent":
            # Half-decades of firing shares; None if a latent has no firing share.
            shares = self._latents[cell.sae].looked_up("firing_share", units)
            strata = half_decades(shares) if bool((shares > 0).all()) else None
        documents = None
        if metric.table == "scores" and metric.form == "mean":
            documents = self._judged.documents(cell, metric.columns[0], units)
        return ArmCell(draw, seed, values, n_null, reason, strata, units, documents)

    def _values(
        self, metric: Metric, cell: Units, kept: Flags, names: Sequence[str]
    ) -> tuple[tuple[Floats, ...], str | None]:
        """Return a metric's values for units of a cell, and the reason if it is undefined.

        `names` are the columns used in place of the metric's own.
        """
        columns = {
            name: cell.column(of)[0][kept] for name, of in zip(metric.columns, names, strict=True)
        }
        found = metric.value(columns)
        values = found if isinstance(found, tuple) else (found,)
        if metric.at_least is not None:
            bound = float(getattr(self._statistics, metric.at_least))
            # NaN stays NaN instead of counting as below the bound.
            values = tuple(np.where(np.isnan(v), v, v >= bound) for v in values)
        return values, metric.undefined(columns)


def differences(own: Arm, other: Arm) -> Arm:
    """Return the second arm minus the first, unit by unit; both are means over the same units."""
    cells = [
        ArmCell(a.draw, a.seed, (b.columns[0] - a.columns[0],))
        for a, b in zip(own.cells, other.cells, strict=True)
    ]
    return Arm(tuple(cells))


def _as_in(metric: Metric, cell: Units, other: Units) -> Flags:
    """Return which latents of a `scores` cell the other has values of, on as many windows."""
    valid = np.logical_and.reduce([other.column(name)[1] for name in metric.columns])
    found: Flags = np.isin(cell.ids, other.ids[valid])
    for name in ("n_active", "n_silent"):
        found &= other.looked_up(name, cell.ids) == cell.column(name)[0]
    return found
