"""Tables that are computed from those of all cells."""

from __future__ import annotations

from nullsae.schemas.columns import schema

# One row per (subject, site, sae, explainer, scorer, metric, variant). The metric's own levels
# that do not apply (an explainer, for explained variance) are null.
CONTRAST_KEYS = (
    ("subject", "text"),
    ("site", "text"),
    ("sae", "text"),
    ("explainer", "text?"),
    ("scorer", "text?"),
    ("metric", "text"),
    ("variant", "text"),
)
CONTRASTS = schema(
    *CONTRAST_KEYS,
    ("unit", "text", "what is resampled within draw and seed: document or latent"),
    ("n_draws", "int"),
    ("n_seeds", "int"),
    ("n_units_trained", "int"),
    ("n_units_variant", "int"),
    ("trained", "float?"),
    ("value", "float?", "of the variant"),
    ("value_low", "float?"),
    ("value_high", "float?"),
    ("trained_low", "float?"),
    ("trained_high", "float?"),
    ("difference", "float?", "variant minus trained"),
    ("difference_low", "float?"),
    ("difference_high", "float?"),
    ("probability_of_superiority", "float?", "P(trained > variant) + P(equal) / 2, over units"),
    ("p_value", "float?", "two-sided, bootstrap"),
    ("p_holm", "float?", "Holm within the contrasts of this metric and SAE"),
    ("equivalence_margin", "float"),
    ("p_equivalence", "float?", "two one-sided tests"),
    ("reason", "text?", "why a number is null"),
)
VERDICTS = schema(
    *CONTRAST_KEYS,
    ("verdict", "text", "separates, reversed, equivalent or inconclusive"),
    ("difference", "float?"),
    ("difference_low", "float?"),
    ("difference_high", "float?"),
    ("p_holm", "float?"),
    ("reason", "text", "the rule that gave the verdict, with its numbers"),
)
# Means per cell with intervals: what figures are drawn from. `variant` includes `trained`.
SUMMARIES = schema(
    *CONTRAST_KEYS,
    ("unit", "text"),
    ("n_draws", "int"),
    ("n_seeds", "int"),
    ("n_units", "int"),
    ("value", "float?"),
    ("low", "float?"),
    ("high", "float?"),
)
COSTS = schema(
    ("rule", "text"),
    ("keys", "text"),
    ("wall_seconds", "float"),
    ("cpu_seconds", "float?"),
    ("max_rss_mib", "float?"),
    ("model", "text?", "the language model that was asked; null for jobs that asked none"),
    ("calls", "int?", "answered in the last run of the job"),
    ("cached_calls", "int?", "answered before, and read from the cache"),
    ("attempts_failed", "int?", "asked again or given up"),
    ("failed_calls", "int?", "never answered"),
    ("prompt_tokens", "int?", "of the calls"),
    ("completion_tokens", "int?", "of the calls"),
    ("cost_usd", "float?", "of all answers, whenever they were paid for"),
    ("paid_usd", "float?", "by the last run of the job"),
)
