"""Entry point: the figures and the page of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from nullsae import paths
from nullsae.aggregation.provenance import differences, in_short
from nullsae.config.study import Config
from nullsae.report import sections, style
from nullsae.report.beating import beating
from nullsae.report.browser import browser, browser_rule
from nullsae.report.controls import controls
from nullsae.report.figures import Figure, draw_figure
from nullsae.report.names import GROUPS, figure_kinds
from nullsae.report.page import TEMPLATES, in_page, write_figures, write_page
from nullsae.report.study import Study, load_study
from nullsae.statistics.findings import TIER_RULE, TIERS
from nullsae.statistics.ranking import LEVEL
from nullsae.statistics.verdicts import CONTROL_RULE, FEWEST_ANSWERED, RULE, replication_note


def build_report(config: Config, root: Path) -> None:
    """Draw all figures and write the page.

    Reads, below `root`, `results/tables`, the windows of the cells in the browser and the
    tokenizers. Writes `paths.FIGURE` for each name of `names.figure_names` and each format of the
    config, and `paths.REPORT`, one file that needs no network. Only its latent browser needs a
    script.

    Raises:
        UserError: an input is missing, damaged or from another version.
    """
    study = load_study(config, root)
    dumped = config.model_dump(mode="json")
    subjects = []
    for subject in config.subjects:
        figures = [draw_figure(study, subject, kind) for kind in figure_kinds(config)]
        for figure in figures:
            write_figures(root, figure.name, config.report.figure_formats, figure.svg)
        subjects.append(_subject_context(study, subject, figures))
    write_page(
        root / paths.REPORT,
        "index.html.j2",
        in_macros={
            "colour": style.colour,
            "tally": sections.tally,
            "in_order": sections.in_order,
            "shown": sections.shown_verdict,
            "compared": study.compared,
            "positive_controls": study.positive_controls,
            "is_drawn": sections.is_drawn,
            "fewest_answered": FEWEST_ANSWERED,
        },
        title=config.report.title,
        subjects=subjects,
        variants=study.variants,
        nulls=study.nulls,
        control_rule=CONTROL_RULE,
        config=config,
        config_yaml=yaml.safe_dump(dumped, sort_keys=False, allow_unicode=True),
        answer=study.answer,
        answer_figures=[figure for one in subjects for figure in one["answer_figures"]],
        tiers=TIERS,
        tier_rule=TIER_RULE,
        signs=sections.signs(study),
        controls=controls(config),
        made_by=in_short(study.made_by),
        compact=study.compact,
        tight=sections.is_tight(study),
        beating=beating(study),
        beating_level=LEVEL,
        browser=browser(study),
        browser_rule=browser_rule(study),
        # Inlined, because the page may load nothing.
        browser_script=Markup((TEMPLATES / "browser.js").read_text(encoding="utf-8")),
        many_sites=sections.MAX_SITES_IN_CELL,
        confidence_percent=f"{100 * config.statistics.confidence:g}",
        verdict_rule=RULE,
        note=replication_note(study.tables["verdicts"]),
        accepted=study.accepted,
        refused=sections.REFUSED,
        in_page=in_page,
    )


def _subject_context(study: Study, subject: str, figures: list[Figure]) -> dict[str, Any]:
    """Collect everything that the template shows about one subject."""
    section = study.config.subjects[subject]
    health = sections.health(study, subject)
    reconstruction = study.rows("reconstruction", subject=subject)
    by_kind = {figure.kind: figure for figure in figures}
    compared = study.rows("contrasts", subject=subject)
    return {
        "name": subject,
        "corpus": section.corpus,
        "sites": section.sites,
        "model": next((row for row in health if row["gap_nats"] is not None), None),
        "health": health,
        "warnings": [
            *sorted({r["warning"] for r in compared if r["warning"]}),
            *(text for name, text in differences(study.made_by) if name == subject),
        ],
        "activations": sections.activation_health(study, subject),
        "d_model": next((row["d_model"] for row in reconstruction), None),
        "matrices": sections.verdict_matrices(study, subject),
        "stages": sections.stage_tables(study, subject),
        "contrasts": sections.contrasts(study, subject),
        "n_contrasts": len(compared),
        "is_replicated": any(row["is_replicated"] for row in compared),
        "scopes": {name: [r for r in compared if r["variant"] == name] for name in study.compared},
        "not_comparable": sorted({r["not_comparable"] for r in compared if r["not_comparable"]}),
        "coverage": sections.coverage(study, subject),
        "arms": sections.arms(study, subject),
        "groups": [
            (group, [by_kind[kind] for kind in group.kinds if kind in by_kind])
            for group in GROUPS[1:]
        ],
        "answer_figures": [by_kind[kind] for kind in GROUPS[0].kinds],
    }
