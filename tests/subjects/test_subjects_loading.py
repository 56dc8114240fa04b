from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nullsae.corpus.store import Tokens, load_tokens
from nullsae.errors import UserError
from nullsae.inputs import PretrainedSource
from nullsae.subjects.loading import (
    Subject,
    fetch,
    find_blocks,
    load_subject,
    pick_device,
    save_subject,
)
from nullsae.subjects.variants import heldout_loss
from small_chain import CPU, SITES, Chain, flip_byte, tiny_model


@pytest.fixture(scope="module")
def ids(chain: Chain) -> Tensor:
    return torch.from_numpy(load_tokens(chain.eval_tokens).input_ids[:6])


@pytest.fixture
def noisy(chain: Chain) -> Subject:
    recipe = json.loads(chain.recipe.read_text())
    model = load_subject(chain.recipe, CPU).model
    return Subject(model, {**recipe, "embedding_noise_std": 0.5, "draw": 1}, CPU)


def embeddings(subject: Subject, ids: Tensor, contexts: list[int], split: str = "eval") -> Tensor:
    seen: list[Tensor] = []
    layer = subject.model.get_input_embeddings()
    handle = layer.register_forward_hook(lambda _m, _i, output: seen.append(output))
    subject.logits(ids, split=split, contexts=contexts)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize(
    ("kind", "path"),
    [("gpt_neox", "gpt_neox.layers"), ("gpt2", "transformer.h"), ("llama", "model.layers")],
)
def test_the_blocks_of_a_known_family_are_not_found(kind: str, path: str) -> None:
    model = tiny_model(kind)
    assert find_blocks(model) is model.get_submodule(path)


def test_an_inner_list_of_the_same_length_is_taken_for_the_blocks() -> None:
    class Config:
        num_hidden_layers = 2

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config: Any = Config()
            self.blocks = nn.ModuleList([Block(), Block()])

    model = Model()
    assert find_blocks(model) is model.blocks


def test_an_unsupported_model_gives_a_traceback() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = type("Config", (), {"num_hidden_layers": 4})()
            self.layers = nn.ModuleList([nn.Linear(1, 1)])

    with pytest.raises(UserError) as caught:
        find_blocks(Odd())
    assert str(caught.value) == (
        "subject of class Odd: not supported; looked for a list of 4 blocks "
        "(config.num_hidden_layers) and found none"
    )


@pytest.mark.parametrize("kind", ["gpt_neox", "gpt2", "llama"])
def test_a_saved_subject_comes_back_with_other_logits(kind: str, tmp_path: Path) -> None:
    model = tiny_model(kind)
    ids = torch.arange(24).reshape(2, 12) * 3
    save_subject(model, tmp_path, {"subject": "tiny", "variant": "trained", "draw": 0, "seed": 0})
    subject = load_subject(tmp_path / "recipe.json", CPU)
    with torch.inference_mode():
        expected = model(ids).logits
    found = subject.logits(ids, split="eval", contexts=[0, 1])
    assert torch.equal(found, expected)
    recipe = subject.recipe
    assert (recipe["n_layers"], recipe["d_model"], recipe["vocab_size"]) == (3, 16, 96)
    assert recipe["dtype"] == "float32"
    assert set(recipe["files"]) == {p.name for p in tmp_path.iterdir() if p.name != "recipe.json"}


def test_sites_of_another_family_differ_from_its_hidden_states() -> None:
    ids = torch.arange(24).reshape(2, 12) * 3
    for kind in ("gpt2", "llama"):
        model = tiny_model(kind)
        subject = Subject(model, {"seed": 0, "draw": 0}, CPU)
        found = subject.activations(ids, split="eval", contexts=[0, 1], sites=SITES)
        with torch.inference_mode():
            hidden = model(ids, output_hidden_states=True).hidden_states
        for layer in (0, 1):
            assert torch.equal(found[SITES[layer]], hidden[layer + 1]), kind


@pytest.mark.parametrize("damage", ["flipped", "deleted"])
def test_a_damaged_subject_is_loaded(chain: Chain, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chain.recipe.parent, folder)
    weights = folder / "model.safetensors"
    if damage == "flipped":
        flip_byte(weights)
    else:
        weights.unlink()
    with pytest.raises(UserError) as caught:
        load_subject(folder / "recipe.json", CPU)
    wanted = "damaged" if damage == "flipped" else "the file is missing"
    assert str(caught.value).startswith(f"{weights}: {wanted}")
    assert str(caught.value).endswith(f"-- {folder / 'recipe.json'}")


def test_a_folder_that_holds_no_model_gives_a_traceback(tmp_path: Path) -> None:
    source = PretrainedSource(kind="pretrained", path=str(tmp_path))
    with pytest.raises(UserError) as caught:
        fetch(source, step0=False)
    assert str(caught.value).startswith(f"subject '{tmp_path}': cannot be loaded: ")
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_unpickled(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="cannot be loaded"):
        fetch(PretrainedSource(kind="pretrained", path=str(tmp_path)), step0=False)


def test_noise_depends_on_the_batch(noisy: Subject, ids: Tensor) -> None:
    together = embeddings(noisy, ids, [0, 1, 2, 3, 4, 5])
    for context in range(6):
        alone = embeddings(noisy, ids[context : context + 1], [context])
        assert torch.equal(alone[0], together[context])
    swapped = embeddings(noisy, ids[[4, 1]], [4, 1])
    assert torch.equal(swapped, together[[4, 1]])


def test_noise_repeats_between_contexts_draws_splits_or_seeds(noisy: Subject, ids: Tensor) -> None:
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
    # It does not depend on the text: the token's identity is gone.
    assert torch.equal(embeddings(noisy, ids[[3, 2]], contexts), base)


def test_noise_has_another_scale_than_configured(noisy: Subject, ids: Tensor) -> None:
    many = embeddings(noisy, ids.repeat(10, 1), list(range(60))).double()
    n = many.numel()
    assert abs(float(many.mean())) < 6 * 0.5 / n**0.5
    assert float(many.var()) == pytest.approx(0.25, abs=6 * 0.25 * (2 / n) ** 0.5)


def test_contexts_that_do_not_match_the_batch_are_accepted(noisy: Subject, ids: Tensor) -> None:
    with pytest.raises(ValueError, match="1 context indices for 6 contexts"):
        noisy.logits(ids, split="eval", contexts=[0])


def test_the_heldout_loss_differs_from_cross_entropy_by_hand(chain: Chain) -> None:
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


def test_a_loss_that_is_not_finite_is_written(chain: Chain) -> None:
    subject = load_subject(chain.recipe, CPU)
    subject.model.get_output_embeddings().weight.fill_(float("inf"))
    tokens = load_tokens(chain.eval_tokens)
    few = Tokens(tokens.input_ids[:2], tokens.document_id[:2], tokens.manifest)
    with pytest.raises(UserError, match=r"^trained: the held-out loss is nan"):
        heldout_loss(subject, few)


def test_cuda_is_promised_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == CPU
    with pytest.raises(UserError, match=r"config: compute.device: 'cuda:1', but no CUDA device"):
        pick_device("cuda:1")
