"""How often a nominal 95% interval covers the truth: `python benchmarks/coverage.py`.

Data are simulated with a known mean of 0. Each line gives the observed coverage of the
hierarchical bootstrap, and of the bootstrap that pools a level that ought to be resampled whole:
windows as if each were a latent, or all latents as if there were one draw.
"""

from __future__ import annotations

import numpy as np

from nullsae.randomness import numpy_generator
from nullsae.statistics.bootstrap import Arm, Cell, percentile_interval, resample

CONFIDENCE = 0.95
N_TRIALS = 600
N_RESAMPLES = 500


def covers(arm: Arm, trial: int) -> bool:
    """Whether the interval of one simulated arm holds the true mean, 0."""
    resamples = resample(arm, N_RESAMPLES, numpy_generator(trial, "coverage_bootstrap"))
    low, high = percentile_interval(resamples, CONFIDENCE)
    return low <= 0.0 <= high


def latents_of_one_draw(n_latents: int, n_windows: int, trial: int) -> tuple[bool, bool]:
    """One SAE: latents differ (sd 1), and so do the windows of a latent (sd 2)."""
    rng = numpy_generator(trial, "coverage_latents", n_latents)
    latents = rng.normal(size=(n_latents, 1))
    windows = latents + 2.0 * rng.normal(size=(n_latents, n_windows))
    resampled = covers(Arm((Cell(0, 0, windows.mean(axis=1)),)), trial)
    return resampled, covers(Arm((Cell(0, 0, windows.ravel()),)), trial)


def draws_and_seeds(n_draws: int, n_seeds: int, n_latents: int, trial: int) -> tuple[bool, bool]:
    """Draws differ (sd 0.5), and so do the seeds of a draw (sd 0.25) and latents (sd 1)."""
    rng = numpy_generator(trial, "coverage_draws", n_draws)
    data = (
        0.5 * rng.normal(size=(n_draws, 1, 1))
        + 0.25 * rng.normal(size=(n_draws, n_seeds, 1))
        + rng.normal(size=(n_draws, n_seeds, n_latents))
    )
    cells = (Cell(d, s, data[d, s]) for d in range(n_draws) for s in range(n_seeds))
    resampled = covers(Arm(tuple(cells)), trial)
    return resampled, covers(Arm((Cell(0, 0, data.ravel()),)), trial)


def main() -> None:
    """Print one line per design."""
    print(f"observed coverage of nominal {CONFIDENCE:.0%} intervals, {N_TRIALS} trials each")
    print(f"{'design':42}{'hierarchical':>14}{'pooled':>10}")

    def report(design: str, trials: list[tuple[bool, bool]]) -> None:
        resampled, pooled = np.mean(trials, axis=0)
        print(f"{design:42}{resampled:14.3f}{pooled:10.3f}")

    for n_latents in (20, 50):
        trials = [latents_of_one_draw(n_latents, 40, trial) for trial in range(N_TRIALS)]
        report(f"1 draw, {n_latents} latents x 40 windows", trials)
    for n_draws in (3, 5, 10):
        trials = [draws_and_seeds(n_draws, 2, 50, trial) for trial in range(N_TRIALS)]
        report(f"{n_draws} draws x 2 seeds x 50 latents", trials)


if __name__ == "__main__":
    main()
