"""SAEs along their training."""

from __future__ import annotations

from typing import Any

from nullsae.config.metrics import METRICS, all_metrics
from nullsae.config.saes import recipe_name
from nullsae.config.study import Config
from nullsae.report import charts, compact, panels
from nullsae.report.kinds import FigureKind
from nullsae.report.names import shown_explainer
from nullsae.report.study import Row, Study, thin

MAX_CURVES = 600
"""Lines in the figure of training curves; with more, fewer sites are drawn."""
MAX_PANELS = 8
"""Sites and SAEs per metric along training; with more, fewer sites are drawn."""
LOG_RATIO = 20.0
"""Above this ratio of most to fewest tokens, their axis is logarithmic."""


class TrainingCurves(FigureKind):
    """Explained variance on held-out tokens, one line per SAE."""

    name = "training_curves"
    section, place = "training", 10
    title = "Training curves"
    definition = "Explained variance on held-out tokens along the training of each SAE."
    reading = (
        "A curve that still rises at its end was stopped early: compare variants only if all "
        "curves are flat."
    )

    def draw(self, study: Study, subject: str) -> tuple[Any, str]:
        """Return the chart, a panel for each site and SAE, and its caption."""
        caption = self.caption
        history = study.rows("history", subject=subject)
        sites = list(study.config.subjects[subject].sites)
        if study.compact:
            runs = {(row["site"], row["sae"], row["variant"], row["draw"]) for row in history}
            most = max((sum(run[0] == site for run in runs) for site in sites), default=0)
            sites = thin(sites, max(1, min(compact.MAX_SITES, MAX_CURVES // max(1, most))))
            caption += " Dictionaries that are computed rather than trained have no curve."
            caption += compact.which_sites(study, subject, sites)
        rows = [
            {
                "panel": panels.panel(study, row, row["site"]),
                "variant": row["variant"],
                "run": f"{row['draw']}/{row['seed']}/{row['variant']}",
                "tokens": row["tokens"],
                "value": row["heldout_explained_variance"],
            }
            for row in sorted(history, key=study.order(subject, *panels.LEVELS))
            if row["site"] in sites and row["heldout_explained_variance"] is not None
        ]
        if not rows:
            return charts.nothing(self.title, "No evaluations along training"), caption
        frame = charts.Frame(
            charts.MAX_COLUMNS if study.compact else panels.columns(study, subject),
            self.title,
            "explained variance on held-out tokens, one line per draw and seed",
        )
        height = 120 if study.compact else 230
        return charts.curves(rows, study.variants, frame, height=height), caption


class Training(FigureKind):
    """Some metrics of each SAE against the tokens it was trained on so far."""

    name = "training"
    section, place = "training", 20
    title = "Metrics along training"
    definition = (
        "Metrics of each SAE during and at the end of its training, on the same evaluation split."
    )
    reading = (
        "A gap between trained and a null that opens during training is what a metric of learned "
        "structure should show. If lines coincide throughout, more training of the SAE would not "
        "separate them. SAEs along the way are steps of one schedule with a learning rate that has "
        "not decayed yet. Each samples its own latents by the usual rule: scores and entropy "
        "follow the SAE, not one fixed set of latents."
    )

    def is_there(self, config: Config) -> bool:
        """Whether some SAE has checkpoints."""
        return any(sae.checkpoints for sae in config.saes.values())

    def draw(self, study: Study, subject: str) -> tuple[Any, str]:
        """Return the chart, its metrics one below the other, and its caption."""
        config = study.config
        shown = [metric for metric in all_metrics() if metric.along_training is not None]
        recipes = [name for name, sae in config.saes.items() if sae.checkpoints]
        sites = thin(config.subjects[subject].sites, max(1, MAX_PANELS // len(recipes)))
        explainer = shown_explainer(config)
        caption = f"{self.caption}{compact.which_sites(study, subject, sites)}"
        orders: dict[str, list[Any]] = {
            "metric": [m.name for m in sorted(shown, key=lambda m: m.along_training or 0)],
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
            return charts.nothing(self.title, "No values along training"), caption
        rows.sort(key=lambda row: [order.index(row[key]) for key, order in orders.items()])
        for row in rows:
            judge = f" of {row['scorer']}" if row["scorer"] else ""
            row["title"] = METRICS[row["metric"]].title + judge
            row["panel"] = row["site"] + (f" · {row['recipe']}" if len(recipes) > 1 else "")
        seen = [row["tokens"] for row in rows]
        caption += panels.shading(study)
        if any(row["scorer"] for row in rows):
            caption += f" Explanations are those of {explainer}; the dashed line is chance."
        drawn = ("title", "panel", "variant", "tokens", "value", "low", "high")
        chances = {row["title"]: METRICS[row["metric"]].chance for row in rows}
        chart = charts.along_training(
            [{key: row[key] for key in drawn} for row in rows],
            study.variants,
            charts.Frame(
                min(charts.MAX_COLUMNS, len(sites) * len(recipes)),
                self.title,
                "mean over draws and seeds, one mark for each SAE along the training",
            ),
            references={title: at for title, at in chances.items() if at is not None},
            log=max(seen) > LOG_RATIO * min(seen),
        )
        return chart, caption


def _values(study: Study, subject: str) -> list[Row]:
    """Return rows of `summaries` with a value, for SAEs along their training and finished ones.

    They also have the name of the `recipe`, and `tokens`, the number the SAE was trained on.
    """

    def everything(table: str) -> list[Row]:
        along = [row for row in study.along[table] if row["subject"] == subject]
        return [*along, *study.rows(table, subject=subject)]

    seen: dict[tuple[str, ...], int] = {}
    for row in everything("history"):
        key = (row["variant"], row["site"], row["sae"])
        seen[key] = max(seen.get(key, 0), row["tokens"])
    return [
        row | {"recipe": recipe_name(row["sae"]), "tokens": tokens}
        for row in everything("summaries")
        if (tokens := seen.get((row["variant"], row["site"], row["sae"]))) is not None
        and row["value"] is not None
    ]
