"""Tables of the toy models (`snakemake toy`)."""

from __future__ import annotations

import pyarrow as pa

from nullsae.tables.columns import schema

TOY_KEYS = (("source", "text"), ("data", "text"), ("expansion", "int"), ("seed", "int"))
# One row per SAE. Norms are those of each held-out sample, averaged.
_COLUMNS = (
    (
        "l1_coefficient",
        "float",
        "weight of mean |code| in the loss, relative to the mean squared error",
    ),
    ("n_latents d_input", "int"),
    ("n_train n_heldout", "int", "samples"),
    ("mse", "float", "input units squared, per entry"),
    ("explained_variance", "float?", "null if all held-out samples are the same"),
    (
        "explained_variance_about_scalar",
        "float?",
        "about a single mean of all entries, as in the paper",
    ),
    ("explained_variance_of_mean", "float?", "of predicting each sample's own mean"),
    ("l0", "float", "latents per sample"),
    ("l1", "float", "standardized input units per sample"),
    ("l1_over_sqrt_l2", "float", "square root of standardized input units"),
    ("hoyer", "float?", "over samples with an active latent"),
    ("active_share", "float", "samples with an active latent"),
    ("alive_share", "float", "latents that fired on a held-out sample"),
    ("mmcs", "float?", "to the true features, if the samples are sums of them"),
    ("mmcs_at_start", "float?", "the same of the decoder before training"),
    ("image_mmcs", "float?", "to the random network's images of the true features"),
    ("image_mmcs_at_start", "float?", "the same of the decoder before training"),
    ("true_l0", "float?", "true features per sample"),
    ("data_l0", "float", "entries per held-out sample, of the data itself"),
    ("data_l1", "float", "input units, of the data itself"),
    ("data_l1_over_sqrt_l2", "float", "square root of input units, of the data itself"),
    ("data_hoyer", "float?", "of the data itself, over samples that are not zero"),
)
SWEEP: pa.Schema = schema(*_COLUMNS)
TOY: pa.Schema = schema(*TOY_KEYS, *_COLUMNS)
