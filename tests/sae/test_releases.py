"""SAEs by release and id: read through `sae_lens`, with its codes and its reconstructions."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import nullsae
from peers import need_peers, run_with_peers

pytestmark = pytest.mark.slow
SAES = (
    *("sae_lens", "sae_lens-centred", "sae_lens-factor", "sae_lens-norm"),
    *("connor_rob_hook_z", "gemma_2", "gemma_3", "gemma_3-attention"),
    *("gemma_3-transcoder-all", "gemma_3-transcoder-affine", "mwhanna_transcoder"),
    *("llama_scope", "llama_scope_r1_distill", "deepseek_r1", "goodfire", "qwen_scope"),
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
    """Return a folder after a run of `releases_side.py`."""
    need_peers("SAELens")
    folder = tmp_path_factory.mktemp("releases")
    run_with_peers(
        *(Path(__file__).with_name("releases_side.py"), folder),
        HF_HOME=str(folder / "hub"),
        HF_HUB_OFFLINE="0",
        PYTHONPATH=str(Path(nullsae.__file__).parents[1]),
    )
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


def test_the_page_says_of_every_loader_what_becomes_of_it(said: dict[str, Any]) -> None:
    page = (Path(__file__).parents[2] / "docs/published_saes.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \| (exercised|refused|not exercised)", page, re.MULTILINE))
    exercised = {name.partition("-")[0] for name in SAES}
    refused = {name for name in said["refused"] if name in said["loaders"]}
    expected = dict.fromkeys(said["loaders"], "not exercised")
    expected |= dict.fromkeys(exercised, "exercised") | dict.fromkeys(refused, "refused")
    assert not exercised & refused
    assert set(said["named"]) <= exercised | refused
    assert rows == expected


@pytest.mark.parametrize(
    ("name", "layer"),
    [("gemma_3-transcoder-all", 0), ("gemma_3-transcoder-affine", 15), ("mwhanna_transcoder", 7)],
)
def test_a_transcoder_of_a_release_goes_from_what_the_mlp_reads_to_what_it_adds(
    said: dict[str, Any], name: str, layer: int
) -> None:
    found = said["made_on"][name]
    assert (found["site"], found["writes"]) == (f"mlp_in.{layer}", f"mlp_out.{layer}")


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
        # Its loader gives the batch size as the context's, and a BOS that no file records.
        ("mwhanna_transcoder", {
            "model": "qwen3-4b", "context_tokens": None, "prepend_bos": None,
        }),
        ("qwen_scope", {"model": "Qwen/Qwen3-1.7B-Base", "hook": "blocks.3.hook_resid_post"}),
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
        ("gemma_2_transcoder", "without the gain of its norm (ln2.hook_normalized), which is no"),
        ("mntss_clt_layer_transcoder", "is one layer of a cross-layer transcoder"),
        ("temporal", "is a temporal SAE"),
        ("misspelt", "is not a release of SAELens; did you mean 'gpt2-small-res-jb'?"),
        ("unknown", "is not one of the 13 SAEs of gpt2-small-res-jb; did you mean"),
        ("repository", "is the repository of the release gpt2-small-res-jb; give that name"),
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
