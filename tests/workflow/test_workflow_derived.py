"""Null dictionaries made from a learned SAE, added to a finished study, up to their verdicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from workflow_study import Study, cell, copy_of, table

from nullsae import paths
from nullsae.activations.store import SiteReader
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import load_sae

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
NULLS = {"rotated": "rotated", "whitened": "rotated_whitened", "random": "rate_matched_random"}


def more_dictionaries(config: dict[str, Any]) -> None:
    for name, dictionary in NULLS.items():
        config["saes"][name] = {"dictionary": dictionary, "from": "topk"}
    config["saes"]["everywhere"] = {"dictionary": "given", "from": "topk"}


@pytest.fixture(scope="module")
def derived(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The study with dictionaries made from its SAEs."""
    copied = copy_of(study, tmp_path_factory.mktemp("derived") / "study").configure(
        more_dictionaries
    )
    # Two variants; nothing is trained, and nothing existing is made again.
    assert copied.jobs() == {
        **{"derive_sae": 8, "evaluate_sae": 2, "collect_latents": 8, "match_dictionaries": 4},
        **{"explain_and_score": 2, "aggregate": 1, "report": 1},
    }
    copied.make(gpu=2)
    return copied


def sae(study: Study, **keys: str) -> Autoencoder:
    return load_sae(study.folder / cell(paths.SAE_CONFIG, **keys))[0]


def test_each_null_has_verdicts_against_the_sae_that_it_is_made_from(derived: Study) -> None:
    found = table(derived, "verdicts")
    of_dictionaries = found[found.stage == "dictionary"]
    assert {*zip(of_dictionaries.real, of_dictionaries.null, strict=True)} == {
        ("topk", name) for name in NULLS
    }
    # They have the SAE's L0, so all are comparable and get verdicts.
    assert table(derived, "contrasts").query("stage == 'dictionary'").not_comparable.isna().all()
    explained = of_dictionaries[of_dictionaries.metric == "explained_variance"]
    assert {*explained.verdict} <= {"separates", "equivalent", "inconclusive"}
    rows = table(derived, "reconstruction").query("variant == 'trained'").set_index("sae")
    assert rows.explained_variance["rotated"] < rows.explained_variance["topk"] - 0.1
    assert {"auroc", "next_token_auroc"} <= set(of_dictionaries.metric)


def test_rates_and_l0_are_those_of_the_sae(derived: Study) -> None:
    rows = table(derived, "reconstruction")
    for _, of_variant in rows[rows.sae != "everywhere"].groupby("variant"):
        assert of_variant.l0.to_numpy() == pytest.approx(4.0, rel=0.05)
    manifest = derived.folder / cell(paths.ACTIVATIONS_MANIFEST, split="sae_train")
    x = next(SiteReader.open(manifest, "resid_post.0").batches(65_536))[0].double().numpy()
    rates = []
    for name in ("topk", "random"):
        weights = {k: t.double().numpy() for k, t in sae(derived, sae=name).parameters().items()}
        pre = (x - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"]
        limit = weights.get("threshold", np.sort(pre, axis=1)[:, -5:-4])
        rates.append(((pre > limit) & (pre > 0)).mean(axis=0))
    # The text repeats itself: tokens with equal activations fire together, above or below a limit.
    assert rates[1] == pytest.approx(rates[0], rel=0.01, abs=3 / len(x))


def test_one_sae_serves_every_variant_through_all_stages(derived: Study) -> None:
    own = sae(derived, sae="topk").w_dec
    for variant in ("trained", "rerandomized"):
        assert (sae(derived, sae="everywhere", variant=variant).w_dec == own).all()
    rows = table(derived, "reconstruction")
    cells = zip(rows.sae, rows.variant, strict=True)
    explained = dict(zip(cells, rows.explained_variance, strict=True))
    assert explained["everywhere", "trained"] == explained["topk", "trained"]
    assert explained["everywhere", "rerandomized"] < explained["topk", "rerandomized"]
    for name in ("latents", "scores"):
        assert {*table(derived, name).query("sae == 'everywhere'").variant} == {
            *("trained", "rerandomized")
        }
    of_models = table(derived, "verdicts").query("stage == 'model' and sae == 'everywhere'")
    assert {"explained_variance", "auroc"} <= set(of_models.metric)


def test_the_page_says_what_each_is(derived: Study) -> None:
    page = Path(derived.folder / paths.REPORT).read_text(encoding="utf-8")
    assert "turned about the mean activation by one random rotation" in page
    assert "it fires as often as a latent of topk" in page
