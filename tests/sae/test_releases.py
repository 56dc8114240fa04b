"""SAEs by release and id: read through `sae_lens`, with its codes and its reconstructions."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import nullsae

pytestmark = pytest.mark.slow
PEERS = Path(__file__).parents[2] / ".venv-peers"
# Sizes of billions of parameters stand in these loaders' code, so that no small file fits them;
# no release of the list names `sparsify`, whose folders are read without `sae_lens`.
NOT_EXERCISED = {"deepseek_r1", "goodfire", "qwen_scope", "sparsify"}
SAES = (
    *("sae_lens", "sae_lens-centred", "sae_lens-factor", "sae_lens-norm"),
    *("connor_rob_hook_z", "gemma_2", "gemma_3", "gemma_3-attention"),
    *("llama_scope", "llama_scope_r1_distill"),
    "dictionary_learning_1-AutoEncoder",
    "dictionary_learning_1-AutoEncoderTopK",
    "dictionary_learning_1-BatchTopKSAE",
    "dictionary_learning_1-GatedAutoEncoder",
    "dictionary_learning_1-JumpReluAutoEncoder",
    "dictionary_learning_1-MatryoshkaBatchTopKSAE",
)
WHERE = "config: saes.theirs.pretrained"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder after `releases_side.py` ran."""
    if not (PEERS / "installed").is_file():
        pytest.skip("SAELens is not installed: make .venv-peers/installed")
    folder = tmp_path_factory.mktemp("releases")
    found = subprocess.run(
        [PEERS / "bin" / "python", Path(__file__).with_name("releases_side.py"), folder],
        capture_output=True,
        text=True,
        check=False,
        env={
            **{name: v for name, v in os.environ.items() if name != "HF_HUB_OFFLINE"},
            "HF_HOME": str(folder / "hub"),
            "PYTHONPATH": str(Path(nullsae.__file__).parents[1]),
            "WANDB_MODE": "disabled",
            "OMP_NUM_THREADS": "1",
        },
    )
    assert found.returncode == 0, found.stderr
    return folder


@pytest.fixture(scope="module")
def said(both: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((both / "said.json").read_text())
    return found


@pytest.mark.parametrize("name", SAES)
def test_an_sae_of_a_release_does_here_what_it_does_in_saelens(both: Path, name: str) -> None:
    found = load_file(both / "results.safetensors")
    codes, reconstruction = (
        (found[f"{name}/theirs/{part}"], found[f"{name}/ours/{part}"])
        for part in ("codes", "reconstruction")
    )
    assert 0 < (codes[0] > 0).sum(dim=1).float().mean() < codes[0].shape[1] * 0.8
    torch.testing.assert_close(codes[1], codes[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(reconstruction[1], reconstruction[0], atol=1e-5, rtol=1e-5)


def test_every_loader_that_the_list_names_is_exercised_refused_or_excused(
    said: dict[str, Any],
) -> None:
    exercised = {name.partition("-")[0] for name in SAES}
    refused = {name for name in said["refused"] if name in said["loaders"]}
    assert set(said["named"]) <= set(said["loaders"])
    assert exercised | refused | NOT_EXERCISED == set(said["loaders"])
    assert not NOT_EXERCISED & (exercised | refused)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sae_lens-centred", {
            "model": "gpt2-small", "hook": "blocks.2.hook_resid_pre", "context_tokens": 128,
            "prepend_bos": True, "weight_processing": {"center_writing_weights": True},
        }),
        ("gemma_3-attention", {
            "model": "google/gemma-3-270m", "hook": "blocks.12.attn.hook_z",
            "context_tokens": 1024, "data_set": "monology/pile-uncopyrighted",
        }),
        ("dictionary_learning_1-AutoEncoderTopK", {
            "model": "pythia-70m-deduped", "hook": "blocks.3.hook_resid_post",
            "context_tokens": 128,
        }),
    ],
)  # fmt: skip
def test_what_an_sae_was_made_on_is_taken_from_its_files_and_the_list(
    said: dict[str, Any], name: str, expected: dict[str, Any]
) -> None:
    found = said["made_on"][name]
    assert {key: found[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("gemma_2_transcoder", "is a transcoder; only SAEs are supported"),
        ("mwhanna_transcoder", "is a transcoder; only SAEs are supported"),
        ("mntss_clt_layer_transcoder", "is one layer of a cross-layer transcoder"),
        ("temporal", "is a temporal SAE"),
        ("gemma_3", "is a transcoder; only SAEs are supported"),
        ("misspelt", "is not a release of SAELens; did you mean 'gpt2-small-res-jb'?"),
        ("unknown", "is not one of the 13 SAEs of gpt2-small-res-jb; did you mean"),
        ("repository", "is the repository of the release gpt2-small-res-jb: give that name"),
        ("not_there", "sae_lens cannot load it: "),
        ("corrected", "whose list says more than the files (model_from_pretrained_kwargs)"),
    ],
)
def test_what_cannot_be_had_of_a_release_is_refused_in_one_line(
    said: dict[str, Any], name: str, says: str
) -> None:
    text = said["refused"][name]
    assert text.startswith(WHERE)
    assert says in text
    assert "\n" not in text
