"""Config key `latents`: which latents are sampled, and the windows cut for them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from nullsae.config.section import Section, unique

# Ways to choose windows in which a latent is silent; see `Latents.silent_windows`.
SilentKind = Literal["random", "co_occurring", "nearest"]


class Latents(Section):
    n_sampled: PositiveInt = 50
    """Latents per SAE, drawn at random among those that pass the filter."""
    min_firings: PositiveInt = 200
    """Filter: least firings in the whole of `eval`."""
    min_pool_windows: PositiveInt = 10
    """Filter: least active and silent windows in each pool (explaining, scoring)."""
    window_tokens: Annotated[int, Field(ge=2)] = 32
    """Length of a window. Windows that span two documents are left out and counted."""
    windows: Literal["fixed", "centred"] = "fixed"
    """Position of active windows. Each context is divided into cells of this length. `fixed`: the
    cell itself. `centred`: around the largest activation in the cell, shifted to stay in its
    context and document; of two that overlap, the stronger. Silent windows are cells."""
    skip_start_tokens: NonNegativeInt = 0
    """Number of tokens at the start of each context where firings do not count."""
    skip_bos: bool = True
    """Ignore firings on BOS."""
    skip_end_of_text: bool = False
    """Ignore firings on the token that ends documents."""
    explain_active_windows: PositiveInt = 40
    """Active windows shown to an explainer, drawn at random."""
    explain_silent_windows: PositiveInt = 40
    """Silent windows shown to an explainer."""
    score_active_windows: PositiveInt = 100
    """Active windows that a scorer judges, equally many from each of `n_quantiles`."""
    score_silent_windows: PositiveInt = 100
    """Silent windows that a scorer judges, of each kind in `silent_windows`."""
    silent_windows: Annotated[tuple[SilentKind, ...], Field(min_length=1)] = ("random",)
    """Kinds of silent windows drawn for scoring; each scorer uses one. `random`: any.
    `co_occurring`: windows where latents fire that often fire with this one. `nearest`: windows
    with the most similar tokens to an active window, where this latent is silent."""
    n_quantiles: PositiveInt = 10
    """Equal-count slices of the active windows, ranked by their largest activation."""
    causal_places: NonNegativeInt = 16
    """Firings of each sampled latent, each in another context, at which its direction is ablated,
    and silent windows in which it is added and its tokens are written; 0 for none. Each costs
    several passes of a context through the subject."""
    top_windows: NonNegativeInt = 10
    """Number of strongest windows to keep of each sampled latent, for people to look at."""
    promoted_tokens: PositiveInt = 10
    """Number of tokens that each sampled latent's decoder row promotes most, and as many that it
    suppresses most, to name. Explanations of kind `promoted` consist of them."""

    _unique = field_validator("silent_windows")(unique)
