"""SAEs on the activations of other variants."""

from __future__ import annotations

from typing import Any

from nullsae.config.study import Config
from nullsae.report import charts, compact, matrix
from nullsae.report.kinds import FigureKind
from nullsae.report.study import Row, Study, mean, thin


class CrossEvaluation(FigureKind):
    """The first SAE of each variant on the activations of every variant."""

    name = "cross_evaluation"
    section, place = "transfer", 10
    title = "SAEs on other variants"
    definition = (
        "The SAE of one variant (row) reconstructs the activations of another (column); frames "
        "mark SAEs on their own variant. Large numbers: inputs scaled to the mean norm of the "
        "SAE's own activations. Small numbers: inputs as they are."
    )
    reading = (
        "If a null's SAE does as well on trained as trained's own, it has found directions that "
        "training did not create. The colour shows the rescaled number."
    )

    def is_there(self, config: Config) -> bool:
        """Whether SAEs are evaluated on other variants."""
        return config.evaluation.cross_tokens is not None

    def draw(self, study: Study, subject: str) -> tuple[Any, str]:
        """Return the chart, a matrix of variants for each site, and its caption."""
        config = study.config
        sae = next(iter(config.saes))
        sites = thin(config.subjects[subject].sites, compact.MAX_SITES)
        caption = f"{self.caption} SAE: {sae}; mean over draws and seeds."
        if len(config.saes) > 1:
            caption += " The table cross_evaluation contains the other SAEs."
        caption += compact.which_sites(study, subject, sites)
        steps = matrix.shares("explained variance, rescaled")
        data: list[Row] = []
        for site in sites:
            for variant in study.variants:
                keys = {"subject": subject, "site": site, "variant": variant, "sae": sae}
                found = study.rows("cross_evaluation", **keys)
                for other in study.variants:
                    rows = [row for row in found if row["evaluated_on"] == other]
                    rescaled = mean(row["explained_variance_rescaled"] for row in rows)
                    grid: matrix.Grid = {(site, variant, other): (rescaled, rescaled)}
                    plain = matrix.short(mean(row["explained_variance"] for row in rows))
                    own = {"second": plain, "own": other == variant}
                    data += [cell | own for cell in matrix.cells(grid, steps)]
        if all(row["step"] is None for row in data):
            return charts.nothing(self.title, "No cross evaluations"), caption
        frame = charts.Frame(
            matrix.columns_for(len(sites), len(study.variants)),
            self.title,
            "explained variance: large, inputs rescaled to the SAE's mean norm; small, as is",
        )
        chart = matrix.matrix(
            *(data, study.variants, study.variants, steps, frame),
            row_title="SAE trained on",
            column_title="evaluated on",
            second=True,
        )
        return chart, caption
