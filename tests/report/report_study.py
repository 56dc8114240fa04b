"""A finished study on disk with made-up but plausible numbers, for the tests of the report."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from nullsae import paths, tables
from nullsae.aggregation.answer import write_answer
from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.metrics import METRICS, all_metrics
from nullsae.config.parse import parse_config
from nullsae.config.saes import recipe_name
from nullsae.config.study import Config
from nullsae.config.variants import VARIANTS, is_null, is_positive_control
from nullsae.jobs import grid as cells
from nullsae.latents.causal_effects import COLUMNS as CAUSAL_COLUMNS
from nullsae.report.sections import VERDICTS
from nullsae.report.study import COLUMNS

DEFAULT = Path(__file__).parents[2] / "config.yaml"
EOS = "<|endoftext|>"
N_LATENTS = 40
"""Per cell; one in four is sampled."""
EVIL = "<script>alert('nullsae')</script>"
ODD_TEXT = "café naïve 東京 🙂 \x07 " + EVIL
# What contrasts say about accepted code, by the name `code`.
OLDER: dict[str, str] = {}
# Subjects whose trained variant predicts no better than bigrams, and the warning in tables.
WARNED: dict[str, str] = {}
LEVEL = {
    "trained": 0.0,
    "retrained": 0.05,
    "step0": 1.0,
    "fresh_init": 1.1,
    "rerandomized": 0.8,
    "rerandomized_keep_embeddings": 0.6,
    "permuted_weights": 0.7,
    "spectrum_matched": 0.5,
    "cascade": 0.3,
    "permuted_embeddings": 0.4,
    "rotated_embeddings": 0.45,
    "noise_embeddings": 1.4,
    "gaussian": 2.5,
}
SAES = {
    name: {"dictionary": name}
    | ({"n_latents": 1024} if kind.trained else {})
    | ({"from": "learned"} if kind.derived else {})
    for name, kind in DICTIONARIES.items()
} | {"elsewhere": {"pretrained": "someone/their-sae"}}
EXPLAINERS = {
    "lexical": {"kind": "lexical"},
    "bigram": {"kind": "lexical", "context": "bigram"},
    "swapped": {"kind": "swapped", "of": "lexical"},
}
CENTRE = {
    "next_token_auroc": (0.7, -0.2),
    "next_token_auroc_bigram": (0.53, -0.03),
    "ablation_kl_log_ratio": (0.35, -0.3),
    "ablation_ce_gain_nats": (0.015, -0.015),
    "addition_gain_nats": (0.25, -0.25),
    "token_injection_rate": (0.9, 0.08),
    "explained_variance": (0.82, -0.06),
    "cosine": (0.93, -0.02),
    "l1_ratio": (2.1, 1.4),
    "token_entropy_bits": (3.9, -1.9),
    "explain_token_entropy_bits": (3.1, -1.4),
    "peak_token_share": (0.31, 0.35),
    "auroc": (0.84, 0.02),
    "auprc": (0.86, 0.01),
    "f1": (0.74, -0.03),
    "balanced_accuracy": (0.75, -0.005),
    "above_floors": (0.45, -0.2),
    "ce_score": (0.9, -0.1),
    "single_token_share": (0.1, 0.2),
    "autocorrelation": (0.08, -0.05),
    "gain_over_lexical": (0.04, -0.02),
    "discrimination": (0.25, -0.1),
    "abstract_share": (0.3, -0.1),
    "entropy_auroc_correlation": (-0.2, -0.3),
}


def default_config(**sections: Any) -> Config:
    """Return the repository's config with some top-level sections replaced."""
    return parse_config(yaml.safe_load(DEFAULT.read_text(encoding="utf-8")) | sections)


def all_controls_config(**sections: Any) -> Config:
    """Return all variants, dictionaries, explainers, scorers: 13 x 8 x 3 x 2, two site kinds."""
    subject = default_config().model_dump(mode="json")["subjects"]["small"]
    wanted = {
        "subjects": {"small": subject | {"sites": ["resid_post.1", "mlp_out.1"]}},
        "variants": list(VARIANTS),
        "saes": SAES,
        "explainers": EXPLAINERS,
        "evaluation": {"cross_tokens": 4096},
    }
    return default_config(**(wanted | sections))


@cache
def train_tokenizer() -> Tokenizer:
    """Train a byte-level BPE too small for its text: most non-ASCII characters split into bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((topics[name] for name in sorted(topics)[:40]), trainer)
    return tokenizer


def write_study(root: Path, config: Config) -> None:
    """Write every file that `build_report` reads."""
    tokenizer = train_tokenizer()
    text = "\n\n".join(topics[name] for name in sorted(topics)[:12])
    ids = tokenizer.encode(text).ids
    odd = tokenizer.encode(ODD_TEXT).ids
    for corpus in config.corpora:
        path = root / paths.TOKENIZER_FILE.format(corpus=corpus)
        path.parent.mkdir(parents=True)
        tokenizer.save(str(path))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in tables.AGGREGATED}
    rng = np.random.default_rng(7)
    for keys in cells.model_cells(config):
        rows["models"].append(_model(_typed(keys), rng))
    for keys in cells.sae_cells(config):
        cell = _typed(keys)
        sae = config.saes[recipe_name(cell["sae"])]
        rows["reconstruction"].append(_reconstruction(cell, rng))
        if config.evaluation.cross_tokens:
            rows["cross_evaluation"] += _cross_evaluation(cell, config)
        rows["geometry"].append(_geometry(cell))
        if sae.origin.trained:
            rows["history"] += _history(cell, rng)
        latents = _latents(cell, odd, rng)
        rows["latents"] += latents
        if cell["variant"] == "trained" and "@" not in cell["sae"]:
            ranked = _ranked(cell, latents, config)
            rows["latents_ranked"] += ranked
            rows["beating_placebo"] += _beating(cell, ranked)
        sampled = [row for row in latents if row["sampled"]]
        rows["coverage"].append(_coverage(cell, latents))
        windows = [w for row in sampled for w in _windows(row, ids, odd, rng)]
        path = root / paths.WINDOWS.format(**keys)
        tables.write_table(path, windows, tables.cell_schema("windows"))
        for explainer in config.explainers:
            for row in sampled:
                rows["explanations"].append(_explanation(cell, explainer, row["latent"]))
                for scorer in config.scorers:
                    rows["scores"].append(_score(cell, explainer, scorer, row["latent"], rng))
    _add_floors(rows, config, rng)
    _add_overlap(rows, config)
    _add_statistics(rows, config, rng)
    for name in (*COLUMNS, "latents_ranked", "beating_placebo"):
        _write(root, name, rows[name])
    words = [row["verdict"] for row in rows["verdicts"]]
    write_answer(config, root, rows["contrasts"], words)


def _write(root: Path, name: str, rows: list[dict[str, Any]]) -> None:
    tables.write_table(root / paths.TABLE.format(table=name), rows, tables.SCHEMAS[name])


def _typed(keys: dict[str, str]) -> dict[str, Any]:
    return {k: int(v) if k in ("draw", "seed") else v for k, v in keys.items()}


def _model(cell: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    trained = cell["variant"] == "trained"
    return cell | {
        "n_parameters": 1_118_720,
        "heldout_loss_nats": 4.21 if trained else float(7.7 + rng.random()),
        "unigram_loss_nats": 6.013,
        "bigram_loss_nats": 4.587,
        "n_heldout_tokens": 158_750,
        "n_gates": 0 if trained else 6,
        "gates_passed": True,
    }


def _reconstruction(cell: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    level, noise = _level(cell), 0.01 * rng.random()
    has_model = cell["variant"] != "gaussian"
    trained = cell["variant"] == "trained"
    clean = 4.2 if trained else 7.8 + LEVEL[cell["variant"]] / 3
    return cell | {
        "n_tokens": 159_744,
        "n_latents": 1024,
        "d_model": 128,
        "explained_variance": 0.82 - 0.06 * level + noise,
        "cosine": 0.93 - 0.02 * level,
        "l0": 16.0,
        "l1": 38 + 90 * level,
        "l2_ratio": 0.94,
        "alive_share": 0.97 - 0.1 * level,
        "mean_norm": 12.3 + 4 * LEVEL[cell["variant"]],
        "reason": None,
        "explained_variance_all_tokens": min(0.95, 0.45 + 0.4 * level) + noise,
        "n_tokens_excluded": 0,
        "excluded_variance_share": 0.0,
        "max_coordinate_variance_share": 0.21 + 0.1 * LEVEL[cell["variant"]],
        "max_eigenvalue_share": 0.25 + 0.1 * LEVEL[cell["variant"]],
        "token_lookup_tokens": 250_000,
        "effective_rank": 61.7 - 10 * LEVEL[cell["variant"]],
        "token_lookup_r2": min(0.95, 0.45 + 0.4 * level) + noise,
        "fidelity_tokens": 16_256 if has_model else None,
        "ce_clean": clean if has_model else None,
        "ce_sae": clean + 0.25 if has_model else None,
        "ce_zero": clean + (2.9 if trained else 0.02) if has_model else None,
        "ce_mean": clean + (2.1 if trained else 0.015) if has_model else None,
        "kl_sae": 0.24 if has_model else None,
        "kl_zero": 2.8 if has_model else None,
        "ce_score": 0.91 if trained else None,
    }


def _geometry(cell: dict[str, Any]) -> dict[str, Any]:
    return cell | {
        "n_latents": 1024,
        "n_zero_rows": 0,
        "decoder_norm_mean": 1.0,
        "decoder_norm_sd": 0.0,
        "encoder_norm_mean": 1.1,
        "encoder_decoder_cosine_mean": 0.7,
        "nearest_cosine_mean": 0.5 + 0.05 * LEVEL.get(cell["variant"], 0.0),
        "nearest_cosine_median": 0.5,
        "nearest_cosine_p95": 0.8,
        "random_nearest_cosine_mean": 0.31,
        "effective_rank": 110.0,
    }


def _add_floors(
    rows: dict[str, list[dict[str, Any]]], config: Config, rng: np.random.Generator
) -> None:
    """Add what Gaussian floors have: among the tables that the page reads, only reconstruction."""
    for keys in cells.floor_cells(config):
        cell = _typed(keys)
        like = cell | {"variant": "gaussian"}
        rows["reconstruction"].append(_reconstruction(like, rng) | {"variant": cell["variant"]})


def _add_overlap(rows: dict[str, list[dict[str, Any]]], config: Config) -> None:
    for subject, section in config.subjects.items():
        for site in section.sites:
            for sae in config.saes:
                for variant in config.variants:
                    if variant == "trained":
                        continue
                    a = {"variant_a": variant, "draw_a": 0, "seed_a": 0}
                    b = {"variant_b": "trained", "draw_b": 0, "seed_b": 0}
                    found = {"mean_cosine": 0.4, "shared_share": 0.1, "n_matched": 1024}
                    floor = {"mean_cosine_random": 0.3, "shared_share_random": 0.0}
                    sizes = {"n_latents_a": 1024, "n_latents_b": 1024, "kind": "variants"}
                    keys = {"subject": subject, "site": site, "sae": sae}
                    rows["overlap"].append(keys | a | b | sizes | found | floor)


def _level(cell: dict[str, Any]) -> float:
    """Return how far a cell is from trained with the first dictionary."""
    names, recipe = list(SAES), recipe_name(cell["sae"])
    return LEVEL[cell["variant"]] + 0.4 * (names.index(recipe) if recipe in names else 0)


def _share(cell: dict[str, Any]) -> float:
    """Return the share of its training after which an SAE was saved."""
    return float(cell["sae"].partition("@")[2] or 1)


def _cross_evaluation(cell: dict[str, Any], config: Config) -> list[dict[str, Any]]:
    level = LEVEL[cell["variant"]]
    return [
        cell
        | {
            "evaluated_on": variant,
            "evaluated_on_draw": cell["draw"] if variant == cell["variant"] else 0,
            "n_tokens": 4096,
            "explained_variance": 0.8 - 1.1 * abs(LEVEL[variant] - level),
            "explained_variance_rescaled": 0.82 - 0.5 * abs(LEVEL[variant] - level),
            "cosine": 0.8,
            "l0": 16.0,
            "alive_share": 0.5,
        }
        for variant in config.variants
    ]


def _history(cell: dict[str, Any], rng: np.random.Generator) -> list[dict[str, Any]]:
    final = 0.82 - 0.06 * _level(cell)
    rows = []
    for step in range(50, round(500 * _share(cell)) + 1, 50):
        value = final * (1 - math.exp(-step / 90)) + 0.004 * float(rng.standard_normal())
        rows.append(
            cell
            | {
                "step": step,
                "tokens": step * 1024,
                "lr": 2e-3,
                "fvu_loss": 1 - value,
                "auxk_loss": 0.9,
                "sparsity_loss": 0.0,
                "heldout_explained_variance": value,
                "heldout_cosine": 0.9,
                "heldout_alive_share": 0.95,
                "heldout_l0": 16.0,
                "dead_share": 0.01,
                "dead_horizon_tokens": 2_500,
                "precision": "float32",
                "differing_choice_share": None,
            }
        )
    return rows


def _latents(
    cell: dict[str, Any], odd: list[int], rng: np.random.Generator
) -> list[dict[str, Any]]:
    rows = []
    for latent in range(N_LATENTS):
        sampled = latent % 4 == 0
        # One in ten passes the filter without being sampled; one sampled latent has no value.
        passes = sampled or latent % 10 == 1
        next_token = 0.5 + latent * 37 % 40 / 100 if passes and latent != 8 else None
        entropy = float(abs(3.9 - 1.9 * LEVEL[cell["variant"]] + rng.standard_normal()))
        rows.append(
            cell
            | {
                "latent": latent,
                "n_tokens": 159_744,
                "firings": 900 if sampled else 20,
                "firing_share": 900 / 159_744,
                "mean_activation": 2.0,
                "max_activation": float(8 + 4 * rng.random()),
                "n_documents": 12,
                "n_token_types": 30,
                "token_entropy_bits": entropy,
                "token_entropy_corrected_bits": entropy + 0.02,
                "peak_token_share": float(rng.random()),
                "peak_token": int(rng.integers(300, 1400)),
                "encoder_decoder_cosine": 0.7,
                "document_share": 0.4,
                "peak_document_share": 0.2,
                "mean_position_tokens": 61.0,
                "sd_position_tokens": 35.0,
                "first_position_share": 0.01,
                "autocorrelation_lag1": 0.1,
                "autocorrelation": 0.05,
                **{
                    f"{name}{of}": 0.5
                    for name in ("next_token_auroc", "next_token_auroc_bigram")
                    for of in ("", "_swapped", "_random")
                },
                "next_token_auroc": next_token,
                **_effects(cell, odd if sampled else None),
                "ablation_firings": 16 if sampled else 0,
                **dict.fromkeys(CAUSAL_COLUMNS, 0.2 if sampled else None),
                "explain_pool_active_windows": 60,
                "score_pool_active_windows": 140,
                "passes_filter": passes,
                "sampled": sampled,
                "explain_token_entropy_bits": entropy,
            }
        )
    return rows


def _ranked(
    cell: dict[str, Any], latents: list[dict[str, Any]], config: Config
) -> list[dict[str, Any]]:
    """Return latents with a value, by two metrics, against each null and all of them."""
    nulls = [*filter(is_null, config.variants), "all"]
    return [
        cell
        | {"latent": row["latent"], "metric": metric, "value": row[metric], "direction": 1}
        | {"null": null, "n_null": 100, "p": 0.001, "q": (row["latent"] + i + 1) / 100}
        | {"rank": row["latent"] + 1, "reason": None}
        for metric in ("next_token_auroc", "token_entropy_bits")
        for i, null in enumerate(nulls)
        for row in latents
        if row["passes_filter"] and row[metric] is not None
    ]


def _beating(cell: dict[str, Any], ranked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Count these; by the second metric nothing could be tested against all nulls."""
    rows = []
    for metric, null in dict.fromkeys((row["metric"], row["null"]) for row in ranked):
        own = [row["q"] for row in ranked if (row["metric"], row["null"]) == (metric, null)]
        tested = [] if (metric, null) == ("token_entropy_bits", "all") else own
        n = sum(q <= 0.05 for q in tested)
        counts = {"n_latents": len(own), "n_tested": len(tested), "n_beating": n}
        share = n / len(tested) if tested else None
        named = {"metric": metric, "null": null, "direction": 1 if tested else None}
        rows.append(cell | named | counts | {"share_beating_placebo": share})
    return rows


def _effects(cell: dict[str, Any], odd: list[int] | None) -> dict[str, Any]:
    """Return some tokens of `ODD_TEXT`, ten at each end; none for data without a model."""
    if odd is None or cell["variant"] == "gaussian":
        names = ("promoted_tokens", "promoted_effects", "suppressed_tokens", "suppressed_effects")
        return dict.fromkeys(names)
    return {
        **{"promoted_tokens": odd[-30:-20], "promoted_effects": [4.5 - i / 10 for i in range(10)]},
        **{"suppressed_tokens": odd[-10:], "suppressed_effects": [-3.2] * 10},
    }


def _coverage(cell: dict[str, Any], latents: list[dict[str, Any]]) -> dict[str, Any]:
    n_pass = sum(row["passes_filter"] for row in latents)
    return cell | {
        "n_tokens": 159_744,
        "n_latents": len(latents),
        "n_alive": len(latents) - 3,
        "n_pass": n_pass,
        "pass_share": n_pass / len(latents),
        "n_sampled": sum(row["sampled"] for row in latents),
        "n_windows": 4992,
        "n_windows_across_documents": 110,
        "n_tokens_skipped": 0,
        "n_tokens_excluded": 0,
        "n_firings_skipped": 0,
        "n_too_rare": len(latents) - n_pass - 2,
        "n_few_active_windows": 1,
        "n_few_silent_windows": 1,
        "n_windows_too_short": 0,
        "no_effects": "no model" if cell["variant"] == "gaussian" else None,
        "no_causal_effects": None,
    }


def _windows(
    latent: dict[str, Any], ids: list[int], odd: list[int], rng: np.random.Generator
) -> list[dict[str, Any]]:
    """Return seven windows; the strongest is `ODD_TEXT`, active on all of its tokens."""
    rows = []
    for window in range(7):
        start = int(rng.integers(0, len(ids) - 32))
        tokens = ids[start : start + 32]
        active = window < 6
        values = np.where(rng.random(32) < 0.15, rng.random(32), 0.0) * latent["max_activation"]
        values = (0.9 * values) if active else np.zeros(32)
        if active and not values.any():
            values[5] = 1.0
        if window == 3:
            tokens = odd
            values = np.linspace(0.2, 1.0, len(odd)) * latent["max_activation"]
        rows.append(
            {
                "latent": latent["latent"],
                "window": 100 + window,
                "pool": ("explain", "score")[window % 2],
                "active": active,
                "silent_kind": None if active else "random",
                "quantile": 0 if active else None,
                "document": 3,
                "start": start,
                "token_ids": tokens,
                "activations": values.tolist(),
                "skipped": [False] * len(values),
                "token_frequencies": [1 / 64] * len(values),
            }
        )
    return rows


def _explanation(cell: dict[str, Any], explainer: str, latent: int) -> dict[str, Any]:
    return cell | {
        "explainer": explainer,
        "latent": latent,
        "explanation": f'the tokens " of" (0.93), " the" (0.41) {EVIL}',
        "reason": None,
        "source_latent": latent + 4 if explainer == "swapped" else latent,
        "model": None,
        "n_example_repeats": 0,
        "n_characters_cut": 0,
        "prompt_hash": None,
        "base_probability": 0.01,
        "token_ids": [300, 301],
        "token_probabilities": [0.93, 0.41],
        "pair_previous_ids": [],
        "pair_token_ids": [],
        "pair_probabilities": [],
    }


def _score(
    cell: dict[str, Any], explainer: str, scorer: str, latent: int, rng: np.random.Generator
) -> dict[str, Any]:
    return cell | {
        "explainer": explainer,
        "scorer": scorer,
        "latent": latent,
        "n_active": 100,
        "n_silent": 100,
        "n_failed": 0,
        "n_labels": 0,
        "placebo_auroc": None,
        "judge": None,
        "prompt_hash": None,
        "auroc": float(np.clip(0.85 + 0.1 * rng.standard_normal(), 0, 1)),
        "auprc": 0.86,
        "f1": 0.74,
        "balanced_accuracy": 0.75,
    }


def _add_statistics(
    rows: dict[str, list[dict[str, Any]]], config: Config, rng: np.random.Generator
) -> None:
    for subject, section in config.subjects.items():
        for metric in all_metrics():
            scored = metric.is_scored
            pairs = [(e, s) for e in config.explainers for s in config.scorers]
            for site in section.sites:
                for sae in cells.sae_names(config):
                    for explainer, scorer in pairs if scored else [(None, None)]:
                        keys = {"subject": subject, "site": site, "sae": sae, "metric": metric.name}
                        keys |= {"explainer": explainer, "scorer": scorer}
                        _add_metric(rows, config, keys, metric.unit, rng)
    for name in ("contrasts", "verdicts"):
        rows[name] += [found for row in rows[name] for found in _of_other_stages(row, config)]


def _add_metric(
    rows: dict[str, list[dict[str, Any]]],
    config: Config,
    keys: dict[str, Any],
    unit: str,
    rng: np.random.Generator,
) -> None:
    centre, slope = CENTRE[keys["metric"]]
    if keys["explainer"] == "swapped":
        centre = 0.5
    width = 0.02 * centre
    values = {
        variant: centre
        + slope * _level({"variant": variant, "sae": keys["sae"]})
        + width * float(rng.standard_normal())
        - 0.3 * centre * (1 - _share(keys))
        for variant in config.variants
    }
    trained = values["trained"]
    for variant, value in values.items():
        summary = {"unit": unit, "n_draws": config.draws, "n_seeds": 1, "n_units": 50}
        interval = {"value": value, "low": value - width, "high": value + width, "reason": None}
        failed, share = _answers(keys, variant)
        summary |= {"n_failed": failed, "answered_share": share}
        rows["summaries"].append(keys | {"variant": variant} | summary | interval)
        if variant == "trained" or keys["sae"] not in config.saes:
            continue
        gap = value - trained
        shared = {
            **{"stage": "model", "real": "trained", "null": variant},
            "answered_share": share,
            "difference": gap,
            "difference_low": gap - 1.4 * width,
            "difference_high": gap + 1.4 * width,
            "scope": scope(variant, config),
            "is_replicated": config.draws > 1,
            "margin": 0.05,
            **{"real_training_tokens": 250_000.0, "training_tokens": 200_000.0},
            **{"real_l0": 16.0, "l0": 15.25},
        }
        p_value = math.exp(-abs(gap) / width * 2) if config.draws > 1 else None
        verdict = VERDICTS[int(rng.integers(0, 4))]
        rows["verdicts"].append(
            keys
            | {"variant": variant, "verdict": verdict, "reason": f"variant minus trained {gap:.4g}"}
            | {"warning": WARNED.get(str(keys["subject"])), "accepted": OLDER.get("code")}
            | shared
        )
        rows["contrasts"].append(
            keys
            | shared
            | {
                "variant": variant,
                "warning": WARNED.get(str(keys["subject"])),
                "accepted": OLDER.get("code"),
                "unit": unit,
                "n_draws": config.draws,
                "n_seeds": 1,
                "real_n_units": 50,
                "n_units": 48,
                "real_value": trained,
                "value": value,
                "value_low": value - width,
                "value_high": value + width,
                "real_low": trained - width,
                "real_high": trained + width,
                "probability_of_superiority": 0.61,
                "margin_rule": "0.1 of |trained - 0.5|",
                "p_value": p_value,
                **dict.fromkeys(("p_minimum_effect", "p_minimum_effect_holm"), p_value),
                **dict.fromkeys(("p_equivalence", "p_equivalence_holm"), p_value),
                "is_beyond_margin": verdict == "separates",
                "is_within_margin": verdict == "equivalent",
                "family": "all",
                "n_family": 4,
                "not_comparable": None,
                "speaks_of": f"{unit}s of these SAEs only",
                "standard_error": 0.7 * width,
                "df": 49.0,
                "p_permutation": p_value,
                "detectable_difference": 0.07,
                "real_n_failed": None if failed is None else 0,
                "n_failed": failed,
                **_matched(unit, gap, width),
                "reason": None,
            }
        )


def _of_other_stages(row: dict[str, Any], config: Config) -> Iterator[dict[str, Any]]:
    """Yield rows within the trained subject: copies of one variant's under other names."""
    if row["variant"] != config.variants[-1]:
        return
    metric = METRICS[row["metric"]]
    pairs = [("effect", "own_direction", null) for null in metric.placebos]
    if metric.table == "scores" and row["explainer"] == "lexical":
        pairs.append(("explanation", "lexical", "swapped"))
    if row["sae"] == "learned":
        nulls = [name for name in config.saes if name not in ("learned", "elsewhere")]
        pairs += [("dictionary", "learned", null) for null in nulls]
    for stage, real, null in pairs:
        yield row | {"stage": stage, "variant": "trained", "real": real, "null": null}


def scope(variant: str, config: Config) -> str:
    """Return what verdicts about a variant apply to."""
    if is_positive_control(variant):
        return "this retraining"
    return "this randomization" if config.draws == 1 else "randomizations of this kind"


def _answers(keys: dict[str, Any], variant: str) -> tuple[int | None, float | None]:
    """Return unanswered windows of 100, and the share answered, below 1 for rerandomized."""
    if keys["scorer"] is None:
        return None, None
    return (17, 0.83) if variant == "rerandomized" else (0, 1.0)


def _matched(unit: str, gap: float, width: float) -> dict[str, Any]:
    """Return the columns about latents of equal firing rates, null for documents."""
    names = ("real_value", "value", "difference", "difference_low", "difference_high", "p_value")
    if unit != "latent":
        return {"n_matched": None, "matched_reason": None} | {f"matched_{n}": None for n in names}
    values = (0.5, 0.5 + gap, 0.9 * gap, 0.9 * gap - 1.6 * width, 0.9 * gap + 1.6 * width, 0.1)
    found = {f"matched_{name}": value for name, value in zip(names, values, strict=True)}
    return {"n_matched": 31, "matched_reason": None} | found


def style_of(row: dict[str, Any]) -> str:
    """Return a verdict's colours; for a positive control, equivalence counts for a metric."""
    against = {"separates": "reversed", "reversed": "reversed", "equivalent": "separates"}
    own = str(row["verdict"])
    return against.get(own, own) if is_positive_control(row["variant"]) else own
