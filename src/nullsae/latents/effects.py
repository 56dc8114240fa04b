"""Effects of latents on logits: the columns of `latents` that need the subject's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from nullsae.core.devices import exact_device
from nullsae.core.randomness import numpy_generator
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.latents import promoted
from nullsae.latents.next_token import Rows, Successors, next_token_aurocs
from nullsae.latents.split import Split
from nullsae.latents.store import Firings
from nullsae.subjects.loading import Subject, shared_subject
from nullsae.subjects.unembedding import NoDirectPathError, direct_path

# Whose decoder row is used, and the suffix of the column.
ROWS = {"own": "", "swapped": "_swapped", "random": "_random"}
COLUMNS = tuple(
    f"{kind}{of}"
    for kind in ("next_token_auroc", "next_token_auroc_bigram")
    for of in ROWS.values()
)


class Effects(NamedTuple):
    """Columns of `latents`."""

    numbers: dict[str, np.ndarray]
    """`COLUMNS`, float64 [n_latents] each, NaN if undefined."""
    lists: dict[str, promoted.Lists]
    """`promoted.COLUMNS` of each latent; None except for sampled ones."""
    reason: str | None
    """Why the subject gives none of these, if so."""


def subject_for_effects(
    model: Path | Subject | None, site: str, device: torch.device
) -> tuple[Subject | None, str | None]:
    """Load the subject for effects of directions at a site, or return why there is none.

    Args:
        model: the subject, or its `recipe.json`; None if there is no model.
        site: of the directions.
        device: that computes.
    """
    if model is None:
        return None, "no model"
    if site == "embed":
        return None, "the site is not in the residual stream and not written to it"
    return (model if isinstance(model, Subject) else shared_subject(model, device)), None


def effect_columns(
    params: CollectLatentsParams,
    subject: Subject | None,
    w_dec: Tensor,
    firings: Firings,
    split: Split,
    passing: np.ndarray,
    sampled: np.ndarray,
    *,
    site: str,
) -> Effects:
    """Compute the effects of latents on logits.

    Each passing latent gets its own decoder row and two placebos with an expected value of 0.5: the
    row of another latent (`_swapped`, each row once) and a random direction.

    Args:
        params: keys of random draws.
        subject: None if there is none for the site.
        w_dec: [n_latents, width of the site], on the device that computes.
        firings: of all latents.
        split: of the firings.
        passing: int64 [n], the latents that pass the filter, ascending.
        sampled: int64 [n], those of them whose tokens are named, ascending.
        site: to which the decoder rows write.
    """
    columns = {name: np.full(len(w_dec), np.nan) for name in COLUMNS}
    lists: dict[str, promoted.Lists] = {n: [None] * len(w_dec) for n in promoted.COLUMNS}
    if subject is None:
        return Effects(columns, lists, None)
    try:
        path = direct_path(subject, site).to(exact_device(w_dec.device))
    except NoDirectPathError as error:
        return Effects(columns, lists, str(error))
    successors = Successors.of(split)
    rows = _rows(params, w_dec, passing)
    found = next_token_aurocs(list(rows.values()), path, firings, passing, successors)
    for of, aurocs in zip(rows, found, strict=True):
        # A single latent cannot be compared with another one.
        if of == "swapped" and len(passing) < 2:
            continue
        columns[f"next_token_auroc{ROWS[of]}"][passing] = aurocs.unigram
        columns[f"next_token_auroc_bigram{ROWS[of]}"][passing] = aurocs.bigram
    named = promoted.promoted_tokens(
        w_dec[torch.from_numpy(sampled)], path[: split.vocab_size], params.latents.promoted_tokens
    )
    for name, of_latents in named.items():
        for latent, own in zip(sampled.tolist(), of_latents, strict=True):
            lists[name][latent] = own
    return Effects(columns, lists, None)


def _rows(params: CollectLatentsParams, w_dec: Tensor, passing: np.ndarray) -> dict[str, Rows]:
    """Return a row for each passing latent, [n, d_model], by the names of `ROWS`."""
    keys = params.keys.parts()
    order = numpy_generator(params.seed, "another_latent", *keys).permutation(len(passing))
    other = np.empty(len(passing), dtype=np.int64)
    other[order] = passing[np.roll(order, 1)]
    return {
        "own": Rows(w_dec, passing),
        "swapped": Rows(w_dec, other),
        "random": Rows(random_directions(params, w_dec.shape), passing),
    }


def random_directions(params: CollectLatentsParams, shape: Sequence[int]) -> Tensor:
    """Draw a random direction for each latent of an SAE: float32 [n_latents, d_model]."""
    generator = numpy_generator(params.seed, "random_direction", *params.keys.parts())
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))
