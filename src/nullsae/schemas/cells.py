"""Tables that stages write per cell, without their partition keys, which stand in the path."""

from __future__ import annotations

import pyarrow as pa

from nullsae.schemas.columns import schema

MODEL_KEYS = (("subject", "text"), ("variant", "text"), ("draw", "int"))
CELL_KEYS = (*MODEL_KEYS, ("site", "text"), ("sae", "text"), ("seed", "int"))
EXPLAINER_KEYS = (*CELL_KEYS, ("explainer", "text"))
SCORER_KEYS = (*EXPLAINER_KEYS, ("scorer", "text"))

# Tables that stages write per cell: (partition keys, columns).
CELL_TABLES: dict[str, tuple[tuple[tuple[str, str], ...], pa.Schema]] = {
    "models": (
        MODEL_KEYS,
        schema(
            ("n_parameters", "int"),
            ("heldout_loss_nats", "float", "nats per token"),
            ("unigram_loss_nats", "float", "nats per token, same tokens"),
            ("bigram_loss_nats", "float", "nats per token, same tokens"),
            ("n_heldout_tokens", "int", "predicted tokens"),
            ("n_gates", "int"),
            ("gates_passed", "flag"),
        ),
    ),
    "reconstruction": (
        CELL_KEYS,
        schema(
            ("n_tokens", "int"),
            ("n_latents", "int"),
            ("d_model", "int"),
            ("explained_variance", "float"),
            ("cosine", "float"),
            ("l0", "float", "latents per token"),
            ("l1", "float", "activation units per token"),
            ("l2_ratio", "float"),
            ("alive_share", "float"),
            ("mean_norm", "float", "activation units"),
            ("max_variance_share", "float", "largest share of the variance in one dimension"),
            ("effective_rank", "float", "exp of the entropy of the covariance's spectrum"),
            ("token_lookup_r2", "float"),
            ("fidelity_tokens", "int?", "predicted tokens; null without a model (gaussian)"),
            ("ce_clean", "float?", "nats per token"),
            ("ce_sae", "float?", "nats per token"),
            ("ce_zero", "float?", "nats per token"),
            ("ce_mean", "float?", "nats per token"),
            ("kl_sae", "float?", "nats per token"),
            ("kl_zero", "float?", "nats per token"),
            ("ce_score", "float?"),
        ),
    ),
    # The SAE on the activations of every variant, its own included.
    "cross_evaluation": (
        CELL_KEYS,
        schema(
            ("evaluated_on", "text", "variant whose activations are reconstructed"),
            ("evaluated_on_draw", "int"),
            ("n_tokens", "int"),
            ("explained_variance", "float"),
            ("explained_variance_rescaled", "float", "inputs brought to the SAE's mean norm first"),
            ("cosine", "float"),
            ("l0", "float", "latents per token"),
            ("alive_share", "float"),
        ),
    ),
    # Sums over the tokens of one document of `eval`: the units that reconstruction metrics are
    # resampled over. Their totals give back the row of `reconstruction`.
    "documents": (
        CELL_KEYS,
        schema(
            ("document", "int"),
            ("n_tokens", "int"),
            ("squared_error", "float", "activation units squared"),
            ("squared_deviation", "float", "activation units squared, about the split's mean"),
            ("cosine", "float", "summed over tokens"),
            ("l0", "float", "summed over tokens"),
            ("l1", "float", "activation units, summed over tokens"),
        ),
    ),
    "history": (
        CELL_KEYS,
        schema(
            ("step", "int", "optimizer steps"),
            ("tokens", "int", "training tokens seen"),
            ("lr", "float"),
            ("fvu_loss", "float", "fraction of variance unexplained, training batch"),
            ("auxk_loss", "float"),
            ("sparsity_loss", "float", "penalty on activity, as weighted in the loss"),
            ("heldout_explained_variance", "float"),
            ("heldout_cosine", "float"),
            ("heldout_alive_share", "float"),
            ("dead_share", "float"),
            ("tokens_per_second", "float?", "of this SAE's steps since the last row, wall clock"),
        ),
    ),
    "latents": (
        CELL_KEYS,
        schema(
            ("latent", "int"),
            ("n_tokens", "int"),
            ("firings", "int"),
            ("firing_share", "float"),
            ("mean_activation", "float?", "activation units, over firings"),
            ("max_activation", "float", "activation units"),
            ("n_documents", "int"),
            ("n_token_types", "int"),
            ("token_entropy_bits", "float?"),
            ("token_entropy_corrected_bits", "float?", "bits, Miller-Madow"),
            ("peak_token_share", "float?"),
            ("peak_token", "int?", "token id"),
            ("encoder_decoder_cosine", "float?"),
            ("explain_pool_active_windows", "int"),
            ("score_pool_active_windows", "int"),
            ("passes_filter", "flag"),
            ("sampled", "flag"),
            ("explain_token_entropy_bits", "float?", "bits, over the explainer's windows"),
        ),
    ),
    "windows": (
        CELL_KEYS,
        schema(
            ("latent", "int"),
            ("window", "int", "index of the window in the split"),
            ("pool", "text", "explain or score"),
            ("active", "flag"),
            ("silent_kind", "text?", "how a silent window was chosen; null for active ones"),
            ("quantile", "int?", "0 is the strongest"),
            ("document", "int"),
            ("start", "int", "flat token index in the split"),
            ("token_ids", "ints"),
            ("activations", "floats", "activation units"),
        ),
    ),
    "coverage": (
        CELL_KEYS,
        schema(
            ("n_tokens", "int"),
            ("n_latents", "int"),
            ("n_alive", "int"),
            ("n_pass", "int"),
            ("pass_share", "float"),
            ("n_sampled", "int"),
            ("n_windows", "int"),
            ("n_windows_across_documents", "int", "left out"),
        ),
    ),
    "explanations": (
        EXPLAINER_KEYS,
        schema(
            ("latent", "int"),
            ("explanation", "text?"),
            ("reason", "text?", "why there is no explanation"),
            ("source_latent", "int", "whose windows the explanation was written from"),
            ("model", "text?", "the language model that wrote it"),
            ("prompt_hash", "text?", "of the prompt's file"),
            ("base_probability", "float?", "null without token statistics, like what follows"),
            ("token_ids", "ints"),
            ("token_probabilities", "floats", "P(active | token)"),
            ("pair_previous_ids", "ints", "token before; empty without bigrams"),
            ("pair_token_ids", "ints"),
            ("pair_probabilities", "floats", "P(active | token before, token)"),
        ),
    ),
    "predictions": (
        SCORER_KEYS,
        schema(
            ("latent", "int"),
            ("window", "int"),
            ("active", "flag"),
            ("silent_kind", "text?", "null for active windows; misplaced: shown with wrong marks"),
            ("quantile", "int?"),
            ("n_marked", "int", "marked tokens shown to the judge"),
            ("probability", "float?", "null: no valid reply"),
            ("evidence", "text?", "statistics, logprobs, label (0 or 1) or likelihood"),
        ),
    ),
    "scores": (
        SCORER_KEYS,
        schema(
            ("latent", "int"),
            ("n_active", "int", "judged windows"),
            ("n_silent", "int", "judged windows"),
            ("n_failed", "int", "windows without a valid reply"),
            ("n_labels", "int", "windows judged by 0 or 1, without a probability"),
            ("judge", "text?", "the language model that judged"),
            ("prompt_hash", "text?", "of the prompt's file"),
            ("auroc", "float?"),
            ("auprc", "float?"),
            ("f1", "float?"),
            ("balanced_accuracy", "float?"),
        ),
    ),
}
