"""What tokens a latent fires on, and how its activation runs through a text."""

from __future__ import annotations

from collections.abc import Mapping

from nullsae.config.metrics import Direction, Metric

# Variants whose activations know no token: their latents fire on all kinds of tokens alike, where
# those of other nulls name tokens.
WITHOUT_TOKENS = ("noise_embeddings", "gaussian")


class _OfLatents(Metric):
    """A mean over all latents that pass the filter.

    Directions are about models: what tokens a null dictionary's latents fire on, nobody knows.
    """

    section, dictionary_direction = "tokens", 0


class _Entropy(_OfLatents):
    """Bits: fewer against nulls whose latents name tokens, more against those without any."""

    floor, floor_is = 0.0, "a latent of one token"
    margin_share = 0.05
    directions: Mapping[str, Direction] = dict.fromkeys(WITHOUT_TOKENS, -1)


class _Peak(_OfLatents):
    """Shares of one token, for which the same holds the other way round."""

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
        "0 bits is a latent of one token; a null far below trained has latents that name tokens. "
        "Where activations know no token, as under noise_embeddings, it is expected above trained."
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
    """How many latents name one token."""

    name, position = "single_token_share", 90
    title = "Share of single-token latents"
    columns = ("peak_token_share",)
    at_least = "single_token_share"
    floor_is = "single-token latents only"
    formula = "share of latents with `peak_token_share` ≥ 0.9 (`statistics.single_token_share`)"
    definition = (
        "Share of the latents of which one token id has most of the activation "
        "(statistics.single_token_share)."
    )
    reading = (
        "Such latents are easy to explain whatever made them; a null above trained owes its "
        "scores to them."
    )
    values = "[0, 1]"


class Autocorrelation(_OfLatents):
    """How long a latent stays on."""

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
        "Near 0 for token detectors, large for latents of passages and topics; no direction is "
        "expected."
    )
    values = "[-1, 1]"
