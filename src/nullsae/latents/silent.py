"""Hard silent windows: a latent's usual tokens or companions occur, but it does not fire."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from nullsae.config.latents import Latents
from nullsae.latents.split import Split
from nullsae.latents.store import PIECE_FIRINGS, Firings, offsets_of, order_by
from nullsae.latents.windows import POOLS, Draw, Grid, silent_of_each_kind

SCORE = POOLS.index("score")
# Number of latents whose firing makes a window `co_occurring`.
N_COMPANIONS = 10


@dataclass(frozen=True)
class HardSilence:
    """Draws the silent scoring windows that are not random, one latent at a time."""

    active: Firings
    """The cells in which each latent fires, without cells across documents; `position` is the
    cell."""
    grid: Grid
    pools: np.ndarray
    """int8 [n_windows], the pool of each cell, from `pools_of`."""
    split: Split

    def draw(
        self,
        latent: int,
        drawn: list[Draw],
        activations: Callable[[np.ndarray], np.ndarray],
        settings: Latents,
        generator: np.random.Generator,
    ) -> list[Draw]:
        """Draw windows of the kinds in `settings.silent_windows` other than `random`.

        All are in the scoring pool, none is among `drawn`, and no two kinds share one. `nearest`
        comes first, because it has few good candidates while `co_occurring` has many. A kind has
        fewer windows than requested if the latent has no more (`silent_of_each_kind`).

        `drawn` comes from `draw_windows` for the latent. `activations` returns its activations in
        windows, [n, window_tokens], by their starts [n]. The generator, keyed to the latent, breaks
        ties.
        """
        free = self.pools == SCORE
        free[self.active.position[self.active.of(latent)]] = False
        n = silent_of_each_kind(int(free.sum()), settings)
        for draw in drawn:
            free[draw.window] = False
        draws = []
        if "nearest" in settings.silent_windows:
            (shown,) = (d.start for d in drawn if d.pool == "score" and d.active)
            values = activations(shown).astype(np.float64)
            near = self.tokens.nearest(self._ids(shown), values, np.flatnonzero(free), n, generator)
            free[near] = False
            draws.append(Draw("score", False, near, self.grid.start(near), silent_kind="nearest"))
        if "co_occurring" in settings.silent_windows:
            company = self.company(latent)
            candidates = generator.permutation(np.flatnonzero(free & (company > 0)))
            most = np.sort(candidates[np.argsort(-company[candidates], kind="stable")[:n]])
            start = self.grid.start(most)
            draws.append(Draw("score", False, most, start, silent_kind="co_occurring"))
        return draws

    def _ids(self, start: np.ndarray) -> np.ndarray:
        """Return token ids of the windows that start there, [n, window_tokens]."""
        ids: np.ndarray = self.split.ids[start[:, None] + np.arange(self.grid.window_tokens)]
        return ids

    def company(self, latent: int) -> np.ndarray:
        """Return how much of a latent's usual company fires in each window, float64 [n_windows].

        It is the sum of the associations of those companions that fire there.
        """
        company = np.zeros(self.grid.n_windows)
        for other, association in zip(*self.companions(latent), strict=True):
            # Each latent has a window once, so no summand is lost.
            company[self.active.position[self.active.of(int(other))]] += association
        return company

    def companions(self, latent: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the latents that most often fire in the same windows as a latent.

        The association of another latent is P(it fires | the latent fires) - P(it fires), over the
        windows of both pools: its share of the latent's active windows minus its share of all
        windows. Latents that never fire where this one is silent do not count. Returns at most
        `N_COMPANIONS` latents (int64) and their associations (float64), all above 0, largest first;
        ties by number.
        """
        own = np.zeros(self.grid.n_windows, dtype=bool)
        own[self.active.position[self.active.of(latent)]] = True
        # In how many of those cells each latent fires.
        active, offsets = self.active.counts, self.active.offsets
        both = np.zeros_like(active)
        for start in range(0, int(offsets[-1]), PIECE_FIRINGS):
            inside = offsets_of(own[self.active.position[start : start + PIECE_FIRINGS]])
            both += np.diff(inside[np.clip(offsets - start, 0, len(inside) - 1)])
        association = both / max(1, own.sum()) - active / max(1, (self.pools >= 0).sum())
        # The latent itself is among these.
        association[both == active] = 0
        best = np.argsort(-association, kind="stable")[:N_COMPANIONS]
        best = best[association[best] > 0]
        return best, association[best]

    @cached_property
    def tokens(self) -> TokenIndex:
        """The scoring pool by token types."""
        windows = np.flatnonzero(self.pools == SCORE)
        ids, n_windows = self._ids(self.grid.start(windows)), self.grid.n_windows
        return TokenIndex.of(windows, ids, n_windows=n_windows, n_types=self.split.n_types)


@dataclass(frozen=True)
class TokenIndex:
    """Which windows contain each token type."""

    window: np.ndarray
    """int32 [n_pairs]: windows by the types they contain, ascending within a type."""
    bounds: np.ndarray
    """int64 [vocab + 1]: window[bounds[t]] to window[bounds[t + 1]] contain type t."""
    rarity: np.ndarray
    """float64 [vocab], nats: ln(windows / windows with the type), 0 for one that occurs in none
    (inverse document frequency, Spärck Jones 1972)."""
    n_windows: int

    @classmethod
    def of(
        cls, windows: np.ndarray, token_ids: np.ndarray, *, n_windows: int, n_types: int
    ) -> TokenIndex:
        """Index windows (int64 [n]) by their token ids [n, window_tokens].

        `n_windows` and `n_types` are totals that include windows and types that are not indexed.
        """
        types = np.sort(token_ids.astype(np.uint32), axis=1)
        first = np.ones(types.shape, dtype=bool)
        first[:, 1:] = types[:, 1:] != types[:, :-1]
        holder = np.repeat(windows.astype(np.int32), np.count_nonzero(first, axis=1))
        held = types[first]
        del types, first
        held_by = np.bincount(held, minlength=n_types)
        rarity = np.log(len(windows) / np.maximum(held_by, 1)) * (held_by > 0)
        # Windows stay in order within a type.
        return cls(holder[order_by(held)], offsets_of(held_by), rarity, n_windows)

    def similarity(self, token_ids: np.ndarray, activations: np.ndarray) -> np.ndarray:
        """Return how much of an active window each indexed window contains: 1 all types, 0 none.

        A type is weighted by the mean of two shares. One is its share of the window's activation,
        so that what the latent fires on comes first. The other is its share of the tokens, weighted
        by `rarity`, so that the rest of the text is similar too, in its distinctive words.

        Both `token_ids` (int) and `activations` (float64, not negative) are [window_tokens].
        Returns float64 [n_windows], 0 for windows that are not indexed.
        """
        types, place, n = np.unique(token_ids, return_inverse=True, return_counts=True)
        activation = np.bincount(place, weights=activations)
        weight = (_shares(activation) + _shares(self.rarity[types] * n)) / 2
        low, high = self.bounds[types], self.bounds[types + 1]
        holders = np.concatenate([self.window[a:b] for a, b in zip(low, high, strict=True)])
        weights = np.repeat(weight, high - low)
        return np.bincount(holders, weights=weights, minlength=self.n_windows)

    def nearest(
        self,
        token_ids: np.ndarray,
        activations: np.ndarray,
        candidates: np.ndarray,
        n: int,
        generator: np.random.Generator,
    ) -> np.ndarray:
        """Choose the candidates that are most similar to active windows.

        The active windows take turns in random order: each takes its most similar remaining
        candidate, until there are n. So the chosen windows resemble the active ones in total,
        rather than a single one of them. Ties are broken at random.

        Both `token_ids` (int) and `activations` (float64) are [n_active, window_tokens], the
        candidates (int64) indexed windows. Returns int64 [at most n], ascending.
        """
        if not len(token_ids):
            return candidates[:0]
        candidates = generator.permutation(candidates)
        turns = generator.permutation(len(token_ids))
        taken = np.zeros(len(candidates), dtype=bool)
        for turn in range(min(n, len(candidates))):
            row = turns[turn % len(turns)]
            similarity = self.similarity(token_ids[row], activations[row])[candidates]
            similarity[taken] = -1
            taken[np.argmax(similarity)] = True
        return np.sort(candidates[taken])


def _shares(amounts: np.ndarray) -> np.ndarray:
    """Divide amounts by their sum; all 0 if that is 0."""
    total = float(amounts.sum())
    return amounts / total if total > 0 else np.zeros(len(amounts))
