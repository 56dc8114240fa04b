"""Fill a page with numbers from its study's tables: `python benchmarks/study_numbers.py RESULTS`.

They are put between the marks `<!-- numbers: NAME -->` and `<!-- end of numbers -->`; nobody writes
them by hand. By default README.md and docs/default_study.md are filled; to fill other pages, name
them after the results: `python benchmarks/study_numbers.py results docs/smollm2_study.md`.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml

from nullsae.config.sites import site_layer
from nullsae.config.variants import VARIANTS

REPOSITORY = Path(__file__).parent.parent
PAGES = ("README.md", "docs/default_study.md")
COLUMNS = 118
MARK = re.compile(r"<!-- numbers: (\w+) -->")


class Row(NamedTuple):
    """A metric of the table."""

    metric: str
    explainer: str | None = None
    scorer: str | None = None
    digits: int = 3


ROWS = (
    *(Row("next_token_auroc"), Row("next_token_auroc_bigram")),
    *(Row("addition_gain_nats"), Row("ablation_kl_log_ratio"), Row("ablation_ce_gain_nats")),
    *(Row("explained_variance"), Row("above_floors"), Row("ce_score")),
    *(Row("token_injection_rate", digits=2), Row("token_entropy_bits", digits=2)),
    *(Row("auroc", "lexical", "detection"), Row("auroc", "lexical", "fuzzing")),
    *(Row("auroc", "swapped", "detection"), Row("auroc", "swapped", "fuzzing")),
    *(Row("discrimination", "lexical", "fuzzing"), Row("abstract_share", "lexical", "fuzzing")),
)

# Metrics of the page of all controls, and variants that its wider tables have room for.
OF_VARIANTS = (
    *(Row("explained_variance"), Row("next_token_auroc"), Row("token_entropy_bits", digits=2)),
    *(Row("auroc", "lexical", "detection"), Row("auroc", "lexical", "fuzzing")),
)
OF_RECIPES = (
    Row("explained_variance"),
    Row("next_token_auroc"),
    Row("auroc", "lexical", "detection"),
)
SHOWN = (
    *("trained", "retrained", "cascade", "permuted_embeddings", "rerandomized"),
    *("noise_embeddings", "gaussian"),
)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format cells as a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def summaries_table(summaries: pd.DataFrame, recipe: str) -> str:
    """Format the metrics of `ROWS` of a recipe at each site, with intervals, for all variants."""
    summaries = summaries[summaries["sae"] == recipe]
    variants = [name for name in VARIANTS if name in set(summaries["variant"])]
    rows = []
    for of in ROWS:
        found = _rows_of(summaries, of)
        if found["value"].isna().all():  # this study measured none
            continue
        for site, cells in sorted(found.groupby("site"), key=lambda cells: site_layer(cells[0])):
            by_variant = cells.set_index("variant")
            numbers = [_number(by_variant.loc[v], of.digits) for v in variants]
            rows.append([f"{_name(of)}, {site}", *numbers])
    return markdown_table(["", *(f"`{name}`" for name in variants)], rows)


def _number(cell: pd.Series, digits: int) -> str:
    if pd.isna(cell["value"]):
        return "-"
    text = f"{cell['value']:.{digits}f}"
    if pd.isna(cell["low"]):
        return text
    return f"{text} [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"


def models_table(models: pd.DataFrame) -> str:
    """Format the loss of each model on the held-out tokens, in nats per token."""
    models = models.sort_values("variant", key=lambda names: names.map(list(VARIANTS).index))
    rows = [[f"`{m.variant}`", f"{m.heldout_loss_nats:.3f}"] for m in models.itertuples()]
    rows += [
        [f"interpolated Kneser-Ney {kind}", f"{models[f'{kind}_loss_nats'].iloc[0]:.3f}"]
        for kind in ("bigram", "unigram")
    ]
    n = int(models["n_heldout_tokens"].iloc[0])
    return markdown_table(["model", f"nats per token, {n:,} tokens of `eval`"], rows)


def power_table(power: pd.DataFrame) -> str:
    """Format how many nulls and positive controls each metric told apart, best first."""
    power = power.sort_values(["separates_share", "metric"], ascending=[False, True])
    rows = []
    for row in power.itertuples():
        names = (getattr(row, key) for key in ("explainer", "scorer"))
        name = ", ".join([f"`{row.metric}`", *(name for name in names if isinstance(name, str))])
        nulls = f"{row.n_separates} of {row.n_contrasts}"
        controls = f"{row.n_controls_told_apart} of {row.n_controls}"
        rows.append([name, nulls, str(row.n_equivalent), controls])
    head = ["metric", "nulls told apart", "equivalent", "`retrained` told apart"]
    n_columns = len(head) if power["n_controls"].any() else len(head) - 1
    return markdown_table(head[:n_columns], [row[:n_columns] for row in rows])


def stages_table(verdicts: pd.DataFrame) -> str:
    """Format verdicts on explanations and directions, with null minus real, a row per metric and
    pair.
    """
    rows = []
    keys = ["stage", "real", "null", "metric", "scorer"]
    found = verdicts[verdicts["stage"].isin(["explanation", "effect"])]
    found = found[~found["sae"].isin(null_dictionaries(verdicts))]
    for (stage, real, null, metric, scorer), sites in found.groupby(keys, sort=False, dropna=False):
        name = ", ".join([f"`{metric}`", *([scorer] if isinstance(scorer, str) else [])])
        rows.append([stage, f"`{real}`", f"`{null}`", name, _said(sites)])
    return markdown_table(
        ["stage", "real", "null", "metric", "verdict and null - real, by site"], rows
    )


def null_dictionaries(verdicts: pd.DataFrame) -> list[str]:
    """Return the null dictionaries with which learned ones are compared."""
    return [*verdicts[verdicts["stage"] == "dictionary"]["null"].unique()]


def dictionaries_table(verdicts: pd.DataFrame) -> str:
    """Format verdicts on the learned dictionary, with null minus real, a column per null."""
    nulls, rows = null_dictionaries(verdicts), []
    found = verdicts[verdicts["stage"] == "dictionary"]
    found = found[~found["explainer"].fillna("").str.contains("swapped")]
    keys = ["metric", "explainer", "scorer"]
    for (metric, *judge), cells in found.groupby(keys, sort=False, dropna=False):
        name = ", ".join([f"`{metric}`", *(one for one in judge if isinstance(one, str))])
        rows.append([name, *(_said(cells[cells["null"] == null]) for null in nulls)])
    return markdown_table(["metric", *(f"`{null}`" for null in nulls)], rows)


def _said(sites: pd.DataFrame) -> str:
    said = [
        row.verdict if pd.isna(row.difference) else f"{row.verdict} {row.difference:+.3f}"
        for row in sites.itertuples()
    ]
    return ", ".join(said) or "-"


def variants_table(tables: Mapping[str, pd.DataFrame], recipe: str, site: str) -> str:
    """Format what the SAEs of a recipe are like at a site, a row per variant."""
    found = tables["reconstruction"].query("sae == @recipe and site == @site and seed == 0")
    r2 = found.query("draw == 0").set_index("variant")["token_lookup_r2"]
    loss = tables["models"].query("draw == 0").set_index("variant")["heldout_loss_nats"]
    metrics = [at_site(tables["summaries"], of, site).get(recipe, {}) for of in OF_VARIANTS]
    columns = [(loss, 3), (r2, 3), *zip(metrics, (of.digits for of in OF_VARIANTS), strict=True)]
    rows = [
        [f"`{name}`", *(_plain(column.get(name), digits) for column, digits in columns)]
        for name in VARIANTS
        if name in r2
    ]
    head = ["variant", "`heldout_loss_nats`", "`token_lookup_r2`", *map(_name, OF_VARIANTS)]
    return markdown_table(head, rows)


def recipes_table(summaries: pd.DataFrame, of: Row, site: str) -> str:
    """Format a metric at a site, a row per recipe and a column per variant of `SHOWN`."""
    values = at_site(summaries, of, site)
    rows = [
        [f"`{recipe}`", *(_plain(values[recipe].get(name), of.digits) for name in SHOWN)]
        for recipe in values
    ]
    return markdown_table([_name(of), *(f"`{name}`" for name in SHOWN)], rows)


def at_site(summaries: pd.DataFrame, of: Row, site: str) -> dict[str, pd.Series]:
    """Return the values of a metric at a site by variant, for each recipe that has one."""
    found = _rows_of(summaries[summaries["site"] == site], of)
    return {
        str(recipe): cells.set_index("variant")["value"]
        for recipe, cells in found.groupby("sae", sort=False)
        if cells["value"].notna().any()
    }


def transfer_table(crossed: pd.DataFrame, recipe: str, site: str) -> str:
    """Format the explained variance of the SAEs of a recipe (rows) on the activations of `SHOWN`
    (columns), scaled to the norm that the SAE knows.
    """
    found = crossed.query("sae == @recipe and site == @site and seed == 0 and draw == 0")
    found = found[found["evaluated_on_draw"] == 0]
    values = found.pivot(
        index="variant", columns="evaluated_on", values="explained_variance_rescaled"
    )
    names = [name for name in SHOWN if name in values.index]
    rows = [[f"`{one}`", *(_plain(values.loc[one, other], 2) for other in names)] for one in names]
    return markdown_table(["trained on", *(f"`{name}`" for name in names)], rows)


def _rows_of(summaries: pd.DataFrame, of: Row) -> pd.DataFrame:
    found = summaries[summaries["metric"] == of.metric]
    for key in ("explainer", "scorer"):
        value = getattr(of, key)
        found = found[found[key].isna() if value is None else found[key] == value]
    return found


def _plain(value: float | None, digits: int) -> str:
    return "-" if value is None or pd.isna(value) else f"{value:.{digits}f}"


def _name(of: Row) -> str:
    return ", ".join(filter(None, (f"`{of.metric}`", of.explainer, of.scorer)))


def blocks(results: Path) -> dict[str, str]:
    """Return texts by the names of their marks."""
    tables = {
        name: pd.read_parquet(results / "tables" / f"{name}.parquet")
        for name in (
            *("summaries", "models", "discriminating_power", "verdicts"),
            *("reconstruction", "cross_evaluation"),
        )
    }
    # Except for those of recipes, tables are about the first recipe; those of controls, also about
    # the last site.
    recipe = next(iter(yaml.safe_load((results / "run_config.yaml").read_text("utf-8"))["saes"]))
    site = max(tables["reconstruction"]["site"], key=site_layer)
    power = tables["discriminating_power"]
    answer = json.loads((results / "tables" / "answer.json").read_text(encoding="utf-8"))
    quoted = textwrap.wrap(" ".join(answer["sentences"]), COLUMNS - 2, break_on_hyphens=False)
    return {
        "answer": "\n".join(f"> {line}" for line in quoted),
        "summaries": summaries_table(tables["summaries"], recipe),
        "models": models_table(tables["models"]),
        "power": power_table(power[power["sae"] == recipe]),
        "stages": stages_table(tables["verdicts"]),
        "dictionaries": dictionaries_table(tables["verdicts"]),
        "variants": variants_table(tables, recipe, site),
        "recipes": "\n\n".join(recipes_table(tables["summaries"], of, site) for of in OF_RECIPES),
        "transfer": transfer_table(tables["cross_evaluation"], recipe, site),
    }


def filled(page: str, texts: dict[str, str]) -> str:
    """Return a page with the text between its marks replaced.

    Raises:
        KeyError: a mark has no text.
    """
    return re.sub(
        r"(<!-- numbers: (\w+) -->\n).*?(<!-- end of numbers -->)",
        lambda found: f"{found[1]}{texts[found[2]]}\n{found[3]}",
        page,
        flags=re.DOTALL,
    )


def main(results: Path, pages: Sequence[Path]) -> None:
    """Fill the marks of pages."""
    texts = blocks(results)
    for page in pages:
        page.write_text(filled(page.read_text(encoding="utf-8"), texts), encoding="utf-8")


if __name__ == "__main__":
    arguments = [Path(argument) for argument in sys.argv[1:]]
    main(arguments[0], arguments[1:] or [REPOSITORY / name for name in PAGES])
