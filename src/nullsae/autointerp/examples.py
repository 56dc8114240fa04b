"""What a scorer asks about: windows, which of them are active, and which tokens are marked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from nullsae.core.errors import UserError
from nullsae.core.files import rebuild_command
from nullsae.core.randomness import Key, numpy_generator

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Negatives that are active windows with marks on the wrong tokens.
MISPLACED = "misplaced"


@dataclass(frozen=True)
class Examples:
    """Windows to judge, sorted by (latent, window); positions of all, end to end."""

    latent: Ints
    """[n_examples]"""
    window: Ints
    """[n_examples]"""
    active: Flags
    """The truth, [n_examples]: False too where an active window has misplaced marks."""
    silent_kind: pa.Array
    """[n_examples], null where `active`."""
    quantile: pa.Array
    """[n_examples], null where not `active`."""
    starts: Ints
    """[n_examples + 1]: example i is positions starts[i] to starts[i + 1]."""
    tokens: Ints
    """[n_positions]"""
    activations: NDArray[np.float32]
    """[n_positions]"""
    marked: Flags
    """[n_positions]; all False until marks are drawn."""

    @property
    def n_tokens(self) -> Ints:
        """Length of each window, [n_examples]."""
        return np.diff(self.starts)

    @property
    def n_marked(self) -> Ints:
        """Marked tokens of each window, [n_examples]."""
        return np.add.reduceat(self.marked, self.starts[:-1], dtype=np.int64)

    @property
    def previous(self) -> Ints:
        """The token before each one in its window, -1 before the first, [n_positions]."""
        previous = np.roll(self.tokens, 1)
        previous[self.starts[:-1]] = -1
        return previous

    @property
    def maximum(self) -> NDArray[np.float32]:
        """Largest activation of each window, [n_examples]."""
        return np.maximum.reduceat(self.activations, self.starts[:-1])

    def take(self, rows: Ints) -> Examples:
        """Some of the examples, in the given order."""
        lengths = self.n_tokens[rows]
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        at = np.repeat(self.starts[rows] - starts[:-1], lengths) + np.arange(starts[-1])
        return Examples(
            latent=self.latent[rows],
            window=self.window[rows],
            active=self.active[rows],
            silent_kind=self.silent_kind.take(pa.array(rows)),
            quantile=self.quantile.take(pa.array(rows)),
            starts=starts,
            tokens=self.tokens[at],
            activations=self.activations[at],
            marked=self.marked[at],
        )


def examples_of(
    table: pa.Table, latents: pa.ChunkedArray, *, negatives: str, source: Path | str
) -> Examples:
    """Take the scoring windows of `latents` out of the table `windows`, sorted, nothing marked.

    Args:
        table: the table `windows` of one SAE.
        latents: ids of the latents to judge.
        negatives: the kind of silent windows; `misplaced` for active windows only.
        source: the table's file, for messages.

    Raises:
        UserError: a window's flag `active` contradicts its activations.
    """
    wanted = pc.and_(
        pc.equal(table["pool"], "score"),
        pc.is_in(table["latent"], value_set=latents.combine_chunks()),
    )
    table = table.filter(wanted).sort_by([("latent", "ascending"), ("window", "ascending")])
    peaks = np.array([max(row) for row in table["activations"].to_pylist()])
    for i in np.flatnonzero((peaks > 0) != table["active"].to_numpy())[:1].tolist():
        row = table.slice(i, 1).to_pylist()[0]
        raise UserError(
            f"{source}: latent {row['latent']}, window {row['window']} is called "
            f"{'active' if row['active'] else 'silent'}, its largest activation is "
            f"{peaks[i]:g}; rebuild it with: {rebuild_command(source)}"
        )
    kind = pc.equal(pc.fill_null(table["silent_kind"], ""), negatives)
    table = table.filter(pc.or_(table["active"], kind))
    lists = table["token_ids"].combine_chunks()
    tokens = lists.flatten().to_numpy().astype(np.int64)
    return Examples(
        latent=table["latent"].to_numpy(),
        window=table["window"].to_numpy(),
        active=table["active"].to_numpy(),
        silent_kind=table["silent_kind"].combine_chunks(),
        quantile=table["quantile"].combine_chunks(),
        starts=np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy(), dtype=np.int64)]),
        tokens=tokens,
        activations=table["activations"].combine_chunks().flatten().to_numpy(),
        marked=np.zeros(len(tokens), dtype=np.bool_),
    )


def with_marks(
    examples: Examples, threshold: float, negatives: str, seed: int, *key: Key
) -> Examples:
    """The examples with marks: true ones in active windows, wrong ones in the negatives.

    For `misplaced` each active window stands there twice, with its true marks and, as a negative,
    with as many marks on tokens at which the latent is silent. A window without such tokens stands
    there once.

    Args:
        examples: as from `examples_of` with the same `negatives`.
        threshold: share of a window's largest activation above which a token is marked.
        negatives: the kind.
        seed: the config's.
        key: the keys of the SAE.
    """
    marked = fuzz_marks(examples, threshold, seed, "fuzz_marks", *key)
    examples = replace(examples, marked=marked)
    if negatives != MISPLACED:
        return examples
    wrong = misplaced_marks(examples, seed, *key)
    possible = np.flatnonzero(np.add.reduceat(wrong, examples.starts[:-1], dtype=np.int64) > 0)
    negative = replace(
        examples,
        marked=wrong,
        active=np.zeros_like(examples.active),
        silent_kind=pa.array([MISPLACED] * len(examples.window), pa.string()),
        quantile=pa.nulls(len(examples.window), pa.int64()),
    ).take(possible)
    both = _join(examples, negative)
    return both.take(np.lexsort((~both.active, both.window, both.latent)))


def _join(first: Examples, second: Examples) -> Examples:
    return Examples(
        latent=np.concatenate([first.latent, second.latent]),
        window=np.concatenate([first.window, second.window]),
        active=np.concatenate([first.active, second.active]),
        silent_kind=pa.concat_arrays([first.silent_kind, second.silent_kind]),
        quantile=pa.concat_arrays([first.quantile, second.quantile]),
        starts=np.concatenate([first.starts, first.starts[-1] + second.starts[1:]]),
        tokens=np.concatenate([first.tokens, second.tokens]),
        activations=np.concatenate([first.activations, second.activations]),
        marked=np.concatenate([first.marked, second.marked]),
    )


def fuzz_marks(
    examples: Examples, mark_threshold: float, seed: int, purpose: str, *key: Key
) -> Flags:
    """Choose the tokens that are marked in each window.

    Active windows: positions above `mark_threshold` times the window's largest activation.
    Silent windows: as many as one randomly drawn active window of the same latent has, so that
    the number of marks tells nothing, at positions drawn without replacement. Each silent window
    has a generator of its own, keyed by (seed, purpose, key, latent, window): positions change
    from window to window, and every explainer is judged on the same marks.

    Returns:
        bool [n_positions].
    """
    n_tokens = examples.n_tokens
    maximum = np.repeat(examples.maximum, n_tokens)
    marked = strong(examples.activations, maximum, mark_threshold)
    n_marked = np.add.reduceat(marked, examples.starts[:-1], dtype=np.int64)
    for latent in np.unique(examples.latent).tolist():
        mine = examples.latent == latent
        sizes = n_marked[mine & examples.active]
        if not len(sizes):  # nothing to imitate
            sizes = np.ones(1, dtype=np.int64)
        for i in np.flatnonzero(mine & ~examples.active).tolist():
            generator = numpy_generator(seed, purpose, *key, latent, int(examples.window[i]))
            size = min(int(generator.choice(sizes)), int(n_tokens[i]))
            chosen = generator.choice(int(n_tokens[i]), size, replace=False)
            marked[examples.starts[i] + chosen] = True
    return marked


def misplaced_marks(examples: Examples, seed: int, *key: Key) -> Flags:
    """Marks on wrong tokens of active windows: where the latent is silent.

    A window has as many as true marks (one if it has none), or fewer where it has fewer silent
    tokens, drawn without replacement by a generator of its own, keyed by (seed, "misplaced_marks",
    key, latent, window). What stays without any mark cannot be shown with misplaced ones: silent
    windows, and those in which the latent fires at every token.

    Args:
        examples: windows, with their true marks.
        seed: the config's.
        key: the keys of the SAE.

    Returns:
        bool [n_positions].
    """
    wrong = np.zeros(len(examples.marked), dtype=np.bool_)
    n_marked = examples.n_marked
    for i in np.flatnonzero(examples.active).tolist():
        start, stop = examples.starts[i], examples.starts[i + 1]
        silent = start + np.flatnonzero(examples.activations[start:stop] <= 0)
        latent, window = int(examples.latent[i]), int(examples.window[i])
        generator = numpy_generator(seed, "misplaced_marks", *key, latent, window)
        size = min(max(1, int(n_marked[i])), len(silent))
        wrong[generator.choice(silent, size, replace=False)] = True
    return wrong


def strong(
    activations: NDArray[np.float32], maximum: NDArray[np.float32] | np.float32, threshold: float
) -> Flags:
    """Which tokens are active above a share of their window's largest activation.

    The largest itself always is: float32 rounds a share of its smallest numbers up to the whole.

    Args:
        activations: float32, of any shape.
        maximum: each one's window's largest, of that shape or one for all.
        threshold: the share.
    """
    found: Flags = activations > threshold * maximum
    found |= (activations == maximum) & (maximum > 0)
    return found
