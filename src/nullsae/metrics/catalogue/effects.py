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

# Divergences below it are rounding, or none: a direction that nothing reads counts as this.
RESOLUTION_NATS = 1e-10


# Whose direction stands in the place of the latent's own.
FOREIGN, RANDOM = "foreign_direction", "random_direction"


def _with_placebos(*columns: str) -> dict[str, tuple[str, ...]]:
    """A metric's columns where the first is that of another direction."""
    first, *rest = columns
    return {FOREIGN: (f"{first}_swapped", *rest), RANDOM: (f"{first}_random", *rest)}


class _OfPassingLatents(Metric):
    """A mean over all latents that pass the filter: no judge is asked."""

    section, chance = "effects", 0.5
    values = "[0, 1]"


class NextTokenAuroc(_OfPassingLatents):
    """Whether a latent raises the logit of what comes next, against all next tokens."""

    name, position = "next_token_auroc", 1
    title = "AUROC of the next token by direct effect"
    columns = ("next_token_auroc",)
    placebos = _with_placebos(*columns)
    formula = (
        "mean over firings at t of P(e(v) < e(x_{t+1})) + P(=) / 2, v ~ next tokens of `eval`; "
        "e(v) = the decoder row through the final norm's gain and centring and the unembedding"
    )
    definition = (
        "How often a latent's decoder row raises the logit of the token that follows a firing more "
        "than that of another token of the text, drawn as often as it comes next."
    )
    reading = (
        "0.5 says nothing of the next token; so do other latents' rows, which stand beside it in "
        "the table `latents`. Trained above 0.5 and a null at 0.5 tell a model that uses its "
        "directions from one that does not. It sees the direct path alone: less in early blocks."
    )


class NextTokenAurocBigram(_OfPassingLatents):
    """The same against the tokens that follow the same token."""

    name, position = "next_token_auroc_bigram", 2
    title = "AUROC of the next token among those that follow the same token"
    columns = ("next_token_auroc_bigram",)
    placebos = _with_placebos(*columns)
    formula = "the same, v ~ the tokens of `eval` that follow the token x_t"
    definition = (
        "The same against the tokens that follow the same current token in the text: what a "
        "latent says of the next token beyond the current one."
    )
    reading = "0.5 is what a latent reaches that only names the current token."


class _OfSampledLatents(Metric):
    """A mean over sampled latents, by passes of the subject; 0 where the direction is any other."""

    section = "effects"
    among: Among = "sampled"
    floor, floor_is = 0.0, "as much as another latent's direction"


class AblationKlLogRatio(_OfSampledLatents):
    """How much more a latent's own direction matters than another one of the same size."""

    name, position = "ablation_kl_log_ratio", 3
    title = "Log ratio of KL, own over another latent's direction taken away"
    columns = ("ablation_kl_nats", "ablation_kl_nats_swapped")
    placebos = _with_placebos(*columns)
    formula = (
        "ln(KL_own / KL_foreign), KL_d the mean over firings of KL(clean, edited) of the next "
        "token; edited: a d taken from the activation, d the latent's own decoder row, or another "
        "sampled latent's of equal norm"
    )
    definition = (
        "How much more the prediction of the next token changes when a latent's contribution is "
        "taken away at its firings than when as much of another latent's direction is: logarithm "
        "of the ratio of the two mean KL divergences."
    )
    reading = (
        "0: any direction does as well, so the model does not read this one. A model that uses "
        "its directions lies above. It counts all paths to the logits, at the price of passes."
    )
    values = "(-∞, ∞)"

    def value(self, columns: Mapping[str, Numbers]) -> Numbers:
        own, foreign = (np.maximum(columns[name], RESOLUTION_NATS) for name in self.columns)
        return np.log(own / foreign)


class AblationCeGain(_OfSampledLatents):
    """How much of the next token is lost with a latent's own direction."""

    name, position = "ablation_ce_gain_nats", 4
    title = "Loss by a latent's own direction taken away, over another's (nats)"
    columns = ("ablation_ce_nats", "ablation_ce_nats_swapped")
    placebos = _with_placebos(*columns)
    formula = "mean over firings of loss(own direction taken away) - loss(foreign), as above"
    definition = (
        "What a latent's contribution is worth for the token that really follows its firings: "
        "loss without it minus loss without as much of another latent's direction."
    )
    reading = (
        "0 where the contribution helps no more than any other. Trained needs many firings to lie "
        "clearly above: true tokens are noisy."
    )
    values = "(-∞, ∞)"

    def value(self, columns: Mapping[str, Numbers]) -> Numbers:
        own, foreign = (columns[name] for name in self.columns)
        return own - foreign


class AdditionGain(_OfSampledLatents):
    """Whether a latent's direction, added in silence, promotes what follows its firings."""

    name, position = "addition_gain_nats", 5
    title = "Log-probability by a latent's direction added in silence, over another's (nats)"
    columns = ("addition_logp_nats", "addition_logp_nats_swapped")
    placebos = _with_placebos(*columns)
    formula = (
        "mean over silent tokens of Σ_v q(v) [ln p_own(v) - ln p_foreign(v)], q the tokens that "
        "follow the latent's firings in `eval`, p_d the prediction with the mean activation times "
        "d added"
    )
    definition = (
        "The reverse test: a latent's direction is added where the latent is silent, at its mean "
        "activation. How much more likely that makes the tokens that follow its firings in the "
        "text than as much of another latent's direction does."
    )
    reading = (
        "0: the direction says nothing of what follows. Above 0 the direction alone brings about "
        "the predictions that go with the latent, by all paths to the logits."
    )
    values = "(-∞, ∞)"

    def value(self, columns: Mapping[str, Numbers]) -> Numbers:
        own, foreign = (columns[name] for name in self.columns)
        return own - foreign


class TokenInjectionRate(Metric):
    """How much of a latent its tokens alone do."""

    name, position = "token_injection_rate", 95
    title = "Firing rate by written tokens, over that in the text"
    columns = ("token_injection_rate",)
    section, direction, dictionary_direction = "tokens", -1, 0
    among: Among = "sampled"
    floor, floor_is = 1.0, "the token alone"
    # Its latents see no tokens, whatever is written.
    directions: Mapping[str, Direction] = {"noise_embeddings": 1}
    formula = (
        "P(fires on v written into a silent window) / P(fires on v in the text), v ~ firings on "
        "the 5 tokens with the largest sums of activation"
    )
    definition = (
        "How often a latent fires when one of its tokens is written into a window in which it is "
        "silent, as a share of how often it fires on these tokens in the text."
    )
    reading = (
        "1: the token alone makes the latent fire; below 1 the text before it counts. A null above "
        "trained has latents closer to token detectors; one that sees no tokens has 0."
    )
    values = "[0, ∞)"
