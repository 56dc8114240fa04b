"""The answer of a study follows from its verdicts by stated rules."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nullsae.statistics.answer import Answer, answer

NULLS = ("step0", "rerandomized")
WORDS = {"s": "separates", "r": "reversed", "e": "equivalent", "i": "inconclusive", "n": "none"}


def rows(metric: str, words: str, **more: Any) -> list[tuple[dict[str, Any], str]]:
    """Return contrasts at two sites of each variant, in the order of the words."""
    variants = more.pop("variants", NULLS)
    places = [(variant, site) for variant in variants for site in ("embed", "resid_post.0")]
    keys = {"subject": "small", "sae": "topk", "metric": metric, "explainer": None, "scorer": None}
    keys["stage"] = "model"
    numbers = {"real_value": 0.74, "value": 0.5, "n_draws": 1, "n_seeds": 1}
    numbers |= {"real_l0": 15.998, "l0": 16.0, "real_training_tokens": 2e5, "training_tokens": 2e5}
    return [
        ({**keys, **numbers, **more, "variant": variant, "site": site}, WORDS[word])
        for (variant, site), word in zip(places, words, strict=True)
    ]


def of(*groups: list[tuple[dict[str, Any], str]], **options: Any) -> Answer:
    pairs = [pair for group in groups for pair in group]
    return answer([row for row, _ in pairs], [word for _, word in pairs], **options)


@pytest.mark.parametrize(
    ("words", "tier"),
    [
        ("ssss", "tells"),
        ("sssi", "undecided"),
        ("iiii", "undecided"),
        ("sssn", "undecided"),
        ("nnnn", "undecided"),
        ("nnne", "does_not_tell"),
        ("ssse", "does_not_tell"),
        ("sssr", "does_not_tell"),
        ("iiie", "does_not_tell"),
    ],
)
def test_the_tier_of_a_metric_is_that_of_its_verdicts(words: str, tier: str) -> None:
    [finding] = of(rows("cosine", words)).findings
    assert finding.tier == tier


@pytest.mark.parametrize(
    ("word", "tier"),
    [
        ("e", "tells"),
        ("i", "undecided"),
        ("n", "undecided"),
        ("s", "does_not_tell"),
        ("r", "does_not_tell"),
    ],
)
def test_a_metric_that_tells_a_retrained_model_apart_tells_nothing(word: str, tier: str) -> None:
    variants = (*NULLS, "retrained")
    found = of(rows("cosine", f"ssss{word}e", variants=variants), controls={"retrained"})
    [finding] = found.findings
    assert finding.tier == tier
    assert [one.variant for one in finding.controls] == ["retrained"]
    assert "retrained" in found.sentences[0]


def test_metrics_that_tell_come_first_and_then_those_that_tell_more_often() -> None:
    found = of(
        rows("cosine", "eeee"),
        rows("explained_variance", "seee"),
        rows("ce_score", "siii"),
        rows("next_token_auroc", "ssss"),
    )
    assert [one.metric for one in found.findings] == [
        *("next_token_auroc", "explained_variance", "cosine", "ce_score")
    ]
    assert found.sentences == (
        "One of 4 metrics distinguishes trained from each of the two nulls at both sites: "
        "Next-token AUROC by direct effect.",
        "Next-token AUROC by direct effect is 0.74 in trained and 0.5 in the nulls.",
        "Two fail this test: Explained variance and Cosine similarity.",
        "One is undecided for lack of data: Cross-entropy score.",
        "Every model was randomized once and every SAE trained once (L0 16 in every arm; training "
        "tokens 200,000 in every arm), so the answer is about these randomizations, not about "
        "random transformers in general.",
    )


@pytest.mark.parametrize(
    ("words", "lack"),
    [("siss", "data"), ("snss", "comparable SAEs"), ("sins", "data or of comparable SAEs")],
)
def test_undecided_metrics_say_what_they_lack(words: str, lack: str) -> None:
    found = of(rows("cosine", words))
    assert f"One is undecided for lack of {lack}: Cosine similarity." in found.sentences


def test_comparisons_without_a_verdict_count_neither_for_a_metric_nor_against_it() -> None:
    found = of(rows("cosine", "sssi"), rows("explained_variance", "snnn"))
    assert [one.separates_share for one in found.findings] == [1.0, 0.75]
    assert found.findings[0].metric == "explained_variance"


def test_the_scores_of_explanations_are_given_beside_the_best_metric() -> None:
    judged = {"explainer": "lexical", "scorer": "detection"}
    found = of(
        rows("next_token_auroc", "ssss"), rows("auroc", "rrse", real_value=0.7, value=0.8, **judged)
    )
    told = "AUROC (lexical, detection) is 0.7 in trained and 0.8 in the nulls."
    assert told in found.sentences


def test_placebos_are_no_answer() -> None:
    judged = {"explainer": "swapped", "scorer": "detection"}
    found = of(rows("cosine", "ssss"), rows("auroc", "eeee", **judged), placebos={"swapped"})
    assert [one.metric for one in found.findings] == ["cosine"]


def test_a_metric_without_any_measurement_is_not_part_of_the_answer() -> None:
    missing = rows("ce_score", "iiii", real_value=None, value=None)
    found = of(rows("cosine", "ssss"), missing)
    assert [one.metric for one in found.findings] == ["cosine"]
    assert found.sentences == of(rows("cosine", "ssss")).sentences


def test_many_metrics_are_counted_and_a_study_without_any_says_so() -> None:
    names = ("cosine", "explained_variance", "ce_score", "auroc", "auprc", "f1")
    found = of(*(rows(name, "eeee") for name in names))
    assert found.sentences[0].startswith(
        "None of 6 metrics distinguishes trained from each of the two"
    )
    assert any(sentence.startswith("Six fail this test: ") for sentence in found.sentences)
    assert any(sentence.endswith(" and two more.") for sentence in found.sentences)
    assert of().sentences == ("No metric was computed, so the study has no answer.",)


@pytest.mark.parametrize(
    ("n_draws", "n_seeds", "told"),
    [
        (
            1,
            3,
            "randomized once, with three seeds of each SAE (L0 16 in every arm; training tokens "
            "200,000 in every arm), so the answer is about these randomizations",
        ),
        (
            5,
            3,
            "The answer rests on five draws of each randomization and three seeds of each SAE ",
        ),
        (
            12,
            1,
            "The answer rests on 12 draws of each randomization and one seed of each SAE (L0 ",
        ),
    ],
)
def test_the_last_sentence_says_what_was_replicated(n_draws: int, n_seeds: int, told: str) -> None:
    found = of(rows("cosine", "ssss", n_draws=n_draws, n_seeds=n_seeds))
    assert told in found.sentences[-1]
    assert len(found.sentences) <= 6


def test_arms_that_differ_in_l0_or_tokens_show_both_next_to_their_values() -> None:
    variants = (*NULLS, "retrained")
    pairs = rows("explained_variance", "ssssee", variants=variants, real_l0=31.9)
    for row, _ in pairs:
        row |= {"step0": {"l0": 30.0}, "rerandomized": {"l0": 33.0}}.get(row["variant"], {})
        if row["variant"] == "retrained":
            row |= {"l0": 32.0, "training_tokens": 1e5}
    found = of(pairs, controls={"retrained"})
    assert found.sentences[1] == (
        "Explained variance is 0.74 in trained (L0 31.9), 0.5 in retrained (L0 32) and 0.5 in the "
        "nulls (L0 30 to 33)."
    )
    assert (
        "(L0 31.9 in trained, 32 in retrained and 30 to 33 in the nulls; training tokens 200,000 "
        "in trained, 100,000 in retrained and 200,000 in the nulls)"
    ) in found.sentences[-1]
    [finding] = found.findings
    assert (finding.low_l0, finding.high_l0, finding.high_training_tokens) == (31.9, 31.9, 2e5)
    assert [one.low_l0 for one in finding.against] == [30.0, 33.0, 32.0]
    assert [one.high_training_tokens for one in finding.against] == [2e5, 2e5, 1e5]


def of_dictionaries(metric: str, **words: str) -> list[tuple[dict[str, Any], str]]:
    """Return contrasts of the learned dictionary with each null, at two sites."""
    return [
        ({**row, "stage": "dictionary", "real": "topk", "null": null, "variant": "trained"}, word)
        for null, of_null in words.items()
        for row, word in rows(metric, of_null, variants=("trained",))
    ]


def test_names_that_contain_commas_are_separated_by_semicolons() -> None:
    names = ("token_entropy_bits", "ablation_kl_log_ratio", "cosine")
    fails = next(
        s for s in of(*(rows(name, "eeee") for name in names)).sentences if " fail this" in s
    )
    assert fails == (
        "Three fail this test: Token entropy, whole split; Ablation KL, log ratio to another "
        "latent's direction; and Cosine similarity."
    )


def test_metrics_that_papers_report_are_named_first_among_those_that_fail() -> None:
    judged = {"explainer": "lexical", "scorer": "detection"}
    others = ("l1_ratio", "cosine", "peak_token_share")
    found = of(
        *(rows(name, "ssse") for name in others),
        rows("ce_score", "eeee"),
        rows("auroc", "iiie", **judged),
        rows("explained_variance", "eeee"),
    )
    fails = next(s for s in found.sentences if " fail this" in s)
    assert fails == (
        "Six fail this test: Cross-entropy score; AUROC (lexical, detection); Explained variance; "
        "L1 norm of the latents over the norm of the activations; and two more."
    )


def test_which_metrics_tell_the_learned_dictionary_is_a_sentence_of_its_own() -> None:
    models = (rows("next_token_auroc", "ssss"), rows("auroc", "eeee"), rows("cosine", "iiii"))
    found = of(
        *models,
        of_dictionaries("next_token_auroc", pca="ss", rotated="ss", identity="se"),
        of_dictionaries("cosine", pca="ss", rotated="ss", identity="ss"),
        of_dictionaries("ce_score", pca="ii", rotated="ss", identity="ss"),
    )
    assert (
        "Within trained, one of 3 metrics distinguishes the learned dictionary from each of the "
        "three null dictionaries: Cosine similarity. Next-token AUROC by direct effect "
        "distinguishes it only from pca and rotated."
    ) in found.sentences
    assert len(found.sentences) == 6
    # Dictionaries do not affect what is said about models.
    assert found.findings == of(*models).findings
    assert [one.metric for one in found.dictionaries] == ["cosine", "next_token_auroc", "ce_score"]


def test_the_answer_says_where_dictionaries_are_compared_if_models_are_at_more_sites() -> None:
    last = [
        pair for pair in of_dictionaries("cosine", pca="ss") if pair[0]["site"] == "resid_post.0"
    ]
    found = of(rows("cosine", "ssss"), last)
    assert len(last) == 1
    said = [s for s in found.sentences if s.startswith("Within trained at resid_post.0, one of 1 ")]
    assert len(said) == 1


def test_a_study_in_which_no_metric_tells_the_only_null_dictionary_says_so() -> None:
    found = of(rows("cosine", "ssss"), of_dictionaries("cosine", pca="er"))
    assert (
        "Within trained, none of 1 metric distinguishes the learned dictionary from the only "
        "null. Cosine similarity distinguishes it from none."
    ) in found.sentences


def test_null_dictionaries_on_every_variant_are_only_compared_within_trained() -> None:
    real = (rows("cosine", "ssss"), of_dictionaries("cosine", pca="ss", rotated="se"))
    of_nulls = [rows("cosine", "eeee", sae=name, real_l0=3.0) for name in ("pca", "rotated")]
    found = of(*real, *of_nulls, saes={"topk"})
    assert found == of(*real)
    assert [one.tier for one in found.findings] == ["tells"]
    assert of(*real, *of_nulls).findings[0].tier == "does_not_tell"


def test_a_study_of_trained_alone_answers_about_dictionaries() -> None:
    found = of(of_dictionaries("cosine", pca="ss", rotated="ss"))
    assert found.sentences == (
        "Within trained at embed and resid_post.0, one of 1 metric distinguishes the learned "
        "dictionary from each of the two null dictionaries: Cosine similarity.",
        "It says nothing about models: none was compared with trained.",
    )


def test_an_answer_reads_back_as_it_was_written() -> None:
    variants = (*NULLS, "retrained")
    found = of(
        rows("cosine", "ssssee", variants=variants),
        rows("auroc", "iiiiii", variants=variants, value=None, real_value=None),
        of_dictionaries("cosine", pca="ss"),
        controls={"retrained"},
    )
    assert Answer.of_json(json.loads(json.dumps(found.as_json()))) == found


def test_a_metric_is_not_held_to_a_null_on_which_it_has_no_value() -> None:
    nulls = (*NULLS, "gaussian")
    unmeasured = rows("next_token_auroc", "ssssnn", variants=nulls)
    for row, _ in unmeasured[4:]:
        row["value"] = None
    found = of(unmeasured, rows("cosine", "ssssii", variants=nulls))
    tells, undecided = found.findings
    assert (tells.metric, tells.tier) == ("next_token_auroc", "tells")
    assert [one.variant for one in tells.nulls if one.is_defined] == [*NULLS]
    # A row of the page has a cell for each null.
    assert [one.variant for one in tells.nulls] == [one.variant for one in undecided.nulls]
    # The reconstruction of sampled activations has a cosine, so it is wanted.
    assert (undecided.metric, undecided.tier) == ("cosine", "undecided")
    assert found.sentences[0] == (
        "One of 2 metrics distinguishes trained from each of the three nulls at both sites: "
        "Next-token AUROC by direct effect (no value on gaussian, sampled without a model)."
    )
    found = of(unmeasured, rows("cosine", "ssssss", variants=nulls))
    assert found.sentences[0] == (
        "Two of 2 metrics distinguish trained from each of the three nulls at both sites: "
        "Next-token AUROC by direct effect and Cosine similarity (Next-token AUROC by direct "
        "effect has no value on gaussian, sampled without a model)."
    )


def test_what_an_undecided_metric_lacks_is_not_its_value_on_samples() -> None:
    found = of(rows("ce_score", "sissnn", variants=(*NULLS, "gaussian")))
    assert "One is undecided for lack of data: Cross-entropy score." in found.sentences
