"""A site where nothing happens, from its activations to every table of its SAE.

See SAEBench 54: many recipes initialize the projection back into the residual stream to zero.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nullsae import tables
from nullsae.activations.capture import cache_activations
from nullsae.activations.sampling import sample_gaussian
from nullsae.activations.store import SiteReader
from nullsae.config.metrics import METRICS
from nullsae.config.parse import parse_section
from nullsae.config.subjects import PretrainedSource
from nullsae.core.randomness import torch_generator
from nullsae.jobs.activations import SampleGaussianParams
from nullsae.jobs.keys import CellKeys, ModelKeys
from nullsae.jobs.metrics import CrossEvaluateParams
from nullsae.jobs.saes import TrainSaeParams
from nullsae.metrics.cross import cross_evaluate
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import save_sae
from nullsae.sae.train_sae import train_sae
from nullsae.subjects.publish import randomize_model
from run_stages import collected, evaluated
from small_chain import (
    COMPUTE,
    D_MODEL,
    all_rows,
    capture_params,
    model_params,
    tiny_model,
    tokens_of,
    write_corpus,
)

SITE = "mlp_out.1"
KEYS = CellKeys(subject="tiny", variant="trained", draw=0, site=SITE, sae="s", seed=0)
UNDEFINED = (
    *("explained_variance", "explained_variance_all_tokens", "token_lookup_r2"),
    *("max_coordinate_variance_share", "max_eigenvalue_share", "effective_rank"),
)


@pytest.fixture(scope="module", params=["zero", "constant"])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A subject whose second MLP writes the same vector for every token."""
    root = tmp_path_factory.mktemp(request.param)
    model = tiny_model("gpt_neox")
    with torch.no_grad():
        last = model.gpt_neox.layers[1].mlp.dense_4h_to_h
        last.weight.zero_()
        if request.param == "zero":
            last.bias.zero_()
    model.save_pretrained(root / "model")
    for split, seed in (("sae_train", 1), ("eval", 2)):
        write_corpus(root / "corpus" / split, *tokens_of(60, seed=seed))
    source = PretrainedSource(kind="pretrained", path=str(root / "model"))
    heldout = root / "corpus/eval/manifest.json"
    randomize_model(
        model_params(source), trained=None, eval_tokens=heldout, output=root / "trained"
    )
    for split in ("sae_train", "eval"):
        cache_activations(
            capture_params(sites=(SITE, "resid_post.1")),
            split=split,
            model=root / "trained/recipe.json",
            tokens=root / f"corpus/{split}/manifest.json",
            output=root / split,
        )
    return root


def train(study: Path, folder: Path, **recipe: Any) -> Path:
    plain = {"n_latents": 32, "batch_tokens": 128, "heldout_tokens": 256}
    params = {
        "seed": 0,
        "keys": {"subject": "tiny", "variant": "trained", "draw": 0},
        "saes": {"s": {**plain, **recipe}},
        "cells": [{"site": SITE, "sae": "s", "seed": 0}],
        "compute": COMPUTE.model_dump(),
    }
    train_sae(
        parse_section(TrainSaeParams, params, where="--params"),
        train_activations=study / "sae_train/manifest.json",
        eval_activations=study / "eval/manifest.json",
        train_tokens=study / "corpus/sae_train/manifest.json",
        eval_tokens=study / "corpus/eval/manifest.json",
        output=folder / "sae",
        work=folder / "work",
    )
    return folder / "sae/cfg.json"


def evaluate(study: Path, sae: Path, folder: Path) -> dict[str, Any]:
    """Return the rows of one SAE by the table's name."""
    return evaluated(
        folder,
        **{"fidelity_tokens": 256, "keys": KEYS, "sae": sae},
        model=study / "trained/recipe.json",
        train_activations=study / "sae_train/manifest.json",
        eval_activations=study / "eval/manifest.json",
        train_tokens=study / "corpus/sae_train/manifest.json",
        eval_tokens=study / "corpus/eval/manifest.json",
    )


@pytest.mark.parametrize(
    "recipe",
    [
        {"architecture": "topk", "k": 4},
        {"architecture": "batch_topk", "k": 4},
        {"architecture": "standard"},
        {"architecture": "jumprelu", "k": 4},
        {"architecture": "gated"},
        {"architecture": "matryoshka", "k": 4},
        {"architecture": "topk", "k": 4, "dictionary": "frozen_decoder"},
        {"architecture": "topk", "k": 4, "dictionary": "pca", "n_latents": None},
        {"architecture": "topk", "dictionary": "token_lookup", "n_latents": None},
    ],
    ids=lambda recipe: recipe.get("dictionary", recipe["architecture"]),
)
def test_every_sae_of_a_constant_site_has_nulls_and_a_reason(
    study: Path, tmp_path: Path, recipe: dict[str, Any]
) -> None:
    sae = train(study, tmp_path, **recipe)
    history = tables.read_table(sae.parent / "history.parquet", tables.cell_schema("history"))
    assert history["heldout_explained_variance"].to_pylist() == [None]
    found = evaluate(study, sae, tmp_path)
    (row,) = found["reconstruction"]
    assert {row[name] for name in UNDEFINED} == {None}
    assert row["reason"] == "the site has no variance: all tokens have the same activation"
    assert np.isfinite([row["cosine"], row["l0"], row["l1"], row["ce_sae"], row["ce_zero"]]).all()
    documents = {
        name: np.array([r[name] for r in found["documents"]], dtype=float)
        for name in ("squared_error", "squared_deviation")
    }
    metric = METRICS["explained_variance"]()
    assert metric.undefined(documents) == "the site has no variance"


def test_a_silent_sae_gives_back_the_constant(study: Path, tmp_path: Path) -> None:
    sae = train(study, tmp_path, architecture="topk", k=4)
    (row,) = evaluate(study, sae, tmp_path)["reconstruction"]
    assert (row["l0"], row["alive_share"]) == (0.0, 0.0)
    assert row["ce_sae"] == pytest.approx(row["ce_clean"], abs=1e-5)
    if row["mean_norm"]:
        assert row["cosine"] == pytest.approx(1.0, abs=1e-6)


def test_an_sae_made_elsewhere_has_nulls_and_a_reason_too(study: Path, tmp_path: Path) -> None:
    rows = torch.randn(32, D_MODEL, generator=torch_generator(0, "elsewhere"))
    sae = Autoencoder("topk", rows, torch.zeros(32), rows.clone(), torch.zeros(D_MODEL), k=4)
    described: dict[str, Any] = {"dictionary": "pretrained", "keys": KEYS, "seed": 0, "key": "k"}
    described |= {"activations_key": "a", "input_norm": 1.0, "training": {}, "n_steps": 0}
    (tmp_path / "sae").mkdir()
    save_sae(sae, tmp_path / "sae", **described)
    (row,) = evaluate(study, tmp_path / "sae/cfg.json", tmp_path)["reconstruction"]
    assert {row[name] for name in UNDEFINED} == {None}
    assert row["reason"] == "the site has no variance: all tokens have the same activation"


def test_latents_of_a_constant_site_are_all_too_rare(study: Path, tmp_path: Path) -> None:
    settings = {"window_tokens": 8, "min_firings": 2, "min_pool_windows": 1, "n_sampled": 5}
    found = collected(
        tmp_path,
        keys=KEYS,
        latents={**settings, "skip_end_of_text": False},
        sae=train(study, tmp_path, architecture="topk", k=4),
        activations=study / "eval/manifest.json",
        tokens=study / "corpus/eval/manifest.json",
    )
    (row,) = found["coverage"]
    assert (row["n_alive"], row["n_sampled"], row["n_too_rare"]) == (0, 0, 32)


def test_an_sae_meets_a_constant_site_of_another_variant(study: Path, tmp_path: Path) -> None:
    sae = train(study, tmp_path, architecture="topk", k=4)
    params = CrossEvaluateParams(
        keys=KEYS,
        variants=(ModelKeys(subject="tiny", variant="step0", draw=0),),
        max_tokens=256,
        compute=COMPUTE,
    )
    output = tmp_path / "cross.parquet"
    cross_evaluate(
        params,
        sae=sae,
        activations=[study / "eval/manifest.json"],
        tokens=study / "corpus/eval/manifest.json",
        output=output,
    )
    (row,) = tables.read_table(output, tables.cell_schema("cross_evaluation")).to_pylist()
    assert (row["explained_variance"], row["explained_variance_rescaled"]) == (None, None)


def test_gaussian_data_like_a_constant_site_are_that_constant(study: Path, tmp_path: Path) -> None:
    sample_gaussian(
        SampleGaussianParams(
            sites=(SITE,),
            seed=0,
            keys=ModelKeys(subject="tiny", variant="gaussian", draw=0),
            dtype="float32",
            shard_tokens=128,
            compute=COMPUTE,
            key="key",
        ),
        split="eval",
        fitted=study / "sae_train/manifest.json",
        tokens=study / "corpus/eval/manifest.json",
        output=tmp_path,
    )
    x, _ = all_rows(tmp_path / "manifest.json", SITE)
    mean = SiteReader.open(study / "sae_train/manifest.json", SITE).mean()
    torch.testing.assert_close(x.double(), mean.expand(len(x), D_MODEL), rtol=0, atol=1e-6)


def test_the_other_site_of_the_same_job_has_its_figures(study: Path) -> None:
    manifest = study / "eval/manifest.json"
    assert SiteReader.open(manifest, SITE).is_constant
    assert not SiteReader.open(manifest, "resid_post.1").is_constant
