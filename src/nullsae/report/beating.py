"""How many latents of trained beat placebo: a sentence, and a table by metric and place."""

from __future__ import annotations

from dataclasses import dataclass

from nullsae import paths, tables
from nullsae.aggregation.ranking import ALL
from nullsae.config.metrics import METRICS
from nullsae.report.browser import MAX_SAES, place_title, shown_sites
from nullsae.report.study import Study
from nullsae.statistics.ranking import LEVEL

Place = tuple[str, str, str]
"""Subject, site and SAE."""


@dataclass(frozen=True)
class Counts:
    """Counts over the latents of all seeds."""

    n_beating: int = 0
    """Latents with a q of at most `LEVEL`, against the latents of all nulls together."""
    n_tested: int = 0
    """Latents with a q; 0 if the nulls differ in the side on which trained is expected."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(self.n_beating + other.n_beating, self.n_tested + other.n_tested)


@dataclass(frozen=True)
class Beating:
    """What the page shows."""

    sentence: str
    places: list[str]
    """Column titles: sites and SAEs."""
    rows: list[tuple[str, list[Counts]]]
    """A metric's title and its counts in each place; empty if no latent was tested."""


def beating(study: Study) -> Beating | None:
    """Count the latents of the SAEs that the answer covers; None if none was compared.

    With many SAEs only the first ones count, with many sites a selection, as in the latent browser.
    """
    found = _counts(study)
    saes = study.config.answering_saes[:MAX_SAES]
    places = [
        place
        for subject in study.config.subjects
        for site in shown_sites(study, subject)
        for sae in saes
        if any((place := (subject, site, sae)) in of_metric for of_metric in found.values())
    ]
    rows = []
    for name, metric in METRICS.items():
        of_places = [found.get(name, {}).get(place, Counts()) for place in places]
        if any(counts.n_tested for counts in of_places):
            rows.append((metric.title.partition(" (")[0], of_places))
    if not places:
        return None
    if not rows:
        few = (
            f"No latent could be tested: all nulls together have too few latents of a similar "
            f"firing rate for a p of {100 * LEVEL:g}%."
        )
        return Beating(few, [], [])
    title, of_places = rows[0]
    total = sum(of_places, Counts())
    sentence = (
        f"At a false-discovery rate of {100 * LEVEL:g}%, {total.n_beating:,} of "
        f"{total.n_tested:,} latents of trained beat null latents of similar firing rates on "
        f"{title}."
    )
    return Beating(sentence, [place_title(study, *place) for place in places], rows)


def _counts(study: Study) -> dict[str, dict[Place, Counts]]:
    """Return counts by metric and place from the table `beating_placebo`; empty without it."""
    found: dict[str, dict[Place, Counts]] = {}
    if not (study.root / paths.TABLE.format(table="beating_placebo")).is_file():
        return found
    for row in tables.read_whole(study.root, "beating_placebo").to_pylist():
        if (row["variant"], row["null"]) == ("trained", ALL):
            of_metric = found.setdefault(row["metric"], {})
            place = row["subject"], row["site"], row["sae"]
            own = Counts(row["n_beating"], row["n_tested"])
            of_metric[place] = of_metric.get(place, Counts()) + own
    return found
