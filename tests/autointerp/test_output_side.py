"""Explanations of the output side, and what follows a firing, on a planted model."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from autointerp_cells import byte_tokenizer, explained, explanation, judged, score, window
from tokenizers import Tokenizer

from nullsae.activations.capture import cache_activations
from nullsae.autointerp.examples import fuzz_marks
from nullsae.autointerp.explain_and_score import explain_and_score
from nullsae.autointerp.explainers.promoted import ENDS, promoted_explanations
from nullsae.autointerp.scorers.continuation import after_marks
from nullsae.config.latents import Latents
from nullsae.config.parse import parse_section
from nullsae.config.subjects import PretrainedSource
from nullsae.jobs.autointerp import ExplainAndScoreParams
from nullsae.sae.autoencoder import Autoencoder
from nullsae.subjects.publish import randomize_model
from nullsae.tables import cell_schema, read_table, write_table
from run_stages import collected, rows_in
from small_chain import (
    CONTEXT,
    D_MODEL,
    VOCAB,
    capture_params,
    cell,
    model_params,
    tiny_model,
    write_corpus,
    write_sae,
)

Rows = list[dict[str, Any]]
SITE = "resid_post.1"
# Tokens 0 to 7 each add their own direction to the stream, which promotes five tokens.
N_PLANTED, N_ANSWERS = 8, 5
SUPPRESSED = slice(N_PLANTED * (1 + N_ANSWERS), N_PLANTED * (1 + N_ANSWERS) + N_ANSWERS)
EXPLAINERS = {"promoted": {"kind": "promoted"}, "swapped": {"kind": "swapped", "of": "promoted"}}


def answers(latent: int) -> list[int]:
    return [*range(N_PLANTED + N_ANSWERS * latent, N_PLANTED + N_ANSWERS * (latent + 1))]


def planted_model(basis: torch.Tensor) -> Any:
    """Return a Llama whose blocks add nothing, so that embeddings reach the last norm.

    Direction 8 of the basis is in all embeddings, and gives the base rate of each next token.
    """
    model = tiny_model("llama")
    embeddings, head = torch.zeros(VOCAB, D_MODEL), torch.zeros(VOCAB, D_MODEL)
    embeddings[:, 8] = 1.0
    embeddings[:, 9:] = 0.3 * torch.randn(VOCAB, 7, generator=torch.Generator().manual_seed(1))
    rate = torch.ones(VOCAB)
    rate[N_PLANTED : N_PLANTED * (1 + N_ANSWERS)] = 0.3
    head[:, 8] = rate.log() / 4
    for latent in range(N_PLANTED):
        embeddings[latent] = 0
        embeddings[latent, [latent, 8]] = 1.0
        head[answers(latent), latent] = 2.5
        # The same tokens for all; else rounding would choose, among them another latent's answers.
        head[SUPPRESSED, latent] = -0.3
    with torch.no_grad():
        for block in model.model.layers:
            block.self_attn.o_proj.weight.zero_()
            block.mlp.down_proj.weight.zero_()
        model.model.norm.weight.fill_(1.0)
        model.model.embed_tokens.weight.copy_(embeddings @ basis)
        model.lm_head.weight.copy_(head @ basis)
    return model


def sampled_text(model: Any, n_contexts: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw tokens from the model itself, in documents of four contexts."""
    with torch.no_grad():
        probability = model(torch.arange(VOCAB)[:, None]).logits[:, 0].double().softmax(1).numpy()
    rng = np.random.default_rng(0)
    upto = probability.cumsum(axis=1)
    ids = np.full(n_contexts * CONTEXT, 90, dtype=np.int32)
    for t in range(1, len(ids)):
        ids[t] = min(np.searchsorted(upto[ids[t - 1]], rng.random()), VOCAB - 1)
    document = np.repeat(np.arange(n_contexts // 4, dtype=np.int32), 4 * CONTEXT)
    return ids.reshape(-1, CONTEXT), document.reshape(-1, CONTEXT)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make everything that the workflow makes of the planted model, up to scores, in a folder."""
    root = tmp_path_factory.mktemp("planted")
    drawn = torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(2))
    basis = torch.linalg.qr(drawn)[0]
    model = planted_model(basis)
    model.save_pretrained(root / "source")
    corpus = write_corpus(root / "eval", *sampled_text(model, 1000))
    source = PretrainedSource(kind="pretrained", path=str(root / "source"))
    recipe = root / "trained/recipe.json"
    randomize_model(model_params(source), trained=None, eval_tokens=corpus, output=recipe.parent)
    captured = root / "activations"
    params = capture_params(sites=(SITE,))
    cache_activations(params, split="eval", model=recipe, tokens=corpus, output=captured)
    directions = basis[:N_PLANTED]
    sae = Autoencoder(
        "topk", directions, torch.full((N_PLANTED,), -0.1), directions, torch.zeros(D_MODEL), k=1
    )
    write_sae(sae, root / "sae")
    latents = Latents(
        n_sampled=N_PLANTED,
        min_firings=20,
        min_pool_windows=5,
        window_tokens=8,
        promoted_tokens=N_ANSWERS,
    )
    collected(
        root,
        **{"latents": latents, "sae": root / "sae/cfg.json", "model": recipe},
        **{"activations": captured / "manifest.json", "tokens": corpus},
    )
    explain_and_score_all(root, byte_tokenizer(root / "tokenizer.json"))
    return root


def explain_and_score_all(root: Path, tokenizer: Path) -> None:
    keys = cell(SITE).model_dump()
    scorers = {
        "continuation": {"kind": "continuation"},
        "misplaced": {"kind": "continuation", "negatives": "misplaced"},
    }
    data = {
        **{"seed": 0, "keys": {name: keys[name] for name in ("subject", "variant", "draw")}},
        "cells": [{name: keys[name] for name in ("site", "sae", "seed")}],
        "explainers": EXPLAINERS,
        "scorers": [
            {"explainer": e, "name": s, "scorer": scorers[s]} for e in EXPLAINERS for s in scorers
        ],
    }
    explain_and_score(
        parse_section(ExplainAndScoreParams, data, where="params"),
        windows=f"{root}/windows.parquet",
        tokenizer=tokenizer,
        explanations=f"{root}/{{explainer}}/explanations.parquet",
        scores=f"{root}/{{explainer}}/{{scorer}}",
    )


def rows_of(root: Path, file: str) -> Rows:
    return rows_in(root / f"{file}.parquet")


def test_each_planted_latent_promotes_its_answers(planted: Path) -> None:
    rows = rows_of(planted, "latents")
    assert [row["sampled"] for row in rows] == [True] * N_PLANTED
    for row in rows:
        assert sorted(row["promoted_tokens"]) == answers(row["latent"])
    table = rows_of(planted, "promoted/explanations")
    tokenizer = Tokenizer.from_file(str(planted / "tokenizer.json"))
    for row in table:
        named = {tokenizer.id_to_token(token) for token in answers(row["latent"])}
        assert all(f'"{name}" (+' in row["explanation"] for name in named - {'"', "\\"})


@pytest.mark.parametrize("scorer", ["continuation", "misplaced"])
def test_following_tokens_tell_own_explanations_from_swapped_ones(
    planted: Path, scorer: str
) -> None:
    found = {e: rows_of(planted, f"{e}/{scorer}/scores") for e in EXPLAINERS}
    aurocs = {e: np.array([row["auroc"] for row in rows]) for e, rows in found.items()}
    assert len(aurocs["promoted"]) == len(aurocs["swapped"]) == N_PLANTED
    assert aurocs["promoted"].min() > 0.93
    assert aurocs["promoted"].mean() > 0.95
    assert aurocs["swapped"].mean() == pytest.approx(0.5, abs=0.03)
    assert all(row["n_active"] >= 20 and row["n_failed"] == 0 for row in found["promoted"])


def test_without_effects_there_is_a_reason_and_no_score(planted: Path, tmp_path: Path) -> None:
    """As for Gaussian data, which have no model."""
    described = read_table(planted / "latents.parquet", cell_schema("latents"))
    coverage = read_table(planted / "coverage.parquet", cell_schema("coverage"))
    for table, changes in (
        (described, {f"{e}_{w}": None for e in ENDS for w in ("tokens", "effects")}),
        (coverage, {"no_effects": "no model"}),
    ):
        rows = [{**row, **changes} for row in table.to_pylist()]
        name = "coverage" if table is coverage else "latents"
        write_table(tmp_path / f"{name}.parquet", rows, cell_schema(name))
    shutil.copy(planted / "windows.parquet", tmp_path)
    explain_and_score_all(tmp_path, planted / "tokenizer.json")
    own = rows_of(tmp_path, "promoted/explanations")
    assert [(row["explanation"], row["reason"]) for row in own] == [(None, "no model")] * N_PLANTED
    scores = rows_of(tmp_path, "promoted/continuation/scores")
    assert [(row["auroc"], row["n_active"]) for row in scores] == [(None, 0)] * N_PLANTED
    assert rows_of(tmp_path, "promoted/continuation/predictions") == []
    assert rows_of(tmp_path, "swapped/continuation/scores") == []


def described_latent(promoted: dict[int, float], suppressed: dict[int, float]) -> dict[str, Any]:
    ends = {"promoted": promoted, "suppressed": suppressed}
    tokens = {f"{end}_tokens": list(effects) for end, effects in ends.items()}
    return {"latent": 3, **tokens, **{f"{e}_effects": list(v.values()) for e, v in ends.items()}}


def test_probabilities_are_bayes_rule_on_the_tokens_of_the_explaining_windows(
    tokenizer_file: Path,
) -> None:
    rows = [described_latent({7: 2.0, 5: 1.0}, {6: -1.5, 9: -1.0})]
    windows = [window(3, 0, [5, 5, 6, 8], [0, 0, 0, 0], pool="explain")]
    windows += [window(3, 1, [8, 8, 8, 8], [1, 0, 0, 0], pool="explain")]
    windows += [window(3, 2, [7, 7, 7, 7], [1, 0, 0, 0])]
    (row,) = promoted_explanations(
        pa.Table.from_pylist(rows),
        pa.Table.from_pylist(windows, schema=cell_schema("windows")),
        Tokenizer.from_file(str(tokenizer_file)),
        1,
        "",
    ).to_pylist()
    # Of eight tokens, two are 5 and one is 6; 7 and 9 do not occur.
    z = (5 + 2 * math.exp(1) + math.exp(-1.5)) / 8
    weights = {5: math.exp(1), 6: math.exp(-1.5), 7: math.exp(2), 9: math.exp(-1)}
    assert row["token_ids"] == [5, 6, 7, 9]
    expected = [w / (w + z) for w in weights.values()]
    assert row["token_probabilities"] == pytest.approx(expected, rel=1e-6)
    assert row["base_probability"] == pytest.approx(1 / (1 + z))
    assert row["explanation"].startswith('promotes "')
    assert "(+2.0 sd); suppresses " in row["explanation"]
    assert row["explanation"].endswith("(-1.5 sd)")


def test_a_window_is_judged_by_the_likeliest_token_after_a_mark(tmp_path: Path) -> None:
    rows = [
        window(0, 0, [1, 2, 3, 4], [5, 0, 0, 0]),
        window(0, 1, [1, 4, 1, 2], [5, 0, 5, 0]),
        window(0, 2, [2, 4, 4, 1], [0, 0, 0, 5]),  # ends with its mark: nothing follows
        window(0, 3, [2, 2, 2, 2], [0, 0, 0, 0]),
    ]
    table = explained(explanation(0, {1: 0.99, 2: 0.9, 4: 0.2}, 0.4))
    predictions, scores = score(tmp_path, rows, table, kind="continuation")
    found = {row["window"]: row["probability"] for row in predictions}
    assert found[0] == pytest.approx(0.9)
    assert found[1] == pytest.approx(0.9)
    assert 2 not in found
    assert found.get(3, 0.9) == pytest.approx(0.9)
    assert scores[0]["n_active"] == 2


def test_tokens_of_a_window_never_follow_a_mark_of_the_previous_one() -> None:
    rows = [window(0, 0, [1, 2], [0, 5]), window(0, 1, [3, 4], [5, 0])]
    examples = judged(rows)
    examples = replace(examples, marked=fuzz_marks(examples, 0.3, 0, "test"))
    assert examples.marked.tolist() == [False, True, True, False]
    assert after_marks(examples).tolist() == [False, False, False, True]
