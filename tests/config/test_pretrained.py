"""What an SAE was made on is compared with the study when a config is parsed."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nullsae.config.check_pretrained import check_pretrained
from nullsae.config.hooks import hook_name, module_name, same_place, site_of_hook
from nullsae.config.made_on import MadeOn, hub_id, model_name
from nullsae.config.parse import parse_config, resolve_subjects
from nullsae.config.sites import KINDS
from nullsae.core.errors import UserError
from refusing import refused

D, WIDTH = 64, 16
STUDY: dict[str, Any] = {
    "corpora": {
        "text": {
            "source": {"kind": "hub", "path": "someone/text"},
            "tokenizer": {"kind": "pretrained", "path": "EleutherAI/pythia-14m"},
            "prepend_bos": False,
            "context_tokens": 64,
            "sae_train_tokens": 10_000,
            "eval_tokens": 1_000,
        }
    },
    "subjects": {
        "small": {
            "corpus": "text",
            "source": {"kind": "pretrained", "path": "EleutherAI/pythia-14m"},
            "sites": ["resid_post.1"],
        }
    },
    "variants": ["trained"],
    "activations": {"sae_train_tokens": 5_000},
    "explainers": {},
    "scorers": {},
}
FITS = {
    "model_name": "pythia-14m",
    "hook_name": "blocks.1.hook_resid_post",
    "context_size": 64,
    "prepend_bos": False,
    "dataset_path": "someone/text",
}


def check(pretrained: Any, site: str = "resid_post.1", **keys: Any) -> None:
    study = copy.deepcopy(STUDY)
    study["subjects"]["small"]["sites"] = [site]
    study["saes"] = {"theirs": {"pretrained": pretrained, **keys}}
    check_pretrained(resolve_subjects(parse_config(study)))


def saelens(folder: Path, width: int = 128, **metadata: Any) -> str:
    """Write a folder in SAELens' layout, without valid weights, which are not read yet."""
    config = {
        "architecture": "standard",
        "d_in": width,
        "d_sae": WIDTH,
        "apply_b_dec_to_input": True,
        "metadata": FITS | metadata,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({"W_enc": torch.zeros(1)}, folder / "sae_weights.safetensors")
    return str(folder)


def refusal(*given: Any, **keys: Any) -> str:
    return refused(check, *given, **keys)


def test_an_sae_that_was_made_on_what_it_is_given_passes(tmp_path: Path) -> None:
    check(saelens(tmp_path))


@pytest.mark.parametrize(
    ("name", "metadata", "says"),
    [
        ("model", {"model_name": "pythia-70m"},
         "it was made on pythia-70m, but subjects.small.source.path is EleutherAI/pythia-14m"),
        ("revision", {"model_from_pretrained_kwargs": {"revision": "step3000"}},
         "it was made on step3000, but subjects.small.revision is main"),
        ("hook", {"hook_name": "blocks.2.hook_resid_post"},
         "it was made at blocks.2.hook_resid_post (resid_post.2 here), but is used at "
         "resid_post.1"),
        ("context_tokens", {"context_size": 128},
         "it was made on 128, but corpora.text.context_tokens is 64"),
        ("prepend_bos", {"prepend_bos": True},
         "it was made on contexts with BOS, but corpora.text.prepend_bos is false"),
        ("data_set", {"dataset_path": "someone/else"},
         "it was made on someone/else, but corpora.text.source.path is someone/text"),
    ],
)  # fmt: skip
def test_each_difference_stops_in_one_line_until_it_is_accepted(
    tmp_path: Path, name: str, metadata: dict[str, Any], says: str
) -> None:
    folder = saelens(tmp_path, **metadata)
    text = refusal(folder)
    assert text == (
        f"config: saes.theirs.pretrained: {says}; give what it was made on, or add {name} to "
        f"saes.theirs.accept_differences"
    )
    check(folder, accept_differences=[name])


def test_the_input_of_a_block_is_the_output_of_the_one_before(tmp_path: Path) -> None:
    check(saelens(tmp_path, hook_name="blocks.2.hook_resid_pre"))
    check(saelens(tmp_path, hook_name="blocks.0.hook_resid_post"), "resid_pre.1")


def test_a_missing_sae_is_refused_when_the_config_is_parsed(tmp_path: Path) -> None:
    missing = str(tmp_path / "no")
    assert f"{missing!r} is not a folder" in refusal(missing)
    (tmp_path / "empty").mkdir()
    assert "is empty; an SAE has" in refusal(str(tmp_path / "empty"))


def test_an_sae_of_another_width_is_refused_when_the_config_is_parsed(tmp_path: Path) -> None:
    study = copy.deepcopy(STUDY)
    study["subjects"]["small"]["source"] = {"kind": "train", "d_model": D}
    study["saes"] = {"theirs": {"pretrained": saelens(tmp_path, width=32)}}
    said = refused(check_pretrained, resolve_subjects(parse_config(study)))
    assert said == (
        "config: saes.theirs.pretrained: an SAE for 32 dimensions, but resid_post.1 of small has 64"
    )


@pytest.mark.parametrize("inside", ["layers.1", "layers.1/seed3"])
def test_sparsifys_folder_and_run_say_what_an_sae_was_made_on(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / inside
    folder.mkdir(parents=True)
    config = {"d_in": 128, "k": 2, "expansion_factor": 2}
    (folder / "cfg.json").write_text(json.dumps(config))
    save_file({"b_dec": torch.zeros(1)}, folder / "sae.safetensors")
    run = {"model": "EleutherAI/pythia-14m", "dataset": "someone/text", "ctx_len": 64}
    (tmp_path / "config.json").write_text(json.dumps(run))
    check(f"{tmp_path}::{inside.replace('1', '{layer}')}")
    assert "it was made at layers.1 (resid_post.1 here), but is used at mlp_out.1" in refusal(
        str(folder), "mlp_out.1"
    )
    (tmp_path / "config.json").write_text(json.dumps({**run, "model": "EleutherAI/pythia-31m"}))
    assert "it was made on EleutherAI/pythia-31m" in refusal(str(folder))


@pytest.mark.skipif("sae_lens" in sys.modules, reason="sae_lens is there")
def test_a_release_needs_sae_lens_and_says_how_to_get_it() -> None:
    release = {"release": "gpt2-small-res-jb", "sae_id": "blocks.{layer}.hook_resid_pre"}
    assert refusal({"saelens": release}) == (
        "config: saes.theirs.pretrained.saelens: sae_lens is not installed here "
        "(pip install 'nullsae[saelens]')"
    )


@pytest.mark.parametrize(
    ("pretrained", "says"),
    [
        ({"saelens": {"release": "x", "sae_ids": "y"}}, "pretrained.saelens.sae_ids: unknown key"),
        ({"saelens": {"release": "x"}}, "pretrained.saelens.sae_id: missing"),
        ({"saelen": {}}, "pretrained.saelen: unknown key; did you mean 'saelens'?"),
    ],
)
def test_a_mistake_in_a_release_names_its_key(pretrained: Any, says: str) -> None:
    with pytest.raises(UserError) as caught:
        check(pretrained)
    assert f"config: saes.theirs.{says}" in str(caught.value)


def test_differences_are_accepted_of_pretrained_saes_alone() -> None:
    with pytest.raises(UserError, match="accept_differences: only for an SAE with pretrained"):
        check(None, n_latents=64, accept_differences=["model"])


@pytest.mark.parametrize(
    ("hook", "site"),
    [
        ("blocks.10.hook_resid_post", "resid_post.10"),
        ("blocks.3.attn.hook_z", "hook_z.3"),
        ("hook_embed", "embed"),
        ("gpt_neox.layers.3", "resid_post.3"),
        # Names of NNsight and of TransformerBridge.
        ("model.layers[3].output[0]", "resid_post.3"),
        (".transformer.h[3].mlp.inputs[0][0]", "mlp_in.3"),
        ("blocks.3.hook_out", "resid_post.3"),
        ("blocks.3.ln2.hook_in", "resid_mid.3"),
        ("blocks.3.mlp.out.hook_in", "mlp_post.3"),
        ("model.layers.3.self_attn.o_proj", "attn_out.3"),
        ("model.layers.3.mlp.down_proj.output", "mlp_out.3"),
        ("model.layers.3.pre_feedforward_layernorm.output", "mlp_in.3"),
        ("model.layers.12.output", "resid_post.12"),
        ("model.layers.12.self_attn.o_proj.input", "hook_z.12"),
        ("model.layers.12.post_feedforward_layernorm.output", "mlp_out.12"),
        ("transformer.h.0.mlp", "mlp_out.0"),
        ("layers.5.attention", "attn_out.5"),
        ("layers.1", "resid_post.1"),
        ("embed_tokens", "embed"),
        ("resid_pre.2", "resid_pre.2"),
        # Outputs of norms, and attention patterns, are not sites.
        ("model.layers.12.post_attention_layernorm.output", None),
        ("blocks.3.attn.hook_pattern", None),
        ("blocks.3.hook_mlp_in", None),
        ("anything", None),
    ],
)
def test_a_name_of_another_package_means_a_site_or_none(hook: str, site: str | None) -> None:
    assert site_of_hook(hook) == site


@pytest.mark.parametrize("kind", KINDS)
def test_our_names_of_hooks_and_modules_mean_their_own_site(kind: str) -> None:
    site = f"{kind}.2"
    assert site_of_hook(hook_name(site)) == site
    for model_type in ("gpt2", "gpt_neox", "llama", "gemma2", "opt", "unheard_of"):
        module = module_name(site, model_type)
        assert module is None or site_of_hook(module) == site
    assert not same_place(site, f"{kind}.3")


def test_a_config_with_pretrained_saes_loads_no_torch() -> None:
    code = (
        "import sys; from nullsae.config.check_pretrained import check_pretrained; "
        "from nullsae.config.layouts import LAYOUTS; list(LAYOUTS); "
        "assert not {'torch', 'sae_lens', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_transcoder_is_known_as_such_when_a_config_is_parsed(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    saelens(folder, hook_name="blocks.1.mlp.hook_in", hook_name_out="blocks.1.hook_mlp_out")
    file = folder / "cfg.json"
    own = {"architecture": "transcoder", "apply_b_dec_to_input": False, "d_out": 128}
    file.write_text(json.dumps(json.loads(file.read_text()) | own))
    check(str(folder), "mlp_in.1", input_site="mlp_in", output_site="mlp_out")
    for keys in ({}, {"input_site": "mlp_in", "output_site": "resid_post"}):
        said = f"mlp_out.1, but the recipe says {keys.get('output_site', 'mlp_in')}.1 at mlp_in.1"
        with pytest.raises(UserError, match=rf"saes\.theirs\.output_site: .* writes {said}"):
            check(str(folder), "mlp_in.1", **keys)
    sae = saelens(tmp_path / "sae", hook_name="blocks.1.mlp.hook_in")
    with pytest.raises(UserError, match=r"sae writes mlp_in\.1, but the recipe says mlp_out\.1"):
        check(sae, "mlp_in.1", input_site="mlp_in", output_site="mlp_out")


@pytest.mark.parametrize(
    ("hook", "processing", "says"),
    [
        ("hook_resid_post", {"fold_ln": True, "fold_value_biases": True}, None),
        ("mlp.hook_in", {"fold_value_biases": True}, None),
        ("mlp.hook_in", {"fold_ln": True}, "fold_ln is True: models with weights changed"),
        ("attn.hook_z", {"fold_ln": True}, None),
        ("attn.hook_z", {"fold_value_biases": True}, "fold_value_biases is True: models with"),
        ("hook_resid_post", {"refactor_factored_attn_matrices": True}, "matrices is True: models"),
        ("hook_resid_post", "no", "model_from_pretrained_kwargs: 'no' is not an object"),
    ],
)
def test_what_was_done_to_weights_is_refused_where_it_moves_activations(
    tmp_path: Path, hook: str, processing: Any, says: str | None
) -> None:
    hook = f"blocks.1.{hook}"
    given = saelens(tmp_path / "x", hook_name=hook, model_from_pretrained_kwargs=processing)
    site = str(site_of_hook(hook))
    if says is None:
        check(given, site)
        return
    with pytest.raises(UserError, match=says):
        check(given, site)


@pytest.mark.parametrize(
    ("hook", "centred"),
    [("hook_resid_post", True), ("hook_mlp_out", True), ("mlp.hook_in", False),
     ("mlp.hook_post", False), ("attn.hook_z", False)],
)  # fmt: skip
def test_centred_weights_write_without_a_mean_and_norms_hide_it(hook: str, centred: bool) -> None:
    made_on = MadeOn(hook=f"blocks.1.{hook}", weight_processing={"center_writing_weights": True})
    assert made_on.centred is centred


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("gpt2-small", "gpt2"),
        ("gemma-2-2b", "google/gemma-2-2b"),
        ("pythia-70m-deduped", "EleutherAI/pythia-70m-deduped"),
        ("qwen3-1.7b", "Qwen/Qwen3-1.7B"),
        ("mistral-7b", "mistralai/Mistral-7B-v0.1"),
        ("google/gemma-3-270m", "google/gemma-3-270m"),
        ("./models/own", "./models/own"),
    ],
)
def test_transformer_lens_names_of_models_are_hub_ids(model: str, expected: str) -> None:
    assert hub_id(model) == expected
    assert model_name(model) == model_name(expected)
