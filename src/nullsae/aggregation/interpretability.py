"""What each latent's explanation adds over tokens, and over another latent's explanation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from nullsae import paths
from nullsae.aggregation.cells import SAE_KEYS, Units
from nullsae.config.statistics import Statistics
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.core.files import rebuild_command
from nullsae.statistics.baselines import (
    lexical_baseline,
    no_discrimination,
    no_gain,
    swapped_baselines,
)
from nullsae.statistics.bootstrap import Floats
from nullsae.tables.study import INTERPRETABILITY

# The columns without the keys, as in a cell's file.
COLUMNS = pa.schema(
    [INTERPRETABILITY.field(i) for i in range(len(SAE_KEYS) + 2, len(INTERPRETABILITY))]
)


def interpretability(
    config: Config, statistics: Statistics, scores: list[Units], latents: list[Units]
) -> list[Units]:
    """Return the table `interpretability`, cell by cell.

    `gain_over_lexical` is AUROC minus that of `lexical_baseline` under the same scorer;
    `discrimination` is AUROC minus that of the explainer's `swapped` one: the same latent on the
    same windows, judged by its own explanation and by another latent's. A scorer that uses no
    explanation and has its own placebo is compared with that (`placebo_auroc`).

    Raises:
        UserError: a scored latent does not exist in its SAE.
    """
    by_sae = {cell.sae: cell for cell in latents}
    by_judge = {(*cell.sae, cell.keys["explainer"], cell.keys["scorer"]): cell for cell in scores}
    lexical, swapped = lexical_baseline(config), swapped_baselines(config)
    found = []
    for cell in scores:
        explainer, scorer = cell.keys["explainer"], cell.keys["scorer"]
        gain, discrimination = no_gain(config, explainer), no_discrimination(config, explainer)
        baselines = {
            ("lexical_auroc", "gain_over_lexical"): (lexical, gain),
            ("swapped_auroc", "discrimination"): (swapped.get(explainer), discrimination),
        }
        compared = {
            names: _baseline(cell, by_judge.get((*cell.sae, name or "", scorer)), why)
            for names, (name, why) in baselines.items()
        }
        if config.scorers[scorer].has_placebo:
            own, _ = cell.column("placebo_auroc")
            why_not = ["the placebo has no auroc" if np.isnan(x) else None for x in own]
            compared["swapped_auroc", "discrimination"] = own, why_not
        rows = _rows(cell, by_sae[cell.sae], compared, statistics)
        found.append(Units(cell.keys, pa.Table.from_pylist(rows, schema=COLUMNS), "latent"))
    return found


def _rows(
    cell: Units,
    latents: Units,
    compared: Mapping[tuple[str, str], tuple[Floats, list[str | None]]],
    statistics: Statistics,
) -> list[dict[str, Any]]:
    """Return the rows of one cell, from the results of `_baseline` for each pair of columns."""
    shares = latents.looked_up("firing_share", cell.ids)
    known = np.isin(cell.ids, latents.ids)
    if not known.all():
        path = paths.SCORES.format(**cell.keys)
        raise UserError(
            f"{path}: latent {cell.ids[~known][0]} is not in the table of latents; rebuild it "
            f"with: {rebuild_command(path)}"
        )
    entropies = latents.looked_up("token_entropy_corrected_bits", cell.ids)
    peaks = latents.looked_up("peak_token_share", cell.ids)
    aurocs, _ = cell.column("auroc")
    rows = []
    for i, latent in enumerate(cell.ids):
        auroc, entropy = _number(aurocs[i]), _number(entropies[i])
        row: dict[str, Any] = {
            "latent": int(latent),
            "auroc": auroc,
            "token_entropy_bits": entropy,
            "peak_token_share": _number(peaks[i]),
            "firing_share": float(shares[i]),
            "is_abstract": None,
        }
        named = {"no auroc": auroc, "no token entropy": entropy}
        reasons = [reason for reason, value in named.items() if value is None]
        if auroc is not None and entropy is not None:
            row["is_abstract"] = (
                entropy >= statistics.abstract_min_entropy_bits
                and auroc >= statistics.abstract_min_auroc
            )
        for (of, difference), (values, why) in compared.items():
            other = row[of] = _number(values[i])
            row[difference] = None if auroc is None or other is None else auroc - other
            if why[i]:
                reasons.append(f"{difference}: {why[i]}")
        row["reason"] = "; ".join(reasons) or None
        rows.append(row)
    return rows


def _baseline(cell: Units, other: Units | None, why: str | None) -> tuple[Floats, list[str | None]]:
    """Return the baseline's AUROC for each latent of a cell; NaN, with a reason, if missing."""
    if why is not None or other is None:
        n = len(cell.ids)
        return np.full(n, np.nan), [why or "not scored by this scorer"] * n
    values = other.looked_up("auroc", cell.ids)
    reasons: list[str | None] = [None] * len(cell.ids)
    is_same = np.ones(len(cell.ids), dtype=bool)
    for name in ("n_active", "n_silent"):
        is_same &= other.looked_up(name, cell.ids) == cell.column(name)[0]
    has_latent = np.isin(cell.ids, other.ids)
    for i, value in enumerate(values):
        if not has_latent[i]:
            reasons[i] = "the other explanation was not scored"
        elif not is_same[i]:
            reasons[i], values[i] = "the two were judged on different numbers of windows", np.nan
        elif np.isnan(value):
            reasons[i] = "the other explanation has no auroc"
    return values, reasons


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
