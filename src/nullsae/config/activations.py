"""Config key `activations`: how activations are captured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from nullsae.config.section import FloatType, Section


class Exclude(Section):
    """Tokens that SAEs are neither trained nor measured on: one rule for every variant."""

    start_tokens: NonNegativeInt = 0
    """Leave out so many tokens at the start of each context."""
    norm_above_median: Annotated[float, Field(gt=1.0)] | None = 10.0
    """Leave out tokens whose activation's norm is more than so many times the median of the split
    at the site, as of attention sinks; null leaves out none by its norm."""


class Activations(Section):
    mode: Literal["cache", "stream"] = "cache"
    """`cache` keeps all activations of `sae_train` on disk. `stream` keeps the first
    `fitted_tokens` and trains all SAEs of a variant in one job, on live forward passes."""
    sae_train_tokens: PositiveInt
    """Tokens of `sae_train` that SAEs are trained on; `eval` is cached whole in either mode."""
    fitted_tokens: PositiveInt = 1_048_576
    """`stream`: tokens of `sae_train` that are cached nevertheless, for what is fitted rather
    than trained: token-lookup floor, principal components, the `gaussian` variant."""
    sites_together: bool = True
    """`stream`: one job for all SAEs of a variant, whose weights and optimizers must then fit in
    memory together; false for a job per site, each with forward passes of its own, to the same
    bits."""
    shared_pass: bool = False
    """Train all SAEs of a site in one job that reads its activations once, to the same bits."""
    exclude: Exclude = Exclude()
    """Tokens that are captured and then left out of training and of every metric."""
    dtype: FloatType = "bfloat16"
    """Precision on disk."""
    shard_tokens: PositiveInt = 65_536
    """Tokens in a shard, which `sae_train` tokens are permuted within. In `stream` mode as many
    are held in memory, at all sites."""
    batch_contexts: PositiveInt = 32
    """Contexts in one forward pass."""
    chunks: PositiveInt = 1
    """Jobs that share the capture of each split; the result is the same."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of `sae_train` whose activations are kept on disk."""
        kept = self.sae_train_tokens if self.mode == "cache" else self.fitted_tokens
        return min(kept, self.sae_train_tokens)
