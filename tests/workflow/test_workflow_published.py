"""The offline twin of config/published.yaml: an SAE trained by `sae_lens`, and placebos."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import load_file, save_file
from workflow_study import REPOSITORY, Study, cell, new_study

import warm_start
from nullsae import paths
from nullsae.activations.store import SiteReader
from nullsae.aggregation.answer import read_answer
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import load_sae
from peers import PEERS, need_peers, run_with_peers

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
OVERLAY = REPOSITORY / "config" / "published.yaml"
SITE, RELEASE, SAE_ID = "resid_pre.1", "gpt2-small-res-jb", "blocks.1.hook_resid_pre"
NULLS = ("rotated", "random")
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Offline(Study):
    """A study whose jobs have `sae_lens`, the hub's cache and no network."""

    home: Path
    """Variables for the cache, and `commands` that start warm."""

    @property
    def environment(self) -> dict[str, str]:
        own = super().environment
        (packages,) = PEERS.glob("lib/python*/site-packages")
        return {
            **own,
            **hub(self.home),
            "PATH": os.pathsep.join([str(self.home / "commands"), own["PATH"]]),
            "PYTHONPATH": os.pathsep.join([own["PYTHONPATH"], str(packages)]),
        }


def hub(home: Path) -> dict[str, str]:
    """Return the variables of a process that reads only the hub's cache."""
    return {"HF_HOME": str(home / "hub"), "HF_HUB_OFFLINE": "1", **warm_start.ONE_THREAD}


@dataclass(frozen=True)
class Twin:
    """The finished study, and `sae_lens`' figures of its SAE on tokens of `eval`."""

    study: Study
    l0: float
    explained_variance: float

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_parquet(self.study.folder / paths.TABLE.format(table=name))

    def sae(self, **keys: str) -> Autoencoder:
        config = cell(paths.SAE_CONFIG, **{"site": SITE, "sae": "published", **keys})
        return load_sae(self.study.folder / config)[0]


def activations(study: Study, split: str) -> Array:
    manifest = study.folder / cell(paths.ACTIVATIONS_MANIFEST, split=split)
    batches = SiteReader.open(manifest, SITE).batches()
    return np.concatenate([x.float().numpy() for x, _ in batches])


def train_with_saelens(x: dict[str, Array], home: Path) -> dict[str, Array]:
    """Put an SAE of activations `train` into the hub's cache; return its output for `heldout`."""
    save_file(x, home / "x.safetensors")
    online = {"HF_HUB_OFFLINE": "0", "PYTHONPATH": str(REPOSITORY / "tests" / "sae")}
    side = Path(__file__).with_name("published_side.py")
    run_with_peers(side, home, RELEASE, SAE_ID, **{**hub(home), **online})
    return load_file(home / "results.safetensors")


def at_the_site(config: dict[str, Any]) -> None:
    config["subjects"]["small"]["sites"] = [SITE]


@pytest.fixture(scope="module")
def twin(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Twin:
    """Activations, the SAE by `sae_lens`, then the study up to the page."""
    need_peers("SAELens")
    home = tmp_path_factory.mktemp("published")
    (home / "commands").mkdir()
    plain = new_study(home / "study", tree).configure(at_the_site)
    splits = {"train": "sae_train", "heldout": "eval"}
    plain.make(*(cell(paths.ACTIVATIONS_MANIFEST, split=split) for split in splits.values()))
    x = {name: activations(plain, split) for name, split in splits.items()}
    theirs = train_with_saelens(x, home)
    l0 = float((theirs["codes"] > 0).sum(axis=1).mean())
    error = x["heldout"] - x["heldout"].mean(axis=1, keepdims=True) - theirs["reconstruction"]
    explained = 1 - float(error.var(axis=0).sum() / x["heldout"].var(axis=0).sum())

    def as_in_the_overlay(config: dict[str, Any]) -> None:
        at_the_site(config)
        config["saes"] = yaml.safe_load(OVERLAY.read_text(encoding="utf-8"))["saes"]
        del config["saes"]["topk"]
        # The list's figures are of the SAE that this one replaces.
        config["saes"]["published"]["expect"] = {"l0": l0, "explained_variance": explained}
        config["evaluation"]["gaussian_floors"] = False

    study = Offline(plain.folder, tree, home=home)
    warm_start.start(home / "commands", study.environment, os.getpid())
    study.configure(as_in_the_overlay).make(gpu=2)
    return Twin(study, l0, explained)


def test_the_sae_has_here_the_figures_that_it_has_in_saelens(twin: Twin) -> None:
    rows = twin.table("reconstruction").query("variant == 'trained'").set_index("sae")
    assert twin.explained_variance > 0.5
    assert 1 < twin.l0 < 24
    assert rows.l0["published"] == pytest.approx(twin.l0, rel=1e-3)
    assert rows.explained_variance["published"] == pytest.approx(twin.explained_variance, abs=1e-3)


def test_each_placebo_has_verdicts_against_the_published_sae(twin: Twin) -> None:
    found = twin.table("verdicts").query("stage == 'dictionary'")
    assert {*zip(found.real, found.null, strict=True)} == {("published", name) for name in NULLS}
    # They have the SAE's L0, so all are comparable and get verdicts.
    assert twin.table("contrasts").query("stage == 'dictionary'").not_comparable.isna().all()
    explained = found[found.metric == "explained_variance"]
    assert {*explained.verdict} <= {"separates", "equivalent", "inconclusive"}
    assert {"auroc", "next_token_auroc"} <= set(found.metric)
    rows = twin.table("reconstruction").query("variant == 'trained'").set_index("sae")
    for name in NULLS:
        assert rows.explained_variance[name] < rows.explained_variance["published"] - 0.1


def test_rates_and_l0_are_those_of_the_sae(twin: Twin) -> None:
    for _, of_variant in twin.table("reconstruction").groupby("variant"):
        l0 = of_variant.set_index("sae").l0
        assert [l0[n] for n in NULLS] == pytest.approx([l0["published"]] * len(NULLS), rel=0.05)
    x = activations(twin.study, "sae_train").astype(np.float64)
    x -= x.mean(axis=1, keepdims=True)
    rates = []
    for name in ("published", "random"):
        weights = {k: t.double().numpy() for k, t in twin.sae(sae=name).parameters().items()}
        pre = (x - weights["b_dec"]) @ weights["encoder.weight"].T + weights["encoder.bias"]
        rates.append((pre > weights.get("threshold", 0.0)).mean(axis=0))
    # The text repeats itself: tokens with equal activations fire together, above or below a limit.
    assert rates[1] == pytest.approx(rates[0], rel=0.01, abs=3 / len(x))


def test_check_compares_it_with_published_figures_offline(twin: Twin) -> None:
    model = paths.MODEL.format(subject="small", variant="trained", draw=0)

    def check(*options: str) -> tuple[int, str]:
        text = ("--corpus", "docs.jsonl", "--tokens", "2048", "--device", "cpu")
        asked = ("check", RELEASE, SAE_ID, "--model", model, *text, *options)
        found = twin.study.run(["nullsae", *asked])
        return found.returncode, " ".join(found.stdout.split())

    # The list's figures are of the GPT-2 SAE that this one replaces.
    code, said = check()
    assert (code, "published l0" in said, "SAELens' list" in said) == (1, True, True), said
    assert re.search(r"It does not fit: L0 \d\.\d is not the expected 10;", said), said
    own = f"l0={twin.l0},explained_variance={twin.explained_variance}"
    code, said = check("--expect", own)
    assert (code, "It fits: explained variance 0.9" in said) == (0, True), said


def test_one_sae_serves_every_variant_through_all_stages(twin: Twin) -> None:
    own, other = (twin.sae(variant=name) for name in ("trained", "rerandomized"))
    assert (own.w_dec == other.w_dec).all()
    assert own.normalization == other.normalization == "centre"
    explained = twin.table("reconstruction").query("sae == 'published'").set_index("variant")
    assert explained.explained_variance["rerandomized"] < explained.explained_variance["trained"]
    for name in ("latents", "scores"):
        rows = twin.table(name).query("sae == 'published'")
        assert {*rows.variant} == {"trained", "rerandomized"}
    of_models = twin.table("contrasts").query("stage == 'model' and sae == 'published'")
    assert {"explained_variance", "auroc"} <= set(of_models.metric)


def test_the_answer_speaks_of_it_alone_and_its_latents_are_ranked(twin: Twin) -> None:
    answer = read_answer(twin.study.folder)
    (finding,) = [one for one in answer.findings if one.metric == "explained_variance"]
    # One comparison at the one site, though three SAEs stand on the null.
    assert [sum(one.verdicts.values()) for one in finding.against] == [1]
    own = twin.table("reconstruction").query("sae == 'published' and variant == 'trained'")
    assert (finding.low, finding.high) == pytest.approx((own.explained_variance.item(),) * 2)
    assert {one.variant for found in answer.dictionaries for one in found.against} == {*NULLS}
    ranked = twin.table("latents_ranked").query("sae == 'published' and null == 'all'")
    assert "next_token_auroc" in {*ranked.metric}
    page = (twin.study.folder / paths.REPORT).read_text(encoding="utf-8")
    assert "results/tables/latents_ranked.parquet" in page


def test_the_page_says_what_each_is(twin: Twin) -> None:
    page = (twin.study.folder / paths.REPORT).read_text(encoding="utf-8")
    assert "turned about the mean activation by one random rotation" in page
    assert "it fires as often as a latent of published" in page
