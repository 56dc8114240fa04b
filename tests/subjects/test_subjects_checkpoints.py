"""What the files of a model may name: an index, a config, links, and what they choose."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from family_models import SHAPE, VOCAB, random_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from nullsae.config.subjects import PretrainedSource
from nullsae.core.errors import UserError
from nullsae.subjects.folders import save_subject
from nullsae.subjects.loading import fetch, load_subject
from refusing import refused

INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    random_model(transformers.GPTNeoXConfig(**SHAPE), "m").save_pretrained(
        folder, max_shard_size="20KB"
    )
    assert (folder / INDEX).is_file()
    return folder


@pytest.fixture
def model(sharded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sharded, tmp_path / "model"))


def change(file: Path, act: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(file.read_text())
    act(content)
    file.write_text(json.dumps(content))


def load(folder: Path, **keys: Any) -> Any:
    return fetch(PretrainedSource(kind="pretrained", path=str(folder), **keys))


def refusal(folder: Path, **keys: Any) -> str:
    said = refused(load, folder, **keys)
    assert said.startswith(f"subject {str(folder)!r}: cannot be loaded: ")
    return said


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


NAMES = [
    "weights.pkl",
    "pytorch_model.bin",
    "../outside.safetensors",
    "/tmp/outside.safetensors",
    "sub/inside.safetensors",
    "..safetensors/../x.safetensors",
    "~/x.safetensors",
    "http:x.safetensors",
    "a\\b.safetensors",
    "x.safetensors\n",
    "",
]


@pytest.mark.parametrize("name", NAMES)
def test_an_index_names_safetensors_beside_it_and_nothing_else(model: Path, name: str) -> None:
    made = model.parent / "made"
    first = next(iter(json.loads((model / INDEX).read_text())["weight_map"].values()))
    target = model / name
    if name and not target.is_absolute() and "~" not in name:
        target.parent.mkdir(exist_ok=True, parents=True)
        if name.endswith((".pkl", ".bin")):
            target.write_bytes(pickle.dumps(Touch(made)))
        else:
            shutil.copy(model / first, target.parent / target.name)

    def rename(content: dict[str, Any]) -> None:
        tensors = content["weight_map"]
        content["weight_map"] = {t: name if f == first else f for t, f in tensors.items()}

    change(model / INDEX, rename)
    assert f"{INDEX} names {name!r}; it may only name *.safetensors files in" in refusal(model)
    assert not made.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"weight_map": [1]}', "has no weight_map"),
        (b'{"weight_map": {"a": 1}}', "'a' is in 1, which is not a file name"),
        (b"[]", "not a JSON object"),
        (b'{"a":' * 100_000, "not readable as JSON"),
        (b"\xff\xfe", "not readable as JSON"),
    ],
    ids=["list", "number", "array", "deep", "bytes"],
)
def test_an_index_that_is_none_is_one_line(model: Path, content: bytes, said: str) -> None:
    (model / INDEX).write_bytes(content)
    assert f"{INDEX}" in refusal(model)
    assert said in refusal(model)


@pytest.mark.parametrize("name", ["../../secret.safetensors", "weights.bin", "weights.pkl"])
def test_a_config_names_no_weights_elsewhere(model: Path, name: str) -> None:
    change(model / "config.json", lambda c: c.update(transformers_weights=name))
    assert f"config.json names {name!r}" in refusal(model)


@pytest.mark.parametrize("file", ["config.json", INDEX, "model-00001-of-%s.safetensors"])
def test_no_file_of_a_local_model_is_a_link_out_of_it(model: Path, file: str) -> None:
    place = next(model.glob(file.replace("%s", "*")))
    place.rename(model.parent / place.name)
    place.symlink_to(model.parent / place.name)
    assert "is a link to" in refusal(model)
    assert "outside of the folder" in refusal(model)


def test_links_within_a_folder_and_a_linked_folder_are_as_good_as_files(model: Path) -> None:
    place = next(model.glob("model-00001-of-*.safetensors"))
    (model / "kept").mkdir()
    place.rename(model / "kept" / place.name)
    place.symlink_to(Path("kept") / place.name)
    (model.parent / "linked").symlink_to(model)
    assert load(model.parent / "linked").config.model_type == "gpt_neox"


def test_a_snapshot_of_the_hubs_cache_may_be_given_as_a_folder(model: Path) -> None:
    repository = model.parent / "models--someone--tiny"
    snapshot, blobs = repository / "snapshots" / ("a" * 40), repository / "blobs"
    snapshot.mkdir(parents=True)
    model.rename(blobs)
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(os.path.relpath(blob, snapshot))
    assert load(snapshot).config.model_type == "gpt_neox"
    # This layout alone gives no access to other folders.
    blobs.rename(model.parent / "elsewhere")
    blobs.symlink_to(model.parent / "elsewhere")
    assert "outside of the folder" in refusal(snapshot)


@pytest.mark.parametrize("kind", ["pipe", "device", "nothing"])
def test_what_is_no_file_is_not_opened(model: Path, kind: str) -> None:
    place = next(model.glob("model-00001-of-*.safetensors"))
    place.unlink()
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to("/dev/zero" if kind == "device" else "gone")
    assert "is not a file" in refusal(model)


CHOICES = [
    {"attn_implementation": "kernels-community/flash-attn3"},
    {"_attn_implementation": "evil/kernel"},
    {"attn_implementation": "flash_attention_2", "experts_implementation": "grouped_mm"},
    {"_attn_implementation_internal": "evil/kernel:attention"},
    {"attn_implementation": {"": "evil/kernel", "text_config": "evil/kernel"}},
]


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_a_model_does_not_choose_the_kernels_that_run_it(
    model: Path, monkeypatch: pytest.MonkeyPatch, choice: dict[str, Any]
) -> None:
    loaded: list[Any] = []
    for module in (transformers.modeling_utils, transformers.integrations.hub_kernels):
        for name in ("lazy_import_flash_attention", "get_kernel", "load_and_register_attn_kernel"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda *a, **k: loaded.append(a))
    change(model / "config.json", lambda c: c.update(choice))
    found = load(model)
    assert found.config._attn_implementation in ("sdpa", "eager")
    assert loaded == []
    plain = load(shutil.copytree(model, model.parent / "plain"))
    assert found.config._attn_implementation == plain.config._attn_implementation


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
@pytest.mark.parametrize("nested", [False, True])
def test_quantized_weights_are_refused_by_what_the_config_says(
    model: Path, key: str, nested: bool
) -> None:
    value: Any = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    added = {"text_config": {key: value}} if nested else {key: value}
    change(model / "config.json", lambda c: c.update(added))
    assert f"config.json has a {key}" in refusal(model)


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size"])
def test_a_size_that_is_not_stated_is_not_taken_for_the_familys_largest(
    model: Path, key: str
) -> None:
    """GPT-NeoX without a size has that of a model with 20 billion weights."""
    change(model / "config.json", lambda c: c.pop(key))
    with pytest.raises(UserError, match=r"describes a model of|cannot be loaded"):
        load(model)


def test_code_beside_a_model_stays_where_it_is(model: Path) -> None:
    made = model.parent / "made"
    (model / "modeling_mine.py").write_text(f"import pathlib; pathlib.Path({str(made)!r}).touch()")
    change(
        model / "config.json",
        lambda c: c.update(
            model_type="mine",
            auto_map={"AutoConfig": "modeling_mine.C", "AutoModelForCausalLM": "modeling_mine.M"},
        ),
    )
    assert "source.trust_remote_code allows" in refusal(model)
    assert not made.exists()


def test_a_folder_of_results_is_looked_at_as_well(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "variant"
    save_subject(load(model), folder, {"variant": "trained"})
    load_subject(folder / "recipe.json", torch.device("cpu"))
    (folder / INDEX).write_text('{"metadata": {}, "weight_map": {"a": "../x.safetensors"}}')
    with pytest.raises(UserError, match=r"names '\.\./x\.safetensors'"):
        load_subject(folder / "recipe.json", torch.device("cpu"))


FIRST = "gpt_neox.layers.0.attention.query_key_value.weight"


def reweigh(folder: Path, act: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the weights, which are in one file afterwards."""
    files = sorted(folder.glob("model-*.safetensors"))
    tensors = {name: t for file in files for name, t in load_file(file).items()}
    act(tensors)
    for file in (*files, folder / INDEX):
        file.unlink()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("n_blocks", [1, 2])
def test_blocks_that_the_config_does_not_count_are_not_left_out(model: Path, n_blocks: int) -> None:
    change(model / "config.json", lambda c: c.update(num_hidden_layers=n_blocks))
    said = refusal(model)
    assert f"its files have gpt_neox.layers.{n_blocks}." in said
    assert f"its config.json describes {n_blocks} blocks" in said


def test_weights_of_no_block_beside_those_of_the_model_are_ignored(model: Path) -> None:
    reweigh(model, lambda tensors: tensors.update({"head.0.weight": torch.zeros(2)}))
    assert len(load(model).gpt_neox.layers) == 3


def test_what_old_files_have_beside_the_weights_of_a_block_is_ignored(model: Path) -> None:
    mask = {"gpt_neox.layers.0.attention.causal_mask": torch.zeros(2)}
    reweigh(model, lambda tensors: tensors.update(mask))
    assert len(load(model).gpt_neox.layers) == 3


def test_a_weight_of_another_shape_is_named_with_both_shapes(model: Path) -> None:
    reweigh(model, lambda tensors: tensors.update({FIRST: tensors[FIRST].T.contiguous()}))
    assert f"{FIRST} is (16, 48) in its files, but its config.json describes (48, 16)" in (
        refusal(model)
    )


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_named(model: Path, bad: float) -> None:
    """Attention gives zero for a row of NaN, so the activations are finite."""
    reweigh(model, lambda tensors: tensors[FIRST].fill_(bad))
    assert f"{FIRST} has NaN or infinite values as float32" in refusal(model)


def test_weights_beyond_a_dtype_are_named_with_it(model: Path) -> None:
    reweigh(model, lambda tensors: tensors[FIRST].fill_(1e5))
    load(model, dtype="bfloat16")
    assert f"{FIRST} has NaN or infinite values as float16" in refusal(model, dtype="float16")


def test_a_missing_part_of_a_model_is_named(model: Path) -> None:
    names = sorted(set(json.loads((model / INDEX).read_text())["weight_map"].values()))
    (model / names[1]).unlink()
    assert f"{INDEX} names {names[1]}, which is not in the folder (1 of {len(names)} files" in (
        refusal(model)
    )


def test_an_index_left_from_other_weights_does_not_matter(model: Path) -> None:
    index = (model / INDEX).read_bytes()
    reweigh(model, lambda tensors: None)
    (model / INDEX).write_bytes(index)
    load(model)


def test_an_encoder_with_a_decoder_is_not_taken_for_a_language_model(tmp_path: Path) -> None:
    keys = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    config = transformers.BartConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=1, **keys
    )
    with torch.random.fork_rng(devices=[]):
        transformers.AutoModel.from_config(config).save_pretrained(tmp_path / "m")
    said = refused(load, tmp_path / "m")
    assert "config.json describes an encoder and a decoder (bart)" in said


def test_a_model_that_returns_tuples_runs_as_any_other(model: Path) -> None:
    ids = torch.arange(8)[None]
    logits = load(model)(ids).logits
    change(model / "config.json", lambda c: c.update(return_dict=False))
    assert torch.equal(load(model)(ids).logits, logits)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("num_attention_heads", "2", "TypeError: Field 'num_attention_heads' expected int"),
        ("hidden_act", "gleu", "KeyError: 'gleu'"),
    ],
)
def test_what_a_config_gets_wrong_is_in_the_line(
    model: Path, key: str, value: Any, said: str
) -> None:
    change(model / "config.json", lambda c: c.update({key: value}))
    assert said in refusal(model)


def test_a_pickle_that_was_cut_off_is_called_damaged(model: Path) -> None:
    reweigh(model, lambda tensors: torch.save(tensors, model / "pytorch_model.bin"))
    (model / "model.safetensors").unlink()
    load(model)
    file = model / "pytorch_model.bin"
    file.write_bytes(file.read_bytes()[:-300])
    assert "pytorch_model.bin is damaged or incomplete" in refusal(model)
