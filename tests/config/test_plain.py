"""The amount of others' data is checked before it is used."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from nullsae.cli.options import read_params
from nullsae.config.llm import Llm
from nullsae.config.model_size import check_described, check_model
from nullsae.config.parse import parse_config, parse_section
from nullsae.config.plain import check_amount, read_object, read_yaml
from nullsae.config.read import read_merged_config
from nullsae.core.errors import UserError
from nullsae.core.files import read_json
from refusing import refused


def bomb(opening: str, closing: str, levels: int = 12) -> str:
    """Return YAML in which each level has the one below ten times."""
    lines = [f"a0: &a0 {opening.format('k')}x{closing}"]
    for i in range(1, levels):
        inner = ", ".join(opening.format(f"k{j}") * (j < 0) + f"*a{i - 1}" for j in range(10))
        lines.append(f"a{i}: &a{i} [{inner}]")
    return "\n".join(lines)


MERGED = "a0: &a0 {k: 1}\n" + "\n".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 12)}]}}" for i in range(1, 9)
)
BOMBS = {
    "lists": bomb("[", "]"),
    "texts": "a: &a " + "x" * 100_000 + "\nb: &b [" + ", ".join(["*a"] * 999) + "]",
    "merged": MERGED,
    "itself": "a: &a [1, *a]",
    "deep": "a: " + "[" * 5000 + "]" * 5000,
    "deeper": "[" * 200_000,
    "digits": "a: " + "9" * 6000,
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_in_a_config_is_one_line_at_once(tmp_path: Path, name: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(BOMBS[name])
    started = time.monotonic()
    said = refused(read_merged_config, [file])
    assert said.startswith(f"{file}: ")
    assert len(said) < 500
    assert time.monotonic() - started < 5


def test_data_that_holds_itself_or_too_much_reaches_no_model() -> None:
    endless: dict[str, Any] = {}
    endless["a"] = endless
    wide: Any = ["x"]
    for _ in range(9):
        wide = [wide] * 10
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    for data in (endless, {"seed": wide}, {"seed": deep}, {"seed": 10**5000}):
        with pytest.raises(UserError, match=r"^config: "):
            parse_config(data)
        with pytest.raises(UserError, match=r"^here: "):
            parse_section(Llm, data, where="here")


def test_values_that_are_named_twice_are_fine() -> None:
    shared = {"a": [1, 2, 3]}
    check_amount([shared] * 100, "here")


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "large"])
def test_anything_but_a_regular_file_is_reported_and_not_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "config.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(10 << 30)
    for read in (
        lambda: read_yaml(path),
        lambda: read_object(path),
        lambda: read_json(path, rebuild="make"),
        lambda: read_params(Llm, str(path)),
    ):
        with pytest.raises(UserError, match=r"config\.yaml: (not a file|more than)"):
            read()


@pytest.mark.parametrize(
    "text",
    [
        *("a: 2024-13-45", "? [a]\n: 1", "a: !!int x", "a: b: c", "\ta: 1"),
        *("a: !!bool maybe", "a: !!timestamp now", "a: !!int ''", "a: !!float ''"),
    ],
)
def test_invalid_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml: not YAML \(") as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)


def test_a_line_about_yaml_does_not_show_what_stands_there(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("api_key_env: sk-5up3rs3cr3t: x\n")
    with pytest.raises(UserError, match=r"line 1, column") as caught:
        read_yaml(file)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("described", "said"),
    [
        ({"num_hidden_layers": 10**7}, "num_hidden_layers: 10,000,000 is not from 1 to 2,000"),
        ({"n_layer": 0}, "n_layer: 0 is not from 1"),
        ({"text_config": {"num_layers": 10**9}}, "num_layers: 1,000,000,000 is not"),
        ({"hidden_size": 10**9}, "hidden_size"),
        ({"vocab_size": 10**400}, "vocab_size: a number of 401 digits"),
        ({"intermediate_size": -1}, "intermediate_size: -1"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings"),
        ({"num_local_experts": 10**6}, "num_local_experts"),
        ({"num_attention_heads": 1e308}, "num_attention_heads"),
        # Names of other families, and nested configs.
        ({"decoder_layers": 10**7}, "decoder_layers: 10,000,000 is not from -1 to 2,000"),
        ({"decoder": {"attn_config": {"kv_n_heads": 10**7}}}, "kv_n_heads"),
        ({"ffn_config": {"moe_num_experts": 10**7}}, "moe_num_experts"),
        ({"text_config": {"qk_rope_head_dim": 10**9}}, "qk_rope_head_dim"),
    ],
)
def test_a_model_that_nobody_has_is_refused_before_it_is_built(
    described: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=r"^here: ") as caught:
        check_described(described, "here")
    assert said in str(caught.value)


def test_a_model_of_more_weights_than_its_files_hold_is_refused(tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 100, "hidden_size": 16_384, "vocab_size": 100_000}
    heads = {"num_attention_heads": 128, "model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(sizes | heads))
    (tmp_path / "model.safetensors").write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match=r"a model of 4.*e\+11 weights.* 1,000 bytes"):
        check_model(str(tmp_path), "subject")
    # Other formats' files are not counted, nor folders on the hub.
    (tmp_path / "model.safetensors").unlink()
    check_model(str(tmp_path), "subject")
    check_model(str(tmp_path / "none"), "subject")


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "[1]", '{"a": NaN', *('{"a":' * n + "1" + "}" * n for n in (200, 999))]
)
def test_an_invalid_model_config_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"subject: .*config\.json"):
        check_model(str(tmp_path), "subject")


def test_numbers_below_the_limits_are_fine() -> None:
    check_described({"num_hidden_layers": 126, "hidden_size": 16_384, "n_inner": None}, "here")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 0\nseed: 1\n", "'seed' is given twice, in lines 1 and 2"),
        ("saes:\n  topk: {k: 4}\n  'topk': {k: 5}\n", "'topk' is given twice, in lines 2 and 3"),
        ("saes: [{a: {k: 1, k: 2}}]\n", "'k' is given twice, in lines 1 and 1"),
    ],
)
def test_a_key_that_is_given_twice_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert refused(read_yaml, file).startswith(f"{file}: {said}")


def test_what_a_merged_alias_brings_may_be_given_again(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("a: &a {k: 4, n: 8}\nb: {<<: *a, k: 5}\nc: {<<: *a, n: 9}\n")
    assert read_yaml(file)["b"] == {"k": 5, "n": 8}
