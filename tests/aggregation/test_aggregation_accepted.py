"""Contrasts name the accepted older code that made their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from nullsae.aggregation.accepted import accepted_notes
from nullsae.config.parse import parse_config
from nullsae.config.study import Config
from nullsae.jobs import rules as jobs
from nullsae.jobs.accepted import Acceptance, AcceptedCode, append_acceptance, job_name

OLD = "0" * 15 + "1"
MODEL = {"subject": "small", "draw": "0"}
CELL = {"site": "resid_post.0", "sae": "topk", "seed": "1"}
ROW = {
    **{"subject": "small", "site": "resid_post.0", "sae": "topk"},
    **{"variant": "rerandomized", "explainer": None, "scorer": None},
    **{"stage": "model", "null": "rerandomized"},
}
JUDGED = {**ROW, "explainer": "lexical", "scorer": "detection"}
WITHIN = {**ROW, "variant": "trained"}


@pytest.fixture
def config() -> Config:
    return parse_config(
        {
            "corpora": {
                name: {
                    "source": {"kind": "builtin", "name": "stdlib"},
                    "tokenizer": {"kind": "train", "vocab_size": 300},
                    "context_tokens": 32,
                    "sae_train_tokens": 16_384,
                    "eval_tokens": 8_192,
                }
                for name in ("docs", "others")
            },
            "subjects": {
                name: {
                    "corpus": corpus,
                    "source": {"kind": "train", "n_layers": 1, "d_model": 16, "n_heads": 2},
                    "sites": ["resid_post.0"],
                }
                for name, corpus in (("small", "docs"), ("other", "others"))
            },
            "variants": ["trained", "rerandomized", "step0"],
            "activations": {"sae_train_tokens": 16_384},
            "explainers": {"lexical": {"kind": "lexical"}},
            "scorers": {"detection": {"kind": "detection"}},
            "saes": {"topk": {"k": 4, "n_latents": 32, "seeds": [0, 1]}},
        }
    )


def note(
    root: Path, config: Config, row: dict[str, Any], rule: str, present: str = "", **keys: str
) -> str | None:
    """Return the note of a row after one job of a rule was accepted."""
    present = present or jobs.rules()[rule].present_code(config, keys)
    code = AcceptedCode(rule=rule, present=present, accepted=OLD, jobs=(job_name(keys),))
    append_acceptance(root, Acceptance(date="", nullsae="", codes=(code,)))
    return accepted_notes(config, root)(row)


@pytest.mark.parametrize(
    ("rule", "keys", "concerned", "not_concerned"),
    [
        ("train_sae", {**MODEL, **CELL, "variant": "trained"}, ROW, {**ROW, "sae": "wide"}),
        ("train_sae", {**MODEL, **CELL, "variant": "step0"}, {**ROW, "variant": "step0"}, ROW),
        (
            "train_sae",
            {**MODEL, **CELL, "variant": "gaussian@rerandomized"},
            ROW,
            {**ROW, "variant": "step0"},
        ),
        ("prepare_corpus", {"corpus": "docs"}, ROW, {**ROW, "subject": "other"}),
        ("train_subject", {"subject": "small"}, JUDGED, {**ROW, "subject": "other"}),
        (
            "score_latents",
            {**MODEL, **CELL, "variant": "trained", "explainer": "lexical", "scorer": "detection"},
            JUDGED,
            ROW,
        ),
        (
            "train_sae",
            {**MODEL, **CELL, "variant": "trained"},
            {**WITHIN, "sae": "wide", "stage": "dictionary", "null": "topk"},
            {**WITHIN, "sae": "wide", "stage": "effect", "null": "foreign_direction"},
        ),
        (
            "score_latents",
            {**MODEL, **CELL, "variant": "trained", "explainer": "lexical", "scorer": "detection"},
            {**WITHIN, **JUDGED, "explainer": "gpt", "stage": "explanation", "null": "lexical"},
            {**WITHIN, **JUDGED, "explainer": "gpt", "stage": "explanation", "null": "swapped"},
        ),
    ],
    ids=str,
)
def test_a_contrast_names_acceptances_of_its_own_arms(
    tmp_path: Path,
    config: Config,
    rule: str,
    keys: dict[str, str],
    concerned: dict[str, Any],
    not_concerned: dict[str, Any],
) -> None:
    assert note(tmp_path, config, concerned, rule, **keys) == f"{rule} accepted from {OLD}"
    assert accepted_notes(config, tmp_path)(not_concerned) is None


def test_rules_that_run_with_the_tables_are_not_named(tmp_path: Path, config: Config) -> None:
    assert note(tmp_path, config, ROW, "aggregate") is None


def test_code_that_changed_again_is_not_named(tmp_path: Path, config: Config) -> None:
    assert note(tmp_path, config, ROW, "prepare_corpus", "f" * 16, corpus="docs") is None


def test_a_job_removed_from_the_config_is_not_named(tmp_path: Path, config: Config) -> None:
    assert note(tmp_path, config, JUDGED, "explain_latents", "f" * 16, explainer="gone") is None


def test_without_an_acceptance_there_is_no_note(tmp_path: Path, config: Config) -> None:
    assert accepted_notes(config, tmp_path)(ROW) is None
