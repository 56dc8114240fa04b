"""What tokens a latent fires on, and how its activation runs through a text."""

from __future__ import annotations

from nullsae.config.metrics import Metric


class _OfLatents(Metric):
    """A mean over sampled latents."""

    section, margin = "tokens", 0.05


class TokenEntropy(_OfLatents):
    """Entropy of a latent's tokens over the whole split."""

    name, position = "token_entropy_bits", 60
    title = "Token entropy, whole split (bits)"
    columns = ("token_entropy_corrected_bits",)
    margin = 0.25
    formula = "H + (types - 1) / (2 N ln 2) for N firings (Miller 1955), H below"
    definition = (
        "Entropy of the token ids on which a latent fires, weighted by activation, over the whole "
        "evaluation split, with the Miller-Madow correction."
    )
    reading = (
        "0 bits is a latent of one token; a null far below trained has latents that name tokens."
    )
    values = "[0, ∞)"
    along_training = 3


class ExplainTokenEntropy(_OfLatents):
    """Entropy of a latent's tokens in the windows that explainers see."""

    name, position = "explain_token_entropy_bits", 70
    title = "Token entropy, explainer's windows (bits)"
    columns = ("explain_token_entropy_bits",)
    margin = 0.25
    formula = "H over the active windows of explainers, as in the paper"
    definition = "The same entropy over the windows that the explainer saw, as in arXiv 2501.17727."
    reading = "With few windows it is bounded by their number; prefer the whole split."
    values = "[0, ∞)"


class PeakTokenShare(_OfLatents):
    """How much of a latent's activation falls on one token id."""

    name, position = "peak_token_share", 80
    title = "Peak token share"
    columns = ("peak_token_share",)
    direction = -1
    definition = "The largest share of a latent's activation that falls on one token id."
    reading = (
        "1 is a latent of one token; a null above trained has latents closer to token detectors."
    )
    values = "(0, 1]"


class SingleTokenShare(_OfLatents):
    """How many latents name one token."""

    name, position = "single_token_share", 90
    title = "Share of single-token latents"
    columns = ("peak_token_share",)
    at_least = "single_token_share"
    direction = -1
    margin = 0.1
    formula = "share of latents with `peak_token_share` ≥ 0.9 (`statistics.single_token_share`)"
    definition = (
        "Share of the sampled latents of which one token id has most of the activation "
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
