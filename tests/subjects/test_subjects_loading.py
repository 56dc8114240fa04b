from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import VOCAB, family_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from nullsae.config.subjects import GgufSource, PretrainedSource
from nullsae.config.variants import VARIANTS
from nullsae.core.devices import device_of
from nullsae.core.errors import UserError
from nullsae.core.files import read_json
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.subjects import forward_gates, gates
from nullsae.subjects.folders import save_subject
from nullsae.subjects.gates import passed
from nullsae.subjects.health import heldout_loss
from nullsae.subjects.loading import Subject, fetch, load_subject, place
from nullsae.subjects.publish import randomize_model
from refusing import refused
from small_chain import (
    CPU,
    SITES,
    Chain,
    flip_byte,
    model_params,
    tiny_model,
    tokens_of,
    write_corpus,
)
from tiny_gguf import write_tiny_gguf

EVAL: dict[str, Any] = {"split": "eval"}


@pytest.fixture(scope="module")
def ids(chain: Chain) -> Tensor:
    return torch.from_numpy(load_tokens(chain.eval_tokens).input_ids[:6])


@pytest.fixture
def noisy(chain: Chain) -> Subject:
    recipe = json.loads(chain.recipe.read_text())
    model = load_subject(chain.recipe, CPU).model
    noise = {"variant": "noise_embeddings", "embedding_noise_std": 0.5, "draw": 1}
    return Subject(model, {**recipe, **noise}, CPU)


def embeddings(subject: Subject, ids: Tensor, contexts: list[int], split: str = "eval") -> Tensor:
    seen: list[Tensor] = []
    layer = subject.model.get_input_embeddings()
    handle = layer.register_forward_hook(lambda _m, _i, output: seen.append(output))
    subject.logits(ids, split=split, contexts=contexts)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("damage", ["flipped", "deleted"])
def test_a_damaged_subject_is_refused(chain: Chain, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chain.recipe.parent, folder)
    weights = folder / "model.safetensors"
    if damage == "flipped":
        flip_byte(weights)
    else:
        weights.unlink()
    said = refused(load_subject, folder / "recipe.json", CPU)
    wanted = "damaged" if damage == "flipped" else "the file is missing"
    assert said.startswith(f"{weights}: {wanted}")
    assert said.endswith(f"-- {folder / 'recipe.json'}")


def refusal(source: PretrainedSource | GgufSource) -> str:
    return refused(fetch, source)


def local(folder: Path, **keys: Any) -> PretrainedSource:
    return PretrainedSource(kind="pretrained", path=str(folder), **keys)


def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path) -> None:
    assert refusal(local(tmp_path)).startswith(f"subject '{tmp_path}': cannot be loaded: ")


class Planted:
    """Code that a pickle runs when it is read as one."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_a_pickle_of_weights_alone_is_read_as_data_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("gpt2")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    found = fetch(local(tmp_path))
    assert all(
        torch.equal(p, dict(found.named_parameters())[n]) for n, p in model.named_parameters()
    )
    assert "no safetensors; weights read from pytorch_model.bin, as data only" in caplog.text


def test_the_recipes_of_a_subject_read_from_a_pickle_say_so(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    heldout = write_corpus(tmp_path / "c", *tokens_of(8, seed=2))
    plain = model_params(local(tmp_path))
    randomize_model(plain, trained=None, eval_tokens=heldout, output=tmp_path / "trained")
    own = model_params(None, "permuted_weights")
    recipe = tmp_path / "trained/recipe.json"
    randomize_model(own, trained=recipe, eval_tokens=heldout, output=tmp_path / "permuted")
    for file in (recipe, tmp_path / "permuted/recipe.json"):
        assert read_json(file, rebuild="")["source"]["weights_file"] == "pytorch_model.bin"


def test_a_pickle_that_holds_code_is_refused_and_not_run(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.config.save_pretrained(tmp_path)
    trap = {**model.state_dict(), "planted": Planted(tmp_path / "ran")}
    torch.save(trap, tmp_path / "pytorch_model.bin")
    assert refusal(local(tmp_path)) == (
        f"subject '{tmp_path}': cannot be loaded: pytorch_model.bin contains more than weights and "
        f"could run code, so it is not read"
    )
    assert not (tmp_path / "ran").exists()


def test_a_folder_without_weights_says_what_it_lacks(tmp_path: Path) -> None:
    tiny_model("gpt2").config.save_pretrained(tmp_path)
    assert refusal(local(tmp_path)) == (
        f"subject '{tmp_path}': cannot be loaded: it has neither safetensors nor pytorch_model.bin"
    )


def test_weights_that_are_missing_are_refused(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    assert refusal(local(tmp_path)) == (
        f"subject '{tmp_path}': cannot be loaded: 1 weights are missing, "
        f"such as model.layers.1.mlp.up_proj.weight"
    )
    file.write_bytes(file.read_bytes()[:500])
    assert refusal(local(tmp_path)).startswith(f"subject '{tmp_path}': cannot be loaded: ")


CUSTOM = """
from transformers import GPT2Config, GPT2LMHeadModel
class OwnConfig(GPT2Config):
    model_type = "own"
class OwnModel(GPT2LMHeadModel):
    config_class = OwnConfig
"""


def test_code_of_a_model_runs_only_when_asked_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = str(tmp_path / "modules")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = tmp_path / "source"
    tiny_model("gpt2").save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config |= {"model_type": "own", "architectures": ["OwnModel"], "auto_map": auto}
    (folder / "config.json").write_text(json.dumps(config))
    marker = tmp_path / "ran"
    (folder / "own.py").write_text(f"{CUSTOM}open({str(marker)!r}, 'w').close()\n")
    assert refusal(local(folder)) == (
        f"subject '{folder}': cannot be loaded: it needs its own Python code, which only "
        f"source.trust_remote_code allows"
    )
    assert not marker.exists()
    model = fetch(local(folder, trust_remote_code=True))
    assert marker.exists()
    saved = tmp_path / "saved"
    save_subject(model, saved, {"trust_remote_code": True, "seed": 0, "draw": 0})
    subject = load_subject(saved / "recipe.json", CPU)
    assert type(subject.model).__name__ == "OwnModel"
    ids = torch.arange(12)[None]
    with torch.inference_mode():
        expected = tiny_model("gpt2")(ids).logits
    assert torch.equal(subject.logits(ids, **EVAL, contexts=[0]), expected)
    (saved / "own.py").write_text("raise SystemExit\n")
    with pytest.raises(UserError, match=r"own\.py: damaged"):
        load_subject(saved / "recipe.json", CPU)


def mapped(file: Path) -> range:
    """Return the addresses at which a file is mapped into this process."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    found = [line[0].split("-") for line in lines if line[-1] == str(file.resolve())]
    return range(min(int(a, 16) for a, _ in found), max(int(b, 16) for _, b in found))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="reads /proc/self/maps")
def test_weights_are_mapped_and_writing_to_them_keeps_the_file(
    chain: Chain, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chain.recipe.parent, folder)
    file = folder / "model.safetensors"
    before = file.read_bytes()
    subject = load_subject(folder / "recipe.json", CPU)
    addresses = mapped(file)
    assert {p.data_ptr() in addresses for p in subject.model.parameters()} == {True}
    for parameter in subject.model.parameters():
        parameter.zero_()
    assert file.read_bytes() == before


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return file, write_tiny_gguf(file)


def test_a_gguf_file_becomes_the_same_model_and_can_be_saved(
    gguf: tuple[Path, Any], tmp_path: Path
) -> None:
    file, model = gguf
    converted = fetch(GgufSource(kind="gguf", path=str(file)))
    mine, others = converted.state_dict(), model.state_dict()
    assert mine.keys() == others.keys()
    assert [name for name in mine if not torch.equal(mine[name], others[name])] == []
    save_subject(converted, tmp_path, {"seed": 0, "draw": 0, "source": {"kind": "gguf"}})
    subject = load_subject(tmp_path / "recipe.json", CPU)
    ids = torch.arange(24).reshape(2, 12) * 3
    with torch.inference_mode():
        expected = model(ids).logits
    assert torch.equal(subject.logits(ids, **EVAL, contexts=[0, 1]), expected)
    half = fetch(GgufSource(kind="gguf", path=str(file), dtype="bfloat16"))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}


def test_a_gguf_file_that_cannot_be_read_is_refused(
    gguf: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = gguf
    said = refusal(GgufSource(kind="gguf", path=str(tmp_path / "gone.gguf")))
    assert said == (
        f"config: subjects.*.source.path: '{tmp_path / 'gone.gguf'}' does not exist; give a .gguf "
        f"file"
    )
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(file.read_bytes()[:400])
    said = refusal(GgufSource(kind="gguf", path=str(broken)))
    assert said.startswith(f"subject {broken}: cannot be loaded: ")
    monkeypatch.setattr("nullsae.subjects.loading.find_spec", lambda name: None)
    said = refusal(GgufSource(kind="gguf", path=str(file)))
    assert said == (
        "config: subjects.*.source: reading a GGUF file needs gguf and accelerate "
        "(pip install gguf==0.19.0 accelerate==1.15.0)"
    )


def test_a_device_map_is_passed_over_on_a_machine_without_a_gpu(
    chain: Chain, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = json.loads(chain.recipe.read_text())
    recipe["source"]["device_map"] = "auto"
    caplog.set_level(logging.INFO)
    model = place(load_subject(chain.recipe, CPU).model, recipe, CPU)
    assert {p.device for p in model.parameters()} == {CPU}
    assert "device_map auto is for GPUs; the subject is on the cpu" in caplog.text


@pytest.mark.parametrize("how", ["auto", "balanced", "sequential"])
def test_every_gpu_gets_blocks_and_every_block_stays_whole(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Accelerate would put each module on an imaginary machine with two GPUs."""
    import accelerate

    model = family_model("llama")
    block = sum(p.nbytes for p in model.model.layers[0].parameters())
    maps: list[dict[str, Any]] = []
    monkeypatch.setattr(
        accelerate, "dispatch_model", lambda m, device_map, **_: maps.append(device_map)
    )
    # Until PyTorch gives back what it keeps of an earlier model, there is no room.
    room: dict[int | str, int] = {0: 0, 1: 0, "cpu": 10**9}
    monkeypatch.setattr(accelerate.utils, "get_max_memory", lambda: dict(room))
    freed: dict[int | str, int] = {0: 4 * block, 1: 8 * block}
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: room.update(freed))
    monkeypatch.setattr("nullsae.subjects.loading.hold_others", lambda own, n_gpus: (0, 1))
    place(model, {"source": {"device_map": how}}, torch.device("cuda"))
    (spread,) = maps
    assert set(spread.values()) == {0, 1}
    assert [name for name in spread if "layers." in name and name.count(".") > 2] == []
    freed[0] = freed[1] = block
    said = refused(place, model, {"source": {"device_map": how}}, torch.device("cuda"))
    assert said.startswith(
        "config: subjects.*.source.device_map: the subject does not fit into the 2 GPUs here"
    )


def test_the_hooks_of_accelerate_and_of_the_sites_get_along() -> None:
    """With a `device_map`, Accelerate moves the inputs of each module."""
    import accelerate

    ids = torch.arange(24).reshape(2, 12) * 3 % VOCAB
    sites = ("embed", "resid_pre.1", "attn_out.1", "mlp_out.0", "resid_post.2")
    contexts = [0, 1]
    recipe = {"seed": 0, "draw": 0, "embedding_noise_std": None}
    plain = Subject(family_model("llama"), recipe, CPU)
    model = accelerate.dispatch_model(family_model("llama"), {"": "cpu"}, force_hooks=True)
    assert hasattr(model.model.layers[0].self_attn, "_hf_hook")
    spread = Subject(model, recipe, CPU)
    expected = plain.activations(ids, **EVAL, contexts=contexts, sites=sites)
    found = spread.activations(ids, **EVAL, contexts=contexts, sites=sites)
    assert [site for site in sites if not torch.equal(found[site], expected[site])] == []
    for site in sites:
        splice = {"site": site, "replace": torch.zeros_like}
        assert torch.equal(
            spread.logits(ids, **EVAL, contexts=contexts, **splice),
            plain.logits(ids, **EVAL, contexts=contexts, **splice),
        ), site


def test_a_spread_model_leaves_its_gpus_before_it_is_reread(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They need not have room for two."""
    import accelerate

    from nullsae.subjects import publish

    spread: list[Any] = []

    def placed(model: Any, *_: Any) -> Any:
        spread.append(accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True))
        assert hasattr(model.gpt_neox.layers[0], "_hf_hook")
        return model

    def reread(*arguments: Any) -> Subject:
        (model,) = spread
        assert not hasattr(model, "hf_device_map")
        assert [n for n, m in model.named_modules() if hasattr(m, "_hf_hook")] == []
        assert {p.device for p in model.parameters()} == {CPU}
        return load_subject(*arguments)

    monkeypatch.setattr(publish, "place", placed)
    monkeypatch.setattr(publish, "load_subject", reread)
    randomize_model(
        model_params(chain.source),
        **{"trained": None, "eval_tokens": chain.eval_tokens, "output": tmp_path},
    )
    assert len(spread) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="takes a GPU")
@pytest.mark.parametrize("how", [None, "auto", "sequential"])
def test_a_subject_on_gpus_is_the_same_as_on_the_cpu(chain: Chain, how: str | None) -> None:
    recipe = json.loads(chain.recipe.read_text())
    recipe["source"]["device_map"] = how
    gpu = torch.device("cuda")
    exact = load_subject(chain.recipe, CPU)
    subject = Subject(place(load_subject(chain.recipe, CPU).model, recipe, gpu), recipe, gpu)
    ids = torch.from_numpy(load_tokens(chain.eval_tokens).input_ids[:2])
    found = subject.activations(ids, **EVAL, contexts=[0, 1], sites=SITES)
    expected = exact.activations(ids, **EVAL, contexts=[0, 1], sites=SITES)
    for site in SITES:
        assert found[site].device.type == "cuda"
        torch.testing.assert_close(found[site].cpu(), expected[site], rtol=1e-4, atol=1e-4)


def test_the_embeddings_that_are_shown_are_those_that_the_subject_sees(
    noisy: Subject, ids: Tensor
) -> None:
    contexts = list(range(len(ids)))
    shown = noisy.activations(ids, **EVAL, contexts=contexts, sites=("embed", "resid_pre.0"))
    assert torch.equal(shown["embed"], embeddings(noisy, ids, contexts))
    assert torch.equal(shown["embed"], shown["resid_pre.0"])  # GPT-NeoX adds nothing in between
    zero = noisy.logits(ids, **EVAL, contexts=contexts, site="embed", replace=torch.zeros_like)
    assert torch.equal(zero[0], zero[1]), "the noise is added after the splice"


def test_noise_is_checked_on_the_device_of_the_embedding(
    noisy: Subject, ids: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spread subject may have it on another GPU than that of its logits."""
    compared: list[Tensor] = []
    monkeypatch.setattr(forward_gates, "reads_no_text", lambda *_: passed("reads no text", ""))
    monkeypatch.setattr(gates, "noise", lambda _seen, _again, plain, _std: [compared.append(plain)])
    monkeypatch.setattr(noisy, "device", torch.device("meta"))
    VARIANTS["noise_embeddings"].gates(noisy, ids)
    assert torch.equal(compared[0], noisy.model.get_input_embeddings().weight[ids.long()])


def test_noise_does_not_depend_on_the_batch(noisy: Subject, ids: Tensor) -> None:
    together = embeddings(noisy, ids, [0, 1, 2, 3, 4, 5])
    for context in range(6):
        alone = embeddings(noisy, ids[context : context + 1], [context])
        assert torch.equal(alone[0], together[context])
    swapped = embeddings(noisy, ids[[4, 1]], [4, 1])
    assert torch.equal(swapped, together[[4, 1]])


def test_noise_differs_between_contexts_draws_splits_and_seeds(noisy: Subject, ids: Tensor) -> None:
    contexts = [0, 1]
    base = embeddings(noisy, ids[:2], contexts)
    assert not torch.equal(base[0], base[1])
    assert not torch.equal(base[0, 0], base[0, 1]), "each position has its own noise"
    assert not torch.equal(embeddings(noisy, ids[:2], contexts, "sae_train"), base)
    for key in ("draw", "seed"):
        before = noisy.recipe[key]
        noisy.recipe[key] = before + 1
        assert not torch.equal(embeddings(noisy, ids[:2], contexts), base), key
        noisy.recipe[key] = before
    # It does not depend on the text, so the token's identity is gone.
    assert torch.equal(embeddings(noisy, ids[[3, 2]], contexts), base)


def test_noise_has_the_scale_configured(noisy: Subject, ids: Tensor) -> None:
    many = embeddings(noisy, ids.repeat(10, 1), list(range(60))).double()
    n = many.numel()
    assert abs(float(many.mean())) < 6 * 0.5 / n**0.5
    assert float(many.var()) == pytest.approx(0.25, abs=6 * 0.25 * (2 / n) ** 0.5)


def test_contexts_that_do_not_match_the_batch_are_refused(noisy: Subject, ids: Tensor) -> None:
    with pytest.raises(ValueError, match="1 context indices for 6 contexts"):
        noisy.logits(ids, split="eval", contexts=[0])


def test_the_heldout_loss_equals_cross_entropy_by_hand(chain: Chain) -> None:
    subject = load_subject(chain.recipe, CPU)
    tokens = load_tokens(chain.eval_tokens)
    loss, n = heldout_loss(subject, tokens)
    ids = torch.from_numpy(tokens.input_ids).long()
    total = 0.0
    with torch.inference_mode():
        logits = subject.model(ids).logits.double()
    for context in range(len(ids)):
        for position in range(ids.shape[1] - 1):
            p = torch.softmax(logits[context, position], dim=0)[ids[context, position + 1]]
            total -= float(p.log())
    assert n == 60 * 15
    assert loss == pytest.approx(total / n, rel=1e-6)


def test_a_loss_that_is_not_finite_is_refused(chain: Chain) -> None:
    subject = load_subject(chain.recipe, CPU)
    subject.model.get_output_embeddings().weight.fill_(float("inf"))
    tokens = load_tokens(chain.eval_tokens)
    few = Tokens(tokens.input_ids[:2], tokens.document_id[:2], tokens.manifest)
    with pytest.raises(UserError, match=r"^trained: the held-out loss is nan"):
        heldout_loss(subject, few)


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of("auto") == CPU
    with pytest.raises(UserError, match=r"config: compute.device: 'cuda:1', but there is no CUDA"):
        device_of("cuda:1")
