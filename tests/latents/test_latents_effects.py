from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from safetensors.numpy import load_file
from test_latents_collect import settings

from nullsae.latents import causal_effects, promoted
from nullsae.latents.effects import COLUMNS
from nullsae.sae.files import load_sae
from nullsae.subjects.loading import load_subject
from run_stages import collected
from small_chain import CPU, VOCAB, Chain, all_rows, cell

SITE = "resid_post.1"
Rows = list[dict[str, Any]]


def tables_of(
    chain: Chain, sae: Path, folder: Path, *, model: Path | None, site: str = SITE
) -> tuple[Rows, dict[str, Any]]:
    """Return the tables `latents` and `coverage`."""
    found = collected(
        folder,
        **{"keys": cell(site), "latents": settings(), "sae": sae, "model": model},
        **{"activations": chain.eval_activations, "tokens": chain.eval_tokens},
    )
    return found["latents"], found["coverage"][0]


@pytest.fixture(scope="module")
def of_chain(
    chain: Chain, tiny_sae: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Rows, dict[str, Any]]:
    return tables_of(chain, tiny_sae, tmp_path_factory.mktemp("effects"), model=chain.recipe)


def effects_by_hand(chain: Chain, sae: Path) -> Any:
    """Return effects on logits, float32 [n_latents, vocab]: centring, gain, unembedding."""
    rows = load_sae(sae)[0].w_dec
    model = load_subject(chain.recipe, CPU).model
    norm = model.gpt_neox.final_layer_norm.weight
    directions = rows - rows.mean(dim=1, keepdim=True)
    return ((directions * norm) @ model.get_output_embeddings().weight.T).detach().numpy()


def test_aurocs_are_recomputed_from_shards_weights_and_tokens(
    chain: Chain, tiny_sae: Path, of_chain: tuple[Rows, dict[str, Any]]
) -> None:
    rows, coverage = of_chain
    assert coverage["no_effects"] is None
    sae, _ = load_sae(tiny_sae)
    effects = effects_by_hand(chain, tiny_sae)
    x, position = all_rows(chain.eval_activations, SITE)
    assert position.tolist() == list(range(len(x)))
    pre = (x - sae.b_dec) @ sae.w_enc.T + sae.b_enc
    top = pre.topk(sae.k, dim=1)
    fires = (torch.zeros_like(pre).scatter(1, top.indices, top.values.relu()) > 0).numpy()
    corpus = load_file(chain.eval_tokens.with_name("tokens.safetensors"))
    ids, document = corpus["input_ids"], corpus["document_id"]
    in_document = document[:, 1:] == document[:, :-1]
    now, following = ids[:, :-1][in_document], ids[:, 1:][in_document]
    fired = fires.reshape(*ids.shape, -1)[:, :-1][in_document]
    checked = 0
    for row in rows:
        if not row["passes_filter"]:
            assert all(row[name] is None for name in COLUMNS)
            continue
        latent, effect = row["latent"], effects[row["latent"]]
        where = np.flatnonzero(fired[:, latent])
        all_next, same_token = [], []
        for t in where:
            mine = effect[following[t]]
            for into, q in ((all_next, following), (same_token, following[now == now[t]])):
                into.append(np.mean(effect[q] < mine) + np.mean(effect[q] == mine) / 2)
        assert row["next_token_auroc"] == pytest.approx(np.mean(all_next), abs=1e-9)
        assert row["next_token_auroc_bigram"] == pytest.approx(np.mean(same_token), abs=1e-9)
        checked += 1
    assert checked >= 5


def test_the_promoted_and_suppressed_tokens_are_the_ends_of_the_unembedded_row(
    chain: Chain, tiny_sae: Path, of_chain: tuple[Rows, dict[str, Any]]
) -> None:
    effects = effects_by_hand(chain, tiny_sae)[:, :VOCAB].astype(np.float64)
    scores = scipy.stats.zscore(effects, axis=1)
    n_sampled = 0
    for row in of_chain[0]:
        if not row["sampled"]:
            assert all(row[name] is None for name in promoted.COLUMNS)
            continue
        n_sampled += 1
        own = scores[row["latent"]]
        order = np.argsort(own)
        for end, expected in (("promoted", order[::-1][:10]), ("suppressed", order[:10])):
            assert row[f"{end}_tokens"] == expected.tolist()
            assert row[f"{end}_effects"] == pytest.approx(own[expected], rel=1e-4)
    assert n_sampled >= 3


def test_placebos_are_other_rows_and_the_same_in_each_run(
    chain: Chain, tiny_sae: Path, of_chain: tuple[Rows, dict[str, Any]], tmp_path: Path
) -> None:
    rows = [row for row in of_chain[0] if row["passes_filter"]]
    for placebo in ("swapped", "random"):
        for name in ("next_token_auroc", "next_token_auroc_bigram"):
            assert all(0 <= row[f"{name}_{placebo}"] <= 1 for row in rows)
        assert all(row[f"next_token_auroc_{placebo}"] != row["next_token_auroc"] for row in rows)
    again, _ = tables_of(chain, tiny_sae, tmp_path, model=chain.recipe)
    assert again == of_chain[0]


def test_activations_without_a_model_have_a_reason_in_place_of_effects(
    chain: Chain, tiny_sae: Path, of_chain: tuple[Rows, dict[str, Any]], tmp_path: Path
) -> None:
    rows, coverage = tables_of(chain, tiny_sae, tmp_path, model=None)
    assert coverage["no_effects"] == "no model"
    lacking = (*COLUMNS, *promoted.COLUMNS)
    assert all(row[name] is None for row in rows for name in lacking)
    # Nothing else depends on whether there is a model.
    own = {*lacking, *causal_effects.COLUMNS, causal_effects.N_FIRINGS}
    without = [{k: v for k, v in row.items() if k not in own} for row in rows]
    assert without == [{k: v for k, v in row.items() if k not in own} for row in of_chain[0]]
