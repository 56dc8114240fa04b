"""What the report reads: the aggregated tables of a study, restricted to what it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nullsae import paths
from nullsae.config.metrics import METRICS, is_of_model
from nullsae.config.study import NO_EXPLAINER, Config
from nullsae.config.variants import is_null, is_positive_control
from nullsae.report.names import shown_explainer
from nullsae.statistics.answer import Answer

Row = dict[str, Any]

_SAE = ("subject", "variant", "draw", "site", "sae", "seed")
_OF_LATENTS = (
    *("latent", "firing_share", "max_activation", "token_entropy_bits"),
    *("token_entropy_corrected_bits", "peak_token", "peak_token_share", "sampled"),
    *("promoted_tokens", "promoted_effects", "suppressed_tokens", "suppressed_effects"),
)
COLUMNS: dict[str, tuple[str, ...] | None] = {
    **dict.fromkeys(("models", "reconstruction", "cross_evaluation")),
    "history": (*_SAE, "tokens", "heldout_explained_variance"),
    "latents": (*_SAE, *_OF_LATENTS),
    "coverage": None,
    "explanations": (*_SAE, "explainer", "latent", "explanation", "source_latent"),
    "scores": (*_SAE, "explainer", "scorer", "latent", "auroc"),
    **dict.fromkeys(("geometry", "overlap", "summaries", "contrasts", "verdicts")),
}
"""The tables read and, if only some columns are needed, these columns."""

ALONG_TRAINING = ("summaries", "history")
"""The tables that are also read for SAEs along their training, for the figure `training`."""
PLACE = ("subject", "variant", "site")
"""The columns that rows are indexed by."""
MAX_SAES_SIDE_BY_SIDE = 2
"""With more SAEs, figures and tables take their compact forms."""


@dataclass(frozen=True)
class Study:
    """A config and its results.

    `tables` are about finished SAEs. `tables["latents"]` contains only the sampled latents;
    `explanations` and `scores` contain only those of the first explainer, which are shown one by
    one.
    """

    config: Config
    root: Path
    tables: dict[str, list[Row]]
    along: dict[str, list[Row]] = field(default_factory=dict)
    """Rows of `ALONG_TRAINING` about SAEs during their training."""
    floors: list[Row] = field(default_factory=list)
    """Rows of `reconstruction` about Gaussian floors, which are not variants."""
    answer: Answer = field(default_factory=lambda: Answer((), ()))
    stages: list[Row] = field(default_factory=list)
    """Rows of `verdicts` about stages other than the model; `tables` has those about models."""
    made_by: list[Row] = field(default_factory=list)
    """Rows of `provenance`; empty if the table does not exist."""

    @property
    def variants(self) -> tuple[str, ...]:
        """All variants in display order."""
        return self.config.variants

    @property
    def compared(self) -> tuple[str, ...]:
        """The variants that `trained` is compared with, in display order."""
        return tuple(variant for variant in self.variants if variant != "trained")

    @property
    def nulls(self) -> tuple[str, ...]:
        """Those that a good metric tells from `trained`."""
        return tuple(filter(is_null, self.variants))

    @property
    def positive_controls(self) -> tuple[str, ...]:
        """Those that a good metric does not tell from `trained`."""
        return tuple(filter(is_positive_control, self.variants))

    @property
    def compact(self) -> bool:
        """Whether there are too many SAEs for one panel each."""
        return len(self.config.saes) > MAX_SAES_SIDE_BY_SIDE

    def rows(self, table: str, **keys: Any) -> list[Row]:
        """Return the rows of a table whose columns have the given values."""
        place = tuple(keys.get(name) for name in PLACE)
        candidates = self.tables[table]
        if None not in place:
            candidates = self._by_place[table].get(place, [])
        return [row for row in candidates if all(row[key] == keys[key] for key in keys)]

    @property
    def accepted(self) -> list[str]:
        """The rules whose older code made files of the study, with its hashes."""
        notes = [row["accepted"] for row in self.tables["contrasts"] if row["accepted"]]
        return sorted({part for note in notes for part in note.split("; ")})

    @cached_property
    def _by_place(self) -> dict[str, dict[tuple[Any, ...], list[Row]]]:
        # Large studies look up the rows of a cell thousands of times.
        found: dict[str, dict[tuple[Any, ...], list[Row]]] = {table: {} for table in self.tables}
        for table, rows in self.tables.items():
            for row in rows:
                found[table].setdefault(tuple(row.get(name) for name in PLACE), []).append(row)
        return found

    def order(self, subject: str, *levels: str) -> Callable[[Row], tuple[int, ...]]:
        """Return a key that sorts rows for display by these columns; missing values come first."""
        config = self.config
        names: dict[str, Iterable[str]] = {
            "metric": METRICS,
            "explainer": [*config.explainers, NO_EXPLAINER],
            "scorer": config.scorers,
            "sae": config.saes,
            "site": config.subjects[subject].sites,
            "variant": self.variants,
        }
        orders: list[tuple[str, dict[Any, int]]] = [
            (level, {name: i for i, name in enumerate(names[level])}) for level in levels
        ]
        return lambda row: tuple(order.get(row.get(level), -1) for level, order in orders)


def load_study(config: Config, root: Path) -> Study:
    """Read the tables that the report shows.

    Raises:
        UserError: a table is missing, damaged or from another version.
    """
    # Callers that only need the names of figures read no tables.
    import pyarrow as pa
    import pyarrow.compute as pc

    from nullsae import tables
    from nullsae.aggregation.answer import read_answer
    from nullsae.tables.study import PROVENANCE

    loaded: dict[str, list[Row]] = {}
    along: dict[str, list[Row]] = {}
    floors: list[Row] = []
    whole = pc.field("sae").isin(pa.array(config.saes, type=pa.string()))
    # Floors are not variants.
    of_variants = pc.field("variant").isin(pa.array(config.variants, type=pa.string()))
    for name, columns in COLUMNS.items():
        table = tables.read_whole(root, name, columns=columns)
        if name == "reconstruction":
            floors = table.filter(whole & ~of_variants).to_pylist()
        if "variant" in table.column_names:
            table = table.filter(of_variants)
        if name in ALONG_TRAINING:
            along[name] = table.filter(~whole).to_pylist()
        if "sae" in table.column_names:
            table = table.filter(whole)
        if name == "latents":
            table = table.filter(pc.field("sampled"))
        if name in ("explanations", "scores"):
            table = table.filter(pc.field("explainer") == (shown_explainer(config) or ""))
        loaded[name] = table.to_pylist()
    made_by = []
    if (file := root / paths.PROVENANCE).is_file():
        made_by = tables.read_table(file, PROVENANCE).to_pylist()
    stages = [row for row in loaded["verdicts"] if not is_of_model(row)]
    for name in ("contrasts", "verdicts"):
        loaded[name] = list(filter(is_of_model, loaded[name]))
    return Study(config, root, loaded, along, floors, read_answer(root), stages, made_by)


def thin(names: Sequence[str], n: int) -> list[str]:
    """Select at most `n` names, evenly spread from first to last; the middle one for n = 1."""
    if len(names) <= n:
        return list(names)
    if n == 1:
        return [names[len(names) // 2]]
    return [names[i * (len(names) - 1) // (n - 1)] for i in range(n)]


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values, ignoring None; None if there are none."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else None
