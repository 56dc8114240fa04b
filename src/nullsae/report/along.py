"""The figure of metrics along the training of SAEs that have checkpoints."""

from __future__ import annotations

from typing import Any

from nullsae.config.saes import recipe_name
from nullsae.report import charts, compact
from nullsae.report.captions import CHANCE, METRIC_TEXT
from nullsae.report.names import shown_explainer
from nullsae.report.study import Row, Study, thin
from nullsae.statistics.metrics import METRICS

SHOWN = ("explained_variance", "auroc", "token_entropy_bits")
TITLES = {metric.name: metric.title for metric in METRICS}
MAX_PANELS = 8
"""Sites and SAEs per metric; with more, fewer sites are drawn."""
LOG_RATIO = 20.0
"""Beyond this ratio of most to fewest tokens their axis is logarithmic."""


def training(study: Study, subject: str) -> compact.Drawn:
    """Explained variance, scores and token entropy against the tokens that an SAE had seen."""
    text, config = METRIC_TEXT["training"], study.config
    recipes = [name for name, sae in config.saes.items() if sae.checkpoints]
    sites = thin(config.subjects[subject].sites, max(1, MAX_PANELS // len(recipes)))
    explainer = shown_explainer(config)
    caption = f"{text.definition} {text.reading}{compact.which_sites(study, subject, sites)}"
    orders: dict[str, list[Any]] = {
        "metric": [*SHOWN],
        "scorer": [None, *config.scorers],
        "site": sites,
        "recipe": recipes,
        "variant": list(study.variants),
    }
    rows = [
        row
        for row in _values(study, subject)
        if all(row[key] in order for key, order in orders.items())
        and row["explainer"] in (None, explainer)
    ]
    if not rows:
        return charts.nothing(text.title, "No values along training"), text.title, caption
    rows.sort(key=lambda row: [order.index(row[key]) for key, order in orders.items()])
    for row in rows:
        judge = f" of {row['scorer']}" if row["scorer"] else ""
        row["title"] = TITLES[row["metric"]] + judge
        row["panel"] = row["site"] + (f" · {row['recipe']}" if len(recipes) > 1 else "")
    seen = [row["tokens"] for row in rows]
    level = f"{100 * config.statistics.confidence:g} % bootstrap interval"
    banded = " of trained" if len(study.variants) > charts.MAX_BANDS else ""
    caption += f" Shaded: the {level}{banded}."
    if any(row["scorer"] for row in rows):
        caption += f" Explanations are those of {explainer}; the dashed line is chance."
    drawn = ("title", "panel", "variant", "tokens", "value", "low", "high")
    chart = charts.along_training(
        [{key: row[key] for key in drawn} for row in rows],
        study.variants,
        {row["title"]: CHANCE[row["metric"]] for row in rows if row["metric"] in CHANCE},
        columns=min(charts.MAX_COLUMNS, len(sites) * len(recipes)),
        title=text.title,
        subtitle="mean over draws and seeds, one mark for each SAE along the training",
        log=max(seen) > LOG_RATIO * min(seen),
    )
    return chart, text.title, caption


def _values(study: Study, subject: str) -> list[Row]:
    """Rows of `summaries` that have a value, about SAEs along their training and whole ones.

    Each has also the name of its `recipe`, and `tokens`, those that the SAE had been trained on.
    """
    seen: dict[tuple[str, ...], int] = {}
    for row in _all(study, "history", subject):
        key = (row["variant"], row["site"], row["sae"])
        seen[key] = max(seen.get(key, 0), row["tokens"])
    found = [
        row
        | {
            "recipe": recipe_name(row["sae"]),
            "tokens": seen.get((row["variant"], row["site"], row["sae"])),
        }
        for row in _all(study, "summaries", subject)
    ]
    return [row for row in found if row["value"] is not None and row["tokens"] is not None]


def _all(study: Study, table: str, subject: str) -> list[Row]:
    along = [row for row in study.along[table] if row["subject"] == subject]
    return [*along, *study.rows(table, subject=subject)]
