"""What a scorer asks about: windows, which of them are active, and which tokens are marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nullsae.autointerp.shards import of_latents
from nullsae.core.errors import UserError
from nullsae.core.files import rebuild_command
from nullsae.core.randomness import Key, numpy_generator
from nullsae.tables import of_pool

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

# Negatives that are active windows with marks on the wrong tokens.
MISPLACED = "misplaced"


@dataclass(frozen=True)
class Examples:
    """Windows to judge, sorted by (latent, window), with the positions of all concatenated."""

    # One entry per window, [n_examples].
    latent: Ints
    window: Ints
    document: Ints
    active: Flags
    """The truth; also False for an active window with misplaced marks."""
    silent_kind: pa.Array
    """Null if `active`."""
    quantile: pa.Array
    """Null if not `active`."""
    starts: Ints
    """[n_examples + 1]: example i has positions starts[i] to starts[i + 1]."""
    # One entry per token, [n_positions].
    tokens: Ints
    activations: NDArray[np.float32]
    frequencies: NDArray[np.float32]
    """Share of the corpus' tokens with the same id."""
    skipped: Flags
    """Tokens that cannot fire, such as BOS: a mark on one would give the answer away."""
    marked: Flags
    """All False until marks are drawn."""

    @property
    def n_tokens(self) -> Ints:
        """Length of each window, [n_examples]."""
        return np.diff(self.starts)

    @property
    def n_marked(self) -> Ints:
        """Marked tokens of each window, [n_examples]."""
        return np.add.reduceat(self.marked, self.starts[:-1], dtype=np.int64)

    @property
    def octaves(self) -> Floats:
        """Binary logarithm of each token's frequency, [n_positions]."""
        found: Floats = np.log2(self.frequencies.astype(np.float64))
        return found

    def positions_of(self, row: int) -> Ints:
        """Return the positions of one window's tokens."""
        return np.arange(self.starts[row], self.starts[row + 1])

    def take(self, rows: Ints) -> Examples:
        """Return the examples at `rows`, in that order."""
        lengths = self.n_tokens[rows]
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        at = np.repeat(self.starts[rows] - starts[:-1], lengths) + np.arange(starts[-1])
        of_examples = ("latent", "window", "document", "active", "silent_kind", "quantile")
        of_positions = ("tokens", "activations", "frequencies", "skipped", "marked")
        return Examples(
            starts=starts,
            **{name: getattr(self, name).take(rows) for name in of_examples},
            **{name: getattr(self, name)[at] for name in of_positions},
        )


def examples_of(
    table: pa.Table, latents: pa.ChunkedArray, *, negatives: str, source: Path | str
) -> Examples:
    """Select the scoring windows of `latents` from the table `windows`, sorted and unmarked.

    `negatives` is the kind of silent windows, `misplaced` for active windows only; `source` is the
    table's file, for messages. A `UserError` names a window whose flag `active` contradicts its
    activations.
    """
    table = of_latents(of_pool(table, "score"), latents.to_numpy())
    table = table.sort_by([("latent", "ascending"), ("window", "ascending")])
    peaks = np.array([max(row) for row in table["activations"].to_pylist()])
    for i in np.flatnonzero((peaks > 0) != table["active"].to_numpy())[:1].tolist():
        row = table.slice(i, 1).to_pylist()[0]
        raise UserError(
            f"{source}: latent {row['latent']}, window {row['window']} is called "
            f"{'active' if row['active'] else 'silent'}, its largest activation is "
            f"{peaks[i]:g}; rebuild it with: {rebuild_command(source)}"
        )
    of_kind = np.array([kind == negatives for kind in table["silent_kind"].to_pylist()], bool)
    table = table.filter(pa.array(table["active"].to_numpy() | of_kind))
    lists = table["token_ids"].combine_chunks()
    tokens = lists.flatten().to_numpy().astype(np.int64)
    return Examples(
        **{name: table[name].to_numpy() for name in ("latent", "window", "document", "active")},
        **{name: table[name].combine_chunks() for name in ("silent_kind", "quantile")},
        starts=np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy(), dtype=np.int64)]),
        tokens=tokens,
        activations=table["activations"].combine_chunks().flatten().to_numpy(),
        frequencies=table["token_frequencies"].combine_chunks().flatten().to_numpy(),
        skipped=table["skipped"].combine_chunks().flatten().to_numpy(zero_copy_only=False),
        marked=np.zeros(len(tokens), dtype=np.bool_),
    )


def with_marks(
    examples: Examples, threshold: float, negatives: str, seed: int, *key: Key
) -> Examples:
    """Return the examples with marks: true ones in active windows, wrong ones in the negatives.

    For `misplaced`, each active window appears twice, with its true marks and, as a negative, with
    equally many marks on tokens where the latent is silent; a window without such tokens appears
    once. `examples` are from `examples_of` with the same `negatives`; `threshold` is the share of a
    window's largest activation above which a token is marked.
    """
    marked = fuzz_marks(examples, threshold, seed, "fuzz_marks", *key)
    examples = replace(examples, marked=marked)
    if negatives != MISPLACED:
        return examples
    wrong = misplaced_marks(examples, seed, *key)
    negative = replace(
        examples,
        marked=wrong,
        active=np.zeros_like(examples.active),
        silent_kind=pa.array([MISPLACED] * len(examples.window), pa.string()),
        quantile=pa.nulls(len(examples.window), pa.int64()),
    )
    negative = negative.take(np.flatnonzero(negative.n_marked))
    joined: dict[str, Any] = {}
    for name in (field.name for field in fields(Examples)):
        both = [getattr(examples, name), getattr(negative, name)]
        join = pa.concat_arrays if isinstance(both[0], pa.Array) else np.concatenate
        joined[name] = join(both)
    joined["starts"] = np.append(examples.starts, examples.starts[-1] + negative.starts[1:])
    order = np.lexsort((~joined["active"], joined["window"], joined["latent"]))
    return Examples(**joined).take(order)


def fuzz_marks(
    examples: Examples, mark_threshold: float, seed: int, purpose: str, *key: Key
) -> Flags:
    """Choose the tokens that are marked in each window, bool [n_positions].

    Active windows: positions above `mark_threshold` times the window's largest activation.
    Silent windows: those of `wrong_marks`, resembling the marks of the latent's active windows.
    """
    n_tokens = examples.n_tokens
    maximum = np.maximum.reduceat(examples.activations, examples.starts[:-1])
    marked = strong(examples.activations, np.repeat(maximum, n_tokens), mark_threshold)
    rows = np.flatnonzero(~examples.active)
    active = {
        latent: np.flatnonzero((examples.latent == latent) & examples.active)
        for latent in np.unique(examples.latent[rows]).tolist()
    }
    like = [active[latent] for latent in examples.latent[rows].tolist()]
    return marked | wrong_marks(replace(examples, marked=marked), rows, like, seed, purpose, *key)


def misplaced_marks(examples: Examples, seed: int, *key: Key) -> Flags:
    """Mark wrong tokens in active windows, resembling the true marks of each: bool [n_positions].

    Windows without any mark cannot be shown with misplaced ones: silent windows, and those in which
    the latent fires at every token.
    """
    rows = np.flatnonzero(examples.active).astype(np.int64)
    return wrong_marks(examples, rows, list(rows[:, None]), seed, "misplaced_marks", *key)


def wrong_marks(
    examples: Examples, rows: Ints, like: Sequence[Ints], seed: int, purpose: str, *key: Key
) -> Flags:
    """Mark tokens where the latent is silent, in number and frequency like true marks.

    Each window of `rows` imitates one active window, drawn from its own entry in `like`. The true
    marks of that window take turns in random order. Each picks, among tokens that are silent, may
    fire and are not taken, the one whose log frequency in the corpus is nearest to its own; ties
    are broken at random. The nearest is taken however far it is, to keep the number of marks; there
    are fewer only if the window runs out of such tokens. A window with nothing to imitate gets one
    mark on a random such token.

    Each window has its own generator, keyed by (seed, purpose, key, latent, window): positions vary
    between windows, and every explainer is judged on the same marks. Returns bool [n_positions],
    True only in `rows`.
    """
    wrong = np.zeros(len(examples.marked), dtype=np.bool_)
    octaves = examples.octaves
    for row, windows in zip(rows.tolist(), like, strict=True):
        latent, window = int(examples.latent[row]), int(examples.window[row])
        generator = numpy_generator(seed, purpose, *key, latent, window)
        able = examples.positions_of(row)
        able = able[(examples.activations[able] <= 0) & ~examples.skipped[able]]
        able = generator.permutation(able)  # so that ties are broken at random
        wanted = octaves[able[:1]]
        if len(windows):
            true = examples.positions_of(int(generator.choice(windows)))
            wanted = generator.permutation(octaves[true[examples.marked[true]]])
        for one in wanted[: len(able)]:
            nearest = int(np.argmin(np.abs(octaves[able] - one)))
            wrong[able[nearest]] = True
            able = np.delete(able, nearest)
    return wrong


def strong(
    activations: NDArray[np.float32], maximum: NDArray[np.float32] | np.float32, threshold: float
) -> Flags:
    """Return which tokens are active above a share of their window's largest activation.

    `activations` are float32 of any shape; `maximum` is the largest of each one's window, or one
    for all. The largest itself is always included: float32 may round a share of a tiny number up.
    """
    found: Flags = activations > threshold * maximum
    found |= (activations == maximum) & (maximum > 0)
    return found
