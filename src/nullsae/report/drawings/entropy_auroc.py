"""Scores of single latents against the number of tokens they fire on."""

from __future__ import annotations

from typing import Any

from nullsae.config.metrics import METRICS
from nullsae.config.study import Config
from nullsae.report import charts, compact, panels
from nullsae.report.kinds import FigureKind
from nullsae.report.names import entropy_pair
from nullsae.report.study import Row, Study, thin

MAX_POINTS = 6000
"""Latents in a scatter plot; beyond this, every m-th is drawn, which limits the page's size."""
MAX_VARIANTS = 6
"""With more variants, each gets its own panel."""
MAX_PANELS = 12


class EntropyAuroc(FigureKind):
    """One mark per sampled latent: token entropy against AUROC."""

    name = "entropy_auroc"
    section, place = "interpretability", 165
    title = "Score against token entropy"
    definition = (
        "Each mark is one sampled latent: how many tokens it fires on against how well its "
        "explanation predicts it."
    )
    reading = (
        "High scores on the left come from token identity. If the metric reflects training, "
        "trained's latents score above those of nulls with the same entropy."
    )

    def is_there(self, config: Config) -> bool:
        """Whether explanations are scored."""
        return bool(config.scored_pairs())

    def draw(self, study: Study, subject: str) -> tuple[Any, str]:
        """Return the chart, a cloud of latents for each site, and its caption."""
        pair = entropy_pair(study.config)
        assert pair is not None  # the figure exists only if something is scored
        explainer, scorer = pair
        caption = self.caption
        apart = study.compact or len(study.variants) > MAX_VARIANTS
        rows = _scored_latents(study, subject, explainer, scorer)
        if apart:
            sae = next(iter(study.config.saes))
            n_sites = max(1, MAX_PANELS // max(1, len(study.compared)))
            sites = thin(study.config.subjects[subject].sites, n_sites)
            rows = [row for row in rows if row["sae"] == sae and row["site"] in sites]
            rows = [
                {**row, "panel": other if len(sites) == 1 else f"{other} · {row['site']}"}
                for other in study.compared
                for row in sorted(rows, key=lambda row: sites.index(row["site"]))
                if row["variant"] in ("trained", other)
            ]
            caption += f" Each panel shows one variant, and trained in red; SAE: {sae}."
            caption += compact.which_sites(study, subject, sites)
        if not rows:
            return charts.nothing(self.title, "No scored latents"), caption
        step = -(-len(rows) // MAX_POINTS)
        if step > 1:
            caption += f" One in {step} latents is drawn (of {len(rows)} in total)."
        keys = ("panel", "variant", "x", "value")
        subtitle = (
            f"AUROC of {scorer} with explanations of {explainer}, one mark per sampled latent"
        )
        n_columns = 3 if apart else panels.columns(study, subject)
        chart = charts.scatter(
            [{key: row[key] for key in keys} for row in rows[::step]],
            study.variants,
            charts.Frame(n_columns, self.title, subtitle),
            x_title=METRICS["token_entropy_bits"].title,
            reference=METRICS["auroc"].chance,
            height=130 if apart else 260,
            with_legend=not apart,
        )
        return chart, caption


def _scored_latents(study: Study, subject: str, explainer: str, scorer: str) -> list[Row]:
    """Return token entropy (`x`) and AUROC (`value`) of each sampled latent that has both."""
    keys = ("variant", "draw", "site", "sae", "seed", "latent")
    entropy = {
        tuple(row[key] for key in keys): row["token_entropy_corrected_bits"]
        for row in study.rows("latents", subject=subject)
    }
    scores = study.rows("scores", subject=subject, explainer=explainer, scorer=scorer)
    return [
        {
            "panel": panels.panel(study, {**row, "explainer": None}, row["site"]),
            **{key: row[key] for key in ("variant", "site", "sae")},
            "x": x,
            "value": row["auroc"],
        }
        for row in sorted(scores, key=study.order(subject, *panels.LEVELS))
        if row["auroc"] is not None
        and (x := entropy.get(tuple(row[key] for key in keys))) is not None
    ]
