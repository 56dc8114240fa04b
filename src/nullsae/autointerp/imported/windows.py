"""Windows that were judged elsewhere, as examples that a formula of ours can judge, too."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from nullsae.autointerp.examples import Examples, Flags, Floats, examples_of
from nullsae.autointerp.imported.layout import Scored
from nullsae.autointerp.imported.reading import fail
from nullsae.corpus.token_text import token_text
from nullsae.tables import cell_schema

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

# How such windows are named among silent ones.
GIVEN = "given"
# Tokens that the corpus' tokenizer does not have: from here on the text is of another one.
MOST_UNKNOWN_SHARE = 0.5


@dataclass(frozen=True)
class GivenWindows:
    """The windows of some latents, sorted by (latent, window)."""

    examples: Examples
    """A token that the tokenizer does not have has the id behind its last one."""
    probability: Floats
    """What was said of each, [n_windows]; NaN where no answer came."""
    is_label: Flags
    """Whether that was yes or no."""
    has_text: Flags
    """Whether a formula may judge the window: its tokens are known, and no window of the other
    truth has the same ones, as where only marks differ, which files do not keep."""


def given_windows(
    scores: Mapping[int, Scored], tokenizer: Tokenizer | None, source: str
) -> GivenWindows:
    """The windows of a file.

    Windows of one text count as one document: a file does not say which document they are of.

    Args:
        scores: as a layout reads them.
        tokenizer: of the corpus; None where texts are not needed.
        source: the file, for messages.

    Raises:
        UserError: most tokens are of another tokenizer.
    """
    ids = {} if tokenizer is None else token_ids(tokenizer)
    unknown = 0 if tokenizer is None else tokenizer.get_vocab_size()
    documents: dict[Any, int] = {}
    rows, said, n_tokens, n_unknown = [], [], 0, 0
    for latent, scored in sorted(scores.items()):
        truths: dict[tuple[str, ...], set[bool]] = {}
        for window in scored.windows:
            truths.setdefault(window.tokens, set()).add(window.active)
        for number, window in enumerate(scored.windows):
            found = [ids.get(token, unknown) for token in window.tokens]
            n_tokens += len(found)
            n_unknown += found.count(unknown)
            text = window.tokens or (latent, number)
            rows.append(
                {
                    **{"latent": latent, "window": number, "pool": "score"},
                    **{"active": window.active, "quantile": None, "start": 0},
                    "silent_kind": None if window.active else GIVEN,
                    "document": documents.setdefault(text, len(documents)),
                    "token_ids": found or [unknown],
                    "activations": window.activations or [float(window.active)],
                    "skipped": [False] * max(1, len(found)),
                    # No marks are put into these windows, which is all that frequencies are for.
                    "token_frequencies": [0.0] * max(1, len(found)),
                }
            )
            can_judge = bool(window.tokens) and len(truths[window.tokens]) == 1
            said.append((window.probability, window.is_label, can_judge))
    if tokenizer is not None and n_unknown > MOST_UNKNOWN_SHARE * n_tokens:
        fail(
            source,
            f"{n_unknown} of {n_tokens} tokens of its windows are not in the corpus' tokenizer: is "
            f"it of another model?",
        )
    if tokenizer is not None and n_unknown:
        log.warning("%s: %d of %d tokens are not in the tokenizer", source, n_unknown, n_tokens)
    table = pa.Table.from_pylist(rows, schema=cell_schema("windows"))
    latents = pa.chunked_array([pa.array(sorted(scores), pa.int64())])
    examples = examples_of(table, latents, negatives=GIVEN, source=source)
    columns = np.array(said, np.float64).reshape(-1, 3)
    return GivenWindows(examples, columns[:, 0], columns[:, 1] == 1, columns[:, 2] == 1)


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """The ids of tokens by their text and by their name in the vocabulary, the smallest of each."""
    found: dict[str, int] = {}
    for token_id in range(tokenizer.get_vocab_size()):
        found.setdefault(token_text(tokenizer, token_id), token_id)
    for name, token_id in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        found.setdefault(name, token_id)
    return found
