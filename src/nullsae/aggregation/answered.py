"""How many of a judge's windows were answered, arm by arm."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from nullsae.aggregation.cells import Units
from nullsae.config.metrics import Metric

# Tables of metrics that depend on a judge's answers about windows.
JUDGED = ("scores", "interpretability")
Arm = tuple[str | None, ...]


class Answered:
    """Windows with and without an answer, over all draws, seeds and latents of each arm."""

    def __init__(self, scores: Iterable[Units]) -> None:
        """Count them in the cells of the table `scores`."""
        self._windows: Counter[Arm] = Counter()
        self._failed: Counter[Arm] = Counter()
        for cell in scores:
            failed = int(cell.column("n_failed")[0].sum())
            judged = sum(int(cell.column(name)[0].sum()) for name in ("n_active", "n_silent"))
            self._failed[cell.arm] += failed
            self._windows[cell.arm] += judged + failed

    def of_arm(self, metric: Metric, arm: Arm) -> dict[str, Any]:
        """Return columns of `summaries`; None for a metric without a judge, or without windows."""
        n = self._windows[arm]
        if metric.table not in JUDGED or not n:
            return {"n_failed": None, "answered_share": None}
        failed = self._failed[arm]
        return {"n_failed": failed, "answered_share": 1 - failed / n}

    def of_contrast(self, metric: Metric, real: Arm, null: Arm) -> dict[str, Any]:
        """Return columns of `contrasts`, from both arms."""
        own, other = self.of_arm(metric, real), self.of_arm(metric, null)
        shares = [a["answered_share"] for a in (own, other) if a["answered_share"] is not None]
        return {
            "real_n_failed": own["n_failed"],
            "n_failed": other["n_failed"],
            "answered_share": min(shares, default=None),
        }
