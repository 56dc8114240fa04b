"""Measure how often a nominal 95% interval covers the truth: `python benchmarks/coverage.py [N]`.

Data are simulated with a known mean. For each design, the script prints the observed coverage of
our intervals, with the misses below and above the truth; of the percentile interval of a bootstrap
that resamples all levels; and of an interval that ignores a level that varies as a whole: windows
are treated as if each were a latent (as in the paper's figures), or all latents as if there were
one draw.

For contrasts it prints how often a true difference of the detectable size is found (80% is stated),
and how often no difference is called one (5% is). At a true difference of exactly the margin, it
prints how often this is called equivalent (5%), and how often beyond the margin (2.5%, because the
other side is practically impossible).

Last come, with half-widths, studies of several draws and seeds, and scores of windows whose
documents matter (`coverage_designs.py`). N is the number of trials.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from coverage_designs import (
    METRIC,
    N_RESAMPLES,
    RESAMPLER,
    SETTINGS,
    exact_replications,
    judged_documents,
    replications,
)

from nullsae.config.statistics import Statistics
from nullsae.statistics.bootstrap import Arm, ArmCell, Floats, Resampler, weighted
from nullsae.statistics.contrasts import estimate, spread_of_difference, tests

N_TRIALS = 2000
Numbers = Callable[[np.random.Generator], tuple[Arm, Floats | None]]


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    """Draw normal scores of latents: mean 0, sd 1."""
    return rng.normal(size=shape)


def aurocs(rng: np.random.Generator, *shape: int) -> Floats:
    """Draw AUROCs of latents, bounded and skewed: Beta(5, 1.5)."""
    return rng.beta(5, 1.5, size=shape)


def bimodal(rng: np.random.Generator, *shape: int) -> Floats:
    """Draw AUROCs of a mixture: 70% token detectors near 1, 30% spread about 0.5."""
    is_detector = rng.random(shape) < 0.7
    return np.where(is_detector, rng.beta(20, 1, size=shape), rng.beta(2, 2, size=shape))


def gamma(rng: np.random.Generator, *shape: int) -> Floats:
    """Draw skewed, unbounded scores: Gamma(2), skewness 1.4."""
    return rng.gamma(2.0, size=shape)


TRUTH = {normal: 0.0, aurocs: 5 / 6.5, bimodal: 0.7 * 20 / 21 + 0.3 * 0.5, gamma: 2.0}


def latents(kind: Callable[..., Floats], n_latents: int, n_windows: int = 40) -> Numbers:
    """Simulate one draw and seed: latents differ, and windows of a latent differ twice as much."""

    def make(rng: np.random.Generator) -> tuple[Arm, Floats]:
        own = kind(rng, n_latents)
        spread = 2 * kind(rng, 10_000).std()
        windows = own[:, None] + spread * rng.normal(size=(n_latents, n_windows))
        return Arm((ArmCell(0, 0, (windows.mean(axis=1),)),)), windows.ravel()

    return make


def draws(n_draws: int, n_seeds: int, n_latents: int, of_draws: float = 0.5) -> Numbers:
    """Simulate draws that differ (sd 0.5), with seeds (sd 0.25) and latents (sd 1) that differ."""

    def make(rng: np.random.Generator) -> tuple[Arm, Floats]:
        data = (
            of_draws * rng.normal(size=(n_draws, 1, 1))
            + 0.5 * of_draws * rng.normal(size=(n_draws, n_seeds, 1))
            + rng.normal(size=(n_draws, n_seeds, n_latents))
        )
        cells = (ArmCell(d, s, (data[d, s],)) for d in range(n_draws) for s in range(n_seeds))
        return Arm(tuple(cells)), data.ravel()

    return make


def documents(n_documents: int, n_draws: int = 1, of_draws: float = 0.02) -> Numbers:
    """Simulate a ratio of sums over documents of unequal length (log-normal).

    Documents are equally easy or hard in all draws, and draws differ.
    """

    def make(rng: np.random.Generator) -> tuple[Arm, None]:
        lengths = rng.lognormal(0, 0.8, size=n_documents)
        difficulty = 0.1 * rng.beta(6, 14, size=n_documents) + 0.27
        cells = []
        for draw in range(n_draws):
            own = of_draws * rng.normal() if n_draws > 1 else 0.0
            noise = 0.03 * rng.normal(size=n_documents)
            cells.append(ArmCell(draw, 0, (lengths * (difficulty + own + noise), lengths)))
        return Arm(tuple(cells), "ratio", units_are_shared=True), None

    return make


def shares(share: float, n_latents: int) -> Numbers:
    """Simulate the share of latents that have a property."""

    def make(rng: np.random.Generator) -> tuple[Arm, None]:
        return Arm((ArmCell(0, 0, ((rng.random(n_latents) < share).astype(np.float64),)),)), None

    return make


def correlations(rho: float, n_latents: int) -> Numbers:
    """Simulate Spearman's correlation of two normal columns of correlation rho."""

    def make(rng: np.random.Generator) -> tuple[Arm, None]:
        x, e = rng.normal(size=(2, n_latents))
        return Arm(
            (ArmCell(0, 0, (x, rho * x + np.sqrt(1 - rho**2) * e)),), "rank_correlation"
        ), None

    return make


def nested_percentile(arm: Arm, rng: np.random.Generator) -> tuple[float, float]:
    """Return the percentile interval of resampling draws, seeds in draws, and units in seeds."""
    values = np.zeros(N_RESAMPLES)
    members = arm.draws
    widest = members[0][0].n_units
    shared = rng.multinomial(widest, np.full(widest, 1 / widest), size=N_RESAMPLES).astype(float)
    slots = []
    for _ in members:
        of_draw = rng.integers(len(members), size=N_RESAMPLES)
        inside = []
        for _ in members[0]:
            of_seed = rng.integers(len(members[0]), size=N_RESAMPLES)
            counts = shared
            if not arm.units_are_shared:
                drawn = rng.integers(widest, size=(N_RESAMPLES, widest))
                flat = drawn + widest * np.arange(N_RESAMPLES)[:, None]
                counts = np.bincount(flat.ravel(), minlength=flat.size).reshape(-1, widest) * 1.0
            value = np.zeros(N_RESAMPLES)
            for d, member in enumerate(members):
                for s, cell in enumerate(member):
                    rows = (of_draw == d) & (of_seed == s)
                    value[rows] = weighted(arm.statistic, cell.columns, counts[rows])
            inside.append(value)
        slots.append(np.mean(inside, axis=0))
    values = arm.oriented(np.mean(slots, axis=0))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def pooled_percentile(numbers: Floats) -> tuple[float, float]:
    """Return the percentile interval of a mean of independent numbers (by its normal limit)."""
    half = 1.959964 * numbers.std() / np.sqrt(len(numbers))
    return numbers.mean() - half, numbers.mean() + half


def coverage(name: str, make: Numbers, truth: float, metric: str, n_trials: int) -> None:
    """Print one design's line."""
    ours, below, above, nested, pooled, has_pool = 0, 0, 0, 0, 0, False
    for trial in range(n_trials):
        rng = np.random.default_rng([1, trial])
        arm, numbers = make(rng)
        found = estimate(arm, METRIC[metric], SETTINGS, RESAMPLER)
        low, high = found.interval or (found.value, found.value)
        assert low is not None
        assert high is not None
        ours += low <= truth <= high
        below, above = below + (high < truth), above + (low > truth)
        if trial < n_trials // 4:
            low, high = nested_percentile(arm, rng)
            nested += low <= truth <= high
        if numbers is not None:
            low, high = pooled_percentile(numbers)
            pooled += low <= truth <= high
            has_pool = True
    pool = f"{pooled / n_trials:8.3f}" if has_pool else f"{'-':>8}"
    print(
        f"{name:46}{ours / n_trials:8.3f}   {below / n_trials:.3f} {above / n_trials:.3f}"
        f"{nested / (n_trials // 4):12.3f}{pool}",
        flush=True,
    )


def found_share(
    name: str, pair: Callable[..., tuple[Arm, Arm]], metric: str, n_trials: int
) -> None:
    """Print how often differences of 0 and of the stated size are found, and errors at margins.

    The stated size is the root mean square over studies of the same design, which all estimate the
    same standard error.
    """

    def rows(shift: float, seed: int, margin: float = 0.5) -> list[dict[str, float]]:
        found = []
        for trial in range(n_trials):
            arms = pair(np.random.default_rng([seed, trial]), shift)
            own, other = (estimate(arm, METRIC[metric], SETTINGS, RESAMPLER) for arm in arms)
            spread = spread_of_difference(own, other)
            assert not isinstance(spread, str)
            assert own.value is not None
            assert other.value is not None
            row = tests(spread, other.value - own.value, margin, SETTINGS.confidence)
            found.append(row | {"detectable": spread.detectable(0.05)})
        return found

    null = rows(0.0, 2)
    size = float(np.sqrt(np.mean([row["detectable"] ** 2 for row in null])))
    error = np.mean([row["p_value"] <= 0.05 for row in null])
    held = np.mean([r["difference_low"] <= 0 <= r["difference_high"] for r in null])
    power = np.mean([row["p_value"] <= 0.05 for row in rows(size, 3)])
    at_margin = rows(size, 4, margin=size)
    tost, beyond = (
        np.mean([row[name] <= 0.05 for row in at_margin])
        for name in ("p_equivalence", "p_minimum_effect")
    )
    print(
        f"{name:46}{held:8.3f}{error:10.3f}{size:12.3f}{power:8.3f}{tost:8.3f}{beyond:8.3f}",
        flush=True,
    )


def two_arms(n_latents: int) -> Callable[..., tuple[Arm, Arm]]:
    """Simulate one cell per arm, with skewed bounded scores."""

    def make(rng: np.random.Generator, shift: float) -> tuple[Arm, Arm]:
        one, other = aurocs(rng, n_latents), aurocs(rng, n_latents) + shift
        return Arm((ArmCell(0, 0, (one,)),)), Arm((ArmCell(0, 0, (other,)),))

    return make


def trained_and_draws(n_draws: int, n_latents: int) -> Callable[..., tuple[Arm, Arm]]:
    """Simulate one trained cell and draws that differ (sd 0.5); latents have sd 1."""

    def make(rng: np.random.Generator, shift: float) -> tuple[Arm, Arm]:
        arm, _ = draws(n_draws, 1, n_latents)(rng)
        cells = tuple(ArmCell(c.draw, 0, (c.columns[0] + shift,)) for c in arm.cells)
        return Arm((ArmCell(0, 0, (rng.normal(size=n_latents),)),)), Arm(cells)

    return make


def seeds_and_seeds(n_seeds: int, n_latents: int) -> Callable[..., tuple[Arm, Arm]]:
    """Simulate one draw per arm, with seeds that differ (sd 0.25); latents have sd 1."""

    def one(rng: np.random.Generator, shift: float) -> Arm:
        data = 0.25 * rng.normal(size=(n_seeds, 1)) + rng.normal(size=(n_seeds, n_latents)) + shift
        return Arm(tuple(ArmCell(0, s, (data[s],)) for s in range(n_seeds)))

    def make(rng: np.random.Generator, shift: float) -> tuple[Arm, Arm]:
        return one(rng, 0.0), one(rng, shift)

    return make


def paired_documents(n_documents: int, n_draws: int) -> Callable[..., tuple[Arm, Arm]]:
    """Simulate the same documents under both arms; several draws of the variant differ."""

    def make(rng: np.random.Generator, shift: float) -> tuple[Arm, Arm]:
        arm, _ = documents(n_documents, n_draws)(rng)
        lengths = arm.cells[0].columns[1]
        own = arm.cells[0].columns[0] / lengths
        if n_draws > 1:
            own = np.mean([c.columns[0] / lengths for c in arm.cells], axis=0)
            own = own - own @ lengths / lengths.sum() + 0.3
        cells = tuple(
            ArmCell(c.draw, 0, (c.columns[0] + shift * lengths, lengths)) for c in arm.cells
        )
        if n_draws == 1:
            noise = 0.03 * rng.normal(size=n_documents)
            cells = (ArmCell(0, 0, (lengths * (own + noise + shift), lengths)),)
        trained = Arm((ArmCell(0, 0, (lengths * own, lengths)),), "ratio", units_are_shared=True)
        return trained, Arm(cells, "ratio", units_are_shared=True)

    return make


def main() -> None:
    """Print one line per design."""
    n_trials = int(sys.argv[1]) if len(sys.argv) > 1 else N_TRIALS
    print(f"nominal 95% intervals, {n_trials} trials each; misses: truth above, below interval")
    print(f"{'design':46}{'ours':>8}   {'misses':11}{'percentile':>12}{'pooled':>8}")
    for kind in (normal, aurocs, bimodal, gamma):
        for n in (20, 50, 100, 200):
            name = f"1 draw, {n} latents x 40 windows, {kind.__name__}"
            coverage(name, latents(kind, n), TRUTH[kind], "auroc", n_trials)
    for n_draws in (3, 5, 10):
        for n_seeds in (1, 3):
            name = f"{n_draws} draws x {n_seeds} seeds x 50 latents"
            coverage(name, draws(n_draws, n_seeds, 50), 0.0, "auroc", n_trials)
    coverage("5 draws x 1 seed x 50 latents, draws alike", draws(5, 1, 50, 0), 0, "auroc", n_trials)
    truth = 0.1 * 0.3 + 0.27
    for n in (10, 20, 50, 200):
        coverage(f"{n} documents, ratio", documents(n), truth, "cosine", n_trials)
    for n_draws in (3, 5):
        name = f"{n_draws} draws, 50 documents, ratio"
        coverage(name, documents(50, n_draws), truth, "cosine", n_trials)
    name = "5 draws, 50 documents, draws alike"
    coverage(name, documents(50, 5, 0.0), truth, "cosine", n_trials)
    for share, n in ((0.5, 50), (0.2, 50), (0.1, 50), (0.1, 200)):
        name = f"{n} latents, a share of {share}"
        coverage(name, shares(share, n), share, "single_token_share", n_trials)
    for rho, n in ((0.0, 50), (0.5, 50), (0.5, 200)):
        truth = 6 / np.pi * np.arcsin(rho / 2)
        name = f"{n} latents, Spearman's {truth:.2f}"
        coverage(name, correlations(rho, n), truth, "entropy_auroc_correlation", n_trials)

    print(
        f"\n{'contrast':46}{'covers 0':>8}{'p<=.05':>10}{'detectable':>12}{'power':>8}{'TOST':>8}"
        f"{'beyond':>8}"
    )
    few = n_trials // 2
    for n in (20, 50, 200):
        found_share(f"{n} against {n} latents, aurocs", two_arms(n), "auroc", few)
    for n in (3, 5, 10):
        found_share(f"1 against {n} draws x 50 latents", trained_and_draws(n, 50), "auroc", few)
    found_share("3 against 3 seeds x 50 latents", seeds_and_seeds(3, 50), "auroc", few)
    for n, n_draws in ((20, 1), (50, 1), (50, 3)):
        name = f"{n} paired documents, {n_draws} draws"
        found_share(name, paired_documents(n, n_draws), "cosine", few)

    replications(n_trials)
    exact_replications()
    judged_documents(n_trials)

    start = time.process_time()
    arm = documents(200)(np.random.default_rng(0))[0]
    estimate(arm, METRIC["cosine"], Statistics(), Resampler(0, 10_000))
    print(f"\n10,000 resamples of 200 documents: {time.process_time() - start:.2f} CPU seconds")


if __name__ == "__main__":
    main()
