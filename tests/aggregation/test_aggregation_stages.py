"""Verdicts within the trained subject: dictionaries, explanations, effects."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
import test_aggregation_study as study_of

from nullsae.aggregation import aggregate
from nullsae.aggregation.answer import read_answer
from nullsae.config.metrics import METRICS, STAGES
from nullsae.config.study import Config
from nullsae.statistics.effects import holm
from nullsae.statistics.verdicts import verdict

N_LATENTS, N_DOCUMENTS = 30, 40
# The mean of each dictionary; nulls have a lower one.
VARIANCE = {"topk": 0.8, "pca": 0.6, "lookup": 0.7}
AUROC = {"pairs": 0.85, "tokens": 0.75, "others": 0.5, "gpt": 0.6, "gpt_others": 0.52}
AUROC["told"] = 0.55
NEXT_TOKEN = {"topk": 0.72, "pca": 0.62, "lookup": 0.6}
KL = {"": 0.04, "_swapped": 0.02, "_random": 0.01}
TOKENS = {"topk": 1000, "pca": 0, "lookup": 0}
EXPLAINERS: dict[str, Any] = {
    "tokens": {"kind": "lexical"},
    "pairs": {"kind": "lexical", "context": "bigram"},
    "others": {"kind": "swapped", "of": "pairs"},
}


def study(**changes: Any) -> Config:
    """Return a study of one learned dictionary and two nulls, with changes."""
    saes = {
        "topk": {"k": 16, "n_latents": 64},
        "pca": {"dictionary": "pca", "k": 16},
        "lookup": {"dictionary": "token_lookup"},
    }
    given: dict[str, Any] = {"saes": saes, "explainers": EXPLAINERS, "variants": ["trained"]}
    statistics = {"n_resamples": 4000, "confidence": 0.95}
    return study_of.study(**(given | {"statistics": statistics} | changes))


def drawn(*keys: Any, size: int = N_LATENTS) -> np.ndarray:
    """Return standard normal numbers determined by these keys."""
    return np.random.default_rng(zlib.crc32(repr(keys).encode())).standard_normal(size)


def variance_left(sae: str, seed: str) -> np.ndarray:
    """Return each document's squared error, of a deviation of 10; difficulties are shared."""
    noise = 0.1 * drawn("document", size=N_DOCUMENTS)
    own = 0.01 * drawn("document", sae, seed, size=N_DOCUMENTS)
    return np.asarray(10 * (1 - VARIANCE[sae] + noise + own))


def aurocs(explainer: str, seed: str) -> np.ndarray:
    """Return AUROCs; a latent is equally hard for all explainers."""
    own = 0.02 * drawn("auroc", explainer, seed)
    return np.asarray(AUROC[explainer] + 0.05 * drawn("latent", seed) + own)


def next_token(sae: str, seed: str, of: str = "") -> np.ndarray:
    centre = 0.5 if of else NEXT_TOKEN[sae]
    return np.asarray(centre + 0.03 * drawn("next", sae, seed, of))


def kl(of: str, seed: str = "0") -> np.ndarray:
    return np.asarray(KL[of] * np.exp(0.5 * drawn("kl", seed) + 0.2 * drawn("kl", of, seed)))


def rows_of(table: str, keys: dict[str, str]) -> list[dict[str, Any]]:
    filled = study_of.filled
    sae, seed = keys.get("sae", ""), keys.get("seed", "")
    if table == "documents":
        errors = variance_left(sae, seed)
        return [
            filled(table, document=i, n_tokens=4, squared_error=error, squared_deviation=10.0)
            for i, error in enumerate(errors)
        ]
    if table == "latents":
        columns = {
            **{f"next_token_auroc{of}": next_token(sae, seed, of) for of in KL},
            **{f"ablation_kl_nats{of}": kl(of, seed) for of in KL},
        }
        # Half of the latents fire rarely; firing rates do not differ between cells.
        return [
            filled(table, latent=i, firing_share=0.02 if i % 2 else 0.2)
            | {name: values[i] for name, values in columns.items()}
            for i in range(N_LATENTS)
        ]
    if table == "scores":
        values = aurocs(keys["explainer"], seed)
        return [filled(table, latent=i, auroc=value) for i, value in enumerate(values)]
    if table == "reconstruction":
        return [filled(table, l0=1.0 if sae == "lookup" else 16.0)]
    if table == "history":
        return [filled(table, tokens=TOKENS[sae])]
    return [filled(table)]


@pytest.fixture(scope="module", autouse=True)
def own_numbers() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study_of, "rows_of", rows_of)
        patch.setitem(study_of.FILLERS, pa.float64(), 0.5)
        yield


@pytest.fixture(scope="module")
def plain(own_numbers: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study without changes, aggregated."""
    return made(tmp_path_factory.mktemp("study"), study())


def made(root: Path, config: Config) -> Path:
    study_of.write_tree(config, root)
    aggregate(config, root)
    return root


def row(root: Path, stage: str, metric: str, null: str, **keys: Any) -> dict[str, Any]:
    rows = study_of.read(root, "contrasts", stage)
    return study_of.only(rows, metric=metric, null=null, **keys)


def test_dictionaries_are_paired_by_document(plain: Path) -> None:
    found = row(plain, "dictionary", "explained_variance", "pca")
    own, null = (1 - variance_left(sae, "0") / 10 for sae in ("topk", "pca"))
    assert (found["real"], found["variant"], found["sae"]) == ("topk", "trained", "topk")
    assert found["real_value"] == pytest.approx(own.mean(), abs=1e-12)
    assert found["value"] == pytest.approx(null.mean(), abs=1e-12)
    # All documents have equal weight here, which gives the paired t test.
    test = scipy.stats.ttest_rel(null, own)
    assert found["standard_error"] == pytest.approx(scipy.stats.sem(null - own), rel=0.05)
    assert found["df"] == test.df
    assert scipy.stats.sem(own) > 3 * found["standard_error"]
    assert found["margin"] == pytest.approx(0.1 * own.mean())
    assert found["margin_rule"] == "0.1 of |topk - 0|"
    word, reason = verdict(found, METRICS["explained_variance"](), 0.95)
    assert word == "separates"
    assert reason.startswith("these SAEs: pca minus topk -0.")
    # PCA is not trained, so its tokens do not matter.
    assert (found["real_training_tokens"], found["training_tokens"]) == (1000, 0)
    assert found["not_comparable"] is None


def test_dictionaries_with_another_l0_get_no_verdict(plain: Path) -> None:
    found = row(plain, "dictionary", "explained_variance", "lookup")
    assert "L0 is 16 in topk and 1 in lookup" in found["not_comparable"]
    assert (
        study_of.only(
            study_of.read(plain, "verdicts", "dictionary"),
            metric="explained_variance",
            null="lookup",
        )["verdict"]
        == "none"
    )


def test_latents_of_two_dictionaries_are_matched_by_firing_rate(plain: Path) -> None:
    found = row(plain, "dictionary", "next_token_auroc", "pca")
    own, null = (next_token(sae, "0") for sae in ("topk", "pca"))
    welch = scipy.stats.ttest_ind(null, own, equal_var=False)
    error = np.sqrt(scipy.stats.sem(own) ** 2 + scipy.stats.sem(null) ** 2)
    assert found["standard_error"] == pytest.approx(error, rel=1e-9)
    assert found["df"] == pytest.approx(welch.df, rel=1e-9)
    assert found["n_matched"] == N_LATENTS
    # Both have equally many of either rate, so the means are the same.
    assert found["matched_difference"] == pytest.approx(found["difference"], abs=1e-12)
    assert found["is_beyond_margin"]


def test_a_dictionary_of_more_frequent_latents_is_matched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(table: str, keys: dict[str, str]) -> list[dict[str, Any]]:
        found = rows_of(table, keys)
        if table == "latents" and keys["sae"] == "pca":
            # Ten rare ones remain.
            for latent in found[20:]:
                latent["firing_share"] = 0.2
        return found

    monkeypatch.setattr(study_of, "rows_of", rows)
    root = made(tmp_path, study())
    found = row(root, "dictionary", "next_token_auroc", "pca")
    own, null = (next_token(sae, "0") for sae in ("topk", "pca"))
    rare = np.arange(N_LATENTS) % 2 == 1
    rare_null = rare & (np.arange(N_LATENTS) < 20)
    # topk has 15 of either rate, pca 10 rare and 20 frequent ones.
    values = [
        (10 * v[r].mean() + 15 * v[~r].mean()) / 25 for v, r in ((own, rare), (null, rare_null))
    ]
    assert found["n_matched"] == 25
    assert found["matched_real_value"] == pytest.approx(values[0], abs=1e-12)
    assert found["matched_value"] == pytest.approx(values[1], abs=1e-12)


def test_learned_dictionaries_are_compared_with_nulls_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saes: dict[str, Any] = {name: {"k": 16, "n_latents": 64} for name in ("topk", "again")}
    saes["pca"] = {"dictionary": "pca", "k": 16}
    monkeypatch.setitem(VARIANCE, "again", VARIANCE["topk"])
    monkeypatch.setitem(NEXT_TOKEN, "again", NEXT_TOKEN["topk"])
    monkeypatch.setitem(TOKENS, "again", TOKENS["topk"])
    root = made(tmp_path, study(saes=saes, explainers={}, scorers={}))
    rows = study_of.read(root, "contrasts", "dictionary")
    assert {(row["real"], row["null"]) for row in rows} == {("topk", "pca"), ("again", "pca")}
    assert {row["family"] for row in rows if row["metric"] == "cosine"} == {
        f"dictionary: cosine of {sae}, small" for sae in ("topk", "again")
    }


def test_a_dictionary_made_from_an_sae_is_a_null_of_that_one_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = {"wide": 0.9, "rotated": 0.5, "given": 0.8}
    for name, value in others.items():
        monkeypatch.setitem(VARIANCE, name, value)
        monkeypatch.setitem(NEXT_TOKEN, name, 0.6)
        monkeypatch.setitem(TOKENS, name, 0 if name != "wide" else 1000)
    saes = {
        "topk": {"k": 16, "n_latents": 64},
        "wide": {"k": 16, "n_latents": 128},
        "rotated": {"dictionary": "rotated", "from": "topk"},
        "given": {"dictionary": "given", "from": "topk"},
        "pca": {"dictionary": "pca", "k": 16},
    }
    root = made(tmp_path, study(saes=saes))
    rows = study_of.read(root, "verdicts", "dictionary")
    assert {(r["real"], r["null"]) for r in rows} == {
        *(("topk", "rotated"), ("topk", "pca"), ("wide", "pca")),
    }
    words = {r["null"]: r["verdict"] for r in rows if r["metric"] == "explained_variance"}
    assert words["rotated"] == "separates"
    found = row(root, "dictionary", "explained_variance", "rotated")
    own, null = (1 - variance_left(sae, "0") / 10 for sae in ("topk", "rotated"))
    assert found["difference"] == pytest.approx((null - own).mean(), abs=1e-12)
    assert (found["l0"], found["not_comparable"]) == (16.0, None)


@pytest.mark.parametrize(("null", "word"), [("others", "separates"), ("tokens", "separates")])
def test_explanations_are_paired_by_latent(plain: Path, null: str, word: str) -> None:
    found = row(plain, "explanation", "auroc", null, sae="topk")
    own, other = aurocs("pairs", "0"), aurocs(null, "0")
    assert (found["explainer"], found["scorer"]) == ("pairs", "detection")
    assert (found["real"], found["variant"]) == ("pairs", "trained")
    assert found["difference"] == pytest.approx((other - own).mean(), abs=1e-12)
    assert found["standard_error"] == pytest.approx(scipy.stats.sem(other - own), rel=1e-9)
    assert found["df"] == N_LATENTS - 1
    unpaired = np.hypot(scipy.stats.sem(own), scipy.stats.sem(other))
    assert unpaired > 1.5 * found["standard_error"]
    assert found["margin"] == pytest.approx(0.1 * (own.mean() - 0.5))
    assert found["matched_reason"] == "both arms are of the same latents"
    assert found["not_comparable"] is None
    assert verdict(found, METRICS["auroc"](), 0.95)[0] == word


def test_token_counts_and_placebos_are_never_the_real_thing(plain: Path) -> None:
    rows = study_of.read(plain, "contrasts", "explanation")
    pairs = {(row["real"], row["null"]) for row in rows}
    assert pairs == {("pairs", "others"), ("pairs", "tokens")}
    assert {row["metric"] for row in rows} == {"auroc", "auprc", "f1", "balanced_accuracy"}


def test_latents_that_one_explanation_lacks_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(table: str, keys: dict[str, str]) -> list[dict[str, Any]]:
        found = rows_of(table, keys)
        if table == "scores" and keys["explainer"] == "others":
            found[0]["auroc"] = None
            found[1]["n_active"] = 7  # judged on other windows
            return found[:-2]
        return found

    monkeypatch.setattr(study_of, "rows_of", rows)
    found = row(made(tmp_path, study()), "explanation", "auroc", "others", sae="topk")
    own, other = (aurocs(name, "0")[2:-2] for name in ("pairs", "others"))
    assert (found["real_n_units"], found["n_units"]) == (N_LATENTS - 4,) * 2
    assert found["real_value"] == pytest.approx(own.mean(), abs=1e-12)
    assert found["value"] == pytest.approx(other.mean(), abs=1e-12)
    assert found["standard_error"] == pytest.approx(scipy.stats.sem(other - own), rel=1e-9)


def test_the_score_of_another_judge_is_a_ceiling_not_a_null(tmp_path: Path) -> None:
    explainers = {
        "tokens": EXPLAINERS["tokens"],
        "told": {"kind": "lexical", "judged_by": "text"},
        "gpt": {"kind": "openai", "model": "gpt-4o-mini"},
        "gpt_others": {"kind": "swapped", "of": "gpt"},
    }
    scorers = {"detection": {"kind": "detection", "judge": {"model": "gpt-4o-mini"}}}
    root = made(tmp_path, study(explainers=explainers, scorers=scorers))
    ceiling = row(root, "explanation", "auroc", "tokens", sae="topk")
    assert ceiling["not_comparable"] == (
        "gpt is judged by gpt-4o-mini, tokens by a formula: the score of tokens is a ceiling, "
        "not a null"
    )
    assert ceiling["value"] == pytest.approx(aurocs("tokens", "0").mean())
    assert verdict(ceiling, METRICS["auroc"](), 0.95)[0] == "none"
    placebo = row(root, "explanation", "auroc", "gpt_others", sae="topk")
    assert placebo["not_comparable"] is None
    # The same token counts as text, scored by the same judge, are a null.
    text = row(root, "explanation", "auroc", "told", sae="topk")
    assert text["not_comparable"] is None
    for found in (placebo, text):
        # A contrast without a verdict does not weaken the others.
        assert found["n_family"] == 2
        assert verdict(found, METRICS["auroc"](), 0.95)[0] == "separates"


@pytest.mark.parametrize(
    ("null", "of"), [("foreign_direction", "_swapped"), ("random_direction", "_random")]
)
def test_own_directions_are_paired_with_others_at_the_same_tokens(
    plain: Path, null: str, of: str
) -> None:
    found = row(plain, "effect", "ablation_kl_log_ratio", null, sae="topk")
    own, foreign = np.log(kl("") / kl("_swapped")), np.log(kl(of) / kl("_swapped"))
    assert found["real"] == "own_direction"
    assert found["real_value"] == pytest.approx(own.mean(), abs=1e-12)
    assert found["value"] == pytest.approx(foreign.mean(), abs=1e-12)
    # The common denominator cancels: own over the null.
    ratio = np.log(kl(of) / kl(""))
    assert found["difference"] == pytest.approx(ratio.mean(), abs=1e-12)
    assert found["standard_error"] == pytest.approx(scipy.stats.sem(ratio), rel=1e-9)
    assert found["margin"] == pytest.approx(0.1 * own.mean())
    assert verdict(found, METRICS["ablation_kl_log_ratio"](), 0.95)[0] == "separates"
    auroc = row(plain, "effect", "next_token_auroc", null, sae="topk")
    differences = next_token("topk", "0", of) - next_token("topk", "0")
    assert auroc["standard_error"] == pytest.approx(scipy.stats.sem(differences), rel=1e-9)
    assert auroc["value"] == pytest.approx(next_token("topk", "0", of).mean(), abs=1e-12)


def test_a_direction_with_the_effect_of_any_other_is_not_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(KL, "", KL["_swapped"])
    monkeypatch.setitem(NEXT_TOKEN, "topk", 0.5)
    root = made(tmp_path, study())
    for metric in ("ablation_kl_log_ratio", "next_token_auroc"):
        found = row(root, "effect", metric, "foreign_direction", sae="topk")
        word, reason = verdict(found, METRICS[metric](), 0.95)
        assert word == "inconclusive"
        assert "own_direction" in reason
        assert "cannot be told from the floor" in reason


def test_a_subject_without_effects_has_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(table: str, keys: dict[str, str]) -> list[dict[str, Any]]:
        found = rows_of(table, keys)
        for latent in found if table == "latents" else ():
            latent |= dict.fromkeys(f"next_token_auroc{of}" for of in KL)
        return found

    monkeypatch.setattr(study_of, "rows_of", rows)
    found = row(
        made(tmp_path, study()), "effect", "next_token_auroc", "random_direction", sae="pca"
    )
    assert found["real_value"] is found["value"] is None
    assert f"own_direction: next_token_auroc is null for all {N_LATENTS} latents" in found["reason"]


def test_pairs_keep_their_seeds(tmp_path: Path) -> None:
    saes = {"topk": {"k": 16, "n_latents": 64, "seeds": [0, 1, 2]}}
    root = made(tmp_path, study(saes=saes))
    found = row(root, "explanation", "auroc", "others")
    gaps = np.array(
        [(aurocs("others", seed) - aurocs("pairs", seed)).mean() for seed in ("0", "1", "2")]
    )
    assert found["difference"] == pytest.approx(gaps.mean(), abs=1e-12)
    assert found["standard_error"] == pytest.approx(scipy.stats.sem(gaps), rel=1e-9)
    assert (found["df"], found["n_seeds"], found["scope"]) == (2, 3, "this model")
    assert found["p_value"] == pytest.approx(scipy.stats.ttest_1samp(gaps, 0).pvalue, rel=1e-6)
    assert found["p_permutation"] is None
    assert "no permutation test of pairs" in found["reason"]


def test_each_stage_has_its_own_families(tmp_path: Path) -> None:
    saes = {
        "topk": {"k": 16, "n_latents": 64, "seeds": [0, 1]},
        "pca": {"dictionary": "pca", "k": 16, "seeds": [0, 1]},
    }
    root = made(tmp_path, study(saes=saes, variants=["trained", "step0"]))
    rows = [row for stage in STAGES for row in study_of.read(root, "contrasts", stage)]
    assert {row["stage"] for row in rows} == set(STAGES)
    families: dict[str, list[dict[str, Any]]] = {}
    for one in rows:
        families.setdefault(one["family"], []).append(one)
    for name, members in families.items():
        assert name.startswith(f"{members[0]['stage']}: {members[0]['metric']} of ")
        tested = [one for one in members if one["p_equivalence"] is not None]
        for test in ("minimum_effect", "equivalence"):
            corrected = [one[f"p_{test}_holm"] for one in tested]
            assert corrected == pytest.approx(holm([one[f"p_{test}"] for one in tested]))
    assert len(families["explanation: auroc of topk, small"]) == 2
    assert len(families["effect: next_token_auroc of topk, small"]) == 2


def test_conclusions_about_models_do_not_depend_on_the_other_stages(tmp_path: Path) -> None:
    root = made(tmp_path, study(variants=["trained", "step0"]))
    of_models = study_of.read(root, "verdicts")
    power = study_of.read(root, "discriminating_power")
    assert sum(row["n_contrasts"] for row in power) == len(of_models)
    counts: Counter[str] = Counter()
    for one in read_answer(root).findings:
        counts[one.metric] += sum(sum(each.verdicts.values()) for each in one.against)
    # Null dictionaries exist for both variants, and tell nothing about models.
    assert {row["sae"] for row in of_models} == {"topk", "pca", "lookup"}
    shown = [row for row in of_models if row["sae"] == "topk" and row["explainer"] != "others"]
    # Metrics that were never measured are not part of the answer.
    assert {"ce_score", "entropy_auroc_correlation"}.isdisjoint(counts)
    shown = [row for row in shown if row["metric"] in counts]
    assert counts == Counter(row["metric"] for row in shown)
