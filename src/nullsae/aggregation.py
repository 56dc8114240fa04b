"""From the files of single cells to the tables of a study, its contrasts and its verdicts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from nullsae import paths, tables
from nullsae.cells import Keys, cell_files, sae_names
from nullsae.config import Config
from nullsae.errors import UserError
from nullsae.files import read_json, rebuild_command
from nullsae.params import AggregateParams
from nullsae.randomness import numpy_generator
from nullsae.schemas.cells import CELL_TABLES
from nullsae.schemas.study import COSTS, VERDICTS
from nullsae.statistics.bootstrap import Arm, Cell
from nullsae.statistics.contrasts import Estimate, adjust, contrast_row, estimate, summary_row
from nullsae.statistics.metrics import METRICS, Metric
from nullsae.statistics.verdicts import verdict

Cells = list[tuple[Keys, pa.Table]]
# Names of the keys that single out one comparison of variants.
GROUP_KEYS = ("subject", "site", "sae", "explainer", "scorer")


def aggregate(config: Config, params: AggregateParams, root: Path) -> None:
    """Write `results/tables/*.parquet` and the table of costs below `root`.

    Args:
        config: says which cells the study consists of, and their order.
        params: seed and statistics.
        root: the folder that holds `results/`.

    Raises:
        UserError: a cell's file is missing, damaged, or about other documents than the rest, or
            no latent of any SAE can be scored.
    """
    files = cell_files(config)
    sources: dict[str, Cells] = {}
    for table in tables.AGGREGATED:
        if table not in files:
            continue  # computed below
        cells = _read_cells(table, files[table], root)
        parts = [_with_keys(table, keys, part) for keys, part in cells]
        whole = pa.concat_tables([tables.SCHEMAS[table].empty_table(), *parts])
        tables.write_table(root / paths.TABLE.format(table=table), whole, tables.SCHEMAS[table])
        if any(metric.table == table for metric in METRICS):
            sources[table] = cells

    _check_same_documents(sources["documents"])
    _check_some_latents(config, root)
    summaries, contrasts = compare(config, params, sources)
    written = {
        "summaries": summaries,
        "contrasts": contrasts,
        "verdicts": _verdicts(contrasts, params.statistics.confidence),
    }
    for table, rows in written.items():
        tables.write_table(root / paths.TABLE.format(table=table), rows, tables.SCHEMAS[table])
    tables.write_table(root / paths.COSTS, read_costs(root), COSTS)


def compare(
    config: Config, params: AggregateParams, sources: dict[str, Cells]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `summaries` and of `contrasts`.

    SAEs along their training have summaries only: contrasts and verdicts are about whole SAEs,
    and further ones would make each of these harder to show (Holm).

    Args:
        config: for the order of variants.
        params: seed and statistics.
        sources: cells of the tables that metrics are computed from, in config order.
    """
    arms = {table: _by_arm(cells) for table, cells in sources.items()}
    summaries: list[dict[str, Any]] = []
    contrasts: list[dict[str, Any]] = []
    for group in _groups(config):
        for metric in METRICS:
            if (metric.table == "scores") != (group["scorer"] is not None):
                continue
            keys = {**group, "metric": metric.name}
            estimates = {
                variant: _estimate(keys, variant, metric, params, arms[metric.table])
                for variant in config.variants
            }
            for variant, estimated in estimates.items():
                row_keys = {**keys, "variant": variant}
                summaries.append({**row_keys, **summary_row(estimated, metric)})
                if variant != "trained" and group["sae"] in config.saes:
                    row = contrast_row(estimates["trained"], estimated, metric, params.statistics)
                    contrasts.append({**row_keys, **row})
    # One family per metric of one SAE: what is concluded about an SAE must not depend on how many
    # other dictionaries a study holds.
    families: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in contrasts:
        families.setdefault((row["subject"], row["sae"], row["metric"]), []).append(row)
    for rows in families.values():
        adjust(rows, params.statistics)
    return summaries, contrasts


def read_costs(root: Path) -> list[dict[str, Any]]:
    """Rows of `costs`, from the benchmark files that Snakemake wrote, sorted by rule and keys.

    Raises:
        UserError: a benchmark file that is not one of Snakemake's.
    """
    folder = root / Path(paths.COSTS).parent
    rows: list[dict[str, Any]] = []
    for path in folder.rglob("*.tsv"):
        rule, *rest = path.relative_to(folder).with_suffix("").parts
        try:
            # Snakemake writes - and NA where a job ended before it could be measured.
            frame = pd.read_csv(path, sep="\t", na_values=["-", "NA"])
            columns = frame[["s", "cpu_time", "max_rss"]].astype("float64")
        except (ValueError, KeyError) as error:
            first = str(error).splitlines()[0]
            raise UserError(
                f"{path}: not a benchmark file of Snakemake ({first}); remove it"
            ) from None
        for wall, cpu, rss in columns.itertuples(index=False):
            if not np.isnan(wall):
                rows.append(
                    {
                        "rule": rule,
                        "keys": "/".join(rest),
                        "wall_seconds": wall,
                        "cpu_seconds": None if np.isnan(cpu) else cpu,
                        "max_rss_mib": None if np.isnan(rss) else rss,
                        **_asked(path.with_suffix(".asked.json")),
                    }
                )
    return sorted(rows, key=lambda row: (row["rule"], row["keys"]))


def _asked(path: Path) -> dict[str, Any]:
    """What a job asked of a language model: nulls for one that asked nothing."""
    names = COSTS.names[COSTS.names.index("model") :]
    found = read_json(path, rebuild="") if path.is_file() else {}
    return {name: found.get(name) for name in names}


def _read_cells(table: str, files: list[str], root: Path) -> Cells:
    schema = tables.cell_schema(table)
    # Keys come from the relative path: `root` may hold a folder with = in its name.
    return [(paths.partition_keys(f), tables.read_table(root / f, schema)) for f in files]


def _with_keys(table: str, keys: Keys, part: pa.Table) -> pa.Table:
    """The cell's rows with its keys as leading columns, without what a clock gave."""
    schema = tables.SCHEMAS[table]
    leading = [schema.field(name) for name, _ in CELL_TABLES[table][0]]
    columns = [
        pa.repeat(pa.scalar(keys[field.name]).cast(field.type), part.num_rows) for field in leading
    ]
    kept = part.select(schema.names[len(leading) :])
    return pa.Table.from_arrays([*columns, *kept.columns], schema=schema)


def _check_some_latents(config: Config, root: Path) -> None:
    """A study that scores latents must have some, in one cell at least."""
    path = root / paths.TABLE.format(table="coverage")
    sampled = tables.read_table(path, tables.SCHEMAS["coverage"], columns=["n_sampled"])
    if config.explainers and config.scorers and not pc.sum(sampled["n_sampled"]).as_py():
        raise UserError(
            "config: latents.min_firings, latents.min_pool_windows: no latent of any SAE passes "
            "this filter; lower them or raise corpora.*.eval_tokens"
        )


def _check_same_documents(cells: Cells) -> None:
    """Contrasts of document metrics are paired: all cells of a subject must list one set."""
    first: dict[str, tuple[str, pa.Array]] = {}
    for keys, table in cells:
        path = paths.DOCUMENTS.format(**keys)
        documents = table["document"].combine_chunks().sort()
        if documents.null_count or len(documents.unique()) < len(documents):
            problem = "a document is listed twice"
        else:
            reference, expected = first.setdefault(keys["subject"], (path, documents))
            if documents.equals(expected):
                continue
            problem = f"{len(documents)} documents that are not the {len(expected)} of {reference}"
        raise UserError(f"{path}: {problem}; rebuild it with: {rebuild_command(path)}")


def _groups(config: Config) -> Iterator[dict[str, str | None]]:
    """The comparisons of a study, in display order: without an explainer first."""
    for subject, section in config.subjects.items():
        for site in section.sites:
            for sae in sae_names(config):
                where = {"subject": subject, "site": site, "sae": sae}
                yield {**where, "explainer": None, "scorer": None}
                for explainer, scorer in config.scored_pairs():
                    yield {**where, "explainer": explainer, "scorer": scorer}


def _by_arm(cells: Cells) -> dict[tuple[str | None, ...], Cells]:
    """Cells by the keys of their comparison and their variant."""
    arms: dict[tuple[str | None, ...], Cells] = {}
    for keys, table in cells:
        arm = (*(keys.get(name) for name in GROUP_KEYS), keys["variant"])
        arms.setdefault(arm, []).append((keys, table))
    return arms


def _estimate(
    keys: dict[str, str | None],
    variant: str,
    metric: Metric,
    params: AggregateParams,
    arms: dict[tuple[str | None, ...], Cells],
) -> Estimate:
    """The estimate of one variant in one comparison."""
    cells = arms[(*(keys[name] for name in GROUP_KEYS), variant)]
    arm = Arm(
        cells=tuple(_units(metric, cell_keys, table) for cell_keys, table in cells),
        complement=metric.complement,
        units_are_shared=metric.unit == "document",
    )
    names = [keys[name] or "" for name in GROUP_KEYS]
    own = numpy_generator(params.seed, "bootstrap", *names, metric.name, variant)
    # All variants get the same stream of documents, so that differences are paired.
    shared = numpy_generator(params.seed, "bootstrap", *names, metric.name, "")
    return estimate(arm, metric, params.statistics, own, shared if arm.units_are_shared else None)


def _units(metric: Metric, keys: Keys, table: pa.Table) -> Cell:
    """The units of one cell, sorted, without rows whose numerator is null."""
    if metric.table == "latents":
        table = table.filter(pc.field("sampled"))
    table = table.sort_by(metric.unit)
    has_value = table[metric.numerator].is_valid()
    kept = table.filter(has_value)
    denominator = None
    if metric.denominator is not None:
        denominator = kept[metric.denominator].to_numpy().astype(np.float64)
    return Cell(
        draw=int(keys["draw"]),
        seed=int(keys["seed"]),
        numerator=kept[metric.numerator].to_numpy().astype(np.float64),
        denominator=denominator,
        n_null=table.num_rows - kept.num_rows,
    )


def _verdicts(contrasts: list[dict[str, Any]], confidence: float) -> list[dict[str, Any]]:
    metrics = {metric.name: metric for metric in METRICS}
    copied = set(VERDICTS.names) - {"verdict", "reason"}
    rows = []
    for contrast in contrasts:
        word, reason = verdict(contrast, metrics[contrast["metric"]], confidence)
        row = {name: value for name, value in contrast.items() if name in copied}
        rows.append({**row, "verdict": word, "reason": reason})
    return rows
