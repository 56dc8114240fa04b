"""Windows that were judged elsewhere, as examples that our formula can judge as well."""

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

# The kind of these windows among silent ones.
GIVEN = "given"
# With more tokens unknown to the corpus' tokenizer, the text is from another one.
MOST_UNKNOWN_SHARE = 0.5


@dataclass(frozen=True)
class GivenWindows:
    """The windows of some latents, sorted by (latent, window)."""

    examples: Examples
    """A token unknown to the tokenizer has the id after its last one."""
    probability: Floats
    """The probability given for each, [n_windows]; NaN without an answer."""
    is_label: Flags
    """Whether the answer was yes or no."""
    has_text: Flags
    """Whether a formula may judge the window: its tokens are known, and no window with the other
    truth has the same ones, as when only marks differ, which files do not store."""


def given_windows(
    scores: Mapping[int, Scored], tokenizer: Tokenizer | None, source: str
) -> GivenWindows:
    """Convert the windows of a file.

    Windows with the same text count as one document, because a file does not name documents.

    Args:
        scores: as a layout reads them.
        tokenizer: of the corpus; None if texts are not needed.
        source: the file, for messages.

    Raises:
        UserError: most tokens are from another tokenizer.
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
                    # Frequencies are only needed for marks, which these windows do not get.
                    "token_frequencies": [0.0] * max(1, len(found)),
                }
            )
            can_judge = bool(window.tokens) and len(truths[window.tokens]) == 1
            said.append((window.probability, window.is_label, can_judge))
    if tokenizer is not None and n_unknown > MOST_UNKNOWN_SHARE * n_tokens:
        fail(
            source,
            f"{n_unknown} of {n_tokens} tokens of its windows are not in the corpus' tokenizer: is "
            f"it about another model?",
        )
    if tokenizer is not None and n_unknown:
        log.warning("%s: %d of %d tokens are not in the tokenizer", source, n_unknown, n_tokens)
    table = pa.Table.from_pylist(rows, schema=cell_schema("windows"))
    latents = pa.chunked_array([pa.array(sorted(scores), pa.int64())])
    examples = examples_of(table, latents, negatives=GIVEN, source=source)
    columns = np.array(said, np.float64).reshape(-1, 3)
    return GivenWindows(examples, columns[:, 0], columns[:, 1] == 1, columns[:, 2] == 1)


def token_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Return ids of tokens by text and by vocabulary name, the smallest id for each."""
    found: dict[str, int] = {}
    for token_id in range(tokenizer.get_vocab_size()):
        found.setdefault(token_text(tokenizer, token_id), token_id)
    for name, token_id in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1]):
        found.setdefault(name, token_id)
    return found
