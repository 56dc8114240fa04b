"""Simulate studies of several draws and seeds, and scores whose documents matter.

`benchmarks/coverage.py` prints the results. A contrast of a null with trained concerns these draws,
or all that could be drawn. For each design, the results are how often its interval covers both
truths, its mean half-width, and the half-width "needed" to cover the second truth in 95% of
studies, which measures how good an estimate of this design is.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import numpy as np
from scipy import special

from nullsae.autointerp.classification import classification_scores, window_influences
from nullsae.config.metrics import all_metrics
from nullsae.config.statistics import Statistics
from nullsae.statistics.bootstrap import Arm, ArmCell, Documents, Floats, Resampler
from nullsae.statistics.components import seed_variance
from nullsae.statistics.contrasts import estimate, spread_of_difference
from nullsae.statistics.spread import Component, Spread

N_RESAMPLES = 1000
METRIC = {metric.name: metric for metric in all_metrics()}
SETTINGS = Statistics(n_resamples=N_RESAMPLES)
RESAMPLER = Resampler(0, N_RESAMPLES)


class Study(NamedTuple):
    """A simulated study: `trained`, and nulls, of which the first is evaluated."""

    trained: Arm
    nulls: list[Arm]
    of_these: float
    """Null minus trained for the draws that were made: the limit over seeds and units."""
    of_all: float
    """The same for all draws."""


class Scale(NamedTuple):
    """Standard deviations of a simulated study; the seeds of trained may have a different one."""

    draw: float
    seed: float
    seed_of_trained: float


N_NULLS = 4
Part = tuple[float, int]
"""Variance and degrees of freedom."""
# Documents of log-normal length (sd 0.8) count as exp(0.64) times fewer of equal length.
DOCUMENTS = (("100 documents", 0.02, 100 / np.exp(0.64), (0.03, 0.03)),)
LATENT_SD = (1.0, 0.7, 1.3, 1.0, 0.8)
"""For trained and for each null; only the variance of seeds is shared."""


def levels(
    rng: np.random.Generator, arm: int, n_draws: int, n_seeds: int, scale: Scale
) -> tuple[Floats, Floats]:
    """Simulate draws [n_draws, 1], and seeds about them [n_draws, n_seeds]; trained is one draw."""
    of_draws = scale.draw * rng.normal(size=(n_draws, 1)) if arm else np.zeros((1, 1))
    sd = scale.seed if arm else scale.seed_of_trained
    return of_draws, sd * rng.normal(size=(len(of_draws), n_seeds))


def study_of(arms: list[Arm], of_draws: list[float], seeds: list[Floats]) -> Study:
    """Build arms from the means of their draws and the seeds' additions, [n_draws, n_seeds]."""
    # With one seed for all, its addition cannot be told from its draw.
    is_single = seeds[1].shape[1] == 1
    given, of_seed = (float(own.mean()) if is_single else 0.0 for own in seeds[:2])
    return Study(arms[0], arms[1:], of_draws[1] + of_seed - given, -given)


def latent_study(
    n_draws: int, n_seeds: int, trained_seeds: int, scale: Scale, n_latents: int = 50
) -> Callable[[np.random.Generator], Study]:
    """Simulate means over latents. With one seed for all, seeds cannot be told from trained."""

    def make(rng: np.random.Generator) -> Study:
        arms, of_draws, seeds = [], [], []
        for i, sd in enumerate(LATENT_SD):
            n = n_seeds if i else trained_seeds
            own, of_seeds = levels(rng, i, n_draws, n, scale)
            values = own + of_seeds
            arms.append(
                Arm(
                    tuple(
                        ArmCell(d, s, (values[d, s] + sd * rng.normal(size=n_latents),))
                        for d in range(len(values))
                        for s in range(n)
                    )
                )
            )
            of_draws.append(own.mean())
            seeds.append(of_seeds)
        return study_of(arms, of_draws, seeds)

    return make


def document_study(
    n_draws: int, n_seeds: int, trained_seeds: int, scale: Scale, n_documents: int = 100
) -> Callable[[np.random.Generator], Study]:
    """Simulate ratios over the same documents, some hard for all; SAEs also differ on each."""

    def make(rng: np.random.Generator) -> Study:
        lengths = rng.lognormal(0, 0.8, size=n_documents)
        difficulty = 0.1 * rng.beta(6, 14, size=n_documents) + 0.27
        arms, of_draws, seeds = [], [], []
        for i in range(1 + N_NULLS):
            n = n_seeds if i else trained_seeds
            own, of_seeds = levels(rng, i, n_draws, n, scale)
            taste = 0.03 * rng.normal(size=n_documents)
            cells = []
            for d, s in np.ndindex(len(own), n):
                noise = taste + 0.03 * rng.normal(size=n_documents)
                values = difficulty + own[d, 0] + of_seeds[d, s] + noise
                cells.append(ArmCell(d, s, (lengths * values, lengths)))
            arms.append(Arm(tuple(cells), "ratio", units_are_shared=True))
            of_draws.append(own.mean())
            seeds.append(of_seeds)
        return study_of(arms, of_draws, seeds)

    return make


def replication(
    name: str, make: Callable[[np.random.Generator], Study], metric: str, n_trials: int
) -> None:
    """Print how often the first null's contrast covers both truths, and how wide it is."""
    rows = []
    for trial in range(n_trials):
        study = make(np.random.default_rng([5, trial]))
        arms = [study.trained, *study.nulls]
        found = []
        for seeds in (seed_variance(arms, RESAMPLER), None):
            own, other = (
                estimate(arm, METRIC[metric], SETTINGS, RESAMPLER, seeds) for arm in arms[:2]
            )
            spread = spread_of_difference(own, other)
            assert not isinstance(spread, str)
            assert own.value is not None
            assert other.value is not None
            difference = other.value - own.value
            low, high = spread.interval(difference, SETTINGS.confidence)
            covers = [low <= truth <= high for truth in (study.of_these, study.of_all)]
            found += [*covers, (high - low) / 2, spread.df]
        rows.append([*found, abs(difference - study.of_all)])
    these, every, half, df, _, own_every, own_half, own_df, off = np.array(rows).T
    print(
        f"{name:46}{these.mean():8.3f}{every.mean():8.3f}{half.mean():9.4f}{df.mean():8.1f}"
        f"{own_every.mean():10.3f}{own_half.mean():9.4f}{own_df.mean():8.1f}"
        f"{np.quantile(off, 0.95):10.4f}",
        flush=True,
    )


def chi_square(variance: float, df: int, n_nodes: int) -> Floats:
    """Return estimates of a variance with so many degrees of freedom, equally likely: [n_nodes]."""
    at = (np.arange(n_nodes) + 0.5) / n_nodes
    quantiles: Floats = variance * special.chdtri(df, 1 - at) / df
    return quantiles


def by_quadrature(draws: Part, seeds: Part, units: Part) -> tuple[float, float]:
    """Integrate coverage and mean half-width of the rule, without chance or skewness.

    Parts are (variance, degrees of freedom) of a difference: of the null's draws, of trained's
    seeds, and of documents. Errors are normal, and the three estimates of variance independent.
    """
    nodes = [chi_square(*part, n) for part, n in ((draws, 150), (seeds, 8), (units, 8))]
    truth, covered, half = sum(part[0] for part in (draws, seeds, units)), 0.0, 0.0
    for a, b, c in product(*nodes):
        found = Spread.of(
            [
                Component(a, draws[1], is_whole=True),
                Component(b, seeds[1], is_whole=True, is_pooled=True),
                *([Component(c, units[1])] if c else []),
            ]
        )
        reach = found.standard_error * float(special.stdtrit(found.df, 0.975))
        covered += 2 * float(special.ndtr(reach / np.sqrt(truth))) - 1
        half += reach
    n = np.prod([len(values) for values in nodes])
    return covered / n, half / n


def exact_replications() -> None:
    """Print what `replication` would print for very many studies, for designs of several draws."""
    print(f"\n{'without simulation: several draws, pooled':46}{'':8}{'all':>8}{'half':>9}")
    for n_draws, n_seeds in ((3, 3), (5, 3)):
        df = (1 + N_NULLS * n_draws) * (n_seeds - 1)
        for kind, scale, n, sd in (("50 latents", 0.5, 50, LATENT_SD[:2]), *DOCUMENTS):
            own, null = (one**2 / n for one in sd)
            of_draws = (scale**2 + ((scale / 2) ** 2 + null) / n_seeds) / n_draws
            of_seeds = ((scale / 2) ** 2 + own) / n_seeds
            # What the cells of an arm find equally hard: for the null, and for trained.
            units = (own + null, 99) if kind == "100 documents" else (0.0, 1)
            every, half = by_quadrature((of_draws, n_draws - 1), (of_seeds, df), units)
            print(f"{f'{n_draws} x {n_seeds}, {kind}':46}{'':8}{every:8.3f}{half:9.4f}")


def replications(n_trials: int) -> None:
    """Print a line per design of draws and seeds."""
    print(
        f"\n{'':46}{'seed variance pooled':>33}{'of each arm alone':>27}\n"
        f"{'null against trained, 4 nulls':46}{'these':>8}{'all':>8}{'half':>9}{'df':>8}"
        f"{'all':>10}{'half':>9}{'df':>8}{'needed':>10}"
    )
    kinds = {
        "50 latents": (latent_study, "auroc", Scale(0.5, 0.25, 0.25), Scale(0.5, 0.2, 0.4)),
        "100 documents": (
            document_study,
            "cosine",
            Scale(0.02, 0.01, 0.01),
            Scale(0.02, 0.008, 0.016),
        ),
    }
    for kind, (make, metric, scale, unlike) in kinds.items():
        for n_draws, n_seeds in ((1, 1), (3, 1), (5, 1), (1, 3), (3, 3), (5, 3)):
            name = f"{n_draws} x {n_seeds}, {kind}"
            replication(name, make(n_draws, n_seeds, n_seeds, scale), metric, n_trials)
        name = f"5 x 3, trained one seed, {kind}"
        replication(name, make(5, 3, 1, scale), metric, n_trials)
        name = f"5 x 3, seeds alike, {kind}"
        replication(name, make(5, 3, 3, Scale(scale.draw, 0, 0)), metric, n_trials)
        name = f"5 x 3, trained's seeds vary twice as much, {kind}"
        replication(name, make(5, 3, 3, unlike), metric, n_trials)


JUDGED_SD = 0.5
"""Of latents' distances between active and silent windows."""


def judged(
    rng: np.random.Generator, of_documents: Floats, distances: Floats, n_windows: int
) -> tuple[ArmCell, ArmCell]:
    """Compute AUROC of latents whose windows come from documents; with documents, and without.

    `of_documents` [2, n_documents] is how far a document moves silent and active windows, and
    `distances` [n_latents] is how far apart a latent's two kinds of windows are.
    """
    n_latents, n_documents = len(distances), of_documents.shape[1]
    active = np.arange(n_windows) % 2
    document = rng.integers(n_documents, size=(n_latents, n_windows))
    said = active * distances[:, None] + of_documents[active, document]
    said += rng.normal(size=said.shape)
    aurocs, effects = np.zeros(n_latents), np.zeros((n_latents, n_documents))
    for i, row in enumerate(said):
        aurocs[i] = classification_scores(active == 1, row)["auroc"]
        moved = window_influences(active == 1, row)["auroc"]
        effects[i] = np.bincount(document[i], moved, n_documents) / n_latents
    counts = np.bincount(document.ravel(), minlength=n_documents).astype(float)
    documents = Documents(effects.sum(axis=0), counts, float((effects**2).sum()))
    return ArmCell(0, 0, (aurocs,), documents=documents), ArmCell(0, 0, (aurocs,))


def judged_documents(n_trials: int) -> None:
    """Print how often intervals of AUROC cover the truth, with documents that matter or do not."""
    print(
        f"\n{'AUROC of 50 latents x 40 windows':46}{'two ways':>24}{'latents alone':>17}\n"
        f"{'':46}{'covers':>8}{'half':>16}{'covers':>9}{'half':>8}"
    )
    for n, sd in ((10, 0.7), (20, 0.7), (50, 0.7), (200, 0.7), (20, 0.0), (200, 0.0)):
        for kind in ("one cell", "contrast"):
            rows = []
            for trial in range(n_trials):
                rng = np.random.default_rng([6, trial])
                of_documents = sd * rng.normal(size=(2, n))
                truth = float(special.ndtr(1 / np.sqrt(2 + 2 * sd**2 + JUDGED_SD**2)))
                cells = [
                    judged(rng, of_documents, 1 + JUDGED_SD * rng.normal(size=50), 40)
                    for _ in range(2)
                ]
                found = []
                for pair in zip(*cells, strict=True):
                    one, other = (
                        estimate(Arm((cell,)), METRIC["auroc"], SETTINGS, RESAMPLER)
                        for cell in pair
                    )
                    assert one.value is not None
                    assert other.value is not None
                    low, high = one.interval or (np.nan, np.nan)
                    if kind == "contrast":
                        spread = spread_of_difference(one, other)
                        assert not isinstance(spread, str)
                        low, high = spread.interval(other.value - one.value, SETTINGS.confidence)
                        truth = 0.0
                    found += [low <= truth <= high, (high - low) / 2]
                rows.append(found)
            covers, half, alone, half_alone = np.mean(rows, axis=0)
            name = f"{kind}, {n} documents" + ("" if sd else " that do not differ")
            print(f"{name:46}{covers:8.3f}{half:16.4f}{alone:9.3f}{half_alone:8.4f}", flush=True)
