"""Folders of dictionary_learning, compared with `encode` and `decode` of its classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nullsae.core.errors import UserError
from nullsae.core.randomness import torch_generator
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.exchange.pretrained import read_with_origin
from peers import need_peers, run_with_peers
from refusing import refused

D, WIDTH, K = 12, 40, 5
LINEAR = {"encoder.weight": (WIDTH, D), "encoder.bias": (WIDTH,), "decoder.weight": (D, WIDTH)}
PLAIN = {"W_enc": (D, WIDTH), "b_enc": (WIDTH,), "W_dec": (WIDTH, D), "b_dec": (D,)}
VECTOR = (WIDTH,)
GATE = {"r_mag": VECTOR, "gate_bias": VECTOR, "mag_bias": VECTOR}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "AutoEncoder": {**LINEAR, "bias": (D,)},
    "AutoEncoderNew": {**LINEAR, "decoder.bias": (D,)},
    "AutoEncoderTopK": {**LINEAR, "b_dec": (D,), "threshold": ()},
    "BatchTopKSAE": {**LINEAR, "b_dec": (D,), "threshold": ()},
    "GatedAutoEncoder": {
        **{name: LINEAR[name] for name in ("encoder.weight", "decoder.weight")},
        **GATE,
        "decoder_bias": (D,),
    },
    "JumpReluAutoEncoder": {**PLAIN, "threshold": VECTOR},
    "MatryoshkaBatchTopKSAE": {**PLAIN, "threshold": ()},
}


def tensors(dict_class: str) -> dict[str, Tensor]:
    g = torch_generator(0, "dictionary_learning", dict_class)
    found = {n: torch.randn(shape, generator=g) * 0.4 for n, shape in SHAPES[dict_class].items()}
    return {n: t.abs() * 0.5 if n == "threshold" else t for n, t in found.items()}


def write(
    folder: Path, kind: str, suffix: str = "pt", buffer: Any = None, **trainer: Any
) -> dict[str, Tensor]:
    found = tensors(kind)
    folder.mkdir(parents=True, exist_ok=True)
    given = {"dict_class": kind, "activation_dim": D, "dict_size": WIDTH, "layer": 3}
    given |= {"lm_name": "someone/model", "steps": 10, "k": K}
    own = {"ctx_len": 128, "io": "out", "device": "cuda", **(buffer or {})}
    config = {"trainer": {**given, **trainer}, "buffer": own}
    (folder / "config.json").write_text(json.dumps(config))
    saved = found | ({"k": torch.tensor(K)} if "TopK" in kind else {})
    if suffix == "pt":
        torch.save(saved, folder / "ae.pt")
    else:
        save_file(saved, folder / "ae.safetensors")
    return found


def reference(dict_class: str, t: dict[str, Tensor], x: np.ndarray) -> tuple[Any, Any]:
    """Compute codes and reconstructions by each class' own formula, in float64."""
    n = {name: tensor.double().numpy() for name, tensor in t.items()}
    w_enc = n["W_enc"] if "W_enc" in n else n["encoder.weight"].T
    w_dec = n["W_dec"] if "W_dec" in n else n["decoder.weight"].T
    of_decoder = next(n[b] for b in ("bias", "decoder.bias", "b_dec", "decoder_bias") if b in n)
    uncentred = dict_class in ("AutoEncoderNew", "JumpReluAutoEncoder")
    u = (x if uncentred else x - of_decoder) @ w_enc
    if dict_class == "GatedAutoEncoder":
        magnitude = np.maximum(np.exp(n["r_mag"]) * u + n["mag_bias"], 0)
        codes = magnitude * (u + n["gate_bias"] > 0)
        return codes, codes @ w_dec + of_decoder
    pre = u + (n["b_enc"] if "b_enc" in n else n["encoder.bias"])
    codes = np.maximum(pre, 0)
    if dict_class == "AutoEncoder":
        # Its loader gives decoder rows unit norm.
        norm = np.linalg.norm(w_dec, axis=1)
        return codes * norm, codes @ w_dec + of_decoder
    if dict_class == "AutoEncoderTopK":
        codes = codes * (codes >= np.sort(codes, axis=1)[:, -K][:, None])
    elif "threshold" in n:
        codes = codes * (pre > n["threshold"])
    return codes, codes @ w_dec + of_decoder


def inputs() -> Tensor:
    return torch.randn(64, D, generator=torch_generator(0, "dictionary_learning_inputs")) + 0.5


def compare(sae: Autoencoder, codes: Any, reconstruction: Any) -> None:
    """Compare our codes and reconstructions of `inputs` with the expected ones."""
    x = inputs()
    values, indices = sae.encode(x)
    found = torch.zeros(len(x), WIDTH).scatter_add(1, indices, values)
    assert 1 < (codes > 0).sum(axis=1).mean() < WIDTH * 0.8
    np.testing.assert_allclose(found.numpy(), codes, atol=1e-5)
    np.testing.assert_allclose(sae.decode(values, indices).numpy(), reconstruction, atol=1e-5)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("dict_class", SHAPES)
def test_a_class_of_dictionary_learning_does_here_what_its_formula_says(
    tmp_path: Path, dict_class: str, suffix: str
) -> None:
    t = write(tmp_path, dict_class, suffix)
    sae, made_on = read_with_origin(str(tmp_path), "resid_post.3", where="config")
    compare(sae, *reference(dict_class, t, inputs().double().numpy()))
    assert (made_on.model, made_on.hook, made_on.context_tokens) == (
        *("someone/model", "blocks.3.hook_resid_post", 128),
    )


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder after a run of `dictionary_learning_side.py`."""
    need_peers("dictionary_learning")
    folder = tmp_path_factory.mktemp("dictionary_learning")
    save_file({"x": inputs()}, folder / "x.safetensors")
    run_with_peers(Path(__file__).with_name("dictionary_learning_side.py"), folder)
    return folder


@pytest.mark.slow
def test_an_sae_of_each_of_their_trainers_does_here_what_it_does_there(theirs: Path) -> None:
    there = load_file(theirs / "results.safetensors")
    made = [file.parent for file in theirs.glob("*/config.json")]
    assert len(made) == 9
    for folder in made:
        sae, made_on = read_with_origin(str(folder), "resid_post.3", where="config")
        parts = (there[f"{folder.name}/{part}"].numpy() for part in ("codes", "reconstruction"))
        compare(sae, *parts)
        assert (made_on.hook, made_on.context_tokens) == ("blocks.3.hook_resid_post", 128)


@pytest.mark.parametrize(
    ("submodule", "hook"),
    [("layers.7.mlp", "layers.7.mlp.input"), ("resid_post_layer_7", None), (None, None)],
)
def test_what_reads_a_modules_input_is_not_taken_for_what_reads_its_output(
    tmp_path: Path, submodule: str | None, hook: str | None
) -> None:
    write(tmp_path, "AutoEncoder", submodule_name=submodule, buffer={"io": "in"})
    assert read_with_origin(str(tmp_path), None, where="config").made_on.hook == hook


def test_a_transcoder_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "AutoEncoder", buffer={"io": "in_and_out"})
    with pytest.raises(UserError, match=r"config\.json: buffer\.io is 'in_and_out', but transcod"):
        read_with_origin(str(tmp_path), None, where="config")


@pytest.mark.parametrize(
    ("submodule", "hook"),
    [
        ("mlp_out_layer_7", "blocks.7.hook_mlp_out"),
        ("model.layers.7.mlp", "model.layers.7.mlp"),
        (None, "blocks.3.hook_resid_post"),
    ],
)
def test_a_submodule_names_the_site(tmp_path: Path, submodule: str | None, hook: str) -> None:
    write(tmp_path, "AutoEncoder", submodule_name=submodule)
    assert read_with_origin(str(tmp_path), None, where="config").made_on.hook == hook


class Runs:
    """Something that a pickle can run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def test_a_pickle_that_holds_more_than_tensors_is_refused_and_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, "AutoEncoder")
    torch.save({"bias": Runs()}, tmp_path / "ae.pt")
    with pytest.raises(UserError, match=r"ae\.pt: not readable as tensors only"):
        read_with_origin(str(tmp_path), None, where="config")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"\x80\x05.", b"", b"PK\x03\x04junk", b"\x80\x02}q."])
def test_a_damaged_pickle_is_one_line(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, "AutoEncoder")
    (tmp_path / "ae.pt").write_bytes(content)
    said = refused(read_with_origin, str(tmp_path), None, where="config")
    assert said.startswith(f"{tmp_path / 'ae.pt'}: not readable as tensors only (")


@pytest.mark.parametrize("section", ["trainer", "buffer"])
def test_a_section_that_has_no_keys_is_named(tmp_path: Path, section: str) -> None:
    write(tmp_path, "AutoEncoder")
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), section: [1]}))
    said = refused(read_with_origin, str(tmp_path), None, where="config")
    assert said == f"{file}: {section}: [1] is not an object with keys"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"dict_class": "CrossCoder"}, "dict_class: 'CrossCoder' is not one of AutoEncoder,"),
        ({"dict_size": None}, "dict_size: missing"),
        ({"k": None}, r"trainer\.k: missing"),
        ({"k": K + 1}, rf"ae\.pt: k is {K}, but trainer\.k in its config is {K + 1}"),
        ({"k": WIDTH + 1}, rf"trainer\.k: {WIDTH + 1} is larger than dict_size {WIDTH}"),
    ],
)
def test_an_unsupported_config_is_refused(tmp_path: Path, keys: dict[str, Any], says: str) -> None:
    write(tmp_path, "AutoEncoderTopK", **keys)
    with pytest.raises(UserError, match=says):
        read_with_origin(str(tmp_path), None, where="config")
