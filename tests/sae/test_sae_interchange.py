from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from nullsae import paths
from nullsae.cli.main import app
from nullsae.core.errors import UserError
from nullsae.core.files import write_json
from nullsae.core.randomness import torch_generator
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.exchange.export import export_sae
from nullsae.sae.exchange.pretrained import read_pretrained, read_with_origin
from nullsae.sae.files import load_sae
from peers import need_peers, run_with_peers
from refusing import refused
from small_chain import cell, codes_of, lookup_sae, write_sae

D, WIDTH, K = 12, 40, 5
WHERE = "config: saes.theirs.pretrained"
THEIRS = (
    *("saelens-topk", "saelens-topk-plain", "saelens-topk-rescaled", "saelens-topk-input"),
    *("saelens-batchtopk", "saelens-batchtopk-plain"),
    *("saelens-jumprelu", "saelens-jumprelu-bfloat16"),
    *("saelens-standard", "saelens-standard-input", "saelens-old-standard", "saelens-old-topk"),
    *("saelens-gated", "saelens-matryoshka", "saelens-factor", "saelens-whitened"),
    *(
        f"saelens-{architecture}-{normalization}-{b_dec}"
        for architecture in ("standard", "gated", "jumprelu", "topk")
        for normalization in ("none", "layer_norm", "constant_norm_rescale")
        for b_dec in ("b_dec", "plain")
    ),
    *("saelens-transcoder", "saelens-skip_transcoder"),
    *("saelens-jumprelu_transcoder", "saelens-jumprelu_skip_transcoder"),
    *("sparsify-factor", "sparsify-width", "sparsify-plain", "sparsify-bfloat16"),
    *("sparsify-groupmax", "sparsify-transcoder/layers.1.mlp"),
    "sparsify-skip_transcoder/layers.1.mlp",
    "sparsify-groupmax_skip_transcoder/layers.1.mlp/seed3",
)
OURS = (
    *("saelens-topk", "saelens-jumprelu", "saelens-standard"),
    *("sparsify-topk", "sparsify-groupmax"),
)


def inputs() -> Tensor:
    return torch.randn(64, D, generator=torch_generator(0, "interchange_inputs")) + 0.5


def our_sae(architecture: str) -> Autoencoder:
    g = torch_generator(0, "interchange_sae", architecture)
    return Autoencoder(
        architecture,
        torch.randn(WIDTH, D, generator=g) * 0.4,
        torch.randn(WIDTH, generator=g) * 0.4,
        F.normalize(torch.randn(WIDTH, D, generator=g), dim=1),
        torch.randn(D, generator=g),
        k=K if architecture in ("topk", "groupmax") else None,
        own={"threshold": torch.rand(WIDTH, generator=g)} if architecture == "jumprelu" else {},
    )


def saved(architecture: str, folder: Path) -> Path:
    """Save one of our SAEs; return its `cfg.json`."""
    return write_sae(our_sae(architecture), folder, input_norm=2.5, n_steps=7)


def dense(sae: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes [tokens, n_latents] and reconstructions."""
    return codes_of(sae, x), sae.decode(*sae.encode(x), x)


def read(folder: Path, site: str = "resid_post.1") -> Autoencoder:
    return read_pretrained(str(folder), site, where=WHERE)


# The packages themselves


@pytest.fixture(scope="session")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder after both sides wrote SAEs and the peers ran them (`peers_side.py`)."""
    need_peers("SAELens and sparsify")
    folder = tmp_path_factory.mktemp("exchange")
    save_file({"x": inputs()}, folder / "x.safetensors")
    for name in OURS:
        layout, _, architecture = name.partition("-")
        config = saved(architecture, folder / architecture)  # type: ignore[arg-type]
        export_sae(config, layout, folder / "ours" / name)
    run_with_peers(Path(__file__).with_name("peers_side.py"), folder)
    return folder


@pytest.mark.slow
def test_every_sae_made_there_is_compared(exchange: Path) -> None:
    theirs = exchange / "theirs"
    made = [str(file.parent.relative_to(theirs)) for file in theirs.rglob("cfg.json")]
    assert sorted(made) == sorted(THEIRS)


@pytest.mark.slow
@pytest.mark.parametrize("name", THEIRS)
def test_their_sae_does_the_same_here(exchange: Path, name: str) -> None:
    there = load_file(exchange / "results.safetensors")
    sae = read_pretrained(f"{exchange}/theirs::{name}", "resid_post.0", where=WHERE)
    codes, reconstruction = dense(sae, inputs())
    expected = there[f"theirs/{name}/codes"]
    assert 1 < (expected > 0).sum(dim=1).float().mean() < WIDTH * 0.8
    torch.testing.assert_close(codes, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        reconstruction, there[f"theirs/{name}/reconstruction"], atol=1e-5, rtol=1e-5
    )
    assert {tensor.dtype for tensor in sae.parameters().values()} == {torch.float32}
    assert sae.writes_at("mlp_in.1") == ("mlp_out.1" if "transcoder" in name else "mlp_in.1")


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_our_sae_does_the_same_there(exchange: Path, name: str) -> None:
    there = load_file(exchange / "results.safetensors")
    codes, reconstruction = dense(our_sae(name.partition("-")[2]), inputs())  # type: ignore[arg-type]
    assert (codes > 0).any(dim=1).all()
    torch.testing.assert_close(there[f"ours/{name}/codes"], codes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        there[f"ours/{name}/reconstruction"], reconstruction, atol=1e-5, rtol=1e-5
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("stage", ["ours", "again"])
def test_no_weight_changes_on_the_way_there_and_back(exchange: Path, name: str, stage: str) -> None:
    original = our_sae(name.partition("-")[2])  # type: ignore[arg-type]
    back = read(exchange / stage / name)
    assert (back.architecture, back.k) == (original.architecture, original.k)
    assert back.parameters().keys() == original.parameters().keys()
    for key, tensor in original.parameters().items():
        assert torch.equal(back.parameters()[key], tensor), key


@pytest.mark.slow
def test_saelens_keeps_where_our_sae_comes_from(exchange: Path) -> None:
    metadata = json.loads((exchange / "again/saelens-topk/cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert metadata["nullsae"]["keys"] == cell().model_dump()
    assert metadata["sae_lens_training_version"] is None
    assert "context_size" not in metadata


@pytest.mark.slow
def test_sparsify_keeps_every_key_of_our_config(exchange: Path) -> None:
    ours, again = (
        json.loads((exchange / stage / "sparsify-topk/cfg.json").read_text())
        for stage in ("ours", "again")
    )
    assert ours == again


# Files written by hand, against formulas


def write_saelens(folder: Path, architecture: str = "topk", **keys: Any) -> dict[str, Tensor]:
    """Write a SAELens folder as its documentation says; `keys` of None are left out."""
    g = torch_generator(0, "interchange_saelens")
    shapes = {"W_enc": (D, WIDTH), "b_enc": (WIDTH,), "W_dec": (WIDTH, D), "b_dec": (D,)}
    if architecture == "jumprelu":
        shapes["threshold"] = (WIDTH,)
    tensors = {name: torch.randn(shape, generator=g) * 0.4 for name, shape in shapes.items()}
    config = {
        "architecture": architecture,
        "d_in": D,
        "d_sae": WIDTH,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"sae_lens_version": "6.0.0", "l0": float("nan")},
        **({"k": K} if architecture == "topk" else {}),
        **keys,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae_weights.safetensors")
    known = {key: value for key, value in config.items() if value is not None}
    (folder / "cfg.json").write_text(json.dumps(known))
    return tensors


def write_sparsify(folder: Path, **keys: Any) -> dict[str, Tensor]:
    """Write a sparsify folder; `keys` of None are left out."""
    g = torch_generator(0, "interchange_sparsify")
    tensors = {
        "encoder.weight": torch.randn(2 * D, D, generator=g),
        "encoder.bias": torch.randn(2 * D, generator=g),
        "W_dec": torch.randn(2 * D, D, generator=g),
        "b_dec": torch.randn(D, generator=g),
    }
    config = {"d_in": D, "k": K, "expansion_factor": 2, "num_latents": 0, **keys}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "sae.safetensors")
    known = {key: value for key, value in config.items() if value is not None}
    (folder / "cfg.json").write_text(json.dumps(known))
    return tensors


@pytest.mark.parametrize(
    ("architecture", "rescaled"),
    [("topk", False), ("topk", True), ("jumprelu", False), ("standard", False)],
)
@pytest.mark.parametrize("applied", [True, False])
def test_what_a_config_says_is_folded_into_the_weights(
    tmp_path: Path, architecture: str, rescaled: bool, applied: bool
) -> None:
    keys = {"rescale_acts_by_decoder_norm": True} if rescaled else {}
    t = write_saelens(tmp_path, architecture, apply_b_dec_to_input=applied, **keys)
    x = inputs().double()
    w_enc, b_enc, w_dec, b_dec = (t[name].double() for name in ("W_enc", "b_enc", "W_dec", "b_dec"))
    norm = w_dec.norm(dim=1) if rescaled else torch.ones(WIDTH, dtype=torch.float64)
    pre = ((x - b_dec * applied) @ w_enc + b_enc) * norm
    expected = pre.relu()
    if architecture == "topk":
        expected = expected * (pre >= pre.sort(dim=1).values[:, -K, None])
    if architecture == "jumprelu":
        expected = expected * (pre > t["threshold"].double())
    codes, reconstruction = dense(read(tmp_path), inputs())
    torch.testing.assert_close(codes.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        reconstruction.double(), (expected / norm) @ w_dec + b_dec, atol=1e-5, rtol=1e-5
    )


def test_a_width_of_0_latents_means_the_expansion_factor(tmp_path: Path) -> None:
    tensors = write_sparsify(tmp_path)
    sae = read(tmp_path)
    assert (sae.n_latents, sae.d_model, sae.k, sae.architecture) == (2 * D, D, K, "topk")
    for name, tensor in tensors.items():
        assert torch.equal(sae.parameters()[name], tensor)


def test_groupmax_keeps_the_largest_of_each_group(tmp_path: Path) -> None:
    t = write_sparsify(tmp_path, activation="groupmax", k=6)
    x = inputs()
    groups = ((x - t["b_dec"]) @ t["encoder.weight"].t() + t["encoder.bias"]).view(-1, 6, 4)
    is_largest = F.one_hot(groups.argmax(dim=2), 4)
    codes, reconstruction = dense(read(tmp_path), x)
    assert (codes == 0).sum(dim=1).max() > 2 * D - 6  # the largest may be below 0
    torch.testing.assert_close(codes, (groups.relu() * is_largest).flatten(1))
    torch.testing.assert_close(reconstruction, codes @ t["W_dec"] + t["b_dec"])


def test_an_sae_of_ours_can_be_read_back(tmp_path: Path) -> None:
    saved("jumprelu", tmp_path / "sae")
    sae = read_pretrained(f"{tmp_path}::sae", "resid_post.1", where=WHERE)
    for name, tensor in our_sae("jumprelu").parameters().items():
        assert torch.equal(sae.parameters()[name], tensor)


def test_the_sae_of_the_sites_layer_is_read(tmp_path: Path) -> None:
    for layer in (1, 10):
        write_sparsify(tmp_path / f"layers.{layer}", k=layer)
    pattern = f"{tmp_path}::layers.{{layer}}"
    assert read_pretrained(pattern, "resid_post.10", where=WHERE).k == 10
    assert read_pretrained(pattern, "resid_post.1", where=WHERE).k == 1


# What is refused


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"k": None}, "k: missing"),
        ({"d_sae": None}, "d_sae: missing"),
        ({"apply_b_dec_to_input": None}, "apply_b_dec_to_input: missing"),
        ({"k": WIDTH + 1}, "k 41 is larger than d_sae 40"),
        ({"architecture": "temporal", "k": None}, "'temporal' is not one of topk, jumprelu"),
        ({"architecture": "standard", "k": K}, "k does not fit standard"),
        ({"d_inn": 3}, "d_inn: unknown key; did you mean 'd_in'?"),
        ({"decoder_init_norm": 0.1}, "save_inference_model"),
        ({"normalize_activations": "expected_average_only_in"}, "'expected_average_only_in'"),
        ({"normalize_activations": "covariance_whitening"}, "is 'covariance_whitening'"),
        ({"reshape_activations": "heads"}, "'heads' is not one of none, hook_z"),
        ({"metadata": {"model_from_pretrained_kwargs": {"refactor_factored_attn_matrices": True}}},
         "model_from_pretrained_kwargs.refactor_factored_attn_matrices is True"),
        ({"metadata": {"hook_head_index": 3}}, "hook_head_index is 3"),
        ({"d_out": 3}, "d_out does not fit topk"),
        ({"metadata": None, "activation_fn_str": "gelu"}, "'gelu' is not one of relu, topk"),
        ({"metadata": None, "normalize_activations": True}, "'expected_average_only_in'"),
        ({"metadata": None, "architecture": "standard", "activation_fn": "topk", "k": None},
         "k: missing"),
    ],
)  # fmt: skip
def test_an_unsupported_saelens_config_is_refused(
    tmp_path: Path, keys: dict[str, Any], says: str
) -> None:
    write_saelens(tmp_path, **keys)
    text = refused(read, tmp_path)
    assert text.startswith(f"{tmp_path / 'cfg.json'}: ")
    assert says in text


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"d_out": None}, "d_out: missing"),
        ({"apply_b_dec_to_input": True}, "apply_b_dec_to_input is true"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"metadata": {}}, "metadata.hook_name_out is None"),
        ({"metadata": {"hook_name_out": "blocks.1.ln2.hook_normalized"}},
         "metadata.hook_name_out is 'blocks.1.ln2.hook_normalized', which is not a site"),
        ({"metadata": {"hook_name_out": "blocks.1.hook_mlp_out", "hook_head_index_out": 2}},
         "metadata.hook_head_index_out is 2"),
        ({"metadata": {"hook_name_out": "blocks.1.hook_mlp_out",
                       "model_from_pretrained_kwargs": {"fold_ln": True}}},
         "model_from_pretrained_kwargs.fold_ln is true"),
    ],
)  # fmt: skip
def test_a_transcoder_of_saelens_that_does_more_than_its_weights_is_refused(
    tmp_path: Path, keys: dict[str, Any], says: str
) -> None:
    plain: dict[str, Any] = {"d_out": D, "apply_b_dec_to_input": False}
    plain["metadata"] = {"hook_name_out": "blocks.1.hook_mlp_out"}
    write_saelens(tmp_path, "transcoder", **{**plain, **keys})
    text = refused(read, tmp_path)
    assert text.startswith(f"{tmp_path / 'cfg.json'}: ")
    assert says in text


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"k": None}, "k: missing"),
        ({"expansion_factor": None}, "expansion_factor: missing"),
        ({"d_in": None}, "not a known format"),
        ({"k": 25}, "k 25 is larger than the number of latents, 24"),
        ({"activation": "relu"}, "activation: 'relu' is not one of topk, groupmax"),
        ({"activation": "groupmax"}, "k 5 does not divide the 24 latents of groupmax"),
        ({"transcode": True}, "so the site it writes is unknown"),
        ({"skip_connection": True}, "skip_connection is true"),
        ({"signed": True}, "signed is true"),
        ({"jump": 1}, "jump: unknown key"),
    ],
)
def test_an_unsupported_sparsify_config_is_refused(
    tmp_path: Path, keys: dict[str, Any], says: str
) -> None:
    write_sparsify(tmp_path, **keys)
    text = refused(read, tmp_path)
    assert text.startswith(f"{tmp_path / 'cfg.json'}: ")
    assert says in text


@pytest.mark.parametrize(
    ("name", "tensor", "says"),
    [
        ("b_dec", None, "b_dec is missing"),
        (
            "W_enc",
            torch.zeros(WIDTH, D),
            f"W_enc is ({WIDTH}, {D}), but the config next to it implies ({D}, {WIDTH})",
        ),
        ("threshold", torch.zeros(WIDTH), "threshold is unknown"),
        ("scaling_factor", torch.full((WIDTH,), 2.0), "scaling_factor is unknown"),
        ("b_enc", torch.zeros(WIDTH, dtype=torch.int8), "b_enc is torch.int8"),
        ("W_dec", torch.full((WIDTH, D), torch.nan), "W_dec contains NaN"),
        ("W_enc", torch.full((D, WIDTH), torch.inf), "W_enc contains NaN or infinite values"),
        # Infinite in float32 only.
        ("b_dec", torch.full((D,), 1e300, dtype=torch.float64), "b_dec contains NaN or infinite"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, tensor: Tensor | None, says: str
) -> None:
    tensors = write_saelens(tmp_path)
    file = tmp_path / "sae_weights.safetensors"
    tensors = {key: value for key, value in {**tensors, name: tensor}.items() if value is not None}
    save_file(tensors, file)
    text = refused(read, tmp_path)
    assert text.startswith(f"{file}: ")
    assert says in text


def test_a_missing_threshold_is_refused(tmp_path: Path) -> None:
    """SAELens has read BatchTopK SAEs as ReLU ones."""
    tensors = write_saelens(tmp_path, "jumprelu")
    del tensors["threshold"]
    save_file(tensors, tmp_path / "sae_weights.safetensors")
    assert "threshold is missing" in refused(read, tmp_path)


def test_a_transcoder_is_refused(tmp_path: Path) -> None:
    tensors = write_sparsify(tmp_path)
    save_file({**tensors, "W_skip": torch.zeros(D, D)}, tmp_path / "sae.safetensors")
    assert "W_skip is unknown" in refused(read, tmp_path)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    write_saelens(tmp_path)
    (tmp_path / "sae_weights.safetensors").write_bytes(b"\0" * 64)
    assert "sae_weights.safetensors: not readable as safetensors" in refused(read, tmp_path)
    (tmp_path / "cfg.json").write_text("{")
    assert "cfg.json: not readable as JSON" in refused(read, tmp_path)
    (tmp_path / "cfg.json").write_text("[]")
    assert "cfg.json: not readable as JSON (not a JSON object)" in refused(read, tmp_path)


def test_a_folder_without_an_sae_is_refused(tmp_path: Path) -> None:
    where = refused(read, tmp_path / "no")
    assert where.startswith(f"{WHERE}: '{tmp_path / 'no'}' is not a folder")
    assert "is empty; an SAE has" in refused(read, tmp_path)
    (tmp_path / "cfg.json").write_text("{}")
    torch.save({}, tmp_path / "weights.pt")
    text = refused(read, tmp_path)
    assert text.startswith(f"{WHERE}: ")
    assert "holds no SAE, only cfg.json, weights.pt; an SAE has cfg.json or " in text
    (tmp_path / "layers.3").mkdir()
    assert f"for a folder in it write {tmp_path}::layers.3" in refused(read, tmp_path)


def test_a_folder_with_two_saes_is_refused(tmp_path: Path) -> None:
    write_saelens(tmp_path)
    assert read(tmp_path).n_latents == WIDTH
    save_file(our_sae("topk").parameters(), tmp_path / "sae.safetensors")
    text = refused(read, tmp_path)
    assert "holds several SAEs, sae_weights.safetensors and sae.safetensors; leave only one" in text


# The hub


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot folder of someone/saes in an empty cache, without a network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    repository = cache / "models--someone--saes"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0123456789abcdef0123456789abcdef01234567")
    snapshot = repository / "snapshots/0123456789abcdef0123456789abcdef01234567"
    snapshot.mkdir(parents=True)
    return snapshot


def test_an_sae_from_the_hub_is_the_one_in_its_folder(hub_cache: Path) -> None:
    for layer in (1, 10):
        write_saelens(hub_cache / f"blocks.{layer}.hook_resid_post", k=layer)
    pattern = "someone/saes::blocks.{layer}.hook_resid_post"
    assert read_pretrained(pattern, "resid_post.10", where=WHERE).k == 10
    text = refused(read_pretrained, pattern, "resid_post.3", where=WHERE)
    assert text == (
        f"{WHERE}: 'someone/saes' on the hub contains no SAE in 'blocks.3.hook_resid_post'"
    )


def test_what_is_not_in_the_cache_is_refused_in_one_line(hub_cache: Path) -> None:
    text = refused(read_pretrained, "someone/others", "embed", where=WHERE)
    assert text.startswith(f"{WHERE}: 'someone/others' could not be fetched from the hub: ")


def test_a_hub_that_cannot_be_reached_is_named(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    text = refused(read_pretrained, "someone/saes", "embed", where=WHERE)
    assert text.startswith(f"{WHERE}: the hub cannot be reached for 'someone/saes'")


# Exporting


@pytest.mark.parametrize(
    ("architecture", "layout", "says"),
    [
        ("groupmax", "saelens", "only topk, jumprelu, standard SAEs, but this is of kind groupmax"),
        ("topk", "npz", "--layout: 'npz' is not one of saelens, sparsify"),
        (
            "jumprelu",
            "sparsify",
            "sparsify supports only topk, groupmax SAEs, but this is of kind jumprelu",
        ),
        (
            "standard",
            "sparsify",
            "sparsify supports only topk, groupmax SAEs, but this is of kind standard",
        ),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(
    tmp_path: Path, architecture: str, layout: str, says: str
) -> None:
    config = saved(architecture, tmp_path / "sae")
    assert says in refused(export_sae, config, layout, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["saelens", "sparsify"])
def test_a_token_lookup_dictionary_is_not_exported(tmp_path: Path, layout: str) -> None:
    g = torch_generator(0, "interchange_lookup")
    lookup = lookup_sae(torch.randn(WIDTH, D, generator=g))
    config = write_sae(lookup, tmp_path, dictionary="token_lookup", n_steps=0)
    text = refused(export_sae, config, layout, tmp_path / "out")
    assert "token_lookup" in text
    assert "no format supports this" in text


def test_an_export_does_not_overwrite_another_sae(tmp_path: Path) -> None:
    config = saved("topk", tmp_path / "sae")
    before = config.read_bytes()
    own, out = config.parent, tmp_path / "out"
    assert "already contains an SAE" in refused(export_sae, config, "sparsify", own)
    assert "already contains an SAE" in refused(export_sae, config, "saelens", own)
    assert config.read_bytes() == before
    export_sae(config, "saelens", out)
    assert "already contains an SAE" in refused(export_sae, config, "sparsify", out)


def test_exporting_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    config = saved("topk", tmp_path / "sae")
    files = []
    for _ in range(2):
        export_sae(config, "saelens", tmp_path / "out")
        files.append({file.name: file.read_bytes() for file in (tmp_path / "out").iterdir()})
    assert files[0] == files[1]
    assert sorted(files[0]) == ["cfg.json", "sae_weights.safetensors"]


@pytest.mark.parametrize(
    ("path", "expected"), [("EleutherAI/pythia-70m", "EleutherAI/pythia-70m"), ("./local", None)]
)
def test_an_exported_sae_names_its_model_if_it_is_on_the_hub(
    tmp_path: Path, path: str, expected: str | None
) -> None:
    keys = cell().model_dump()
    config = saved("topk", tmp_path / Path(paths.SAE_CONFIG.format(**keys)).parent)
    recipe = tmp_path / paths.RECIPE.format(**keys)
    write_json(recipe, {"source": {"kind": "pretrained", "path": path}})
    export_sae(config, "saelens", tmp_path / "out")
    metadata = json.loads((tmp_path / "out/cfg.json").read_text())["metadata"]
    assert metadata.get("model_name") == expected


def test_an_exported_sae_has_both_names_of_its_hook_and_the_tokenizer(tmp_path: Path) -> None:
    keys = cell().model_dump()
    config = saved("topk", tmp_path / Path(paths.SAE_CONFIG.format(**keys)).parent)
    model = tmp_path / paths.MODEL.format(**keys)
    write_json(model / "config.json", {"model_type": "gpt_neox"})
    write_json(model / "tokenizer.json", {"model": {}})
    export_sae(config, "saelens", tmp_path / "out")
    metadata = json.loads((tmp_path / "out/cfg.json").read_text())["metadata"]
    assert metadata["hook_name"] == "blocks.1.hook_resid_post"
    assert metadata["hf_hook_name"] == "gpt_neox.layers.1"
    copied = (tmp_path / "out/tokenizer.json").read_bytes()
    assert copied == (model / "tokenizer.json").read_bytes()
    # Read back, it is at its own site.
    made_on = read_with_origin(str(tmp_path / "out"), None, where=WHERE).made_on
    assert made_on.hook == "blocks.1.hook_resid_post"


@pytest.mark.parametrize("normalization", ["centre", "layer_norm", "constant_norm_rescale"])
def test_a_normalization_survives_our_files_and_an_export(
    tmp_path: Path, normalization: str
) -> None:
    sae = replace(our_sae("topk"), normalization=normalization)
    config = write_sae(sae, tmp_path / "sae", dictionary="pretrained")
    export_sae(config, "saelens", tmp_path / "out")
    codes, reconstruction = dense(sae, inputs())
    for again in (load_sae(config)[0], read(tmp_path / "out")):
        assert again.normalization == normalization
        there = dense(again, inputs())
        torch.testing.assert_close(there[0], codes, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(there[1], reconstruction, atol=1e-6, rtol=1e-6)
    values, indices = sae.encode(inputs())
    with pytest.raises(ValueError, match="needs the encoded activations"):
        sae.decode(values, indices)
    with pytest.raises(UserError, match="sparsify has no normalization"):
        export_sae(config, "sparsify", tmp_path / "other")


@pytest.mark.parametrize("normalization", ["none", "centre", "layer_norm", "constant_norm_rescale"])
def test_a_contribution_is_what_a_code_changes_of_the_reconstruction(normalization: str) -> None:
    sae = replace(our_sae("jumprelu"), normalization=normalization)
    x = inputs()
    values, indices = sae.encode(x)
    more = values.clone()
    more[:, 0] += 0.5
    change = sae.decode(more, indices, x) - sae.decode(values, indices, x)
    expected = 0.5 * sae.contribution(x)[:, None] * sae.w_dec[indices[:, 0]]
    torch.testing.assert_close(change, expected, atol=1e-5, rtol=1e-4)


def test_the_command_exports_an_sae(tmp_path: Path) -> None:
    config = saved("topk", tmp_path / "sae")
    line = ["export", "sae", "--sae", str(config), "--layout", "sparsify", "--output"]
    result = CliRunner().invoke(app, [*line, str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    for name, tensor in our_sae("topk").parameters().items():
        assert torch.equal(read(tmp_path / "out").parameters()[name], tensor)
