"""What the subject loses when an SAE, the mean or zeros replace a site."""

from __future__ import annotations

from typing import Any

from nullsae.config.variants import has_model
from nullsae.report import charts, compact, panels
from nullsae.report.kinds import FigureKind
from nullsae.report.study import Study, mean

SHAPES = {"clean": "circle", "with SAE": "diamond", "mean": "square", "zero": "triangle-down"}
COLUMNS = {"clean": "ce_clean", "with SAE": "ce_sae", "mean": "ce_mean", "zero": "ce_zero"}
STEP_NATS = 0.1
"""A rise of the loss that is drawn as none."""
CLEAN = "no SAE (clean)"
WITHOUT_SAE = {CLEAN: "ce_clean", "mean ablated": "ce_mean", "zero ablated": "ce_zero"}
"""The names contain spaces, which SAE names cannot."""


class CrossEntropy(FigureKind):
    """The subject's loss: unchanged, with the site replaced by its mean or zero, with each SAE."""

    name = "cross_entropy"
    section, place = "fidelity", 45
    title = "Cross-entropy"
    definition = (
        "Loss of the subject on its next token: unchanged (clean), with the activation replaced by "
        "its reconstruction, by its mean, or by zero."
    )
    reading = (
        "Fidelity is how close the SAE comes to clean on the way from zero. If clean and zero "
        "coincide, as in random networks, there is nothing to be faithful to."
    )

    def draw(self, study: Study, subject: str) -> tuple[Any, str]:
        """Return the chart, losses on one scale or a matrix of SAEs, and its caption."""
        subtitle = "nats per token, mean over draws and seeds"
        if not study.compact:
            rows = study.rows("reconstruction", subject=subject)
            rows = panels.averages(study, subject, rows, COLUMNS)
            frame = charts.Frame(panels.columns(study, subject), self.title, subtitle)
            chart = charts.ranges(rows, study.variants, frame, quantities=SHAPES)
            return chart, f"{self.caption}{_without_model(study)}"

        def in_row(site: str, variant: str) -> compact.Cells:
            rows = study.rows("reconstruction", subject=subject, site=site, variant=variant)
            losses = {n: mean(row[column] for row in rows) for n, column in WITHOUT_SAE.items()}
            for sae in study.config.saes:
                losses[sae] = mean(row["ce_sae"] for row in rows if row["sae"] == sae)
            clean = losses[CLEAN]
            return {n: (v, compact.distance(v, clean, STEP_NATS)) for n, v in losses.items()}

        return compact.draw(
            *(study, subject, self, in_row),
            subtitle=subtitle,
            ground=f"minus clean, in {STEP_NATS:g} nats",
            caption=f"The colour shows the loss minus clean of the same row, in steps of "
            f"{STEP_NATS:g} nats.{_without_model(study)}",
            first_columns=tuple(WITHOUT_SAE),
        )


def _without_model(study: Study) -> str:
    """Return a sentence for each variant of the study that has no loss."""
    sampled = [variant for variant in study.variants if not has_model(variant)]
    return "".join(f" {variant} has no model and thus no loss." for variant in sampled)
