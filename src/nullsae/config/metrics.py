"""What a metric is: a statistic of units that variants are compared by.

Each metric is a class in a file of `metrics/catalogue`, or of another package under the entry point
group `nullsae.metrics`, and holds all that the rest asks of it. The margins of the config and the
columns of the table `latents` are made from them, so that such a file imports at its top, of
nullsae, only this module, `core`, and what imports no more than that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from nullsae.config.variants import is_positive_control
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
"""Tables that metrics can be taken from, and what a row of each is about."""
STAGES: dict[Stage, str] = {
    "model": "trained from the variant",
    "dictionary": "a learned dictionary from a null one, on the trained subject",
    "explanation": "an explanation from a null one, of the same latents by the same judge",
    "effect": "a latent's own direction from another one, at the same places",
}
"""Stages of a study, and what a metric is to tell from what at each of them."""
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
    """Its unit, or what must be said of it, as in `tables.cells`."""
    kind: str = "float?"
    """Its type, as in `tables.columns`. Where it may be null, NaN is written as null."""


class Metric:
    """A statistic of units: documents of the split, sampled latents, or whole cells."""

    name: str
    """Also the name of its figure, and of its margin in `statistics.margin_shares`."""
    position: int = 1_000
    """Its place among all metrics, in tables and on the page."""
    title: str
    """What stands on an axis, with the unit."""

    table: str = "latents"
    """One of `LEVELS`."""
    among: Among = "passes_filter"
    """Which rows of the table `latents` count: all that pass the filter, or, for what is known of
    no others, those that judges may be asked about."""
    columns: tuple[str, ...]
    """What it is computed from; by default `column`. Units with a null in one are left out."""
    column: Column | None = None
    """A column of `latents` that this metric adds, by `latent_sums` and `latent_column`."""
    form: Form = "mean"
    """`mean`: over units. `ratio`: of the sums of two values. `relative`: the first of two
    ratios over the smaller of the second and the first one of the Gaussian floor's cell; values
    come in pairs, numerator and denominator. `rank_correlation`: Spearman's, of two values."""
    complement: bool = False
    """The metric is 1 minus that."""
    at_least: str | None = None
    """The setting in `statistics` that a unit's value must reach to count as 1, else 0."""

    direction: Direction = 1
    """The sign of (trained minus null) if the metric sees structure that training made; 0: none
    is expected, and a difference either way separates."""
    directions: Mapping[str, Direction] = {}
    """By variant, where another one is expected against it."""
    dictionary_direction: Direction | None = None
    """The sign of (learned minus null dictionary), by default `direction`; 0: none is expected."""
    placebos: Mapping[str, tuple[str, ...]] = {}
    """By the name of a null at the stage `effect`: the columns that take the place of `columns`."""
    floor: float
    """What it comes to where nothing was learned; by default `chance`."""
    floor_is: str = ""
    """What that is, in words, where the number alone does not say it."""
    margin_share: float = 0.1
    """Differences below this share of |trained - floor| count as none, unless the config says
    otherwise."""
    chance: float | None = None
    """What a judge gets who knows nothing, where the figure is to show it."""

    section: str
    """Its section of the report, one of `SECTIONS`."""
    place: int | None = None
    """Of its figure in that section; by default `position`."""
    definition: str
    """What its figure says it is."""
    formula: str = ""
    """The same for docs/metrics.md, where it says more in fewer words."""
    reading: str
    """What its figure says of how to read it."""
    values: str = ""
    """The range of values, for docs/metrics.md."""
    is_usual: bool = False
    """Whether papers on SAEs report it: of metrics that do not tell, sentences name such first."""
    sites_share_scale: bool = True
    """Whether values of different sites can stand on one axis."""
    along_training: int | None = None
    """Its place in the figure `training`, if it has one."""

    def __init_subclass__(cls) -> None:
        """Check a metric as soon as its file is read.

        Raises:
            TypeError: it lacks something that the tables or the report need, or its margin is no
                share.
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
                raise TypeError(f"metric {cls.name!r}: {what} {of!r} is none of {', '.join(among)}")
        if not 0 < cls.margin_share < 1:
            raise TypeError(
                f"metric {cls.name!r}: margin_share {cls.margin_share:g} is not between 0 and 1: a "
                f"null at the floor could not differ by so much"
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
        """The columns in words."""
        return " or ".join(self.columns)

    @property
    def denominator(self) -> str:
        """The words for what a ratio is over."""
        return self.columns[1]

    @property
    def floor_text(self) -> str:
        """The floor, and what it is, for docs/metrics.md."""
        return f"{self.floor:g}" + (f": {self.floor_is}" if self.floor_is else "")

    def direction_against(self, variant: str) -> Direction:
        """The sign of (trained minus this variant) that is expected, or 0."""
        if is_positive_control(variant):
            return 0
        return self.directions.get(variant, self.direction)

    def direction_at(self, stage: Stage, null: str) -> Direction:
        """The sign of (real thing minus this null) that is expected at a stage, or 0."""
        if stage == "model":
            return self.direction_against(null)
        if stage == "dictionary" and self.dictionary_direction is not None:
            return self.dictionary_direction
        return self.direction

    def value(self, columns: Mapping[str, Numbers]) -> Numbers | tuple[Numbers, ...]:
        """What `form` is taken of: one array [n_units]; two for a ratio or a correlation, or four.

        Args:
            columns: by name, float64 [n_units] each, of the units of one draw and seed that have
                no null in any of them. NaN must stay NaN.
        """
        return tuple(columns.values())

    def undefined(self, columns: Mapping[str, Numbers]) -> str | None:
        """Why a draw and seed has no value in spite of its numbers; None if it has one."""
        return None

    def latent_sums(self, firings: Any, split: Any) -> dict[str, Numbers]:
        """What `latent_column` is made of: sums over firings, [n_latents, ...] each.

        The firings of one latent may come in several pieces, each of whole contexts; sums of
        pieces are added up.

        Args:
            firings: `latents.store.Firings` of some latents, or some of one latent.
            split: `latents.split.Split`, its tokens.
        """
        raise NotImplementedError(f"metric {self.name!r} has a column, but no latent_sums")

    def latent_column(self, sums: Mapping[str, Numbers], counts: Counts, split: Any) -> Numbers:
        """The values of `column`, [n_latents]; NaN where undefined.

        Args:
            sums: of all firings of some latents, as `latent_sums` names them.
            counts: int64 [n_latents], their firings.
            split: `latents.split.Split`, its tokens.
        """
        raise NotImplementedError(f"metric {self.name!r} has a column, but no latent_column")


def is_of_model(row: Mapping[str, Any]) -> bool:
    """Whether a row of `contrasts` or `verdicts` compares the trained subject with a variant."""
    return bool(row["stage"] == "model")


METRICS = Registry("metrics", Metric, "nullsae.metrics.catalogue")


def all_metrics() -> tuple[Metric, ...]:
    """All metrics, in display order."""
    return tuple(metric() for metric in METRICS.values())


def with_column() -> tuple[tuple[Metric, Column], ...]:
    """The metrics that add a column to the table `latents`, with it, in display order."""
    return tuple((m, m.column) for m in all_metrics() if m.column is not None)
