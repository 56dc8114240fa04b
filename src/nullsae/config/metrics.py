"""What a metric is: a statistic of units by which variants are compared.

Each metric is a class in a file of its own in `metrics/catalogue`, or in another package under the
entry point group `nullsae.metrics`. The class has everything about it. The margins of the config
and the columns of the table `latents` come from these classes, so at its top such a file may import
from nullsae only this module, `core`, and modules that import no more than these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nullsae.config.variants import has_model, is_positive_control
from nullsae.core.registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Numbers = NDArray[np.float64]
    Counts = NDArray[np.int64]

Among = Literal["sampled", "passes_filter"]
Level = Literal["document", "latent", "cell"]
Form = Literal["mean", "ratio", "relative", "rank_correlation"]
Direction = Literal[-1, 0, 1]
Stage = Literal["model", "dictionary", "explanation", "effect"]

LEVELS: dict[str, Level] = {
    "documents": "document",
    "latents": "latent",
    "scores": "latent",
    "interpretability": "latent",
    "reconstruction": "cell",
    "geometry": "cell",
    "coverage": "cell",
}
"""Tables that metrics can be computed from, and what a row of each describes."""
STAGES: dict[Stage, str] = {
    "model": "trained from the variant",
    "dictionary": "a learned dictionary from a null one, on the trained subject",
    "explanation": "an explanation from a null one, of the same latents by the same judge",
    "effect": "a latent's own direction from another one, at the same places",
}
"""Stages of a study, and what a metric should tell from what at each."""
OWN_DIRECTION = "own_direction"
"""The real thing at the stage `effect`."""
SECTIONS = {
    "effects": "Effect on the next token",
    "reconstruction": "Reconstruction",
    "tokens": "Token identity and entropy",
    "interpretability": "Automated interpretability",
    "fidelity": "Fidelity",
    "dictionaries": "Dictionaries",
    "transfer": "Transfer between variants",
    "training": "Training of the SAEs",
}
"""Sections of the report with figures: key and title, in display order."""


class Column(NamedTuple):
    """A column that a metric adds to the table `latents`."""

    name: str
    unit: str = ""
    """Its unit or a remark, as in `tables.cells`."""
    kind: str = "float?"
    """Its type, as in `tables.columns`. NaN is written as null if the type allows null."""


class Metric:
    """A statistic of units: documents of the split, sampled latents, or whole cells."""

    name: str
    """Also the name of its figure, and of its margin in `statistics.margin_shares`."""
    position: int = 1_000
    """Its place among all metrics, in tables and on the page."""
    title: str
    """Label of an axis, with the unit."""

    table: str = "latents"
    """One of `LEVELS`."""
    among: Among = "passes_filter"
    """Which rows of the table `latents` count: all that pass the filter, or only sampled latents,
    if the columns are null for others."""
    columns: tuple[str, ...]
    """Columns to compute it from; by default `column`. Units with a null in one are left out."""
    column: Column | None = None
    """A column of `latents` that this metric adds, by `latent_sums` and `latent_column`."""
    form: Form = "mean"
    """`mean`: over units. `ratio`: of the sums of two values. `relative`: the first of two ratios
    over the smaller of the second and the first one of the Gaussian floor's cell; values come in
    pairs, numerator and denominator. `rank_correlation`: Spearman's, of two values."""
    complement: bool = False
    """Whether the metric is 1 minus that."""
    at_least: str | None = None
    """The setting in `statistics` that a unit's value must reach to count as 1, else 0."""

    direction: Direction = 1
    """The sign of (trained minus null) if the metric sees structure that training made. With 0 no
    sign is expected, and a difference either way separates."""
    directions: Mapping[str, Direction] = {}
    """Other signs for single variants, by name."""
    dictionary_direction: Direction | None = None
    """The sign of (learned minus null dictionary), by default `direction`; 0 as above."""
    placebos: Mapping[str, tuple[str, ...]] = {}
    """Columns that replace `columns`, by the name of a null at the stage `effect`."""
    floor: float
    """Its value if nothing was learned; by default `chance`."""
    floor_is: str = ""
    """What the floor is, in words, if the number alone does not say it."""
    margin_share: float = 0.1
    """Differences below this share of |trained - floor| count as none, unless the config says
    otherwise."""
    has_value_on_samples: bool = True
    """Whether it has a value for activations that are sampled without a model (`gaussian`)."""
    chance: float | None = None
    """The value for a judge who knows nothing, if the figure should show it."""

    section: str
    """Its section of the report, one of `SECTIONS`."""
    place: int | None = None
    """Place of its figure in that section; by default `position`."""
    definition: str
    """Its definition, for the caption of its figure."""
    formula: str = ""
    """The same as a formula, for docs/metrics.md."""
    reading: str
    """How to read it, for the caption of its figure."""
    values: str = ""
    """The range of values, for docs/metrics.md."""
    is_usual: bool = False
    """Whether papers on SAEs report it; the answer names such metrics first if they do not tell."""
    sites_share_scale: bool = True
    """Whether values of different sites fit on one axis."""
    along_training: int | None = None
    """Its place in the figure `training`, if it has one."""

    def __init_subclass__(cls) -> None:
        """Check a metric as soon as its class is defined.

        Raises:
            TypeError: it lacks something that the tables or the report need, or its margin share is
                not between 0 and 1.
        """
        super().__init_subclass__()
        if "name" not in vars(cls):
            return
        if cls.column is not None and not hasattr(cls, "columns"):
            cls.columns = (cls.column.name,)
        if cls.chance is not None and not hasattr(cls, "floor"):
            cls.floor = cls.chance
        needed = ("title", "columns", "floor", "section", "definition", "reading")
        missing = [name for name in needed if not hasattr(cls, name)]
        if missing:
            raise TypeError(f"metric {cls.name!r}: lacks {', '.join(missing)}")
        for what, of, among in (("table", cls.table, LEVELS), ("section", cls.section, SECTIONS)):
            if of not in among:
                raise TypeError(
                    f"metric {cls.name!r}: {what} {of!r} is not one of {', '.join(among)}"
                )
        if not 0 < cls.margin_share < 1:
            raise TypeError(
                f"metric {cls.name!r}: margin_share {cls.margin_share:g} is not between 0 and 1: "
                f"even a null at the floor could not differ by as much"
            )

    @property
    def unit(self) -> Level:
        """What is resampled within a draw and seed."""
        return LEVELS[self.table]

    @property
    def is_scored(self) -> bool:
        """Whether it belongs to an explainer and a scorer."""
        return self.table in ("scores", "interpretability")

    @property
    def found_in(self) -> str:
        """Its columns in words."""
        return " or ".join(self.columns)

    @property
    def denominator(self) -> str:
        """The denominator of a ratio in words."""
        return self.columns[1]

    @property
    def floor_text(self) -> str:
        """Value and meaning of the floor, for docs/metrics.md."""
        return f"{self.floor:g}" + (f": {self.floor_is}" if self.floor_is else "")

    def direction_against(self, variant: str) -> Direction:
        """Return the expected sign of (trained minus this variant), or 0."""
        if is_positive_control(variant):
            return 0
        return self.directions.get(variant, self.direction)

    def direction_at(self, stage: Stage, null: str) -> Direction:
        """Return the expected sign of (real thing minus this null) at a stage, or 0."""
        if stage == "model":
            return self.direction_against(null)
        if stage == "dictionary" and self.dictionary_direction is not None:
            return self.dictionary_direction
        return self.direction

    def value(self, columns: Mapping[str, Numbers]) -> Numbers | tuple[Numbers, ...]:
        """Return the arrays [n_units] of `form`: one, two (ratio, correlation) or four (relative).

        Args:
            columns: by name, float64 [n_units] each, for the units of one draw and seed without a
                null in any of them. NaN must stay NaN.
        """
        return tuple(columns.values())

    def undefined(self, columns: Mapping[str, Numbers]) -> str | None:
        """Return why a draw and seed has no value despite its numbers; None if it has one."""
        return None

    def latent_sums(self, firings: Any, split: Any) -> dict[str, Numbers]:
        """Return the inputs of `latent_column`: sums over firings, [n_latents, ...] each.

        The firings of one latent may come in several pieces, each of whole contexts, whose sums
        are added.

        Args:
            firings: `latents.store.Firings` of some latents, or a piece of one latent's.
            split: `latents.split.Split`, the tokens.
        """
        raise NotImplementedError(f"metric {self.name!r} has a column, but no latent_sums")

    def latent_column(self, sums: Mapping[str, Numbers], counts: Counts, split: Any) -> Numbers:
        """Return the values of `column`, [n_latents]; NaN if undefined.

        Args:
            sums: `latent_sums` of all firings of some latents.
            counts: int64 [n_latents], numbers of their firings.
            split: `latents.split.Split`, the tokens.
        """
        raise NotImplementedError(f"metric {self.name!r} has a column, but no latent_column")


def is_of_model(row: Mapping[str, Any]) -> bool:
    """Return whether a row of `contrasts` or `verdicts` compares trained with a variant."""
    return bool(row["stage"] == "model")


METRICS = Registry("metrics", Metric, "nullsae.metrics.catalogue")


def is_defined(metric: str, variant: str) -> bool:
    """Return whether a metric can have a value for a variant."""
    return METRICS[metric].has_value_on_samples or has_model(variant)


def all_metrics() -> tuple[Metric, ...]:
    """Return all metrics, in display order."""
    return tuple(metric() for metric in METRICS.values())


def with_column() -> tuple[tuple[Metric, Column], ...]:
    """Return the metrics that add a column to the table `latents`, with it, in display order."""
    return tuple((m, m.column) for m in all_metrics() if m.column is not None)
