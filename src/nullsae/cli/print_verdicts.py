"""`nullsae verdicts`: print the answer and the verdicts of a study."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Any

from rich.console import Console
from rich.table import Table

from nullsae import paths, tables
from nullsae.aggregation.answer import read_answer
from nullsae.aggregation.provenance import differences
from nullsae.config.metrics import STAGES, is_of_model
from nullsae.config.read import way_to_run
from nullsae.config.variants import is_positive_control
from nullsae.core.errors import UserError
from nullsae.statistics.ranking import LEVEL
from nullsae.statistics.verdicts import (
    CONTROL_RULE,
    FEWEST_ANSWERED,
    RULE,
    VERDICT_WORDS,
    replication_note,
)
from nullsae.tables.study import PROVENANCE

STYLES = {"separates": "green", "reversed": "red", "equivalent": "yellow"}
STYLES |= dict.fromkeys(("inconclusive", "none"), "dim")
# Against a positive control: a difference speaks against a metric here, and for it with a null.
OF_CONTROLS = {
    **{name: (name, style) for name, style in STYLES.items()},
    **dict.fromkeys(("separates", "reversed"), ("told apart", "red")),
    "equivalent": ("equivalent", "green"),
}


def print_verdicts(root: Path, *, all_verdicts: bool = False) -> None:
    """Print the answer of a study, its caveats, and the path of its report.

    Args:
        root: the folder of the study.
        all_verdicts: also print each verdict (a row per metric, site and judge, a column per
            variant), counts per metric, and the shares of latents that beat placebo.

    Raises:
        UserError: a table is missing or damaged.
    """
    file = root / paths.TABLE.format(table="verdicts")
    if not file.is_file():
        raise UserError(f"{file}: does not exist; {way_to_run(root, 'writes it')}")
    rows = tables.read_whole(root, "verdicts").to_pylist()
    answer = read_answer(root)
    console = Console() if Console().is_terminal else Console(width=160)
    if all_verdicts:
        _print_all(console, rows, tables.read_whole(root, "discriminating_power").to_pylist())
        if beating := tables.read_whole(root, "beating_placebo").to_pylist():
            console.print(_beating(beating))
    for sentence in answer.sentences:
        console.print(sentence, markup=False, highlight=False)
    warnings = sorted({(row["subject"], row["warning"]) for row in rows if row["warning"]})
    if (file := root / paths.PROVENANCE).is_file():
        warnings += differences(tables.read_table(file, PROVENANCE).to_pylist())
    answered = min(
        (row["answered_share"] for row in rows if row["answered_share"] is not None), default=1.0
    )
    if answered < FEWEST_ANSWERED:
        console.print(
            f"Warning: a judge answered about only {answered:.0%} of a comparison's windows.",
            style="red",
        )
    for subject, warning in warnings:
        console.print(f"Warning: subject {subject}: {warning}.", style="red", markup=False)
    notes = [row["accepted"].split("; ") for row in rows if row["accepted"]]
    # Their hashes are in the tables and on the page.
    if rules := sorted({note.split()[0] for found in notes for note in found}):
        console.print(f"Made in part by older code, which was accepted: {', '.join(rules)}.")
    if not all_verdicts:
        study = "" if root == Path() else f"{quote(str(root))} "
        each = f"Each verdict: nullsae verdicts {study}--all"
        console.print(each, markup=False, highlight=False, soft_wrap=True)
    if (ranked := root / paths.TABLE.format(table="latents_ranked")).is_file():
        said = f"Each latent with its q against placebo: {ranked}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    page = (root / paths.REPORT).resolve()
    said = f"Report: {page}" if page.is_file() else f"No report: {way_to_run(root, 'draws it')}"
    console.print(said, markup=False, highlight=False, soft_wrap=True)


def _print_all(console: Console, rows: list[dict[str, Any]], power: list[dict[str, Any]]) -> None:
    if note := replication_note(filter(is_of_model, rows)):
        console.print(note, style="bold", markup=False)
    for stage, text in STAGES.items():
        if of_stage := [row for row in rows if row["stage"] == stage]:
            console.print(_verdicts(of_stage, f"Verdicts, {stage}: does the metric tell {text}?"))
    console.print("The number is the difference, null minus the real thing.")
    console.print(_arms(list(filter(is_of_model, rows))))
    for reason in dict.fromkeys(row["reason"] for row in rows if row["verdict"] == "none"):
        console.print(f"None: {reason}.", markup=False)
    shares = [row["answered_share"] for row in rows if row["answered_share"] is not None]
    if min(shares, default=1.0) < FEWEST_ANSWERED:
        console.print(
            "* Based on this share of the windows: the judge gave no usable answer about the "
            "others (n_failed in results/tables/contrasts.parquet)."
        )
    console.print(RULE)
    if any(is_positive_control(row["variant"]) for row in rows):
        console.print(CONTROL_RULE)
    console.print(_power(power))
    difference = " Difference: in standard errors, positive on the expected side."
    console.print(
        "Over all sites and nulls. Superiority: the probability that a latent or document of "
        "trained is on the expected side of one of the null."
        + (difference if _has_standardized(power) else "")
    )
    if any(row["n_controls"] for row in power):
        console.print(
            "Not told apart: comparisons with positive controls that show no difference beyond "
            "the margin; in brackets, those shown to be equivalent."
        )


def _verdicts(rows: list[dict[str, Any]], title: str) -> Table:
    """Return the table of one stage's verdicts, with a column for each null."""
    nulls = list(dict.fromkeys(row["null"] for row in rows))
    keys = ("subject", "site", "sae", "metric", "explainer", "scorer")
    table = Table(title=title, title_justify="left")
    for name in ("subject", "site", "sae", "metric"):
        table.add_column(name)
    for null in nulls:
        own = [row for row in rows if row["null"] == null]
        scopes = dict.fromkeys(row["scope"] for row in own)
        control = " (positive control)" * is_positive_control(own[0]["variant"])
        name = f"{null.replace('_', ' ')}{control}, {' or '.join(scopes)}"
        table.add_column(name, max_width=16)
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        key = tuple(row[name] or "" for name in keys)
        verdict, difference = row["verdict"], row["difference"]
        number = "" if difference is None else f" {difference:+.2f}"
        word, style = verdict, STYLES[verdict]
        if is_positive_control(row["variant"]):
            word, style = OF_CONTROLS[verdict]
        text = f"[{style}]{word}{number}[/]"
        share = row["answered_share"]
        if share is not None and share < FEWEST_ANSWERED:
            text += f" of {share:.0%} *"
        cells.setdefault(key, {})[row["null"]] = text
    for (subject, site, sae, metric, explainer, scorer), found in cells.items():
        judge = f" ({explainer}, {scorer})" if scorer else ""
        table.add_row(subject, site, sae, metric + judge, *(found.get(name, "") for name in nulls))
    return table


def _arms(rows: list[dict[str, Any]]) -> Table:
    """Return a table of each arm's L0 and training tokens, with a column for each variant."""
    table = Table(title="L0 and training tokens of each arm", title_justify="left")
    variants = dict.fromkeys(row["variant"] for row in rows)
    for name in ("subject", "site", "sae", "trained", *variants):
        table.add_column(name.replace("_", " "), max_width=16)
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        arms = found.setdefault((row["subject"], row["site"], row["sae"]), {})
        for name, prefix in (("trained", "real_"), (row["variant"], "")):
            n_tokens = row[f"{prefix}training_tokens"]
            tokens = "unknown" if n_tokens is None else f"{n_tokens:,.0f}"
            arms[name] = f"{row[f'{prefix}l0']:.3g}, {tokens}"
    for key, arms in found.items():
        table.add_row(*key, *(arms.get(name, "") for name in ("trained", *variants)))
    return table


def _beating(rows: list[dict[str, Any]]) -> Table:
    nulls = list(dict.fromkeys(row["null"] for row in rows))
    keys = ("subject", "site", "sae", "metric", "variant")
    table = Table(
        title=f"Share of latents that beat null ones of their firing rate (q <= {LEVEL:g})",
        title_justify="left",
    )
    for name in keys:
        table.add_column(name)
    for null in nulls:
        table.add_column(null.replace("_", " "), justify="right", max_width=16)
    counts: dict[tuple[str, ...], dict[str, tuple[int, int]]] = {}
    for row in rows:
        found = counts.setdefault(tuple(row[name] for name in keys), {})
        beating, tested = found.get(row["null"], (0, 0))
        found[row["null"]] = beating + row["n_beating"], tested + row["n_tested"]
    for key, found in counts.items():
        shares = (found.get(null, (0, 0)) for null in nulls)
        table.add_row(*key, *(f"{n / tested:.0%}" if tested else "" for n, tested in shares))
    return table


def _has_standardized(power: list[dict[str, Any]]) -> bool:
    """Return whether any contrast was replicated."""
    return any(row["median_standardized_difference"] is not None for row in power)


def _power(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="What each metric's verdicts say together", title_justify="left")
    for name in ("subject", "sae", "metric"):
        table.add_column(name)
    for word in VERDICT_WORDS:
        table.add_column(word, justify="right")
    columns = [("superiority", "median_superiority", 2)]
    if _has_standardized(rows):
        columns.append(("difference", "median_standardized_difference", 1))
    for title, _, _ in columns:
        table.add_column(title, justify="right")
    with_controls = any(row["n_controls"] for row in rows)
    if with_controls:
        table.add_column("controls not told apart", justify="right", max_width=14)
    for row in rows:
        judge = f" ({row['explainer']}, {row['scorer']})" if row["scorer"] else ""
        counts = [
            f"[{STYLES[word]}]{row[f'n_{word}']}[/]" if row[f"n_{word}"] else ""
            for word in VERDICT_WORDS
        ]
        medians = [
            "" if row[name] is None else f"{row[name]:.{digits}f}" for _, name, digits in columns
        ]
        if with_controls:
            n, told, equal = (row[f"n_controls{of}"] for of in ("", "_told_apart", "_equivalent"))
            medians.append(f"{n - told} of {n} ({equal})" if n else "")
        table.add_row(row["subject"], row["sae"], row["metric"] + judge, *counts, *medians)
    return table
