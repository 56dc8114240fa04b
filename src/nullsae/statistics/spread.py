"""The error of an estimate: standard error, degrees of freedom, skewness; intervals, tests.

One method serves all: Student's t with the bootstrap's standard error, corrected for the skewness
of the bootstrap distribution by the transformation of Hall (1992), "On the removal of skewness by
transformation", J. R. Statist. Soc. B 54, 221-228. The interval, both tests and the power invert
the same function, so they never contradict each other, and the number of resamples bounds no
p-value. Formulas: `docs/statistics.md`; observed coverage: `docs/coverage.md`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import special

from nullsae.statistics.bootstrap import Floats

# Below this skewness the transformation is the identity, up to rounding.
NO_SKEWNESS = 1e-9
COCHRAN_POINT = 0.975
POWER = 0.8
"""The power of `detectable_difference`."""


@dataclass(frozen=True)
class Component:
    """An independent part of an estimate's error."""

    variance: float
    df: float
    third: float = 0.0
    """Third central moment."""
    is_whole: bool = False
    """Whether it comes from whole draws or seeds rather than from units."""
    is_pooled: bool = False
    """Whether its variance is the seed variance that all arms of a comparison share."""

    def scaled(self, factor: float) -> Component:
        """Return the component of the estimate times a factor."""
        variance, third = factor**2 * self.variance, factor**3 * self.third
        return replace(self, variance=variance, third=third)


@dataclass(frozen=True)
class Spread:
    """Standard error, degrees of freedom and skewness of an estimate."""

    standard_error: float
    df: float
    skewness: float = 0.0

    @classmethod
    def of(cls, components: Sequence[Component]) -> Spread:
        """Sum independent components.

        Degrees of freedom are those of Welch (1947) and Satterthwaite (1946) among the parts of
        draws and seeds, and among those of units. Between the two groups they would be too many if
        few draws happen to be close together. There, Cochran's method is used (1964, Biometrics 20,
        191-195): the 97.5% point is the mean of the two, weighted by variance. Parts with one
        pooled variance err together, so their uncertainties are added before they are squared.
        """
        variance = sum(part.variance for part in components)
        if variance <= 0:
            return cls(0.0, 1.0)
        skewness = sum(part.third for part in components) / variance**1.5
        point, found = 0.0, []
        for whole in (True, False):
            group = [part for part in components if part.is_whole is whole]
            if own := sum(part.variance for part in group):
                alone = sum(p.variance**2 / p.df for p in group if not p.is_pooled)
                together = sum(p.variance / math.sqrt(p.df) for p in group if p.is_pooled)
                found.append(own**2 / (alone + together**2))
                point += own / variance * float(special.stdtrit(found[-1], COCHRAN_POINT))
        df = found[0] if len(found) == 1 else float(special.stdtridf(COCHRAN_POINT, point))
        return cls(math.sqrt(variance), df, skewness)

    def interval(self, value: float, confidence: float) -> tuple[float, float]:
        """Return the interval about an estimate, both tails with (1 - confidence) / 2."""
        quantile = float(special.stdtrit(self.df, (1 + confidence) / 2))
        low, high = (
            value - self.standard_error * _untransformed(x, self.skewness)
            for x in (quantile, -quantile)
        )
        return low, high

    def p_below(self, value: float, bound: float) -> float:
        """Return the one-sided p of "the truth is `bound` or more": small for lower estimates."""
        return float(special.stdtr(self.df, self._transformed(value - bound)))

    def p_above(self, value: float, bound: float) -> float:
        """Return the one-sided p of "the truth is `bound` or less", precise in the lower tail."""
        return float(special.stdtr(self.df, -self._transformed(value - bound)))

    def _transformed(self, difference: float) -> float:
        """Compute Hall's g: monotone in the studentized estimate, and closer to symmetric."""
        t, skewness = difference / self.standard_error, self.skewness
        return t + skewness * t**2 / 3 + skewness**2 * t**3 / 27 + skewness / 6

    def p_two_sided(self, value: float, null: float = 0.0) -> float:
        """Return the two-sided p of truth `null`; <= 1 - confidence iff `interval` excludes it."""
        return min(1.0, 2 * min(self.p_below(value, null), self.p_above(value, null)))

    def p_minimum_effect(self, value: float, margin: float) -> float:
        """Return the two-sided p of "the truth is within +-`margin`" (Murphy & Myors 1999).

        It is at most 1 - confidence exactly if the interval is beyond the margin, on either side.
        """
        return min(1.0, 2 * min(self.p_below(value, -margin), self.p_above(value, margin)))

    def p_equivalence(self, value: float, margin: float) -> float:
        """Return the larger p of two one-sided tests (TOST, Schuirmann 1987) at +-`margin`."""
        return max(self.p_above(value, -margin), self.p_below(value, margin))

    def detectable(self, level: float, power: float = POWER) -> float:
        """Return how far beyond a bound the truth must be for a two-sided test to find it.

        The number of standard errors is the noncentrality d of Student's t that solves
        P(t[df, d] > t[1 - level / 2, df]) = power (Cohen 1988, section 2.5); in large samples it is
        Bloom's (1995) z[1 - level / 2] + z[power]. Skewness is ignored.
        """
        critical = float(special.stdtrit(self.df, 1 - level / 2))
        return self.standard_error * float(special.nctdtrinc(self.df, 1 - power, critical))


@dataclass(frozen=True)
class SeedVariance:
    """The variance of SAEs that differ only in their seed, pooled over draws and arms."""

    mean_square: float
    """Mean square of cells' values about the mean of their draw."""
    of_units: float
    """The part of it that comes from the cells' own units (latents, documents)."""
    df: int

    @property
    def variance(self) -> float:
        """The variance of seeds alone: the component of Henderson's (1953) method, at least 0."""
        return max(0.0, self.mean_square - self.of_units)


def pooled_seeds(draws: Iterable[tuple[Floats, float]]) -> SeedVariance | None:
    """Pool draws with several seeds: [n_seeds >= 2] values, and the units' variance of their mean.

    None without such a draw. The expected mean square within a draw of S seeds is the seeds'
    variance plus S times that of the units in the mean (Searle, Casella & McCulloch 1992, section
    3.6).
    """
    square = of_units = 0.0
    df = 0
    for values, own in draws:
        own_df = len(values) - 1
        square += own_df * float(values.var(ddof=1))
        of_units += own_df * len(values) * own
        df += own_df
    return SeedVariance(square / df, of_units / df, df) if df else None


def seed_component(seeds: SeedVariance, n_seeds: int, own: Component) -> Component:
    """Return the part of one draw's seeds in their mean: pooled seed variance / n_seeds, and `own`.

    `own` is the part of units in the mean that no two seeds share. Degrees of freedom are
    Satterthwaite's, of the pooled mean square and of `own`, and at least those of the pool, since
    those of a small difference of mean squares would be close to none.
    """
    variance = seeds.variance / n_seeds + own.variance
    uncertain = (seeds.mean_square / n_seeds) ** 2 / seeds.df + own.variance**2 / own.df
    df = max(seeds.df, variance**2 / uncertain if uncertain else own.df)
    return Component(variance, df, own.third, is_whole=True, is_pooled=True)


def unit_component(resamples: Floats, n_units: int, shared_away: float = 0.0) -> Component:
    """Estimate the part of units from values in resamples of them.

    The variance of resamples is too small by (n - 1) / n, which is corrected. `shared_away` is the
    variance that another component already includes.
    """
    whole, up = float(resamples.var()), n_units / (n_units - 1)
    variance = max(0.0, up * (whole - shared_away))
    moment = float(np.mean((resamples - resamples.mean()) ** 3))
    share = (variance / whole) ** 1.5 if whole > 0 else 0.0
    return Component(variance, n_units - 1, moment * share)


def mean_of_units(values: Floats) -> Component:
    """Return the part of units in their mean, [n >= 2]: the limit of `unit_component`.

    The bootstrap variance of a mean is that of the units over their number, and its third moment
    theirs over its square (Davison & Hinkley 1997, section 2.6).
    """
    n = len(values)
    third = float(np.mean((values - values.mean()) ** 3)) / n**2 * (n / (n - 1)) ** 1.5
    return Component(float(values.var(ddof=1)) / n, n - 1, third)


def summed(parts: Sequence[Component]) -> Component:
    """Sum independent parts of one kind, with Satterthwaite's (1946) degrees of freedom."""
    variance = sum(part.variance for part in parts)
    uncertain = sum(part.variance**2 / part.df for part in parts)
    df = variance**2 / uncertain if uncertain else min(part.df for part in parts)
    return Component(variance, df, sum(part.third for part in parts))


def mean_component(values: Floats) -> Component:
    """Return the part of whole draws or seeds, [n >= 2]: s^2 / n, with the bootstrap's n / (n - 1).

    So few values cannot estimate skewness, which counts as 0.
    """
    return Component(float(values.var(ddof=1)) / len(values), len(values) - 1, is_whole=True)


def _untransformed(x: float, skewness: float) -> float:
    """Return the t that `Spread._transformed` maps to x."""
    if abs(skewness) < NO_SKEWNESS:
        return x
    return 3 / skewness * (float(np.cbrt(1 + skewness * (x - skewness / 6))) - 1)
