"""What a latent's own direction does to the prediction of the next token."""

from __future__ import annotations

from nullsae.config.metrics import Metric


class _OfPassingLatents(Metric):
    """A mean over all latents that pass the filter: no judge is asked."""

    section, among, margin, chance = "effects", "passes_filter", 0.02, 0.5
    values = "[0, 1]"


class NextTokenAuroc(_OfPassingLatents):
    """Whether a latent raises the logit of what comes next, against all next tokens."""

    name, position = "next_token_auroc", 1
    title = "AUROC of the next token by direct effect"
    columns = ("next_token_auroc",)
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
    margin = 0.01
    formula = "the same, v ~ the tokens of `eval` that follow the token x_t"
    definition = (
        "The same against the tokens that follow the same current token in the text: what a "
        "latent says of the next token beyond the current one."
    )
    reading = "0.5 is what a latent reaches that only names the current token."
