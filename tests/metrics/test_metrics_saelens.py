"""The same SAE on the same tokens in the same model, measured by SAELens' own evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from nullsae.activations.capture import cache_activations
from nullsae.corpus.store import load_tokens
from nullsae.sae.exchange.export import export_sae
from nullsae.subjects.loading import load_subject
from peers import need_peers, run_with_peers
from run_stages import evaluated
from small_chain import CONTEXT, CPU, Chain, capture_params, write_corpus

pytestmark = pytest.mark.slow
SITE, HOOK = "resid_post.1", "gpt_neox.layers.1"
N_CONTEXTS = 30


@pytest.fixture(scope="module")
def sides(
    chain: Chain, tiny_sae: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return our row of `reconstruction` with the sums of `documents`, and SAELens' metrics."""
    need_peers("SAELens")
    folder = tmp_path_factory.mktemp("saelens")
    # Text that the subject itself would write, so that zeroing does clear harm and ce_score exists.
    subject = load_subject(chain.recipe, CPU)
    heldout = load_tokens(chain.eval_tokens)
    ids = torch.from_numpy(heldout.input_ids[:N_CONTEXTS, :1])
    while ids.shape[1] < CONTEXT:
        logits = subject.logits(ids, split="eval", contexts=range(N_CONTEXTS))
        ids = torch.cat([ids, logits[:, -1:].argmax(dim=-1).int()], dim=1)
    written = ids.numpy().astype(np.int32)
    tokens = write_corpus(folder / "corpus", written, heldout.document_id[:N_CONTEXTS])
    cache_activations(
        capture_params(sites=(SITE,)),
        split="eval",
        model=chain.recipe,
        tokens=tokens,
        output=folder / "eval",
    )
    given = {"eval_activations": folder / "eval/manifest.json", "eval_tokens": tokens}
    n_tokens = N_CONTEXTS * CONTEXT
    rows = evaluated(folder, sae=tiny_sae, fidelity_tokens=n_tokens, **{**chain.inputs, **given})
    squared_error = sum(row["squared_error"] for row in rows["documents"])
    ours = {**rows["reconstruction"][0], "squared_error": squared_error}

    export_sae(tiny_sae, "saelens", folder / "sae")
    (folder / "model").symlink_to(chain.recipe.parent)
    (folder / "hook").write_text(HOOK)
    save_file({"input_ids": written}, folder / "tokens.safetensors")
    run_with_peers(Path(__file__).with_name("saelens_side.py"), folder)
    return ours, json.loads((folder / "metrics.json").read_text())


Sides = tuple[dict[str, Any], dict[str, Any]]


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("explained_variance", "explained_variance"),
        ("cosine", "cossim"),
        ("l0", "l0"),
        ("l1", "l1"),
        ("alive_share", "alive_share"),
        ("mean_norm", "l2_norm_in"),
        ("ce_clean", "ce_loss_without_sae"),
        ("ce_sae", "ce_loss_with_sae"),
        ("ce_zero", "ce_loss_with_ablation"),
        ("ce_score", "ce_loss_score"),
    ],
)
def test_a_number_with_one_definition_equals_that_of_saelens(
    sides: Sides, name: str, theirs: str
) -> None:
    ours, saelens = sides
    assert ours[name] == pytest.approx(saelens[theirs], rel=2e-5)


def test_saelens_mse_is_our_squared_error_per_token(sides: Sides) -> None:
    ours, saelens = sides
    assert ours["squared_error"] / ours["n_tokens"] == pytest.approx(saelens["mse"], rel=1e-5)


def test_saelens_l2_ratio_is_not_ours(sides: Sides) -> None:
    """Theirs is the mean of the tokens' ratios, ours the ratio of the mean norms."""
    ours, saelens = sides
    ratio = saelens["l2_norm_out"] / saelens["l2_norm_in"]
    assert ours["l2_ratio"] == pytest.approx(ratio, rel=1e-5)
    assert abs(saelens["l2_ratio"] - ratio) > 1e-3


def test_saelens_divergence_includes_the_last_token_of_a_context(sides: Sides) -> None:
    """Theirs is over all positions, ours over those whose next token is known."""
    ours, saelens = sides
    for name, theirs in (("kl_sae", "kl_div_with_sae"), ("kl_zero", "kl_div_with_ablation")):
        assert ours[name] == pytest.approx(saelens[f"{theirs}_where_predicted"], rel=2e-5)
        assert abs(ours[name] / saelens[theirs] - 1) > 1e-4


def test_saelens_older_explained_variance_is_not_ours(sides: Sides) -> None:
    """A mean of per-token ratios, about the mean of each batch."""
    ours, saelens = sides
    assert abs(ours["explained_variance"] - saelens["explained_variance_legacy"]) > 1e-3
