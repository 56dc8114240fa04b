"""Effects of a latent's own direction on the prediction of the next token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nullsae.config.metrics import Among, Direction, Metric
from nullsae.core.registry import lazy

if TYPE_CHECKING:
    import numpy as np

    from nullsae.config.metrics import Numbers
else:
    np = lazy("numpy")

# Smaller divergences are rounding or zero; a direction that nothing reads counts as this.
RESOLUTION_NATS = 1e-10


# Whose direction replaces the latent's own.
FOREIGN, RANDOM = "foreign_direction", "random_direction"


def _with_placebos(*columns: str) -> dict[str, tuple[str, ...]]:
    """Return the columns of each placebo: the first one is that of another direction."""
    first, *rest = columns
    return {FOREIGN: (f"{first}_swapped", *rest), RANDOM: (f"{first}_random", *rest)}


class _OfPassingLatents(Metric):
    """A mean over all latents that pass the filter, without a judge."""

    section, chance = "effects", 0.5
    has_value_on_samples = False
    values = "[0, 1]"


class NextTokenAuroc(_OfPassingLatents):
    """Whether a latent raises the logit of the next token above those of other next tokens."""

    name, position = "next_token_auroc", 1
    title = "Next-token AUROC by direct effect"
    columns = ("next_token_auroc",)
    placebos = _with_placebos(*columns)
    formula = (
        "mean over firings at t of P(e(v) < e(x_{t+1})) + P(=) / 2, v ~ next tokens of `eval`; "
        "e(v) = the decoder row through the final norm's gain and centring and the unembedding"
    )
    definition = (
        "How often a latent's decoder row raises the logit of the token after a firing more than "
        "that of a random token, drawn in proportion to how often it comes next in the text."
    )
    reading = (
        "0.5 means that the latent does not predict the next token; other latents' rows, given in "
        "the table `latents`, score 0.5 too. If trained is above 0.5 and a null at 0.5, only "
        "trained uses its directions. Only the direct path to the logits counts, so early blocks "
        "score lower."
    )


class NextTokenAurocBigram(_OfPassingLatents):
    """The same among the tokens that follow the same token."""

    name, position = "next_token_auroc_bigram", 2
    title = "Next-token AUROC given the current token"
    columns = ("next_token_auroc_bigram",)
    placebos = _with_placebos(*columns)
    formula = "the same, v ~ the tokens of `eval` that follow the token x_t"
    definition = (
        "The same, but compared with tokens that follow the same current token in the text: what a "
        "latent predicts beyond the current token."
    )
    reading = "A latent that only identifies the current token scores 0.5."


class _OfSampledLatents(Metric):
    """A mean over sampled latents from runs of the subject; 0 if any direction does as well."""

    section = "effects"
    has_value_on_samples = False
    among: Among = "sampled"
    floor, floor_is = 0.0, "as much as another latent's direction"


class AblationKlLogRatio(_OfSampledLatents):
    """How much more a latent's own direction matters than another one of the same size."""

    name, position = "ablation_kl_log_ratio", 3
    title = "Ablation KL, log ratio to another latent's direction"
    columns = ("ablation_kl_nats", "ablation_kl_nats_swapped")
    placebos = _with_placebos(*columns)
    formula = (
        "ln(KL_own / KL_foreign), KL_d the mean over firings of KL(clean, edited) of the next "
        "token; edited: a d taken from the activation, d the latent's own decoder row, or another "
        "sampled latent's of equal norm"
    )
    definition = (
        "How much more the next-token prediction changes when a latent's contribution is ablated "
        "at its firings than when the same amount of another latent's direction is: the log ratio "
        "of the two mean KL divergences."
    )
    reading = (
        "0 means that any direction has the same effect, so the model does not read this one. A "
        "model that uses its directions is above 0. All paths to the logits count."
    )
    values = "(-∞, ∞)"

    def value(self, columns: Mapping[str, Numbers]) -> Numbers:
        own, foreign = (np.maximum(columns[name], RESOLUTION_NATS) for name in self.columns)
        return np.log(own / foreign)


class AblationCeGain(_OfSampledLatents):
    """How much a latent's own direction contributes to the prediction of the true next token."""

    name, position = "ablation_ce_gain_nats", 4
    title = "Ablation loss, excess over another latent's direction (nats)"
    columns = ("ablation_ce_nats", "ablation_ce_nats_swapped")
    placebos = _with_placebos(*columns)
    formula = "mean over firings of loss(own direction ablated) - loss(foreign), as above"
    definition = (
        "How much a latent's contribution helps to predict the token that really follows its "
        "firings: loss with it ablated minus loss with the same amount of another latent's "
        "direction ablated."
    )
    reading = (
        "0 means that the contribution helps no more than any other. True tokens are noisy, so "
        "trained needs many firings to be clearly above 0."
    )
    values = "(-∞, ∞)"

    def value(self, columns: Mapping[str, Numbers]) -> Numbers:
        own, foreign = (columns[name] for name in self.columns)
        return own - foreign


class AdditionGain(_OfSampledLatents):
    """Whether adding a latent's direction where it is silent promotes what follows its firings."""

    name, position = "addition_gain_nats", 5
    title = "Steering log-probability, excess over another latent's direction (nats)"
    columns = ("addition_logp_nats", "addition_logp_nats_swapped")
    placebos = _with_placebos(*columns)
    formula = (
        "mean over silent tokens of Σ_v q(v) [ln p_own(v) - ln p_foreign(v)], q the tokens that "
        "follow the latent's firings in `eval`, p_d the prediction with the mean activation times "
        "d added"
    )
    definition = (
        "The reverse test: a latent's direction is added where the latent is silent, at its mean "
        "activation. How much more this raises the log-probability of the tokens that follow its "
        "firings in the text than the same amount of another latent's direction does."
    )
    reading = (
        "0 means that the direction does not affect what follows. Above 0, the direction alone "
        "produces the predictions that go with the latent. All paths to the logits count."
    )
    values = "(-∞, ∞)"

    def value(self, columns: Mapping[str, Numbers]) -> Numbers:
        own, foreign = (columns[name] for name in self.columns)
        return own - foreign


class TokenInjectionRate(Metric):
    """How often a latent's top tokens alone make it fire."""

    name, position = "token_injection_rate", 95
    title = "Firing rate on injected tokens, relative to the text"
    columns = ("token_injection_rate",)
    section, direction, dictionary_direction = "tokens", -1, 0
    has_value_on_samples = False
    among: Among = "sampled"
    floor, floor_is = 1.0, "the token alone"
    # Its latents see no tokens, including injected ones.
    directions: Mapping[str, Direction] = {"noise_embeddings": 1}
    formula = (
        "P(fires on v written into a silent window) / P(fires on v in the text), v ~ firings on "
        "the 5 tokens with the largest sums of activation"
    )
    definition = (
        "How often a latent fires when one of its tokens is written into a window where it is "
        "silent, relative to how often it fires on these tokens in the text."
    )
    reading = (
        "1 means that the token alone makes the latent fire; below 1, preceding text matters. If a "
        "null is above trained, its latents are closer to token detectors; one that sees no tokens "
        "is at 0."
    )
    values = "[0, ∞)"
