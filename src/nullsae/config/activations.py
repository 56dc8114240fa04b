"""Config key `activations`: how activations are captured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from nullsae.config.section import FloatType, Section


class Exclude(Section):
    """Tokens left out of training and of every metric, by one rule for all variants."""

    start_tokens: NonNegativeInt = 0
    """Number of tokens to leave out at the start of each context."""
    norm_above_median: Annotated[float, Field(gt=1.0)] | None = 10.0
    """Leave out tokens, such as attention sinks, whose activation norm is more than this many times
    the median of the split at the site; null leaves out none by norm."""


class Activations(Section):
    mode: Literal["auto", "cache", "stream"] = "auto"
    """`cache` captures the activations of `sae_train` and trains SAEs on them. `stream` captures
    only the first `fitted_tokens` and trains all SAEs of a variant in one job, on live forward
    passes. `auto` streams if `sae_train_tokens` exceeds `fitted_tokens`."""
    keep: bool | None = None
    """Keep captured activations on disk. If false, only norms and positions stay, and each job that
    reads activations repeats the forward passes, to the same bits. null keeps them in `cache`
    mode."""
    sae_train_tokens: PositiveInt
    """Tokens of `sae_train` to train SAEs on; `eval` is captured whole in either mode."""
    fitted_tokens: PositiveInt = 1_048_576
    """`stream`: tokens of `sae_train` that are captured anyway, for what is fitted rather than
    trained: token-lookup floor, principal components, the `gaussian` variant."""
    sites_together: bool = True
    """`stream`: one job trains all SAEs of a variant, whose weights and optimizers must fit in
    memory together, and one job collects their latents. false: a job per site, each with its own
    forward passes, to the same bits."""
    shared_pass: Literal["model"] | bool = False
    """Train all SAEs of a site in one job that reads its activations once, to the same bits.
    `model` is for small studies, in which starting a job takes most of its time: one job trains
    the SAEs of a model at all sites, and one collects their latents."""
    exclude: Exclude = Exclude()
    """Tokens that are captured, but left out of training and of every metric."""
    dtype: FloatType = "bfloat16"
    """Precision on disk."""
    shard_tokens: PositiveInt = 65_536
    """Tokens per shard; tokens of `sae_train` are permuted within it. In `stream` mode as many are
    in memory, at all sites."""
    batch_contexts: PositiveInt = 32
    """Contexts per forward pass."""
    chunks: PositiveInt = 1
    """Number of jobs that share the capture of each split; the result is the same."""

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
