"""Tables that stages write per cell, without their partition keys, which are in the path."""

from __future__ import annotations

import pyarrow as pa

from nullsae.config.metrics import with_column
from nullsae.tables.columns import schema

Keys = tuple[tuple[str, str], ...]
MODEL_KEYS = (("subject", "text"), ("variant", "text"), ("draw", "int"))
CELL_KEYS = (*MODEL_KEYS, ("site", "text"), ("sae", "text"), ("seed", "int"))
EXPLAINER_KEYS = (*CELL_KEYS, ("explainer", "text"))
SCORER_KEYS = (*EXPLAINER_KEYS, ("scorer", "text"))
RECIPE_KEYS = (("subject", "text"), ("site", "text"), ("sae", "text"))


def _table(keys: Keys, *columns: tuple[str, str] | tuple[str, str, str]) -> tuple[Keys, pa.Schema]:
    return keys, schema(*columns)


# Tables that stages write per cell: (partition keys, columns).
CELL_TABLES: dict[str, tuple[Keys, pa.Schema]] = {
    "models": _table(
        MODEL_KEYS,
        ("n_parameters", "int"),
        ("heldout_loss_nats", "float", "nats per token"),
        ("unigram_loss_nats bigram_loss_nats", "float", "nats per token, same tokens"),
        ("n_heldout_tokens", "int", "predicted tokens"),
        ("n_gates", "int"),
        ("gates_passed", "flag"),
    ),
    "reconstruction": _table(
        CELL_KEYS,
        ("n_tokens n_latents d_model", "int"),
        ("reason", "text?", "why figures are null that a site without variance lacks"),
        ("explained_variance", "float?"),
        ("explained_variance_all_tokens", "float?", "including excluded tokens"),
        ("cosine", "float"),
        (
            "n_tokens_excluded",
            "int",
            "by activations.exclude; n_tokens counts the others",
        ),
        ("excluded_variance_share", "float", "of the split's variance, in excluded tokens"),
        ("l0", "float", "latents per token"),
        ("l1", "float", "activation units per token"),
        ("l2_ratio", "float?"),
        ("alive_share", "float"),
        ("mean_norm", "float", "activation units"),
        ("max_coordinate_variance_share", "float?", "of the variance, in one dimension"),
        ("max_eigenvalue_share", "float?", "of the variance, along one eigenvector"),
        ("effective_rank", "float?", "exp of the entropy of the covariance's spectrum"),
        ("token_lookup_r2", "float?"),
        ("token_lookup_tokens", "int", "to which the means per token id were fitted"),
        ("fidelity_tokens", "int?", "predicted tokens; null without a model (gaussian)"),
        ("ce_clean ce_sae ce_zero ce_mean kl_sae kl_zero", "float?", "nats per token"),
        ("ce_score", "float?"),
    ),
    # The SAE on the activations of every variant, including its own.
    "cross_evaluation": _table(
        CELL_KEYS,
        ("evaluated_on", "text", "variant whose activations are reconstructed"),
        ("evaluated_on_draw n_tokens", "int"),
        ("explained_variance", "float?"),
        ("explained_variance_rescaled", "float?", "inputs scaled to the SAE's mean norm first"),
        ("cosine", "float"),
        ("l0", "float", "latents per token"),
        ("alive_share", "float"),
    ),
    # Sums over the tokens of one document of `eval`: the units for resampling reconstruction
    # metrics. Their totals give the row of `reconstruction`.
    "documents": _table(
        CELL_KEYS,
        ("document n_tokens", "int"),
        ("squared_error", "float", "activation units squared"),
        ("squared_deviation", "float", "activation units squared, from the split's mean"),
        ("token_lookup_error", "float", "activation units squared, of the mean per token id"),
        ("cosine l0", "float", "summed over tokens"),
        ("l1 norm", "float", "activation units, summed over tokens"),
        ("fidelity_tokens", "int?", "predicted tokens; null outside the sample of fidelity"),
        ("ce_clean ce_sae ce_zero ce_mean kl_sae", "float?", "nats, summed over them"),
    ),
    # The dictionary by itself; null if a direction is missing.
    "geometry": _table(
        CELL_KEYS,
        ("n_latents", "int"),
        ("n_zero_rows", "int", "decoder rows of norm 0, left out"),
        ("decoder_norm_mean decoder_norm_sd", "float?"),
        ("encoder_norm_mean", "float?", "null without an encoder (token_lookup)"),
        ("encoder_decoder_cosine_mean", "float?"),
        ("nearest_cosine_mean", "float?", "decoder row to its nearest other one"),
        ("nearest_cosine_median", "float?"),
        ("nearest_cosine_p95", "float?", "95th percentile"),
        ("random_nearest_cosine_mean", "float?", "as many random directions"),
        ("effective_rank", "float?", "exp of the entropy of the decoder's spectrum"),
    ),
    # Pairs of SAEs of one recipe, matched one to one by their decoder rows.
    "overlap": _table(
        RECIPE_KEYS,
        ("variant_a", "text"),
        ("draw_a seed_a", "int"),
        ("variant_b", "text"),
        ("draw_b seed_b", "int"),
        ("kind", "text", "what differs: seeds, draws or variants"),
        ("n_latents_a n_latents_b n_matched", "int"),
        ("mean_cosine", "float?", "over matched pairs"),
        ("shared_share", "float?", "of matched pairs, cosine 0.7 or more"),
        ("mean_cosine_random shared_share_random", "float?", "as many random directions"),
    ),
    "history": _table(
        CELL_KEYS,
        ("step", "int", "optimizer steps"),
        ("tokens", "int", "training tokens seen"),
        ("lr", "float"),
        ("fvu_loss", "float?", "fraction of variance unexplained, training batch"),
        ("auxk_loss", "float"),
        ("sparsity_loss", "float", "sparsity penalty, as weighted in the loss"),
        ("heldout_explained_variance", "float?"),
        ("heldout_cosine heldout_alive_share", "float"),
        ("heldout_l0", "float", "latents per token"),
        ("dead_share", "float", "latents that did not fire in the last dead_horizon_tokens"),
        ("dead_horizon_tokens", "int", "training tokens, at most those seen; or held-out ones"),
        (
            "precision",
            "text?",
            "of the products set by `compute.precision`; null without steps",
        ),
        ("differing_choice_share", "float?", "active latents that float32 would not select"),
        ("tokens_per_second", "float?", "over this SAE's steps since the last row, wall clock"),
    ),
    "latents": _table(
        CELL_KEYS,
        ("latent n_tokens firings", "int"),
        ("firing_share", "float"),
        ("mean_activation", "float?", "activation units, over firings"),
        ("max_activation", "float", "activation units"),
        ("n_documents", "int"),
        ("document_share", "float", "share of the split's documents with a firing"),
        ("peak_document_share", "float?", "largest share of the firings in one document"),
        ("n_token_types", "int"),
        ("token_entropy_bits", "float?"),
        ("token_entropy_corrected_bits", "float?", "bits, Miller-Madow"),
        ("peak_token_share", "float?"),
        ("peak_token", "int?", "token id"),
        ("mean_position_tokens", "float?", "offset in the context, over firings"),
        ("sd_position_tokens", "float?", "offset in the context, over firings"),
        ("first_position_share", "float?", "firings at offset 0"),
        ("autocorrelation_lag1", "float?", "within a context and document, zeros included"),
        ("autocorrelation", "float?", "mean over lags of 1 to 15 tokens"),
        ("encoder_decoder_cosine", "float?"),
        ("explain_pool_active_windows score_pool_active_windows", "int"),
        ("passes_filter sampled", "flag"),
        ("explain_token_entropy_bits", "float?", "bits, over the explainer's windows"),
        *(
            (f"{name} {name}_swapped {name}_random", "float?", what)
            for name, what in (
                ("next_token_auroc", "of passing latents"),
                ("next_token_auroc_bigram", "against tokens that follow the same token"),
            )
        ),
        *(
            column
            for end, what in (("promoted", "raises"), ("suppressed", "lowers"))
            for column in (
                (f"{end}_tokens", "ints?", f"ids whose logits its row {what} most; if sampled"),
                (f"{end}_effects", "floats?", "on these, in sd over the vocabulary from its mean"),
            )
        ),
        ("ablation_firings", "int", "contexts in which a direction is ablated at a firing"),
        *(
            (f"{name} {name}_swapped {name}_random", "float?", what)
            for name, what in (
                ("ablation_kl_nats", "nats, clean from edited prediction, of sampled latents"),
                ("ablation_ce_nats", "nats, added to the loss of the next token"),
                ("addition_kl_nats", "nats, the direction added where the latent is silent"),
                (
                    "addition_logp_nats",
                    "nats, added to the log-probability of tokens that follow its firings",
                ),
            )
        ),
        (
            "token_injection_rate token_injection_rate_swapped",
            "float?",
            "firings where its tokens are written into silent windows, over those in the text",
        ),
        *((c.name, c.kind, c.unit) for _, c in with_column()),
    ),
    "windows": _table(
        CELL_KEYS,
        ("latent", "int"),
        ("window", "int", "index of the window in the split"),
        ("pool", "text", "explain, score, or top (the strongest, for people)"),
        ("active", "flag"),
        ("silent_kind", "text?", "how a silent window was chosen; null for active ones"),
        ("quantile", "int?", "0 is the strongest; null in the pool top, in order of strength"),
        ("document", "int"),
        ("start", "int", "flat token index in the split"),
        ("token_ids", "ints"),
        ("activations", "floats", "activation units"),
        ("skipped", "flags", "tokens whose firings do not count, such as BOS; never marked"),
        ("token_frequencies", "floats", "of each token id, share of the split's tokens"),
    ),
    "coverage": _table(
        CELL_KEYS,
        ("n_tokens n_latents n_alive n_pass", "int"),
        ("pass_share", "float"),
        ("n_sampled n_windows", "int"),
        ("n_windows_across_documents", "int", "left out"),
        ("n_tokens_skipped", "int", "tokens whose firings do not count"),
        ("n_tokens_excluded", "int", "by activations.exclude: never encoded"),
        ("n_firings_skipped", "int"),
        ("n_too_rare", "int", "latents with too few firings for the filter"),
        ("n_few_active_windows n_few_silent_windows", "int", "latents, of the others"),
        ("n_windows_too_short", "int", "centred: no room in the document; of all latents"),
        ("no_effects", "text?", "why effects on logits are null for all latents"),
        ("no_causal_effects", "text?", "the same for effects that need passes of the subject"),
    ),
    "explanations": _table(
        EXPLAINER_KEYS,
        ("latent", "int"),
        ("explanation", "text?"),
        ("reason", "text?", "why there is no explanation"),
        ("source_latent", "int", "whose windows the explanation was written from"),
        ("model", "text?", "the language model that wrote it"),
        ("prompt_hash", "text?", "of the prompt's file"),
        ("n_example_repeats", "int?", "answers that repeated an example of the prompt"),
        ("n_characters_cut", "int?", "of the explanation, after the first 4000"),
        ("base_probability", "float?", "null without token statistics, as are the following"),
        ("token_ids", "ints"),
        ("token_probabilities", "floats", "P(active | token)"),
        ("pair_previous_ids", "ints", "token before; empty without bigrams"),
        ("pair_token_ids", "ints"),
        ("pair_probabilities", "floats", "P(active | token before, token)"),
    ),
    "predictions": _table(
        SCORER_KEYS,
        ("latent window document", "int"),
        ("active", "flag"),
        ("silent_kind", "text?", "null for active windows; misplaced: shown with wrong marks"),
        ("quantile", "int?"),
        ("n_marked", "int", "marked tokens shown to the judge"),
        ("probability", "float?", "null: no valid reply"),
        ("evidence", "text?", "statistics, logprobs, label (0 or 1) or likelihood"),
    ),
    "scores": _table(
        SCORER_KEYS,
        ("latent", "int"),
        ("n_active n_silent", "int", "judged windows"),
        ("n_failed", "int", "windows without a valid reply"),
        ("n_labels", "int", "windows judged by 0 or 1, without a probability"),
        ("judge", "text?", "the language model that judged"),
        ("prompt_hash", "text?", "of the prompt's file"),
        ("auroc auprc f1 balanced_accuracy", "float?"),
        ("placebo_auroc", "float?", "intruder: of a judge who knows only token frequencies"),
    ),
}
