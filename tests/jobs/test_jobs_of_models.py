"""Jobs for all SAEs of a model: which exist, and what each makes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nullsae import paths
from nullsae.config.parse import parse_config, resolve_subjects
from nullsae.config.read import read_merged_config
from nullsae.config.study import Config
from nullsae.jobs.autointerp import free_explainers, free_pairs, is_free
from nullsae.jobs.grid import cell_files, sae_cells, variant_cells
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.jobs.of_models import ModelRule, collecting_rules, evaluation_rules, free_rules
from nullsae.jobs.rules import job_code, rule_params
from nullsae.jobs.shared_training import rule_of

REPOSITORY = Path(__file__).parents[2]
METRICS = (paths.RECONSTRUCTION, paths.DOCUMENTS, paths.GEOMETRY)
EXPLAINED = (paths.EXPLANATIONS, paths.PREDICTIONS, paths.SCORES)
GPT = {"kind": "openai", "model": "m", "base_url": "http://h/v1", "api_key_env": None}
LIKELIHOOD = {"kind": "likelihood", "model": {"kind": "pretrained", "path": "org/judge"}}


def study(*overlays: str) -> Config:
    files = [REPOSITORY / file for file in ("config.yaml", *overlays)]
    return read_merged_config(files, {"evaluation": {"null_dictionaries": []}})


def changed(**sections: Any) -> Config:
    """Return the default study with additions to some sections."""
    data = study().model_dump(mode="json")
    for name, more in sections.items():
        data[name] = data[name] | more if isinstance(more, dict) else more
    return resolve_subjects(parse_config(data))


def with_a_model() -> Config:
    """Return the study with a language model, its placebo, and a scorer that runs a model."""
    explainers = {"gpt": GPT, "gpt_swapped": {"kind": "swapped", "of": "gpt"}}
    return changed(explainers=explainers, scorers={"likelihood": LIKELIHOOD})


def files_made(config: Config, rules: list[ModelRule], patterns: tuple[str, ...]) -> list[str]:
    """Return all files of the jobs of these rules."""
    found = []
    for model in variant_cells(config):
        for rule in rules:
            if model["subject"] in rule.subjects and model["variant"] in rule.variants:
                found += [file.format(**model) for file in rule.files(*patterns)]
    return found


@pytest.mark.parametrize(
    "config",
    [
        study(),
        study("config/paper-plus.yaml"),
        study("config/all-controls.yaml"),
        changed(variants=["trained", "rerandomized", "gaussian"], draws=2),
        changed(
            evaluation={"gaussian_floors": False},
            variants=["trained", "gaussian"],
        ),
    ],
    ids=["default", "plus", "all controls", "gaussian", "no floors"],
)
def test_every_sae_and_floor_is_evaluated_by_just_one_job(config: Config) -> None:
    files = files_made(config, evaluation_rules(config), METRICS)
    wanted = cell_files(config)
    expected = [f for name in ("reconstruction", "documents", "geometry") for f in wanted[name]]
    assert Counter(files) == Counter(expected)


@pytest.mark.parametrize(
    "config",
    [study(), study("config/paper-plus.yaml"), study("config/paper.yaml"), with_a_model()],
    ids=["default", "plus", "paper", "judges"],
)
def test_explanations_and_scores_come_from_a_shared_job_or_one_that_asks(config: Config) -> None:
    files = files_made(config, free_rules(config), EXPLAINED)
    assert len(set(files)) == len(files)
    asking = [
        paths.EXPLANATIONS.format(**cell, explainer=name)
        for cell in sae_cells(config)
        for name, explainer in config.explainers.items()
        if explainer.endpoint is not None
    ]
    asking += [
        pattern.format(**cell, explainer=explainer, scorer=scorer)
        for cell in sae_cells(config)
        for explainer, scorer in config.scored_pairs()
        if not is_free(config, explainer, scorer)
        for pattern in (paths.PREDICTIONS, paths.SCORES)
    ]
    wanted = cell_files(config)
    expected = [f for name in ("explanations", "predictions", "scores") for f in wanted[name]]
    assert Counter(files) + Counter(asking) == Counter(expected)


@pytest.mark.parametrize(
    ("config", "job_is_of"),
    [
        (study(), "model"),
        (study("config/paper-plus.yaml"), "model"),
        (study("config/paper.yaml"), "site"),
        (changed(activations={"shared_pass": False, "keep": False}), "model"),
        (changed(activations={"shared_pass": True, "keep": True}), "sae"),
    ],
    ids=["default", "plus", "paper", "not kept", "kept"],
)
def test_latents_of_saes_that_share_a_pass_are_collected_by_one_job(
    config: Config, job_is_of: str
) -> None:
    rules = collecting_rules(config)
    if job_is_of == "sae":
        assert rules == []
        return
    files = files_made(config, rules, (paths.LATENTS,))
    assert Counter(files) == Counter(paths.LATENTS.format(**cell) for cell in sae_cells(config))
    assert len({rule.name for rule in rules}) == len(rules)
    for rule in rules:
        sites = {cell["site"] for cell in rule.cells}
        assert sites == {rule.site} if job_is_of == "site" else rule.site is None
        # Params name the SAEs whose files the rule declares.
        keys = {"subject": rule.subjects[0], "variant": rule.variants[0], "draw": "0"}
        of_site = {"site": rule.site} if rule.site else {}
        given = CollectLatentsParams.model_validate_json(
            rule_params(config, "collect_latents", {**keys, **of_site})
        )
        made = [paths.LATENTS.format(**one.keys.model_dump()) for one in given.each()]
        assert made == [file.format(**keys) for file in rule.files(paths.LATENTS)]


def test_models_that_differ_in_sites_or_floors_have_rules_of_their_own() -> None:
    (only,) = evaluation_rules(study())
    assert only.name == "evaluate_sae"
    found = evaluation_rules(changed(variants=["trained", "rerandomized", "gaussian"]))
    # `gaussian` is the floor of `trained`.
    assert [(rule.name, rule.variants) for rule in found] == [
        ("evaluate_sae", ("trained", "gaussian")),
        ("evaluate_sae__1", ("rerandomized",)),
    ]
    plus = study("config/paper-plus.yaml")
    # One site each, with four numbers, and the explainer that waits for the language model.
    assert len(evaluation_rules(plus)) == 4
    assert [(rule.name, rule.writer) for rule in free_rules(plus)] == [
        ("explain_and_score", None),
        *((f"explain_and_score__{n}", None) for n in (1, 2, 3)),
        *((f"explain_and_score__{n}", "llama") for n in (4, 5, 6, 7)),
    ]
    assert {rule_of(rule.name) for rule in free_rules(plus)} == {"explain_and_score"}


def test_explainers_without_endpoint_are_told_from_those_that_wait_for_one() -> None:
    config = with_a_model()
    assert free_explainers(config) == ["lexical", "swapped"]
    assert free_explainers(config, "gpt") == ["gpt_swapped"]
    pairs = [(e, s) for e in ("lexical", "swapped") for s in ("detection", "fuzzing")]
    assert free_pairs(config) == pairs
    # A model judges what a model wrote, and likelihoods need a model.
    assert free_pairs(config, "gpt") == []


def test_explainers_that_write_come_before_those_that_exchange() -> None:
    """The order of the config does not matter."""
    explainers = dict(reversed(list(study().explainers.items())))
    turned = study().model_copy(update={"explainers": explainers})
    assert list(turned.explainers) == ["swapped", "lexical"]
    assert free_explainers(turned) == ["lexical", "swapped"]


MODEL = {"subject": "small", "variant": "trained", "draw": "0"}
CELL = {**MODEL, "site": "resid_post.1", "sae": "topk", "seed": "0"}


def said(config: Config) -> dict[str, tuple[str, str]]:
    """Return params and code of jobs, by what they do."""
    judged = {**CELL, "scorer": "detection"}
    jobs = {
        "free": ("explain_and_score", MODEL),
        "placebo of gpt": ("explain_and_score", {**MODEL, "writer": "gpt"}),
        "gpt explains": ("explain_latents", {**CELL, "explainer": "gpt"}),
        "gpt judged": ("score_latents", {**judged, "explainer": "gpt"}),
        "placebo judged": ("score_latents", {**judged, "explainer": "gpt_swapped"}),
        "likelihood": ("score_latents", {**CELL, "explainer": "gpt", "scorer": "likelihood"}),
    }
    return {
        name: (rule_params(config, rule, keys), job_code(config, rule, keys))
        for name, (rule, keys) in jobs.items()
    }


def other(config: Config) -> set[str]:
    """Return the jobs that differ from those of `with_a_model`."""
    before, after = said(with_a_model()), said(config)
    return {name for name, found in before.items() if after[name] != found}


@pytest.mark.parametrize(
    ("section", "name", "more", "expected"),
    [
        # An explainer without an endpoint.
        ("explainers", "short", {"kind": "lexical", "top_tokens": 3}, {"free"}),
        ("explainers", "lexical", {"kind": "lexical", "top_tokens": 3}, {"free"}),
        ("explainers", "short_swapped", {"kind": "swapped", "of": "lexical"}, {"free"}),
        # A language model with another prompt: the judge makes its placebo itself.
        ("explainers", "gpt", {**GPT, "shown_windows": 7}, {"gpt explains"}),
        ("explainers", "other", {"kind": "swapped", "of": "gpt"}, {"placebo of gpt"}),
        # A formula does not depend on the settings for endpoints.
        (
            "scorers",
            "detection",
            {"kind": "detection", "windows_per_prompt": 3},
            {"gpt judged", "placebo judged"},
        ),
    ],
)
def test_jobs_with_and_without_endpoints_run_again_separately(
    section: str, name: str, more: dict[str, Any], expected: set[str]
) -> None:
    data = with_a_model().model_dump(mode="json")
    data[section] = data[section] | {name: more}
    assert other(resolve_subjects(parse_config(data))) == expected


def test_a_judge_of_placebos_depends_on_the_code_that_exchanges() -> None:
    """It makes them itself, unlike the judge that reads what a model wrote."""
    config = with_a_model()
    keys = {**CELL, "scorer": "detection"}
    swapped = job_code(config, "score_latents", {**keys, "explainer": "gpt_swapped"})
    assert swapped != job_code(config, "score_latents", {**keys, "explainer": "gpt"})
    # The formula judges a file that the same job wrote before.
    lexical = rule_params(config, "score_latents", {**keys, "explainer": "lexical"})
    assert '"explainers":[]' in lexical


def test_the_default_study_and_paper_plus_have_at_most_half_the_jobs() -> None:
    """Counted by hand: jobs per SAE, explainer and scorer, against shared ones."""
    # Corpus, subject, 4 more models, 6 x 2 captures and as many samples; 12 SAEs and 12 floors,
    # trained; latents of 12; 2 matches; tables, report, and `all`.
    others = 1 + 1 + 4 + 12 + 12 + 24 + 12 + 2 + 1 + 1 + 1
    before = others + 24 + 12 * 2 + 12 * 2 * 2
    models = len(list(variant_cells(study())))
    assert (before, others + 2 * models) == (167, 83)

    plus = study("config/paper-plus.yaml")
    models, saes = len(list(variant_cells(plus))), len(list(sae_cells(plus)))
    assert (models, saes) == (23, 483)
    # Corpus; models, captures, samples, passes of SAEs and of floors; latents; matches; the end.
    others = 1 + models * (1 + 2 + 2 + 1 + 1) + saes + 4 * 11 + 3
    before = others + (483 + 460) + saes * (3 + 3)
    after = others + models + saes * (1 + 2) + models * 2
    assert (before, after) == (4_533, 2_210)
    assert after <= before / 2
