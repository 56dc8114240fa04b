"""The arms of a metric, from the cells of its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nullsae.aggregation.cells import Units
from nullsae.aggregation.judged import JudgedWindows
from nullsae.config.metrics import Metric
from nullsae.config.statistics import Statistics
from nullsae.config.variants import GAUSSIAN, floor_name
from nullsae.statistics.bootstrap import Arm, ArmCell, Floats
from nullsae.statistics.matching import half_decades

ArmKeys = tuple[str | None, ...]


class Arms:
    """All cells of a study by the arm that they belong to."""

    def __init__(self, sources: Mapping[str, Sequence[Units]], statistics: Statistics) -> None:
        """Cells by table, in config order, those of floors among them."""
        self._statistics = statistics
        self._cells: dict[str, dict[ArmKeys, list[Units]]] = {}
        for table, cells in sources.items():
            arms = self._cells.setdefault(table, {})
            for cell in cells:
                arms.setdefault(cell.arm, []).append(cell)
        self._latents = {cell.sae: cell for cell in sources.get("latents", ())}
        self._judged = JudgedWindows(sources.get("predictions", ()))

    def has_floor(self, metric: Metric, keys: ArmKeys) -> bool:
        """Whether the trained arm of a comparison has a Gaussian floor to compare with."""
        return bool(self._floors(metric, (*keys, "trained")))

    def arm(self, metric: Metric, keys: ArmKeys, variant: str) -> Arm:
        """The arm of one variant in one comparison (subject, site, sae, explainer, scorer)."""
        cells = self._cells[metric.table][(*keys, variant)]
        own = tuple(self._cell(metric, cell) for cell in cells)
        return Arm(own, metric.form, metric.complement, metric.unit == "document")

    def _floors(self, metric: Metric, arm: ArmKeys) -> dict[tuple[int, int], Units]:
        """The floors of a variant's cells by draw and seed; `gaussian` is that of `trained`."""
        *group, variant = arm
        assert variant is not None
        names = [floor_name(variant), *([GAUSSIAN] if variant == "trained" else [])]
        for name in names:
            if cells := self._cells[metric.table].get((*group, name)):
                return {(int(c.keys["draw"]), int(c.keys["seed"])): c for c in cells}
        return {}

    def _cell(self, metric: Metric, cell: Units) -> ArmCell:
        """The units of one cell, without rows in which a column is null."""
        draw, seed = int(cell.keys["draw"]), int(cell.keys["seed"])
        kept = np.ones(len(cell.ids), dtype=bool)
        if metric.table == "latents":
            kept = cell.column(metric.among)[0] == 1
        n_rows = int(kept.sum())
        for name in metric.columns:
            kept &= cell.column(name)[1]
        columns, undefined = self._values(metric, cell, kept)
        where = f"draw {draw}, seed {seed}"
        reason = undefined and f"{undefined} in {where}"
        if reason is None and metric.form == "relative":
            floor = self._floors(metric, cell.arm).get((draw, seed))
            if floor is None:
                reason = f"no Gaussian floor of {where}"
            else:
                columns += self._values(metric, floor, kept)[0][:2]
        strata = None
        if metric.unit == "latent":
            # Half-decades of firing shares; none where a latent has no such share.
            shares = self._latents[cell.sae].looked_up("firing_share", cell.ids[kept])
            strata = half_decades(shares) if bool((shares > 0).all()) else None
        n_null = n_rows - int(kept.sum())
        documents = None
        if metric.table == "scores" and metric.form == "mean":
            documents = self._judged.documents(cell, metric.columns[0], cell.ids[kept])
        return ArmCell(draw, seed, columns, n_null, reason, strata, documents)

    def _values(
        self, metric: Metric, cell: Units, kept: np.ndarray
    ) -> tuple[tuple[Floats, ...], str | None]:
        """A metric's values of some units of a cell, and why it is undefined, if it is."""
        columns = {name: cell.column(name)[0][kept] for name in metric.columns}
        found = metric.value(columns)
        values = found if isinstance(found, tuple) else (found,)
        if metric.at_least is not None:
            bound = float(getattr(self._statistics, metric.at_least))
            # NaN stays NaN: it is no latent below the bound.
            values = tuple(np.where(np.isnan(v), v, v >= bound) for v in values)
        return values, metric.undefined(columns)
