"""The arms of a metric, from the cells of its table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from nullsae.aggregation.cells import Units
from nullsae.config.statistics import Statistics
from nullsae.config.variants import GAUSSIAN, floor_name
from nullsae.metrics.ce_score import is_clear
from nullsae.statistics.bootstrap import Arm, Cell, Floats, Statistic
from nullsae.statistics.matching import half_decades
from nullsae.statistics.metrics import Form, Metric

ArmKeys = tuple[str | None, ...]
STATISTIC: dict[Form, Statistic] = {
    "mean": "mean",
    "ratio": "ratio",
    "recovered": "ratio",
    "relative": "relative",
    "rank_correlation": "rank_correlation",
}


class Arms:
    """All cells of a study by the arm that they belong to."""

    def __init__(self, sources: Mapping[str, Sequence[Units]], statistics: Statistics) -> None:
        """Cells by table, in config order; of `documents` those of floors among them."""
        self._statistics = statistics
        self._cells: dict[str, dict[ArmKeys, list[Units]]] = {}
        for table, cells in sources.items():
            arms = self._cells.setdefault(table, {})
            for cell in cells:
                arms.setdefault(cell.arm, []).append(cell)
        self._latents = {cell.sae: cell for cell in sources.get("latents", ())}

    def has_floor(self, keys: ArmKeys) -> bool:
        """Whether the trained arm of a comparison has a Gaussian floor to compare with."""
        return bool(self._floors((*keys, "trained")))

    def arm(self, metric: Metric, keys: ArmKeys, variant: str) -> Arm:
        """The arm of one variant in one comparison (subject, site, sae, explainer, scorer)."""
        cells = self._cells[metric.table][(*keys, variant)]
        return Arm(
            cells=tuple(self._cell(metric, cell) for cell in cells),
            statistic=STATISTIC[metric.form],
            complement=metric.complement,
            units_are_shared=metric.unit == "document",
        )

    def _floors(self, arm: ArmKeys) -> dict[tuple[int, int], Units]:
        """The floors of a variant's cells by draw and seed; `gaussian` is that of `trained`."""
        *group, variant = arm
        assert variant is not None
        names = [floor_name(variant), *([GAUSSIAN] if variant == "trained" else [])]
        for name in names:
            cells = self._cells["documents"].get((*group, name))
            if cells:
                return {(int(c.keys["draw"]), int(c.keys["seed"])): c for c in cells}
        return {}

    def _cell(self, metric: Metric, cell: Units) -> Cell:
        """The units of one cell, without rows in which a column is null."""
        draw, seed = int(cell.keys["draw"]), int(cell.keys["seed"])
        kept = np.ones(len(cell.ids), dtype=bool)
        if metric.table == "latents":
            kept = cell.column("sampled")[0] == 1
        n_rows = int(kept.sum())
        found = [cell.column(name) for name in metric.columns]
        for _, valid in found:
            kept &= valid
        columns = tuple(values[kept] for values, _ in found)
        reason = None
        if metric.form == "recovered":
            columns, reason = _recovered(columns, f"draw {draw}, seed {seed}")
        elif metric.form == "relative":
            floor = self._floors(cell.arm).get((draw, seed))
            if floor is None:
                reason = f"no Gaussian floor of draw {draw}, seed {seed}"
            else:
                columns += tuple(floor.column(name)[0][kept] for name in metric.columns)
        elif metric.at_least is not None:
            bound = float(getattr(self._statistics, metric.at_least))
            # NaN stays NaN: it is no latent below the bound.
            columns = tuple(np.where(np.isnan(c), c, c >= bound) for c in columns)
        return Cell(
            draw=draw,
            seed=seed,
            columns=columns,
            n_null=n_rows - int(kept.sum()),
            reason=reason,
            strata=self._strata(cell, kept) if metric.unit == "latent" else None,
        )

    def _strata(self, cell: Units, kept: np.ndarray) -> np.ndarray | None:
        """Half-decade of each latent's firing share; None where one has no such share."""
        shares = self._latents[cell.sae].looked_up("firing_share", cell.ids[kept])
        return half_decades(shares) if bool((shares > 0).all()) else None


def _recovered(columns: tuple[Floats, ...], where: str) -> tuple[tuple[Floats, ...], str | None]:
    """Numerator and denominator of ce_score, and why it is undefined, if it is."""
    clean, sae, zero, tokens = columns
    harm = zero - clean
    ratio = (zero - sae, harm)
    if len(harm) and np.isfinite(harm).all() and not is_clear(harm, tokens):
        return ratio, f"zeroing the site does no clear harm in {where}"
    return ratio, None
