"""The entry: figures and page of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import yaml
from markupsafe import Markup, escape

from nullsae import __version__, paths
from nullsae.config.study import Config
from nullsae.core.files import write_text
from nullsae.report import examples, sections, style
from nullsae.report.controls import controls
from nullsae.report.figures import Figure, draw_figures
from nullsae.report.names import GROUPS, entropy_pair
from nullsae.report.render import inline_svg, write_figure
from nullsae.report.study import Study, load_study
from nullsae.report.text import TokenText, visible
from nullsae.statistics.verdicts import RULE

TEMPLATES = Path(__file__).parent / "templates"


def build_report(config: Config, root: Path) -> None:
    """Draw all figures and write the page.

    Reads `results/tables`, the windows of the example cells and the tokenizers; writes
    `paths.FIGURE` for each name of `names.figure_names` and format of the config, and
    `paths.REPORT`, one file that needs no network and no script.

    Args:
        config: the study.
        root: the folder that holds `results`.

    Raises:
        UserError: an input is missing, damaged or made by another version.
    """
    study = load_study(config, root)
    subjects = []
    for subject in config.subjects:
        figures = draw_figures(study, subject)
        for figure in figures:
            for suffix in config.report.figure_formats:
                path = paths.FIGURE.format(figure=figure.name, format=suffix)
                write_figure(root / path, figure.svg)
        subjects.append(_subject_context(study, subject, figures))
    page = (
        _environment()
        .get_template("index.html.j2")
        .render(
            title=config.report.title,
            subjects=subjects,
            variants=study.variants,
            nulls=study.nulls,
            config=config,
            config_yaml=yaml.safe_dump(
                config.model_dump(mode="json"), sort_keys=False, allow_unicode=True
            ),
            version=__version__,
            controls=controls(config),
            compact=study.compact,
            tight=sections.is_tight(study),
            example_rule=examples.RULE,
            example_saes=examples.shown_saes(study),
            many_sites=sections.MAX_SITES_IN_CELL,
            confidence_percent=f"{100 * config.statistics.confidence:g}",
            pair=entropy_pair(config),
            verdict_rule=RULE,
            refused=sections.REFUSED,
            dark=style.dark(),
        )
    )
    write_text(root / paths.REPORT, page)


def _subject_context(study: Study, subject: str, figures: list[Figure]) -> dict[str, Any]:
    """Everything that the template shows of one subject."""
    section = study.config.subjects[subject]
    text = TokenText.load(study.root / paths.TOKENIZER_FILE.format(corpus=section.corpus))
    health = sections.health(study, subject)
    reconstruction = study.rows("reconstruction", subject=subject)
    example_sites = examples.shown_sites(study, subject)
    by_kind = {figure.kind: figure for figure in figures}
    return {
        "name": subject,
        "corpus": section.corpus,
        "sites": section.sites,
        "model": next((row for row in health if row["gap_nats"] is not None), None),
        "health": health,
        "activations": sections.activation_health(study, subject),
        "d_model": next((row["d_model"] for row in reconstruction), None),
        "matrices": sections.verdict_matrices(study, subject),
        "power": sections.power(study, subject),
        "contrasts": sections.contrasts(study, subject),
        "n_contrasts": len(study.rows("contrasts", subject=subject)),
        "coverage": sections.coverage(study, subject),
        "groups": [
            (group, [by_kind[kind] for kind in group.kinds if kind in by_kind]) for group in GROUPS
        ],
        "examples": [
            (site, examples.example_cells(study, subject, site, text)) for site in example_sites
        ],
    }


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number,
        "signed": signed,
        "percent": percent,
        "p_value": p_value,
        "visible": visible,
        "svg": _svg,
    }
    environment.globals |= {
        "colour": style.colour,
        "tally": sections.tally,
        "in_order": sections.in_order,
        "verdicts": sections.VERDICTS,
        "is_drawn": sections.is_drawn,
    }
    return environment


def _svg(figure: Figure) -> Markup:
    # Vega escapes text itself; the label is the only thing that enters here.
    return Markup(inline_svg(figure.svg, figure.name, str(escape(figure.title))))


def number(value: float | None, digits: int = 3) -> str:
    """A number with a true minus; an en dash where there is none."""
    if value is None:
        return "\u2013"
    return f"{value:.{_decimals(value, digits)}f}".replace("-", "\u2212")


def signed(value: float | None, digits: int = 3) -> str:
    """A difference: always with its sign."""
    if value is None:
        return "\u2013"
    return f"{value:+.{_decimals(value, digits)}f}".replace("-", "\u2212")


def percent(share: float | None, digits: int = 1) -> str:
    """A share in percent."""
    return "\u2013" if share is None else f"{100 * share:.{digits}f} %"


def p_value(p: float | None) -> str:
    """A p-value, no smaller than what the page can show."""
    if p is None:
        return "\u2013"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _decimals(value: float, digits: int) -> int:
    """Fewer decimals for large values: 0.123, 12.3, 123."""
    return digits if abs(value) < 10 else max(0, digits - 2) if abs(value) < 100 else 0
