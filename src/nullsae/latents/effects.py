"""What latents do to the logits: the columns of `latents` that need the subject's weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nullsae.config.sites import KINDS, site_kind
from nullsae.core.randomness import numpy_generator
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.latents.next_token import Successors, next_token_aurocs
from nullsae.latents.split import Split
from nullsae.latents.store import Firings
from nullsae.subjects.loading import Subject, load_subject
from nullsae.subjects.unembedding import NoDirectPathError, direct_path

# Whose row of the decoder is looked at, and what that adds to the name of a column.
ROWS = {"own": "", "swapped": "_swapped", "random": "_random"}
COLUMNS = tuple(
    f"{kind}{of}"
    for kind in ("next_token_auroc", "next_token_auroc_bigram")
    for of in ROWS.values()
)


def subject_for_effects(
    model: Path | None, site: str, device: torch.device
) -> tuple[Subject | None, str | None]:
    """The subject that effects of directions at a site are seen on, or why there is none.

    Args:
        model: the subject's `recipe.json`; None where there is no model.
        site: that the directions are of.
        device: that computes.
    """
    if model is None:
        return None, "no model"
    if site_kind(site) not in KINDS:
        return None, "the site is not in the residual stream and not written to it"
    return load_subject(model, device), None


def effect_columns(
    params: CollectLatentsParams,
    *,
    subject: Subject | None,
    w_dec: Tensor,
    firings: Firings,
    passing: np.ndarray,
    split: Split,
) -> tuple[dict[str, np.ndarray], str | None]:
    """`COLUMNS`, float64 [n_latents] each and NaN where undefined, and why all are, if they are.

    Each latent is given its own row of the decoder, that of another passing latent (`_swapped`,
    each row to one latent), and a random direction: two placebos, at 0.5 if nothing is wrong.

    Args:
        params: keys what is drawn.
        subject: None where there is none for the site.
        w_dec: [n_latents, d_model], on the device that computes.
        firings: of all latents.
        passing: int64 [n], the latents that are looked at, ascending.
        split: that the firings are of.
    """
    columns = {name: np.full(len(w_dec), np.nan) for name in COLUMNS}
    if subject is None:
        return columns, None
    try:
        path = direct_path(subject)
    except NoDirectPathError as error:
        return columns, str(error)
    successors = Successors.of(split)
    rows = _rows(params, w_dec, passing)
    found = next_token_aurocs(
        list(rows.values()), path.to(w_dec.device), firings, passing, successors
    )
    for of, aurocs in zip(rows, found, strict=True):
        columns[f"next_token_auroc{ROWS[of]}"][passing] = aurocs.unigram
        columns[f"next_token_auroc_bigram{ROWS[of]}"][passing] = aurocs.bigram
    return columns, None


def _rows(params: CollectLatentsParams, w_dec: Tensor, passing: np.ndarray) -> dict[str, Tensor]:
    """A row for each passing latent, [n, d_model], by the names of `ROWS`."""
    keys = params.keys.parts()
    order = numpy_generator(params.seed, "another_latent", *keys).permutation(len(passing))
    other = np.empty(len(passing), dtype=np.int64)
    other[order] = passing[np.roll(order, 1)]
    return {
        "own": w_dec[torch.from_numpy(passing)],
        # The only one of its kind has no other: an empty row says nothing.
        "swapped": w_dec[torch.from_numpy(other)] * (len(passing) > 1),
        "random": random_directions(params, w_dec.shape)[passing],
    }


def random_directions(params: CollectLatentsParams, shape: Sequence[int]) -> Tensor:
    """A random direction for each latent of an SAE: float32 [n_latents, d_model]."""
    generator = numpy_generator(params.seed, "random_direction", *params.keys.parts())
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))
