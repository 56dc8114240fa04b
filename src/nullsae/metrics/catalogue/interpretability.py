"""The value of an explanation beyond tokens, and beyond another latent's explanation."""

from __future__ import annotations

from nullsae.config.metrics import Metric


class _OfExplanations(Metric):
    """A statistic of scored latents and of what their tokens alone would score."""

    table, section = "interpretability", "interpretability"
    values, floor = "[-1, 1]", 0.0


class GainOverLexical(_OfExplanations):
    """AUROC beyond that of token statistics."""

    name, position = "gain_over_lexical", 150
    title = "AUROC gained over token statistics"
    columns = ("gain_over_lexical",)
    floor, floor_is = -0.5, "chance, if token statistics are always right"
    definition = (
        "AUROC minus that of token statistics (lexical), latent by latent on the same windows. "
    )
    reading = (
        "Above 0, the explanation says more than which tokens the latent fires on. A gain of the "
        "same size in trained and nulls is not due to training."
    )


class Discrimination(_OfExplanations):
    """AUROC beyond that of another latent's explanation."""

    name, position = "discrimination", 160
    title = "AUROC gained over another latent's explanation"
    columns = ("discrimination",)
    definition = (
        "AUROC minus that of another latent's explanation (swapped) on the same windows; for "
        "intruder, minus that of a judge who knows only how frequent the marked tokens are."
    )
    reading = (
        "It removes what any explanation earns through the protocol alone. Near 0, an explanation "
        "says nothing specific about this latent."
    )


class AbstractShare(_OfExplanations):
    """How many latents are explained well without naming a token."""

    name, position = "abstract_share", 170
    place = 190
    title = "Share of abstract latents"
    columns = ("is_abstract",)
    formula = "share with corrected entropy ≥ 4 bits and AUROC ≥ 0.8 (`statistics.abstract_*`)"
    definition = (
        "Share of the scored latents that fire on many tokens and are explained well: entropy "
        "and AUROC above statistics.abstract_min_entropy_bits and abstract_min_auroc."
    )
    reading = (
        "What critics of the paper asked for: latents that are explained well without naming a "
        "token. A null at the level of trained has them too."
    )
    values = "[0, 1]"


class EntropyAurocCorrelation(_OfExplanations):
    """Whether latents with few tokens score best."""

    name, position = "entropy_auroc_correlation", 180
    title = "Rank correlation of token entropy and AUROC"
    columns = ("token_entropy_bits", "auroc")
    form, dictionary_direction = "rank_correlation", 0
    floor, floor_is = -1.0, "scores that follow from token entropy"
    definition = "Spearman's rank correlation of token entropy and AUROC over scored latents."
    reading = "Below 0, latents with few tokens score best, as in the paper's random transformers."
