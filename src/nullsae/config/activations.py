"""Config key `activations`: how activations are captured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from nullsae.config.section import FloatType, Section


class Exclude(Section):
    """Tokens that SAEs are neither trained nor measured on: one rule for every variant."""

    start_tokens: NonNegativeInt = 0
    """Number of tokens to leave out at the start of each context."""
    norm_above_median: Annotated[float, Field(gt=1.0)] | None = 10.0
    """Leave out tokens whose activation's norm is more than so many times the median of the split
    at the site, as of attention sinks; null leaves out none by its norm."""


class Activations(Section):
    mode: Literal["auto", "cache", "stream"] = "auto"
    """`cache` trains SAEs on the activations of `sae_train` as they were captured. `stream`
    captures no more than the first `fitted_tokens` and trains all SAEs of a variant in one job, on
    live forward passes. `auto` streams where `sae_train_tokens` are more than `fitted_tokens`."""
    keep: bool | None = None
    """Whether captured activations stay on disk. If not, norms and positions do, and each job that
    reads activations runs the passes again, to the same bits. null keeps them in `cache` mode."""
    sae_train_tokens: PositiveInt
    """Tokens of `sae_train` that SAEs are trained on; `eval` is captured whole in either mode."""
    fitted_tokens: PositiveInt = 1_048_576
    """`stream`: tokens of `sae_train` that are captured all the same, for what is fitted rather
    than trained: token-lookup floor, principal components, the `gaussian` variant."""
    sites_together: bool = True
    """`stream`: one job trains all SAEs of a variant, whose weights and optimizers must then fit in
    memory together, and one collects their latents; false for a job per site, each with forward
    passes of its own, to the same bits."""
    shared_pass: Literal["model"] | bool = False
    """Train all SAEs of a site in one job that reads its activations once, to the same bits.
    `model` is for small studies, whose jobs take little longer than to start: one job trains the
    SAEs of a model at all sites, and one collects their latents."""
    exclude: Exclude = Exclude()
    """Tokens that are captured and then left out of training and of every metric."""
    dtype: FloatType = "bfloat16"
    """Precision on disk."""
    shard_tokens: PositiveInt = 65_536
    """Tokens in a shard; tokens of `sae_train` are permuted within it. In `stream` mode memory
    holds as many, at all sites."""
    batch_contexts: PositiveInt = 32
    """Contexts in one forward pass."""
    chunks: PositiveInt = 1
    """Jobs that share the capture of each split; the result is the same."""

    @property
    def streams(self) -> bool:
        """Whether SAEs are trained on live passes."""
        long = self.sae_train_tokens > self.fitted_tokens
        return long if self.mode == "auto" else self.mode == "stream"

    @property
    def kept(self) -> bool:
        """Whether captured activations stay on disk."""
        return not self.streams if self.keep is None else self.keep

    @property
    def cached_tokens(self) -> int:
        """Tokens of `sae_train` that are captured."""
        kept = self.fitted_tokens if self.streams else self.sae_train_tokens
        return min(kept, self.sae_train_tokens)
