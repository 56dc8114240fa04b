"""Which tokens a latent fires on, and how its activation varies along a text."""

from __future__ import annotations

from collections.abc import Mapping

from nullsae.config.metrics import Direction, Metric

# Variants whose activations do not depend on tokens: their latents fire on all kinds of tokens,
# while those of other nulls identify tokens.
WITHOUT_TOKENS = ("noise_embeddings", "gaussian")


class _OfLatents(Metric):
    """A mean over all latents that pass the filter.

    Directions apply to models; for null dictionaries no expectation is justified.
    """

    section, dictionary_direction = "tokens", 0


class _Entropy(_OfLatents):
    """Bits: fewer in nulls whose latents identify tokens, more in those without tokens."""

    floor, floor_is = 0.0, "a latent of one token"
    margin_share = 0.05
    directions: Mapping[str, Direction] = dict.fromkeys(WITHOUT_TOKENS, -1)


class _Peak(_OfLatents):
    """Shares of one token: the directions of `_Entropy` reversed."""

    direction = -1
    floor, floor_is = 1.0, "a latent of one token"
    directions: Mapping[str, Direction] = dict.fromkeys(WITHOUT_TOKENS, 1)


class TokenEntropy(_Entropy):
    """Entropy of a latent's tokens over the whole split."""

    name, position = "token_entropy_bits", 60
    title = "Token entropy, whole split (bits)"
    columns = ("token_entropy_corrected_bits",)
    formula = "H + (types - 1) / (2 N ln 2) for N firings (Miller 1955), H below"
    definition = (
        "Entropy of the token ids on which a latent fires, weighted by activation, over the whole "
        "evaluation split, with the Miller-Madow correction."
    )
    reading = (
        "0 bits means that the latent fires on one token; in a null far below trained, latents "
        "identify tokens. Nulls whose activations ignore tokens, such as noise_embeddings, should "
        "be above it."
    )
    values = "[0, ∞)"
    along_training = 3


class ExplainTokenEntropy(_Entropy):
    """Entropy of a latent's tokens in the windows that explainers see."""

    name, position = "explain_token_entropy_bits", 70
    title = "Token entropy, explainer's windows (bits)"
    columns = ("explain_token_entropy_bits",)
    among = "sampled"
    formula = "H over the active windows of explainers, as in the paper"
    definition = "The same entropy over the windows that the explainer saw, as in arXiv 2501.17727."
    reading = "With few windows it is bounded by their number; prefer the whole split."
    values = "[0, ∞)"


class PeakTokenShare(_Peak):
    """How much of a latent's activation falls on one token id."""

    name, position = "peak_token_share", 80
    title = "Peak token share"
    columns = ("peak_token_share",)
    definition = "The largest share of a latent's activation that falls on one token id."
    reading = (
        "1 is a latent of one token; a null above trained has latents closer to token detectors."
    )
    values = "(0, 1]"


class SingleTokenShare(_Peak):
    """How many latents fire on one token."""

    name, position = "single_token_share", 90
    title = "Share of single-token latents"
    columns = ("peak_token_share",)
    at_least = "single_token_share"
    floor_is = "single-token latents only"
    formula = "share of latents with `peak_token_share` ≥ 0.9 (`statistics.single_token_share`)"
    definition = (
        "Share of latents with most of their activation on a single token id "
        "(statistics.single_token_share)."
    )
    reading = (
        "Such latents are easy to explain whatever their origin. A null above trained owes its "
        "scores to them."
    )
    values = "[0, 1]"


class Autocorrelation(_OfLatents):
    """How long a latent stays active."""

    name, position = "autocorrelation", 100
    title = "Autocorrelation of activations"
    columns = ("autocorrelation",)
    direction = 0
    floor, floor_is = 0.0, "single tokens"
    formula = "(S_l / N_l - μ²) / σ², mean over lags l of 1 to 15 tokens"
    definition = (
        "Correlation of a latent's activation with itself 1 to 15 tokens later, within a "
        "document, silent tokens counting as 0; mean over these distances."
    )
    reading = (
        "Near 0 for token detectors, large for latents that follow passages and topics. No "
        "direction is expected."
    )
    values = "[-1, 1]"
