"""All tables of a study."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nullsae import paths, tables
from nullsae.aggregation import cells
from nullsae.aggregation.accepted import accepted_notes
from nullsae.aggregation.answer import write_answer
from nullsae.aggregation.answered import Answered
from nullsae.aggregation.arms import Arms
from nullsae.aggregation.cells import GROUP_KEYS, Units
from nullsae.aggregation.comparable import Comparable
from nullsae.aggregation.costs import read_costs
from nullsae.aggregation.interpretability import interpretability
from nullsae.aggregation.provenance import differences, read_provenance
from nullsae.aggregation.ranking import rank_latents
from nullsae.aggregation.stages import Compared, Stages
from nullsae.config.metrics import LEVELS, METRICS, all_metrics, is_of_model
from nullsae.config.saes import recipe_name
from nullsae.config.study import Config
from nullsae.config.variants import is_null, is_positive_control
from nullsae.core.errors import UserError
from nullsae.corpus.ngram import caution
from nullsae.jobs.grid import Keys, cell_files, sae_names
from nullsae.statistics.baselines import applies, is_swapped
from nullsae.statistics.bootstrap import Resampler
from nullsae.statistics.components import seed_variance
from nullsae.statistics.contrasts import adjust, contrast_row, estimate, scope_of, summary_row
from nullsae.statistics.permutation import Permuter
from nullsae.statistics.verdicts import discriminating_power, verdict
from nullsae.tables.study import COSTS, INTERPRETABILITY, PROVENANCE, VERDICTS

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]
Progress = Callable[[int, int], None]


def aggregate(config: Config, root: Path, progress: Progress = lambda done, total: None) -> None:
    """Write `results/tables/*` and the tables of costs and of provenance below `root`.

    The config defines which cells the study consists of, and their order. The log names contrasts
    whose arms were not made alike. `progress` is called with (comparisons done, comparisons in
    total).

    Raises:
        UserError: a cell's file is missing, damaged, or about different documents than the rest,
            or no latent of any SAE can be scored.
    """
    files = cell_files(config)
    sources: dict[str, list[Units]] = {}
    wholes: dict[str, pa.Table] = {}
    histories: list[tuple[Keys, pa.Table]] = []
    for table in tables.AGGREGATED:
        if table not in files:
            continue  # computed below
        read = cells.read_cells(table, files[table], root)
        if table == "history":
            histories = read
        whole = wholes[table] = cells.whole_table(table, read)
        tables.write_table(root / paths.TABLE.format(table=table), whole, tables.SCHEMAS[table])
        if table in LEVELS or table == "predictions":
            unit = LEVELS.get(table, "latent")
            sources[table] = [Units(keys, part, unit) for keys, part in read]
    cells.check_same_documents(sources["documents"])
    scored = config.explainers and config.scorers
    if scored and not any(pc.sum(u.table["n_sampled"]).as_py() for u in sources["coverage"]):
        raise UserError(
            "config: latents.min_firings, latents.min_pool_windows: no latent of any SAE passes "
            "this filter; lower them or raise corpora.*.eval_tokens"
        )
    statistics = config.statistics
    found = interpretability(config, statistics, sources["scores"], sources["latents"])
    sources["interpretability"] = found
    parts = [cells.with_keys(INTERPRETABILITY, unit.keys, unit.table) for unit in found]
    comparable = Comparable(config, sources["reconstruction"], histories)
    summaries, contrasts = compare(config, sources, comparable, progress)
    warnings = _cautions(wholes["models"])
    accepted = accepted_notes(config, root)
    for row in contrasts:
        arms = ((row["subject"], variant) for variant in ("trained", row["variant"]))
        row["warning"] = next((warnings[arm] for arm in arms if arm in warnings), None)
        row["accepted"] = accepted(row)
    judged = [verdict(row, METRICS[row["metric"]](), statistics.confidence) for row in contrasts]
    kept = set(VERDICTS.names)
    verdicts = [
        {name: value for name, value in contrast.items() if name in kept}
        | {"verdict": word, "reason": reason}
        for contrast, (word, reason) in zip(contrasts, judged, strict=True)
    ]
    # Discriminating power is about models; other stages only have verdicts.
    of_models = [
        (row, word) for row, (word, _) in zip(contrasts, judged, strict=True) if is_of_model(row)
    ]
    about, words = [row for row, _ in of_models], [word for _, word in of_models]
    ranked, beating = rank_latents(config, sources)
    written: dict[str, Rows | pa.Table] = {
        "interpretability": pa.concat_tables([INTERPRETABILITY.empty_table(), *parts]),
        "summaries": summaries,
        "contrasts": contrasts,
        "verdicts": verdicts,
        "discriminating_power": discriminating_power(about, words),
        "latents_ranked": ranked,
        "beating_placebo": beating,
    }
    for table, rows in written.items():
        tables.write_table(root / paths.TABLE.format(table=table), rows, tables.SCHEMAS[table])
    write_answer(config, root, contrasts, [word for word, _ in judged])
    # Neither depends on the config alone.
    tables.write_table(root / paths.COSTS, read_costs(root), COSTS)
    made_by = read_provenance(config, root)
    tables.write_table(root / paths.PROVENANCE, made_by, PROVENANCE)
    for subject, text in differences(made_by):
        log.warning("warning: subject %s: %s", subject, text)


def _cautions(models: pa.Table) -> dict[tuple[str, str], str]:
    """Return warnings about trained subjects and positive controls, by subject and variant."""
    found = {}
    # Of several draws, the worst counts.
    for row in sorted(models.to_pylist(), key=itemgetter("heldout_loss_nats")):
        if is_null(row["variant"]):
            continue
        if text := caution(row["heldout_loss_nats"], row["bigram_loss_nats"]):
            of = "" if row["variant"] == "trained" else f"in {row['variant']}, "
            found[row["subject"], row["variant"]] = of + text
    return found


def compare(
    config: Config,
    sources: dict[str, list[Units]],
    comparable: Comparable,
    progress: Progress = lambda done, total: None,
) -> tuple[Rows, Rows]:
    """Return rows of `summaries` and of `contrasts`, the latter stage by stage.

    SAEs along their training have summaries only: contrasts are about finished SAEs, and more
    contrasts would weaken each of them (Holm).

    `sources` are the cells of the tables from which metrics are computed, in config order.
    """
    statistics = config.statistics
    arms = Arms(sources, statistics)
    answered = Answered(sources.get("scores", ()))
    resampler = Resampler(config.seed, statistics.n_resamples)
    permuter = Permuter(config.seed, statistics.n_resamples)
    stages = Stages(config, arms, resampler)
    summaries: Rows = []
    compared: list[Compared] = []
    groups = [*_groups(config)]
    for number, group in enumerate(groups):
        progress(number, len(groups))
        where, recipe = tuple(group[n] for n in GROUP_KEYS), config.saes[recipe_name(group["sae"])]
        for metric in all_metrics():
            if not applies(metric, config, group["explainer"]):
                continue
            # Looked-up and pretrained dictionaries have no floor.
            if metric.form == "relative" and not arms.has_floor(metric, where):
                continue
            of_variants = {
                variant: arms.arm(metric, where, variant)
                for variant in config.variants
                if config.draws_of(variant, group["subject"])
                and recipe.is_made(group["site"], variant)
            }
            seeds = seed_variance(of_variants.values(), resampler)
            estimates = {
                variant: estimate(arm, metric, statistics, resampler, seeds)
                for variant, arm in of_variants.items()
            }
            for variant, found in estimates.items():
                keys = {**group, "metric": metric.name, "variant": variant}
                row = summary_row(found, metric) | answered.of_arm(metric, (*where, variant))
                summaries.append(keys | row)
            if group["sae"] in config.saes:
                compared += stages.model(metric, where, estimates)
    compared += stages.others()
    contrasts = [
        one.row_keys
        | contrast_row(
            *(*one.estimates, one.metric, statistics, permuter, one.bins),
            names=one.names,
            differences=one.differences,
        )
        | {"scope": scope_of(one.variant, one.estimates[1].arm)}
        | comparable.of_contrast(one)
        | answered.of_contrast(one.metric, *one.keys)
        for one in compared
    ]
    families: dict[str, Rows] = {}
    for row in contrasts:
        families.setdefault(family(config, row), []).append(row)
    for name, rows in families.items():
        adjust(rows, name, statistics)
    return summaries, contrasts


def family(config: Config, row: Mapping[str, Any]) -> str:
    """Name the contrasts that are corrected together: one metric of one SAE at one stage.

    Conclusions about an SAE must not depend on how many other dictionaries a study has, nor those
    about explanations on their placebos, which form their own family. So do positive controls,
    because they ask another question than nulls.
    """
    explainer = row["explainer"]
    is_placebo = explainer is not None and is_swapped(config, explainer)
    placebo = ", exchanged explanations" if is_placebo else ""
    control = ", positive controls" if is_positive_control(row["variant"]) else ""
    of = f"{row['metric']} of {row['sae']}, {row['subject']}"
    return f"{row['stage']}: {of}{placebo}{control}"


def _groups(config: Config) -> Iterator[dict[str, Any]]:
    """Yield the comparisons of a study in display order: without an explainer first."""
    for subject, section in config.subjects.items():
        for site in section.sites:
            for sae, recipe in sae_names(config).items():
                if not config.saes[recipe].is_made(site, "trained"):
                    continue
                where = {"subject": subject, "site": site, "sae": sae}
                yield {**where, "explainer": None, "scorer": None}
                for explainer, scorer in config.scored_pairs():
                    yield {**where, "explainer": explainer, "scorer": scorer}
