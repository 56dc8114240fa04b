"""Controls added to a finished study: only they are computed, and the tables include them."""

from __future__ import annotations

from typing import Any

import pytest
from workflow_study import Study, copy_of, table

from nullsae import paths, tables

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
VARIANTS = ["trained", "rerandomized", "cascade", "gaussian"]


def more_controls(config: dict[str, Any]) -> None:
    config["variants"] = VARIANTS
    config["saes"]["lookup"] = {"dictionary": "token_lookup"}
    config["evaluation"]["cross_tokens"] = 2_048
    config["explainers"] = {
        "lexical": {"kind": "lexical"},
        "bigram": {"kind": "lexical", "context": "bigram"},
        "swapped": {"kind": "swapped", "of": "bigram"},
        "promoted": {"kind": "promoted"},
        "promoted_swapped": {"kind": "swapped", "of": "promoted"},
    }
    config["scorers"] = {
        "detection": {"kind": "detection"},
        "continuation": {"kind": "continuation"},
    }


@pytest.fixture(scope="module")
def jobs_of_controls() -> dict[str, int]:
    """Jobs of `more_controls` beyond the study's own: four variants, two SAEs."""
    return {
        **{"randomize_model": 1, "cache_activations": 2, "sample_gaussian": 2},
        **{"train_sae": 6, "evaluate_sae": 4, "collect_latents": 6, "cross_evaluate": 8},
        # Of two recipes, now with four variants.
        "match_dictionaries": 2,
        # A job has all SAEs of a model.
        **{"explain_and_score": 4, "aggregate": 1, "report": 1},
    }


@pytest.fixture(scope="module")
def controlled(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study with more controls."""
    copied = copy_of(study, tmp_path_factory.mktemp("controls") / "study")
    copied.configure(more_controls).make(gpu=2)
    return copied


def test_adding_controls_does_not_compute_what_was_there(
    study: Study, tmp_path_factory: pytest.TempPathFactory, jobs_of_controls: dict[str, int]
) -> None:
    copied = copy_of(study, tmp_path_factory.mktemp("dry") / "study", linked=True)
    assert copied.configure(more_controls).jobs() == jobs_of_controls


def test_no_table_misses_a_control(controlled: Study) -> None:
    for name in tables.AGGREGATED:
        assert len(table(controlled, name)), name
    reconstruction = table(controlled, "reconstruction")
    assert list(reconstruction.variant.unique()) == VARIANTS
    assert set(reconstruction.sae) == {"topk", "lookup"}
    # Only activations without a model have no loss.
    without = reconstruction[reconstruction.ce_clean.isna()]
    assert set(without.variant) == {"gaussian"}
    assert list(table(controlled, "models").variant) == VARIANTS[:-1]


def test_the_output_side_has_scores_of_its_own_and_a_reason_without_a_model(
    controlled: Study,
) -> None:
    scores = table(controlled, "scores")
    assert {*zip(scores.explainer, scores.scorer, strict=True)} == {
        *((name, "detection") for name in ("lexical", "bigram", "swapped")),
        *((name, "continuation") for name in ("promoted", "promoted_swapped")),
    }
    explained = table(controlled, "explanations")
    without = explained[(explained.explainer == "promoted") & explained.explanation.isna()]
    assert set(without.variant) == {"gaussian"}
    assert set(without.reason) == {"no model"}
    found = table(controlled, "contrasts")
    of_gaussian = found[(found.variant == "gaussian") & (found.scorer == "continuation")]
    assert of_gaussian.value.isna().all()
    others = found[(found.variant == "rerandomized") & (found.explainer == "promoted")]
    assert others[others.metric == "auroc"].value.notna().any()
    assert "gain_over_lexical" not in set(others.metric)
    assert "discrimination" in set(others.metric)


def test_each_stage_has_verdicts_against_its_own_nulls(controlled: Study) -> None:
    found = table(controlled, "verdicts")
    within = found[found.stage != "model"]
    assert set(within.variant) == {"trained"}
    pairs = set(zip(within.stage, within.real, within.null, strict=True))
    assert pairs >= {
        ("dictionary", "topk", "lookup"),
        ("explanation", "bigram", "lexical"),
        ("explanation", "bigram", "swapped"),
        ("explanation", "promoted", "promoted_swapped"),
        ("effect", "own_direction", "foreign_direction"),
        ("effect", "own_direction", "random_direction"),
    }
    # One latent per token: another L0.
    assert set(within[within.null == "lookup"].verdict) == {"none"}


def test_a_token_lookup_dictionary_is_the_token_lookup_floor(controlled: Study) -> None:
    rows = table(controlled, "reconstruction").set_index(["variant", "sae"])
    for variant in VARIANTS:
        lookup = rows.loc[variant, "lookup"]
        assert lookup.explained_variance == pytest.approx(lookup.token_lookup_r2, abs=2e-6)
    # A Gaussian sample knows nothing of its token.
    assert rows.loc["gaussian", "topk"].token_lookup_r2 < 0.05
    assert rows.loc["trained", "topk"].token_lookup_r2 > 0.3


def test_rescaling_changes_little_on_the_variant_of_the_sae_itself(controlled: Study) -> None:
    cross = table(controlled, "cross_evaluation")
    assert len(cross) == 8 * len(VARIANTS)
    own = cross[cross.variant == cross.evaluated_on]
    assert len(own) == 8
    assert ((own.explained_variance - own.explained_variance_rescaled).abs() < 0.05).all()


def test_explainers_judge_the_same_windows(controlled: Study) -> None:
    predictions = table(controlled, "predictions")
    keys = ["variant", "sae", "latent", "window", "active"]
    lexical, bigram, swapped = (
        predictions[predictions.explainer == name][keys].reset_index(drop=True)
        for name in ("lexical", "bigram", "swapped")
    )
    assert len(lexical)
    assert lexical.equals(bigram)
    assert lexical.equals(swapped)


def test_a_second_run_of_the_controls_has_nothing_to_do(controlled: Study) -> None:
    assert "Nothing to be done" in controlled.make()
    page = (controlled.folder / paths.REPORT).read_text(encoding="utf-8")
    assert all(variant in page for variant in VARIANTS)
