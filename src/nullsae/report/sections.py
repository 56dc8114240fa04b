"""The tables of the page as plain rows: health, verdicts, contrasts, coverage."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from nullsae.config import FIXED_VARIANTS
from nullsae.report.names import metric_group
from nullsae.report.study import Row, Study
from nullsae.statistics.metrics import METRICS

VERDICTS = ("separates", "equivalent", "inconclusive", "reversed")
MAX_SITES_IN_CELL = 4
"""With more sites, a cell of the matrix counts verdicts instead of listing sites."""
_TITLES = {metric.name: metric.title for metric in METRICS}
_ORDER = {metric.name: i for i, metric in enumerate(METRICS)}


@dataclass(frozen=True)
class MatrixRow:
    """One metric (and explainer, scorer, SAE) against all nulls."""

    title: str
    detail: str
    """The levels that tell it from its neighbours, e.g. "lexical, detection"."""
    cells: list[list[Row]]
    """For each null, its verdict rows, in the order of the sites."""


@dataclass(frozen=True)
class MatrixGroup:
    """Rows of one section of the report."""

    title: str
    rows: list[MatrixRow]


def health(study: Study, subject: str) -> list[Row]:
    """Rows of `models`, in display order, with `gap_nats`: held-out loss minus the bigram's."""
    order = {variant: i for i, variant in enumerate(study.variants)}
    rows = [row for row in study.rows("models", subject=subject) if row["variant"] in order]
    rows.sort(key=lambda row: (order[row["variant"]], row["draw"]))
    return [{**row, "gap_nats": row["heldout_loss_nats"] - row["bigram_loss_nats"]} for row in rows]


def is_drawn(variant: str) -> bool:
    """Whether a variant has draws worth naming."""
    return variant not in FIXED_VARIANTS


def verdict_counts(study: Study, subject: str) -> dict[str, Counter[str]]:
    """Per null, how many of its comparisons got each verdict."""
    counts: dict[str, Counter[str]] = {null: Counter() for null in study.nulls}
    for row in study.rows("verdicts", subject=subject):
        if row["variant"] in counts:
            counts[row["variant"]][row["verdict"]] += 1
    return counts


def verdict_matrix(study: Study, subject: str) -> list[MatrixGroup]:
    """Verdicts as a matrix: metrics down, nulls across, sites within a cell."""
    config = study.config
    rows: dict[tuple[Any, ...], dict[str, list[Row]]] = {}
    for row in sorted(study.rows("verdicts", subject=subject), key=_contrast_order(study, subject)):
        key = (row["metric"], row["sae"], row["explainer"], row["scorer"])
        rows.setdefault(key, {}).setdefault(row["variant"], []).append(row)
    groups: dict[str, list[MatrixRow]] = {}
    for (metric, sae, explainer, scorer), by_null in rows.items():
        detail = [f"{explainer}, {scorer}"] if explainer is not None else []
        if len(config.saes) > 1:
            detail.append(sae)
        matrix_row = MatrixRow(
            title=_TITLES[metric],
            detail=" · ".join(detail),
            cells=[by_null.get(null, []) for null in study.nulls],
        )
        groups.setdefault(metric_group(metric), []).append(matrix_row)
    return [MatrixGroup(title, group) for title, group in groups.items()]


def tally(cell: list[Row]) -> list[tuple[str, int]]:
    """How often each verdict stands in a cell of the matrix."""
    counts = Counter(row["verdict"] for row in cell)
    return [(verdict, counts[verdict]) for verdict in VERDICTS if counts[verdict]]


def contrasts(study: Study, subject: str) -> list[Row]:
    """All contrasts of a subject in display order, with the metric's title and the verdict."""
    keys = ("site", "sae", "explainer", "scorer", "metric", "variant")
    verdicts = {
        tuple(row[key] for key in keys): row for row in study.rows("verdicts", subject=subject)
    }
    ordered = sorted(study.rows("contrasts", subject=subject), key=_contrast_order(study, subject))
    found = []
    for row in ordered:
        verdict = verdicts.get(tuple(row[key] for key in keys), {})
        found.append(
            {
                **row,
                "title": _TITLES[row["metric"]],
                "verdict": verdict.get("verdict"),
                "why": verdict.get("reason") or row["reason"],
            }
        )
    return found


def _contrast_order(study: Study, subject: str) -> Any:
    config = study.config
    orders: list[tuple[str, dict[Any, int]]] = [
        ("metric", _ORDER),
        ("sae", {name: i for i, name in enumerate(config.saes)}),
        ("explainer", {name: i for i, name in enumerate(config.explainers)}),
        ("scorer", {name: i for i, name in enumerate(config.scorers)}),
        ("variant", {name: i for i, name in enumerate(study.variants)}),
        ("site", {name: i for i, name in enumerate(config.subjects[subject].sites)}),
    ]
    return lambda row: tuple(order.get(row[key], -1) for key, order in orders)


def coverage(study: Study, subject: str) -> list[tuple[str, list[Row | None]]]:
    """Per site (and SAE), for each variant, what passed the filter; summed over draws and seeds."""
    config = study.config
    found: list[tuple[str, list[Row | None]]] = []
    for site in config.subjects[subject].sites:
        for sae in config.saes:
            cells: list[Row | None] = []
            for variant in study.variants:
                rows = study.rows("coverage", subject=subject, site=site, sae=sae, variant=variant)
                names = ("n_latents", "n_alive", "n_pass", "n_sampled")
                total = {name: sum(row[name] for row in rows) for name in names}
                cells.append(
                    {**total, "pass_share": total["n_pass"] / total["n_latents"]}
                    if total["n_latents"]
                    else None
                )
            found.append((f"{site} · {sae}" if len(config.saes) > 1 else site, cells))
    return found
