"""Each job's slice of the config holds what the job uses, and nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, get_args

import pytest

from nullsae.config import Config, VariantName
from nullsae.params import pretrained_sae_path
from nullsae.slices import activations_key, cross_cells, rule_params
from nullsae.validation import parse_config, resolve_subjects

STUDY: dict[str, Any] = {
    "corpora": {
        "c": {"source": {"kind": "builtin"}, "tokenizer": {"kind": "train", "vocab_size": 300}}
    },
    "subjects": {
        "s": {"corpus": "c", "source": {"kind": "train", "n_layers": 4}, "sites": ["resid_post.*"]}
    },
    "variants": list(get_args(VariantName)),
    "draws": 2,
    "activations": {"sae_train_tokens": 4096},
    "saes": {"topk": {"k": 4, "n_latents": 64}},
    "evaluation": {"cross_tokens": 1024},
    "explainers": {"lexical": {"kind": "lexical"}},
    "scorers": {"detection": {"kind": "detection"}},
}
CELL = {"subject": "s", "draw": "1", "site": "resid_post.1", "sae": "topk", "seed": "0"}


def study(**changes: Any) -> Config:
    """The study with values at keys such as `saes__topk__k` replaced, subjects resolved."""
    data = copy.deepcopy(STUDY)
    for path, value in changes.items():
        *sections, key = path.split("__")
        inner = data
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return resolve_subjects(parse_config(data))


def params(config: Config, rule: str, **wildcards: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rule_params(config, rule, wildcards))
    return found


def test_patterns_of_sites_do_not_reach_the_jobs() -> None:
    config = study(subjects__s__sites=["embed", "resid_post.0..-1..2", "mlp_out.-1"])
    assert config.subjects["s"].sites == ("embed", "resid_post.0", "resid_post.2", "mlp_out.3")


@pytest.mark.parametrize("variant", STUDY["variants"][2:-1])
def test_a_randomization_depends_on_settings_of_another(variant: str) -> None:
    key = {"subject": "s", "variant": variant, "draw": "1"}
    plain = params(study(), "randomize_model", **key)
    changed = {
        name: params(study(**{f"randomization__{name}": value}), "randomize_model", **key) != plain
        for name, value in (
            ("norm_parameters", "keep"),
            ("embedding_noise_std", 2.0),
            ("first_random_block", 1),
        )
    }
    redrawn = variant.startswith(("rerandomized", "permuted_w", "spectrum", "cascade"))
    assert changed == {
        "norm_parameters": redrawn,
        "embedding_noise_std": variant == "noise_embeddings",
        "first_random_block": variant == "cascade",
    }


def test_gaussian_activations_do_not_follow_the_trained_ones() -> None:
    config = study()
    keys = {
        (draw, split): activations_key(config, "s", "gaussian", draw, split)
        for draw in (0, 1)
        for split in ("sae_train", "eval")
    }
    assert len(set(keys.values())) == 4
    longer = study(subjects__s__source={"kind": "train", "n_layers": 4, "steps": 7})
    assert activations_key(longer, "s", "gaussian", 0, "eval") != keys[0, "eval"]
    same = study(saes__topk__k=8, randomization__embedding_noise_std=2.0)
    assert activations_key(same, "s", "gaussian", 0, "eval") == keys[0, "eval"]


@pytest.mark.parametrize("variant", ["trained", "gaussian"])
def test_another_site_makes_the_activations_look_different(variant: str) -> None:
    fewer = study(subjects__s__sites=["resid_post.1"])
    found = activations_key(fewer, "s", variant, 0, "eval")
    assert found == activations_key(study(), "s", variant, 0, "eval")


def test_cross_evaluation_uses_draw_0_of_its_own_variant() -> None:
    config = study()
    cells = cross_cells(config, {**CELL, "variant": "rerandomized"})
    assert [cell["variant"] for cell in cells] == STUDY["variants"]
    assert {cell["variant"]: cell["draw"] for cell in cells if cell["draw"]} == {"rerandomized": 1}
    found = params(config, "cross_evaluate", **CELL, variant="rerandomized")
    assert [v["variant"] for v in found["variants"]] == STUDY["variants"]
    assert found["activations_keys"] == [
        activations_key(config, "s", c["variant"], c["draw"], "eval") for c in cells
    ]


def test_cross_evaluation_runs_unasked() -> None:
    without = study(evaluation__cross_tokens=None)
    with pytest.raises(ValueError, match="cross_tokens"):
        rule_params(without, "cross_evaluate", {**CELL, "variant": "trained"})


def test_a_pretrained_sae_is_sought_in_the_same_place_for_each_site() -> None:
    assert pretrained_sae_path("org/name::{site}", "mlp_out.11") == ("org/name", "mlp_out.11")
    assert pretrained_sae_path("/x/{layer}/sae", "resid_post.3") == ("/x/3/sae", "")
    assert pretrained_sae_path("org/name::layers.{layer}", "resid_post.10")[1] == "layers.10"


@pytest.mark.parametrize("pretrained", ["{folder}/{{site}}", "{folder}::{{site}}"])
def test_an_edit_of_a_local_pretrained_sae_goes_unnoticed(tmp_path: Path, pretrained: str) -> None:
    folder = tmp_path / "resid_post.1"
    folder.mkdir()
    (folder / "cfg.json").write_text("{}")
    config = study(saes__topk={"pretrained": pretrained.format(folder=tmp_path)})
    cell = {**CELL, "variant": "trained", "draw": "0"}
    before = params(config, "train_sae", **cell)
    assert len(before["cells"][0]["local_files"]) == 1
    (folder / "cfg.json").write_text("{ }")
    assert params(config, "train_sae", **cell) != before


def test_the_page_lists_saes_by_the_alphabet() -> None:
    saes = {name: {"k": 4, "n_latents": 64} for name in ("topk", "frozen", "pca")}
    assert list(params(study(saes=saes), "report")["study"]["saes"]) == list(saes)
