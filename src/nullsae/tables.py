"""The schema of every table, and the only way to write or read one.

Units stand in column names or in a field's `unit` metadata. Per-cell files hold a table without
its partition keys (they are in the path); `results/tables` holds it with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nullsae.errors import UserError
from nullsae.files import atomic_path, rebuild_command

_TYPES = {
    "int": pa.int64(),
    "int32": pa.int32(),
    "float": pa.float64(),
    "text": pa.string(),
    "flag": pa.bool_(),
    "ints": pa.list_(pa.int32()),
    "floats": pa.list_(pa.float32()),
}


def _schema(*columns: tuple[str, str] | tuple[str, str, str]) -> pa.Schema:
    """Columns as (name, type) or (name, type, unit); a type ending in `?` may be null."""
    fields = []
    for name, kind, *unit in columns:
        metadata = {"unit": unit[0]} if unit else None
        fields.append(
            pa.field(name, _TYPES[kind.rstrip("?")], nullable=kind.endswith("?"), metadata=metadata)
        )
    return pa.schema(fields)


MODEL_KEYS = (("subject", "text"), ("variant", "text"), ("draw", "int"))
CELL_KEYS = (*MODEL_KEYS, ("site", "text"), ("sae", "text"), ("seed", "int"))
EXPLAINER_KEYS = (*CELL_KEYS, ("explainer", "text"))
SCORER_KEYS = (*EXPLAINER_KEYS, ("scorer", "text"))

# Tables that stages write per cell: (partition keys, columns).
CELL_TABLES: dict[str, tuple[tuple[tuple[str, str], ...], pa.Schema]] = {
    "models": (
        MODEL_KEYS,
        _schema(
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
        _schema(
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
        _schema(
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
        _schema(
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
        _schema(
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
        _schema(
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
        _schema(
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
        _schema(
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
        _schema(
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
        _schema(
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
        _schema(
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
CONTRASTS = _schema(
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
VERDICTS = _schema(
    *CONTRAST_KEYS,
    ("verdict", "text", "separates, reversed, equivalent or inconclusive"),
    ("difference", "float?"),
    ("difference_low", "float?"),
    ("difference_high", "float?"),
    ("p_holm", "float?"),
    ("reason", "text", "the rule that gave the verdict, with its numbers"),
)
# Means per cell with intervals: what figures are drawn from. `variant` includes `trained`.
SUMMARIES = _schema(
    *CONTRAST_KEYS,
    ("unit", "text"),
    ("n_draws", "int"),
    ("n_seeds", "int"),
    ("n_units", "int"),
    ("value", "float?"),
    ("low", "float?"),
    ("high", "float?"),
)
COSTS = _schema(
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

# Columns that a clock gave. They stay in the cells' own files, because two runs of one config give
# identical tables.
MEASURED: dict[str, tuple[str, ...]] = {"history": ("tokens_per_second",)}

SCHEMAS: dict[str, pa.Schema] = {
    **{
        name: pa.schema(
            [
                *_schema(*keys),
                *(field for field in columns if field.name not in MEASURED.get(name, ())),
            ]
        )
        for name, (keys, columns) in CELL_TABLES.items()
    },
    "contrasts": CONTRASTS,
    "verdicts": VERDICTS,
    "summaries": SUMMARIES,
}
# Too large to be worth copying into results/tables: read them as a data set where they lie.
NOT_AGGREGATED = ("windows",)
AGGREGATED = tuple(name for name in SCHEMAS if name not in NOT_AGGREGATED)


def cell_schema(table: str) -> pa.Schema:
    """The schema of one cell's file of `table`, without partition keys."""
    return CELL_TABLES[table][1]


def write_table(
    path: Path | str, rows: Iterable[dict[str, Any]] | pa.Table, schema: pa.Schema
) -> None:
    """Write rows as Parquet, atomically, in exactly this schema. The same rows give the same bytes.

    Raises:
        ValueError: a column is missing or unknown, or a null stands where none may (a defect of
            nullsae, not of its user).
    """
    if isinstance(rows, pa.Table):
        if different := set(rows.column_names) ^ set(schema.names):
            raise ValueError(f"{path}: columns {sorted(different)}")
        table = rows.select(schema.names).cast(schema)
    else:
        rows = list(rows)
        for row in rows:
            if row.keys() != set(schema.names):
                raise ValueError(f"{path}: columns {sorted(row.keys() ^ set(schema.names))}")
        table = pa.Table.from_pylist(rows, schema=schema)
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise ValueError(f"{path}: column {field.name} holds a null")
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_table(
    path: Path | str,
    schema: pa.Schema,
    *,
    columns: Sequence[str] | None = None,
    rebuild: str | None = None,
) -> pa.Table:
    """Read a Parquet file and check its columns against the schema.

    `rebuild` is the command that makes a file that is no output of a rule.

    Raises:
        UserError: missing, unreadable or of another schema; names the file and the rebuild command.
    """
    rebuild = rebuild or rebuild_command(path)
    if not Path(path).is_file():
        raise UserError(f"{path}: the file is missing; rebuild it with: {rebuild}")
    try:
        # ParquetFile, not read_table: the latter would add partition columns from the path.
        table = pq.ParquetFile(path).read(columns=list(columns) if columns else None)
    except (pa.ArrowInvalid, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{path}: not readable ({first}); rebuild it with: {rebuild}") from None
    wanted = pa.schema([schema.field(name) for name in columns]) if columns else schema
    if not table.schema.equals(wanted):
        raise UserError(f"{path}: made by another version of nullsae; rebuild it with: {rebuild}")
    return table
