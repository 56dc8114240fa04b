from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from nullsae.config.dictionaries import DICTIONARIES
from nullsae.core.files import checksum
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import load_sae
from refusing import refused
from small_chain import cell, flip_byte, write_sae

WIDTH, D = 10, 4


def written(folder: Path, architecture: str = "topk", **changes: Any) -> tuple[Autoencoder, Path]:
    g = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(WIDTH, D, generator=g), dim=1)
    lookup = architecture == "token_lookup"
    sae = Autoencoder(
        architecture,
        torch.zeros(0, D) if lookup else torch.randn(WIDTH, D, generator=g),
        torch.randn(WIDTH, generator=g),
        rows,
        torch.randn(D, generator=g),
        k=3 if architecture == "topk" else None,
        own={"threshold": torch.rand(WIDTH, generator=g)} if architecture == "jumprelu" else {},
    )
    described = {"input_norm": 2.5, "training": {"k": 3, "lr": 0.1}, "n_steps": 7}
    return sae, write_sae(sae, folder, **{**described, **changes})


def edit_config(config: Path, **changes: Any) -> None:
    data = json.loads(config.read_text())
    for key, value in changes.items():
        if value is None:
            del data[key]
        else:
            data[key] = value
    config.write_text(json.dumps(data))


def edit_weights(config: Path, **changes: Tensor | None) -> None:
    """Write other tensors with a matching checksum, so that only the keys are wrong."""
    file = config.with_name("sae.safetensors")
    tensors: dict[str, Tensor] = load_file(file)
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, file)
    edit_config(config, weights_checksum=checksum(file))


def refusal(config: Path) -> str:
    return refused(load_sae, config)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "standard", "token_lookup"])
def test_an_sae_comes_back_as_it_was_saved(tmp_path: Path, architecture: str) -> None:
    sae, config = written(tmp_path, architecture)
    again, described = load_sae(config)
    assert again.parameters().keys() == sae.parameters().keys()
    for name, tensor in sae.parameters().items():
        assert torch.equal(again.parameters()[name], tensor)
        assert again.parameters()[name].dtype == torch.float32
    assert again.architecture == described.architecture == architecture
    assert again.k == described.k == (3 if architecture == "topk" else None)
    assert (described.d_model, described.n_latents, described.n_steps) == (D, WIDTH, 7)
    assert described.keys == cell()
    assert described.training == {"k": 3, "lr": 0.1}


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        written(tmp_path / name)
    for file in ("sae.safetensors", "cfg.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["cfg.json", "sae.safetensors"]


def test_an_unknown_key_of_the_config_is_refused(tmp_path: Path) -> None:
    _, config = written(tmp_path)
    edit_config(config, n_latent=5)
    assert refusal(config) == f"{config}: n_latent: unknown key; did you mean 'n_latents'?"


def test_a_missing_key_of_the_config_is_refused(tmp_path: Path) -> None:
    _, config = written(tmp_path)
    edit_config(config, k=None)
    assert refusal(config) == f"{config}: k: missing"


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    """SAELens used to read BatchTopK SAEs as ReLU ones."""
    _, config = written(tmp_path)
    edit_config(config, architecture="gated")
    assert refusal(config) == (
        f"{config}: architecture: 'gated' is not one of topk, jumprelu, standard, token_lookup, "
        f"groupmax, object"
    )
    edit_config(config, architecture="jumprelu")
    text = f"{config}: k 3 does not fit architecture 'jumprelu' with 10 latents"
    assert refusal(config) == text


def test_a_k_above_the_number_of_latents_is_refused(tmp_path: Path) -> None:
    _, config = written(tmp_path)
    edit_config(config, k=WIDTH + 1)
    assert refusal(config) == f"{config}: k 11 does not fit architecture 'topk' with 10 latents"


def test_a_topk_sae_without_k_is_refused(tmp_path: Path) -> None:
    _, config = written(tmp_path)
    config.write_text(config.read_text().replace('"k": 3,\n "key"', '"k": null,\n "key"'))
    assert refusal(config) == f"{config}: k: null, but a topk SAE needs a number"


def test_a_dictionary_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    for name in (*DICTIONARIES, "pretrained"):
        _, config = written(tmp_path, dictionary=name)
        assert load_sae(config)[1].dictionary == name
    edit_config(config, dictionary="learnt")
    assert refusal(config).startswith(f"{config}: dictionary: 'learnt' is not one of learned,")


def test_an_unknown_tensor_is_refused(tmp_path: Path) -> None:
    _, config = written(tmp_path)
    edit_weights(config, threshold=torch.zeros(WIDTH))
    assert f"threshold is ({WIDTH},), should be None" in refusal(config)


def test_a_jumprelu_sae_without_thresholds_is_refused(tmp_path: Path) -> None:
    _, config = written(tmp_path, "jumprelu")
    edit_weights(config, threshold=None)
    assert f"threshold is None, should be ({WIDTH},)" in refusal(config)


def test_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    _, config = written(tmp_path)
    edit_weights(config, b_dec=None)
    assert f"b_dec is None, should be ({D},)" in refusal(config)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    _, config = written(tmp_path)
    edit_weights(config, W_dec=torch.zeros(D, WIDTH))
    assert f"W_dec is ({D}, {WIDTH}), should be ({WIDTH}, {D})" in refusal(config)


def test_a_flipped_byte_is_noticed(tmp_path: Path) -> None:
    _, config = written(tmp_path)
    file = config.with_name("sae.safetensors")
    flip_byte(file)
    text = refusal(config)
    assert text.startswith(f"{file}: damaged")
    assert "rebuild it with: snakemake" in text


def test_absent_or_unreadable_files_are_refused(tmp_path: Path) -> None:
    _, config = written(tmp_path)
    config.with_name("sae.safetensors").unlink()
    assert refusal(config).startswith(f"{config.with_name('sae.safetensors')}: the file is missing")
    config.unlink()
    assert refusal(config).startswith(f"{config}: the file is missing")
    config.write_text("{")
    assert refusal(config).startswith(f"{config}: not readable as JSON")
