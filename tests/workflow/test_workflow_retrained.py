"""The positive control in whole studies: with a subject trained here, and one like Pythia-14m."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from workflow_study import REPOSITORY, Study, cell, copy_of, new_study, replace, table

from hub_cache import add_revision
from nullsae import paths
from nullsae.config.corpora import TrainedTokenizer
from nullsae.config.model_size import PYTHIA
from nullsae.config.read import read_merged_config
from nullsae.config.subjects import TrainSource
from nullsae.corpus.store import Tokens
from nullsae.corpus.tokenizer import train_tokenizer
from nullsae.planning.show import make_plan
from nullsae.subjects.training import train_model

pytestmark = pytest.mark.workflow
MADE = {
    **{"retrain_subject": 1, "cache_activations": 2, "train_sae": 1, "evaluate_sae": 1},
    **{"collect_latents": 1, "match_dictionaries": 1, "explain_and_score": 1},
    **{"aggregate": 1, "report": 1},
}


def with_control(config: dict[str, Any]) -> None:
    config["variants"] = ["trained", "retrained", "rerandomized"]


@pytest.mark.slow
def test_it_is_added_to_a_study_by_its_own_jobs_and_measured_as_any_variant(
    study: Study, tmp_path: Path
) -> None:
    copied = copy_of(study, tmp_path / "study")
    assert copied.configure(with_control).jobs() == MADE
    copied.make(gpu=2)
    for name in ("models", "reconstruction", "latents", "scores", "summaries", "contrasts"):
        assert "retrained" in set(table(copied, name).variant), name
    verdicts = table(copied, "verdicts")
    assert set(verdicts[verdicts.stage == "effect"].variant) == {"trained"}
    verdicts = verdicts[verdicts.stage == "model"]
    own = verdicts[verdicts.variant == "retrained"]
    assert "reversed" not in set(own.verdict)
    assert set(own.metric) == set(verdicts.metric)
    power = table(copied, "discriminating_power").set_index(["metric", "explainer", "scorer"])
    nulls = verdicts[verdicts.variant != "retrained"]
    groups = nulls.groupby(["metric", "explainer", "scorer"], dropna=False).size()
    assert (power.n_contrasts == groups.reindex(power.index)).all()
    tested = table(copied, "contrasts")
    tested = tested[(tested.variant == "retrained") & tested.is_within_margin.notna()]
    assert power.n_controls.sum() == len(tested) > 0
    answer = json.loads((copied.folder / paths.ANSWER).read_text(encoding="utf-8"))
    for finding in answer["findings"]:
        of = {one["variant"]: one["is_control"] for one in finding["against"]}
        assert of == {"retrained": True, "rerandomized": False}
    page = (copied.folder / paths.REPORT).read_text(encoding="utf-8")
    assert "positive control" in page
    assert "on those of 1 null: the same" in page
    assert copied.jobs() == {}


def test_the_config_of_pythia_14m_takes_less_than_an_hour_of_two_cores(tmp_path: Path) -> None:
    files = [REPOSITORY / "config.yaml", REPOSITORY / "config/pythia-14m.yaml"]
    config = read_merged_config(files)
    assert len(config.subjects["pythia-14m"].sites) == PYTHIA["pythia-14m"][0] == 6
    plan = make_plan(config, tmp_path, device="cpu", cores=2)
    made = {row.rule: row.jobs for row in plan.rows}
    assert (made["retrain_subject"], made["randomize_model"]) == (1, 5)
    assert plan.seconds < 3600


def twin_pythias(cache: Path, documents: list[str]) -> None:
    """Two trainings of Pythia-14m's blocks, and initial weights, with a small vocabulary."""
    kind = TrainedTokenizer(kind="train", vocab_size=512)
    tokenizer = train_tokenizer(documents, kind).tokenizer
    ids = np.concatenate([tokenizer(text)["input_ids"] for text in documents])
    ids = ids[: len(ids) // 64 * 64].astype(np.int32).reshape(-1, 64)
    manifest = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    tokens = Tokens(ids, np.zeros_like(ids), manifest)
    n_layers, d_model, n_heads, _ = PYTHIA["pythia-14m"]
    source = TrainSource(
        **{"kind": "train", "n_layers": n_layers, "d_model": d_model, "n_heads": n_heads},
        **{"rotary_share": 0.25, "steps": 50},
    )
    for seed, name in enumerate(("pythia-14m", "pythia-14m-seed1")):
        model, initial, _ = train_model(
            *(source, tokens),
            **{"seed": seed, "subject": name, "device": torch.device("cpu")},
            checkpoint=cache / f"{name}.safetensors",
        )
        repository = cache / f"models--EleutherAI--{name}"
        add_revision(repository, "main", "ab"[seed] * 40, model, tokenizer)
        if seed == 0:
            model.load_state_dict(initial)
            add_revision(repository, "step0", "c" * 40, model, tokenizer)


@pytest.mark.weekly
def test_the_config_of_pythia_14m_runs_on_models_of_that_shape_in_the_hubs_cache(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It keeps subject, revisions and positive control, with less text, one site, narrow SAEs."""
    study = new_study(tmp_path / "study", tree)
    lines = (study.folder / "docs.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "hub").mkdir()
    twin_pythias(tmp_path / "hub", [json.loads(line)["text"] for line in lines])
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    small: dict[str, Any] = {
        "corpora": {
            "speeches": None,
            "docs": {
                **{"source": {"kind": "files", "paths": ["docs.jsonl"]}, "context_tokens": 64},
                "tokenizer": {"kind": "pretrained", "path": "EleutherAI/pythia-14m"},
                **{"eval_share": 0.3, "sae_train_tokens": 16_384, "eval_tokens": 8_192},
            },
        },
        "subjects": {"pythia-14m": {"corpus": "docs", "sites": ["resid_post.-1"]}},
        "variants": ["trained", "retrained", "step0"],
        "activations": {"sae_train_tokens": 16_384},
        "saes": {"topk": {"k": 8, "n_latents": 64, "batch_tokens": 512}},
        "evaluation": {"gaussian_floors": False, "fidelity_tokens": 1_024},
        "latents": {"n_sampled": 4, "min_firings": 20, "min_pool_windows": 4, "window_tokens": 8},
        "statistics": {"n_resamples": 200},
    }
    replace(study.folder / "config.yaml", (REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    replace(study.folder / "small.yaml", yaml.safe_dump(small))
    study.make("--configfile", str(REPOSITORY / "config/pythia-14m.yaml"), "small.yaml", gpu=2)
    models = table(study, "models").set_index("variant")
    assert list(models.index) == small["variants"]
    learned = models.loc[["trained", "retrained"]]
    assert (learned.heldout_loss_nats < learned.unigram_loss_nats).all()
    assert models.heldout_loss_nats["step0"] > models.unigram_loss_nats["step0"]
    file = cell(paths.RECIPE, subject="pythia-14m", variant="retrained")
    recipe = json.loads((study.folder / file).read_text(encoding="utf-8"))
    assert recipe["source"]["retrained"]["path"] == "EleutherAI/pythia-14m-seed1"
    assert (recipe["n_layers"], recipe["d_model"]) == (6, 128)
    assert set(table(study, "discriminating_power").n_controls) <= {0, 1}
    assert table(study, "discriminating_power").n_controls.any()
