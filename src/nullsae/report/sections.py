"""The tables of the page as plain rows: health, verdicts, contrasts, coverage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from nullsae.config.metrics import METRICS, STAGES
from nullsae.config.variants import VARIANTS, has_model, is_positive_control
from nullsae.report.names import metric_group
from nullsae.report.study import Row, Study, mean

VERDICTS = ("separates", "equivalent", "inconclusive", "reversed", "none")
MAX_SITES_IN_CELL = 4
"""With more sites, a cell of the matrix counts verdicts instead of listing sites."""
MAX_VARIANTS_SPELLED_OUT = 5
"""With more besides `trained`, verdicts become a sign and a number, so that all columns fit."""
MAX_CONTRASTS = 6000
"""Contrasts on the page; beyond this, only those of the first SAEs, to keep it small."""
MAX_CONTRASTS_WITH_REASONS = 1000
REFUSED = {
    "n_too_rare": "too rare",
    "n_few_active_windows": "few active windows",
    "n_few_silent_windows": "few silent windows",
}
"""Columns of `coverage` that say why latents fail the filter, in words."""
LEVELS = ("metric", "sae", "explainer", "scorer", "variant", "site")
"""What contrasts are sorted by."""


class ShownVerdict(NamedTuple):
    """How the page shows a verdict."""

    sign: str
    word: str
    style: str
    """The CSS class of its colours."""


_SHOWN = {
    "separates": ShownVerdict("▲", "separates", "separates"),
    "reversed": ShownVerdict("▼", "reversed", "reversed"),
    "equivalent": ShownVerdict("≈", "equivalent", "equivalent"),
    "inconclusive": ShownVerdict("?", "inconclusive", "inconclusive"),
    "none": ShownVerdict("∅", "no verdict", "none"),
}
# There equivalence counts for a metric, and a difference in either direction against it.
_SHOWN_OF_CONTROL = {
    **_SHOWN,
    **dict.fromkeys(("separates", "reversed"), ShownVerdict("≠", "told apart", "reversed")),
    "equivalent": ShownVerdict("≈", "equivalent", "separates"),
}


def shown_verdict(verdict: str | None, variant: str | None = None) -> ShownVerdict:
    """Return how the page shows a verdict about a variant; without a variant, about a null."""
    of_control = variant is not None and is_positive_control(variant)
    otherwise = ShownVerdict("", verdict or "", "inconclusive")
    return (_SHOWN_OF_CONTROL if of_control else _SHOWN).get(verdict or "", otherwise)


def signs(study: Study) -> list[ShownVerdict]:
    """List how a study's page shows verdicts, for the legend next to the answer."""
    shown = [shown_verdict(verdict) for verdict in VERDICTS]
    return [*shown, *([_SHOWN_OF_CONTROL["separates"]] if study.positive_controls else [])]


class MatrixRow(NamedTuple):
    """One metric (and explainer, scorer, SAE) against all other variants."""

    title: str
    detail: str
    """The levels that distinguish it from its neighbours, e.g. "lexical, detection"."""
    cells: list[list[Row]]
    """For each variant, its verdict rows, in the order of the sites."""
    section: str
    """The metric's section, as `nullsae.config.metrics` names it."""

    def by_site(self) -> list[tuple[str, list[Row | None]]]:
        """Return the rows by site: for each variant, its row or None."""
        sites = dict.fromkeys(row["site"] for cell in self.cells for row in cell)
        rows = [{row["site"]: row for row in cell} for cell in self.cells]
        return [(site, [found.get(site) for found in rows]) for site in sites]


class MatrixGroup(NamedTuple):
    """Rows of one section of the report."""

    title: str
    rows: list[MatrixRow]


class Matrix(NamedTuple):
    """The verdicts of one SAE, or of all SAEs if they are few."""

    sae: str | None
    counts: dict[str, Counter[str]]
    """For each variant, how many of its comparisons got each verdict."""
    groups: list[MatrixGroup]


class StageTable(NamedTuple):
    """The verdicts of a stage within the trained subject."""

    title: str
    nulls: list[str]
    rows: list[MatrixRow]


class CoverageTable(NamedTuple):
    """A table of cells."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[Row | None]]]
    """Names and cells."""
    variants_down: bool = True
    """Whether variants are the rows; otherwise they are the columns."""


def health(study: Study, subject: str) -> list[Row]:
    """Return rows of `models` in display order, with `gap_nats`: held-out minus bigram loss.

    A variant without a model has a row with only `variant` and `draw`, and `gap_nats` None.
    """
    found: list[Row] = []
    for variant in study.variants:
        rows = study.rows("models", subject=subject, variant=variant)
        found += [
            row | {"gap_nats": row["heldout_loss_nats"] - row["bigram_loss_nats"]}
            for row in sorted(rows, key=lambda row: int(row["draw"]))
        ]
        if not has_model(variant):
            found.append({"variant": variant, "draw": 0, "gap_nats": None})
    return found


def activation_health(study: Study, subject: str) -> list[Row]:
    """Describe the activations at each site, by variant and draw in display order.

    Each row has `variant`, `draw` and `sites`, which maps a site to a row of `reconstruction` or
    None. These figures do not depend on the SAE, so the first one of the site is used.
    """
    sites = study.config.subjects[subject].sites
    first: dict[tuple[str, int, str], Row] = {}
    for row in study.rows("reconstruction", subject=subject):
        first.setdefault((row["variant"], row["draw"], row["site"]), row)
    return [
        {"variant": v, "draw": draw, "sites": {site: first.get((v, draw, site)) for site in sites}}
        for v in study.variants
        for draw in study.config.draws_of(v, subject)
    ]


def is_drawn(variant: str) -> bool:
    """Whether a variant has draws worth naming."""
    return not VARIANTS[variant].fixed


def is_tight(study: Study) -> bool:
    """Whether verdicts must be short: many variants, or a matrix for each of many SAEs."""
    return study.compact or len(study.compared) > MAX_VARIANTS_SPELLED_OUT


def verdict_matrices(study: Study, subject: str) -> list[Matrix]:
    """Return verdicts as matrices: metrics down, variants across, sites within a cell.

    There is one matrix for all SAEs or, if verdicts must be short, one for each.
    """
    ordered = sorted(study.rows("verdicts", subject=subject), key=study.order(subject, *LEVELS))
    if not is_tight(study):
        return [_matrix(study, None, ordered)]
    by_sae: dict[str, list[Row]] = {sae: [] for sae in study.config.saes}
    for row in ordered:
        by_sae[row["sae"]].append(row)
    return [_matrix(study, sae, rows) for sae, rows in by_sae.items()]


def _matrix(study: Study, sae: str | None, ordered: list[Row]) -> Matrix:
    counts: dict[str, Counter[str]] = {v: Counter() for v in study.compared}
    for row in ordered:
        counts[row["variant"]][row["verdict"]] += 1
    groups: dict[str, list[MatrixRow]] = {}
    for metric, matrix_row in _rows(
        study, ordered, "variant", study.compared, with_sae=sae is None
    ):
        groups.setdefault(metric_group(metric), []).append(matrix_row)
    return Matrix(sae, counts, [MatrixGroup(title, group) for title, group in groups.items()])


def _rows(
    study: Study, ordered: list[Row], column: str, names: Sequence[str], *, with_sae: bool
) -> Iterator[tuple[str, MatrixRow]]:
    """Yield metric and row of a matrix whose columns are these values of a column of `verdicts`."""
    rows: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in ordered:
        key = (row["metric"], _detail(study, row, with_sae=with_sae))
        rows.setdefault(key, {}).setdefault(row[column], []).append(row)
    for (metric, detail), found in rows.items():
        cells = [found.get(name, []) for name in names]
        of = METRICS[metric]
        yield metric, MatrixRow(of.title, detail, cells, of.section)


def stage_tables(study: Study, subject: str) -> list[StageTable]:
    """Return verdicts within the trained subject, stage by stage: metrics down, nulls across."""
    own = [row for row in study.stages if row["subject"] == subject]
    own.sort(key=study.order(subject, *LEVELS))
    tables = []
    for stage, text in STAGES.items():
        rows = [row for row in own if row["stage"] == stage]
        nulls = list(dict.fromkeys(row["null"] for row in rows))
        if rows:
            found = [row for _, row in _rows(study, rows, "null", nulls, with_sae=True)]
            tables.append(StageTable(f"{stage.capitalize()}: {text}", nulls, found))
    return tables


def _detail(study: Study, row: Row, *, with_sae: bool) -> str:
    """Return the levels of a comparison that distinguish it from its neighbours."""
    parts = [f"{row['explainer']}, {row['scorer']}"] if row["explainer"] is not None else []
    if with_sae and len(study.config.saes) > 1:
        parts.append(row["sae"])
    return " · ".join(parts)


def tally(cell: Iterable[Row]) -> list[tuple[str, int]]:
    """Count each verdict in a cell of the matrix."""
    return in_order(Counter(row["verdict"] for row in cell))


def in_order(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return the verdicts that occur in display order, with their counts."""
    return [(verdict, counts[verdict]) for verdict in VERDICTS if counts.get(verdict)]


def contrasts(study: Study, subject: str) -> list[tuple[str, list[Row] | None]]:
    """Return contrasts by SAE, in display order, with the metric's title and the verdict.

    None for an SAE whose rows do not fit on the page. With few rows, each verdict has a reason;
    otherwise only missing numbers have one, and the columns give the rest.
    """
    keys = ("site", "sae", "explainer", "scorer", "metric", "variant")
    verdicts = {
        tuple(row[key] for key in keys): row for row in study.rows("verdicts", subject=subject)
    }
    ordered = sorted(study.rows("contrasts", subject=subject), key=study.order(subject, *LEVELS))
    spelled_out = len(ordered) <= MAX_CONTRASTS_WITH_REASONS
    by_sae: dict[str, list[Row]] = {sae: [] for sae in study.config.saes}
    for row in ordered:
        verdict = verdicts.get(tuple(row[key] for key in keys), {})
        why = (verdict.get("reason") if spelled_out else None) or row["reason"]
        added = {"title": METRICS[row["metric"]].title, "verdict": verdict.get("verdict")}
        by_sae[row["sae"]].append({**row, **added, "why": why})
    found: list[tuple[str, list[Row] | None]] = []
    room = MAX_CONTRASTS
    for sae, rows in by_sae.items():
        room -= len(rows)
        found.append((sae, rows if room >= 0 or not found else None))
    return found


def coverage(study: Study, subject: str) -> list[CoverageTable]:
    """Return what passed the filter, summed over draws and seeds, arranged by `_grids`."""

    def cell(variant: str, site: str, sae: str) -> Row | None:
        rows = study.rows("coverage", subject=subject, site=site, sae=sae, variant=variant)
        names = ("n_latents", "n_alive", "n_pass", "n_sampled", *REFUSED)
        total = {name: sum(row[name] for row in rows) for name in names}
        if not total["n_latents"]:
            return None
        return {**total, "pass_share": total["n_pass"] / total["n_latents"]}

    return _grids(study, subject, cell)


def arms(study: Study, subject: str) -> list[CoverageTable]:
    """Return L0 and training tokens of each arm, means over draws and seeds, arranged by `_grids`.

    `tokens` is None for an SAE made elsewhere.
    """

    def cell(variant: str, site: str, sae: str) -> Row | None:
        place = {"subject": subject, "site": site, "sae": sae, "variant": variant}
        l0 = mean(row["l0"] for row in study.rows("reconstruction", **place))
        last: dict[tuple[int, int], float] = {}
        for row in study.rows("history", **place):
            key = row["draw"], row["seed"]
            last[key] = max(last.get(key, 0), row["tokens"])
        elsewhere = study.config.saes[sae].made_elsewhere(variant)
        tokens = None if elsewhere else mean(last.values())
        return None if l0 is None else {"l0": l0, "tokens": tokens}

    return _grids(study, subject, cell)


def _grids(
    study: Study, subject: str, cell: Callable[[str, str, str], Row | None]
) -> list[CoverageTable]:
    """Arrange cells for each variant, site and SAE: sites (and SAEs) down, variants across.

    With many variants it is the other way round; with many SAEs there is one grid per site.
    """
    variants = list(study.variants)
    saes, sites = list(study.config.saes), study.config.subjects[subject].sites

    def down(title: str, places: dict[str, tuple[str, str]]) -> CoverageTable:
        rows = [(v, [cell(v, *place) for place in places.values()]) for v in variants]
        return CoverageTable(title, list(places), rows)

    if study.compact:
        return [down(site, {sae: (site, sae) for sae in saes}) for site in sites]
    places = {
        (f"{site} · {sae}" if len(saes) > 1 else site): (site, sae)
        for site in sites
        for sae in saes
    }
    if is_tight(study):
        return [down("", places)]
    rows = [(label, [cell(v, *place) for v in variants]) for label, place in places.items()]
    return [CoverageTable("", variants, rows, variants_down=False)]
