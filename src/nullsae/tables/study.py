"""Tables that are computed from the tables of all cells."""

from __future__ import annotations

from nullsae.tables.cells import CELL_KEYS, SCORER_KEYS
from nullsae.tables.columns import schema

# One row per (subject, site, sae, explainer, scorer, metric, variant). Keys that do not apply to a
# metric (the explainer, for explained variance) are null.
CONTRAST_KEYS = (
    ("subject site sae", "text"),
    ("explainer scorer", "text?"),
    ("metric variant", "text"),
)
WARNING = ("warning", "text?", "a failing of the trained subject itself")
ACCEPTED = ("accepted", "text?", "rules whose older code made some of its files, with the hash")
STAGE_KEYS = (
    ("stage", "text", "model, dictionary, explanation or effect: what the null is a null of"),
    *CONTRAST_KEYS,
    ("real null", "text", "what is compared; at the stage model, trained and the variant"),
)
ARMS_TOKENS = ("real_training_tokens training_tokens", "float?", "per SAE; null if unknown")
ARMS_L0 = ("real_l0 l0", "float?", "latents per token")
# Columns named `real_` are about the real thing, which belongs to the trained subject at all
# stages; those of the same name without it are about the null.
CONTRASTS = schema(
    *STAGE_KEYS,
    ("unit", "text", "what is resampled within draw and seed: document or latent"),
    ("n_draws n_seeds real_n_units n_units", "int"),
    ("speaks_of", "text", "what the interval generalizes to"),
    ("scope", "text", "what a verdict is about: this randomization, without further draws"),
    ("is_replicated", "flag", "several draws or seeds of the null; else no p-values"),
    ARMS_TOKENS,
    ARMS_L0,
    ("not_comparable", "text?", "why there is no verdict"),
    ("real_value", "float?", "of the real thing"),
    ("value", "float?", "of the null"),
    ("value_low value_high real_low real_high", "float?"),
    ("difference", "float?", "null minus real"),
    ("difference_low difference_high", "float?"),
    ("standard_error", "float?", "of the difference, bootstrap"),
    ("df", "float?", "degrees of freedom (Welch, Satterthwaite)"),
    ("probability_of_superiority", "float?", "P(real > null) + P(equal) / 2, over units"),
    ("p_value", "float?", "of no difference, two-sided: inverts the interval"),
    ("margin", "float?", "differences below it count as none; null without a real value"),
    ("margin_rule", "text", "rule that gives the margin"),
    ("p_minimum_effect", "float?", "of a difference within the margin, two-sided"),
    ("p_equivalence", "float?", "of a difference beyond the margin: two one-sided tests"),
    ("p_minimum_effect_holm p_equivalence_holm", "float?", "corrected within the family"),
    ("is_beyond_margin", "flag?", "minimum-effect test, corrected; null if not tested"),
    ("is_within_margin", "flag?", "equivalence test, corrected; null if not tested"),
    ("family", "text", "the contrasts that are corrected together"),
    ("n_family", "int", "how many of them are tested"),
    ("p_permutation", "float?", "two-sided, draws or seeds exchanged between the arms"),
    (
        "detectable_difference",
        "float?",
        "found beyond the margin with 80% power, Holm's first step",
    ),
    ("n_matched", "int?", "latents per cell, equal numbers per half-decade of firing share"),
    ("matched_real_value matched_value", "float?", "at equal firing rates"),
    ("matched_difference", "float?", "null minus real, at equal firing rates"),
    ("matched_difference_low matched_difference_high", "float?"),
    ("matched_p_value", "float?", "two-sided, inverts the interval"),
    ("matched_reason", "text?", "why a matched number is null"),
    ("real_n_failed n_failed", "int?", "windows without an answer; null without a judge"),
    ("answered_share", "float?", "of the windows, the smaller of both arms"),
    ("reason", "text?", "why a number is null"),
    WARNING,
    ACCEPTED,
)
VERDICTS = schema(
    *STAGE_KEYS,
    ("verdict", "text", "separates, reversed, equivalent, inconclusive or none"),
    ("scope", "text", "what it is about: this randomization, without further draws"),
    ("is_replicated", "flag", "several draws or seeds of the null"),
    ("difference difference_low difference_high margin", "float?"),
    ARMS_TOKENS,
    ARMS_L0,
    ("answered_share", "float?", "of the windows that a judge was asked about; the smaller arm's"),
    ("reason", "text", "the rule that gave the verdict, with its numbers"),
    WARNING,
    ACCEPTED,
)
# Means per cell with intervals, which figures show. `variant` includes `trained`.
SUMMARIES = schema(
    *CONTRAST_KEYS,
    ("unit", "text"),
    ("n_draws n_seeds n_units", "int"),
    ("value low high", "float?"),
    ("n_failed", "int?", "windows without an answer; null without a judge"),
    ("answered_share", "float?", "of the windows"),
    ("reason", "text?", "why a number is null"),
)
# Counts over a metric's contrasts of one SAE, at all sites: with nulls, which a good metric tells
# apart, and with positive controls, which it does not.
DISCRIMINATING_POWER = schema(
    ("subject sae", "text"),
    ("explainer scorer", "text?"),
    ("metric", "text"),
    ("n_contrasts n_separates n_reversed n_equivalent n_inconclusive n_none", "int", "with nulls"),
    ("separates_share", "float?", "of the contrasts with nulls that have a verdict"),
    ("median_superiority", "float?", "1: trained on the expected side in all pairs of units"),
    (
        "median_standardized_difference",
        "float?",
        "standard errors, positive: as expected; null without replication",
    ),
    ("n_controls", "int", "tested contrasts with positive controls"),
    ("n_controls_told_apart n_controls_equivalent", "int", "of these"),
    ("controls_not_told_apart_share", "float?", "of these; null without any"),
)
# What an explanation adds to token statistics, and to another latent's explanation.
INTERPRETABILITY = schema(
    *SCORER_KEYS,
    ("latent", "int"),
    ("auroc", "float?"),
    ("token_entropy_bits", "float?", "bits, Miller-Madow, whole split"),
    ("peak_token_share", "float?"),
    ("firing_share", "float"),
    ("lexical_auroc", "float?", "of token statistics, same windows and scorer"),
    ("gain_over_lexical", "float?"),
    ("swapped_auroc", "float?", "of the placebo, same windows: another latent's explanation"),
    ("discrimination", "float?", "auroc minus swapped_auroc"),
    ("is_abstract", "flag?", "high entropy and high AUROC"),
    ("reason", "text?", "why a number is null"),
)
# One row per (cell, metric, null, latent) of `trained` and positive controls, for metrics of the
# table `latents`: which latents beat placebo. Each comparison is sorted by q, then by value.
LATENTS_RANKED = schema(
    *CELL_KEYS,
    ("latent", "int"),
    ("metric", "text"),
    ("value", "float", "the latent's own, in the metric's unit"),
    ("direction", "int?", "1: expected above nulls, -1: below, 0: either; null if nulls differ"),
    ("null", "text", "the variant that it is compared with; all: latents of all nulls together"),
    ("n_null", "int", "null latents in the same half-decade of the firing share"),
    ("p", "float?", "(1 + those at least as extreme) / (1 + n_null); twice the smaller tail for 0"),
    ("q", "float?", "Benjamini-Hochberg, over the latents of the cell, metric and null"),
    ("rank", "int", "within the cell, metric and null; 1 has the smallest q"),
    ("reason", "text?", "why p and q are null"),
)
# Their counts: one row per (cell, metric, null).
BEATING_PLACEBO = schema(
    *CELL_KEYS,
    ("metric null", "text"),
    ("direction", "int?", "as in latents_ranked"),
    ("n_latents", "int", "with a value"),
    ("n_tested", "int", "of these, with a p"),
    ("n_beating", "int", "of these, with q <= 0.05"),
    ("share_beating_placebo", "float?", "n_beating / n_tested; null without any"),
)
COSTS = schema(
    ("rule keys", "text"),
    ("wall_seconds", "float"),
    ("cpu_seconds max_rss_mib", "float?"),
    ("model", "text?", "the language model that was asked; null for jobs that asked none"),
    ("calls", "int?", "answered in the last run of the job"),
    ("cached_calls", "int?", "answered before, and read from the cache"),
    ("attempts_failed", "int?", "asked again or given up"),
    ("failed_calls", "int?", "never answered"),
    ("prompt_tokens completion_tokens", "int?", "of the calls"),
    ("cost_usd", "float?", "of all answers, whenever they were paid for"),
    ("paid_usd", "float?", "by the last run of the job"),
    ("estimated_calls", "int?", "calls whose token counts were missing or impossible"),
)
# Provenance: one row per artifact and job that made it or a part of it. Texts are `unknown` for
# artifacts made before this was recorded, and null if a job did not use the thing.
PROVENANCE = schema(
    ("kind", "text", "corpus, model, activations, sae, metrics, latents, explanations, scores, .."),
    ("corpus subject variant", "text?"),
    ("draw", "int?"),
    ("split site sae", "text?"),
    ("seed", "int?"),
    ("explainer scorer", "text?"),
    ("job", "int", "which of the jobs that made it, from 0"),
    ("verb nullsae", "text"),
    ("commit", "text?", "the last that changed nullsae; + if files were changed since"),
    ("python", "text"),
    ("torch transformers", "text?"),
    ("cuda", "text?", "the version that torch was built for"),
    ("device device_kind host", "text"),
    ("dtype", "text?", "what the job stored or computed in"),
    ("threads", "int?"),
    ("precision", "text?", "of the products that select latents, in jobs that train SAEs"),
    ("revisions", "text?", "commits of what it read from the hub"),
    ("tokens_seen", "int?", "by an SAE in training, summed over epochs"),
    ("differs_from_trained", "text?", "how the variant's cells differ from those of trained"),
)
