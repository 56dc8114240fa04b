"""What latents do to predictions, from passes of the subject with one activation changed.

Subtracted at a firing, a latent's contribution a d changes the next-token prediction by
KL(clean || edited) and changes its loss. Added where the latent is silent, at its mean activation,
it has the opposite effect. Other directions of the same norm are treated in the same way: one of
another latent, and a random one. All paths behind the site count, not only the direct one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nullsae.core.devices import exact
from nullsae.latents.next_token import Successors
from nullsae.latents.places import Places
from nullsae.latents.split import Split
from nullsae.latents.store import Firings, offsets_of
from nullsae.subjects.interventions import CUT_TOKENS, Interventions

# Tokens of contexts captured together, tokens of edited contexts passed together, and logits of
# such a pass on a CPU; other devices take this many times as many.
CAPTURED_TOKENS, PASSED_TOKENS, LOGITS, ELSEWHERE = 2**12, 2**11, 2**21, 4


class Changes(NamedTuple):
    """Means over the places of each latent, float64 [n_latents, n_directions]; NaN if none."""

    kl: np.ndarray
    """KL(clean || edited) of the next token's distribution, in nats."""
    gain: np.ndarray
    """Increase of the log-probability of the tokens of interest, in nats."""


@dataclass(frozen=True)
class Tokens:
    """Distributions over token ids, concatenated."""

    offsets: np.ndarray
    """int64 [n + 1]: where each distribution begins."""
    ids: np.ndarray
    """int64."""
    shares: np.ndarray
    """float64, summing to 1 for each non-empty distribution."""

    @classmethod
    def of_places(cls, split: Split, places: Places) -> Tokens:
        """Return the token that follows each place."""
        n = len(places.position)
        following = split.ids[places.position + 1].astype(np.int64)
        return cls(np.arange(n + 1), following, np.ones(n))

    @classmethod
    def of_firings(
        cls, firings: Firings, latents: np.ndarray, successors: Successors, places: Places
    ) -> Tokens:
        """Return, for each place, the distribution of tokens that follow its latent's firings."""
        found = []
        for latent in latents.tolist():
            pair = successors.pair[firings.position[firings.of(latent)]]
            kinds, n = np.unique(successors.second[pair[pair >= 0]], return_counts=True)
            found.append((kinds, n / max(1, n.sum())))
        each = [found[of] for of in places.of.tolist()]
        ids, shares = (
            np.concatenate([np.zeros(0, dtype), *(own[part] for own in each)])
            for part, dtype in enumerate((np.int64, np.float64))
        )
        return cls(offsets_of(np.array([len(own[0]) for own in each], dtype=np.int64)), ids, shares)

    def some(self, index: np.ndarray, vocab: int, device: torch.device) -> Tensor:
        """Return the full distributions of some places (int64 [m]): float64 [m, vocab]."""
        dense = np.zeros((len(index), vocab))
        for row, at in enumerate(index.tolist()):
            own = slice(self.offsets[at], self.offsets[at + 1])
            dense[row, self.ids[own]] = self.shares[own]
        return torch.from_numpy(dense).to(device)


def equal_norms(directions: Sequence[Tensor]) -> Tensor:
    """Scale directions [n, d_model] to the norms of the first: float32 [n, kinds, d_model].

    A direction of norm 0 stays 0.
    """
    stacked = torch.stack([rows.float() for rows in directions], dim=1)
    norms = stacked.norm(dim=2, keepdim=True)
    return torch.where(norms > 0, stacked * (norms[:, :1] / norms.clamp_min(1e-30)), 0.0)


def changes_at(
    interventions: Interventions,
    split: Split,
    places: Places,
    amounts: np.ndarray,
    directions: Tensor,
    looked_at: Tokens,
) -> Changes:
    """Measure how predictions change when directions are added at places.

    Memory: a batch of passes, and about 60 bytes x `LOGITS`.

    Args:
        interventions: of the subject at the site of the directions.
        split: `eval`.
        places: where, with the index of the latent.
        amounts: float64 [n_places], the factors of the directions.
        directions: float32 [n_latents, kinds, d_model].
        looked_at: for each place, the tokens of `Changes.gain`.
    """
    n_latents, kinds, _ = directions.shape
    kl, gain = (np.zeros((n_latents, kinds)) for _ in range(2))
    device = interventions.subject.device
    directions = directions.to(device)
    for index, log_p in _passes(interventions, split, places, amounts, directions):
        clean, edited = log_p[:, :1], log_p[:, 1:]
        raised = edited - clean
        # Rounding can make it negative.
        lost = -(clean.exp() * raised).sum(dim=2).clamp(max=0.0)
        target = looked_at.some(index, log_p.shape[2], log_p.device)
        np.add.at(kl, places.of[index], lost.cpu().numpy())
        gained = torch.bmm(raised, target[:, :, None])[:, :, 0]
        np.add.at(gain, places.of[index], gained.cpu().numpy())
    n = np.bincount(places.of, minlength=n_latents).astype(np.float64)
    n[n == 0] = np.nan
    return Changes(kl / n[:, None], gain / n[:, None])


def _passes(
    interventions: Interventions,
    split: Split,
    places: Places,
    amounts: np.ndarray,
    directions: Tensor,
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """Yield batches of places (int64 [m]) and the predictions there.

    Predictions are log-probabilities of the next token, float64 [m, 1 + kinds, vocab]: for the
    clean pass and for each direction. Both come from one batch, so they are rounded alike.
    """
    device, kinds = directions.device, directions.shape[1]
    none = directions.new_zeros(1, directions.shape[2])
    for contexts, mine in _by_context(split, places, device):
        ids = torch.from_numpy(context_ids(split, contexts))
        states = interventions.states(ids, contexts.tolist())
        each = {"passes": 1 + kinds, "vocab_size": interventions.vocab_size}
        for part, length in cut_batches(split, places.position[mine], device, **each):
            index = mine[part]
            context, offset = np.divmod(places.position[index], split.context_tokens)
            rows = torch.from_numpy(np.searchsorted(contexts, context)).repeat_interleave(1 + kinds)
            factors = torch.from_numpy(amounts[index]).to(device, torch.float32)
            edits = factors[:, None, None] * directions[torch.from_numpy(places.of[index])]
            added = torch.cat([none.expand(len(index), 1, -1), edits], dim=1).flatten(0, 1)
            logits = interventions.logits(
                ids[rows, :length],
                contexts[rows.numpy()].tolist(),
                None if states is None else states[rows.to(states.device), :length],
                torch.from_numpy(offset).repeat_interleave(1 + kinds),
                added,
            )
            log_p = exact(logits).log_softmax(dim=1)
            yield index, log_p.reshape(len(index), 1 + kinds, -1)


def _by_context(
    split: Split, places: Places, device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield contexts that are captured together (int64, ascending), and their places (int64)."""
    context = places.position // split.context_tokens
    order = np.argsort(context, kind="stable")
    distinct, first = np.unique(context[order], return_index=True)
    first = np.append(first, len(order))
    step = max(1, _at_once(CAPTURED_TOKENS, device) // split.context_tokens)
    for start in range(0, len(distinct), step):
        contexts = distinct[start : start + step]
        yield contexts, order[first[start] : first[start + len(contexts)]]


def _at_once(n: int, device: torch.device) -> int:
    return n if device.type == "cpu" else ELSEWHERE * n


def cut_batches(
    split: Split,
    position: np.ndarray,
    device: torch.device,
    *,
    passes: int = 1,
    vocab_size: int = 1,
) -> Iterator[tuple[np.ndarray, int]]:
    """Yield batches of places with similar offsets, and the length that their contexts need.

    Args:
        split: its contexts are cut after the places.
        position: int64 [n], flat.
        device: that computes.
        passes: rows of a batch per place.
        vocab_size: logits that are read per row. A batch has at most `PASSED_TOKENS` and `LOGITS`,
            or one place.

    Yields:
        Indices of places, int64 [m], and the length in tokens, rounded up to `CUT_TOKENS`.
    """
    tokens, logits = _at_once(PASSED_TOKENS, device), _at_once(LOGITS, device)
    offset = position % split.context_tokens
    lengths = np.minimum(-(-(offset + 1) // CUT_TOKENS) * CUT_TOKENS, split.context_tokens)
    order = np.argsort(lengths, kind="stable")
    _, first = np.unique(lengths[order], return_index=True)
    for start, stop in pairwise([*first.tolist(), len(order)]):
        length = int(lengths[order[start]])
        rows = min(tokens // length, logits // vocab_size)
        step = max(1, rows // passes)
        for low in range(start, stop, step):
            yield order[low : min(low + step, stop)], length


def context_ids(split: Split, contexts: np.ndarray) -> np.ndarray:
    """Return token ids of contexts (int64 [n]): int64 [n, context_tokens]."""
    ids: np.ndarray = split.ids.reshape(-1, split.context_tokens)[contexts].astype(np.int64)
    return ids
