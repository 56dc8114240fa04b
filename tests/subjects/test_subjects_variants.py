from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from nullsae import tables
from nullsae.config.subjects import PretrainedSource
from nullsae.core.errors import UserError
from nullsae.core.files import write_json
from nullsae.corpus.store import load_tokens
from nullsae.subjects import health, publish
from nullsae.subjects.changes import randomize
from nullsae.subjects.health import activation_health, heldout_loss
from nullsae.subjects.loading import load_subject
from nullsae.subjects.publish import randomize_model
from refusing import refused
from small_chain import (
    CPU,
    N_LAYERS,
    SITES,
    VOCAB,
    Chain,
    model_params,
    save_source,
    tiny_model,
    tokens_of,
    write_corpus,
)

GATES = {
    "fresh_init": ["initializer"],
    "rerandomized": ["moments"],
    "rerandomized_keep_embeddings": ["moments"],
    "permuted_weights": ["entries"],
    "spectrum_matched": ["entries", "spectrum"],
    "cascade": ["moments"],
    "permuted_embeddings": ["rows"],
    "rotated_embeddings": ["rows"],
}


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def study(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return (params' source, eval manifest, folder) with the trained variant already made."""
    root = tmp_path_factory.mktemp(request.param)
    source = save_source(request.param, root / "source")
    tokens = write_corpus(root / "corpus", *tokens_of(12, seed=3))
    randomize_model(model_params(source), trained=None, eval_tokens=tokens, output=root / "trained")
    return source, tokens, root


def make(study: Any, variant: str, name: str, **keys: Any) -> Path:
    """Make a variant from the trained one; return its folder."""
    source, tokens, root = study
    randomize_model(
        model_params(source, variant, **keys),
        trained=root / "trained/recipe.json",
        eval_tokens=tokens,
        output=root / name,
    )
    folder: Path = root / name
    return folder


def weights(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = load_file(folder / "model.safetensors")
    return found


FORWARD = ("alone", "causal", "own rows")
OF_TABLES = {name: ["all tables"] for name in ("permuted_embeddings", "rotated_embeddings")}


def gate_names(folder: Path) -> list[str]:
    written = json.loads((folder / "gates.json").read_text())
    assert all(gate["passed"] for gate in written["gates"])
    return [gate["gate"] for gate in written["gates"]]


def test_the_trained_variant_equals_its_source(study: Any) -> None:
    source, tokens, root = study
    before, after = weights(Path(source.path)), weights(root / "trained")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    recipe = json.loads((root / "trained/recipe.json").read_text())
    assert (recipe["subject"], recipe["variant"], recipe["draw"]) == ("tiny", "trained", 0)
    assert recipe["source"] == source.model_dump(mode="json")
    assert gate_names(root / "trained") == [*FORWARD, "reloads", "finite"]
    table = tables.read_table(root / "trained/model.parquet", tables.cell_schema("models"))
    (row,) = table.to_pylist()
    subject = load_subject(root / "trained/recipe.json", CPU)
    loss, n = heldout_loss(subject, load_tokens(tokens))
    assert row["heldout_loss_nats"] == loss
    assert row["n_heldout_tokens"] == n == 12 * 15
    assert (row["unigram_loss_nats"], row["bigram_loss_nats"]) == (40.0, 35.0)
    assert row["n_parameters"] == sum(p.numel() for p in subject.model.parameters())
    assert (row["n_gates"], row["gates_passed"]) == (5, True)


def test_a_rerandomized_subject_keeps_no_trained_weights_and_repeats(study: Any) -> None:
    folders = [
        make(study, "rerandomized", name, norm_parameters="rerandomize", draw=draw)
        for name, draw in (("one", 0), ("one again", 0), ("two", 1))
    ]
    trained = weights(study[2] / "trained")
    one, again, two = map(weights, folders)
    assert all(not torch.equal(trained[name], one[name]) for name in trained)
    assert all(not torch.equal(one[name], two[name]) for name in one)
    assert (folders[0] / "model.safetensors").read_bytes() == (
        folders[1] / "model.safetensors"
    ).read_bytes()
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert gate_names(folders[0]) == [
        *("inventory", "changed", "moments", "uncorrelated", "repeatable"),
        *FORWARD,
        *("reloads", "finite"),
    ]


def test_kept_embeddings_stay_the_same_on_disk(study: Any) -> None:
    folder = make(study, "rerandomized_keep_embeddings", "keep", norm_parameters="keep", draw=0)
    trained, found = weights(study[2] / "trained"), weights(folder)
    kept = {name for name in trained if torch.equal(trained[name], found[name])}
    embeddings = {
        *("transformer.wte.weight", "transformer.wpe.weight"),
        *("model.embed_tokens.weight", "lm_head.weight"),
    }
    norms = {n for n in trained if any(p.startswith("ln_") or "norm" in p for p in n.split("."))}
    assert kept == (embeddings & trained.keys()) | norms


def test_noise_variant_keeps_the_weights_and_does_not_see_the_text(study: Any) -> None:
    folder = make(study, "noise_embeddings", "noise", embedding_noise_std=2.0, draw=1)
    loaded = load_subject(folder / "recipe.json", CPU).model.state_dict()
    trained = weights(study[2] / "trained")
    assert all(torch.equal(trained[name], loaded[name]) for name in trained)
    assert gate_names(folder)[-4:] == [
        *("noise repeatable", "noise moments", "noise replaces", "reads no text"),
    ]
    subject = load_subject(folder / "recipe.json", CPU)
    ids = torch.from_numpy(load_tokens(study[1]).input_ids[:2])
    run: dict[str, Any] = {"split": "eval", "contexts": [0, 1], "sites": SITES}
    one = subject.activations(ids, **run)
    other = subject.activations((ids + 1) % VOCAB, **run)
    assert all(torch.equal(one[site], other[site]) for site in SITES)


@pytest.mark.parametrize("variant", sorted(GATES))
def test_a_variant_passes_every_gate_and_reloads(study: Any, variant: str) -> None:
    # One family has two draws; `test_subjects_randomize` tells those of all families apart.
    draws = (0, 1) if study[2].name.startswith("gpt2") else (0,)
    folders = [make(study, variant, f"{variant} {draw}", draw=draw) for draw in draws]
    assert gate_names(folders[0]) == [
        *("inventory", "changed", *GATES[variant], "uncorrelated", "repeatable"),
        *FORWARD,
        *("reloads", "finite"),
        *OF_TABLES.get(variant, []),
    ]
    trained, one, two = map(weights, (study[2] / "trained", folders[0], folders[-1]))
    changed = {name for name in trained if not torch.equal(trained[name], one[name])}
    assert changed
    assert {name for name in one if not torch.equal(one[name], two[name])} <= changed
    if variant.endswith("ed_embeddings"):
        assert changed == {"transformer.wte.weight", "model.embed_tokens.weight"} & trained.keys()
    for folder, draw in zip(folders, draws, strict=True):
        recipe = json.loads((folder / "recipe.json").read_text())
        assert (recipe["variant"], recipe["draw"]) == (variant, draw)
        # Half of three blocks, rounded down, are kept.
        assert recipe["first_random_block"] == (1 if variant == "cascade" else None)
        subject = load_subject(folder / "recipe.json", CPU)
        loss = json.loads((folder / "gates.json").read_text())["heldout_loss_nats"]
        assert heldout_loss(subject, load_tokens(study[1]))[0] == loss


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("variant", sorted(GATES))
def test_no_gate_fails_for_rounding_alone(
    chain: Chain, variant: str, dtype: Any, tmp_path: Path
) -> None:
    """A subject of half precision, made directly from its source."""
    params = model_params(chain.source.model_copy(update={"dtype": dtype}), variant)
    tokens = write_corpus(tmp_path / "corpus", *tokens_of(12, seed=3))
    randomize_model(params, trained=None, eval_tokens=tokens, output=tmp_path / "out")
    assert gate_names(tmp_path / "out")[2 : -7 - len(OF_TABLES.get(variant, []))] == GATES[variant]
    found = {str(tensor.dtype) for tensor in weights(tmp_path / "out").values()}
    assert found == {f"torch.{dtype}"}
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("first", [0, 2])
def test_the_cascade_starts_where_configured(study: Any, first: int) -> None:
    folder = make(study, "cascade", f"cascade from {first}", first_random_block=first)
    trained, found = weights(study[2] / "trained"), weights(folder)
    changed = {name for name in trained if not torch.equal(trained[name], found[name])}
    prefixes = tuple(f"{at}.{n}." for at in ("transformer.h", "model.layers") for n in range(3))
    in_blocks = {name for name in trained if name.startswith(prefixes)}
    late = {name for name in in_blocks if int(name.split(".")[2]) >= first}
    assert changed == late
    assert json.loads((folder / "recipe.json").read_text())["first_random_block"] == first


def test_a_cascade_beyond_the_last_block_is_refused(study: Any) -> None:
    said = refused(make, study, "cascade", "beyond", first_random_block=N_LAYERS)
    assert said == (
        "config: randomization.first_random_block: 3 is beyond the last block; subject 'tiny' has "
        "3 blocks, 0 to 2"
    )
    assert not (study[2] / "beyond").exists()


@pytest.mark.parametrize("variant", ["trained", "step0"])
def test_a_second_draw_of_what_is_not_drawn_is_refused(study: Any, variant: str) -> None:
    assert refused(make, study, variant, "second", draw=1) == (
        f"--params: keys.draw: 1, but nothing in {variant!r} is random; it has only draw 0"
    )
    assert not (study[2] / "second").exists()


def test_gaussian_activations_are_not_made_as_a_model(study: Any) -> None:
    with pytest.raises(UserError, match=r"^--params: keys\.variant: 'gaussian' is sampled from "):
        make(study, "gaussian", "gaussian")
    with pytest.raises(UserError, match=r"'gaussian@step0' is sampled from the step0 subject's "):
        make(study, "gaussian@step0", "gaussian@step0")


def test_a_fresh_model_needs_neither_the_source_nor_its_weights(study: Any, tmp_path: Path) -> None:
    """The trained folder's config is enough, whatever the source (GGUF, a local folder) was."""
    _, tokens, root = study
    found = []
    for name in ("one", "other"):
        if name == "other":  # the same architecture with other weights
            kind = json.loads((root / "trained/config.json").read_text())["model_type"]
            model = tiny_model(kind)
            model.get_input_embeddings().weight.data.mul_(3)
            model.save_pretrained(tmp_path / "source")
            source = PretrainedSource(kind="pretrained", path=str(tmp_path / "source"))
            trained = tmp_path / "trained"
            params = model_params(source)
            randomize_model(params, trained=None, eval_tokens=tokens, output=trained)
        else:
            trained = root / "trained"
        randomize_model(
            model_params(None, "fresh_init"),
            trained=trained / "recipe.json",
            eval_tokens=tokens,
            output=tmp_path / name,
        )
        found.append(weights(tmp_path / name))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_health_equals_numpy_by_hand(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    """For whole batches and for parts of a context, for every block."""
    tokens = load_tokens(chain.eval_tokens)
    written = json.loads((chain.recipe.parent / "gates.json").read_text())["health"]
    assert written["n_tokens"] == tokens.input_ids.size == 960
    subject = load_subject(chain.recipe, CPU)
    assert activation_health(subject, tokens) == written
    monkeypatch.setattr(health, "HEALTH_TOKENS", 100)
    monkeypatch.setattr(health, "HEALTH_BATCH_TOKENS", 33)
    part = activation_health(subject, tokens)
    seen: dict[str, list[Tensor]] = {site: [] for site in SITES}
    with torch.inference_mode():
        for layer, site in enumerate(SITES):
            block = subject.model.gpt_neox.layers[layer]
            block.register_forward_hook(
                lambda _m, _i, out, site=site: seen[site].append(
                    out[0] if isinstance(out, tuple) else out
                )
            )
        subject.model(torch.from_numpy(tokens.input_ids).long())
    for found, n in ((written, 960), (part, 100)):
        assert found["n_tokens"] == n
        assert list(found["sites"]) == list(SITES)
        for site in SITES:
            x = seen[site][0].double().flatten(0, 1)[:n].numpy()
            eigenvalues = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2
            p = eigenvalues / eigenvalues.sum()
            variances = x.var(axis=0)
            assert found["sites"][site] == {
                "mean_norm": pytest.approx(np.linalg.norm(x, axis=1).mean()),
                "max_coordinate_variance_share": pytest.approx(variances.max() / variances.sum()),
                "max_eigenvalue_share": pytest.approx(p.max()),
                "effective_rank": pytest.approx(math.exp(-(p * np.log(p)).sum())),
            }


def test_health_of_a_variant_is_its_own(study: Any) -> None:
    noisy = make(study, "noise_embeddings", "loud", embedding_noise_std=50.0)
    loud, plain = (
        json.loads((folder / "gates.json").read_text())["health"]["sites"]
        for folder in (noisy, study[2] / "trained")
    )
    assert loud.keys() == plain.keys() == set(SITES)
    for site in SITES:
        assert loud[site]["mean_norm"] > 10 * plain[site]["mean_norm"]


def test_health_of_a_noisy_variant_does_not_depend_on_the_batch(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(study, "noise_embeddings", "batched noise", embedding_noise_std=2.0)
    written = json.loads((folder / "gates.json").read_text())["health"]["sites"]
    monkeypatch.setattr(health, "HEALTH_BATCH_TOKENS", 1)
    subject = load_subject(folder / "recipe.json", CPU)
    alone = activation_health(subject, load_tokens(study[1]))["sites"]
    for site in SITES:
        assert alone[site] == pytest.approx(written[site], rel=1e-5)


def refusal_of(tokens: Path, study: Any, output: Path) -> str:
    params = model_params(study[0])
    return refused(randomize_model, params, trained=None, eval_tokens=tokens, output=output)


def test_token_ids_beyond_the_vocabulary_are_refused(study: Any, tmp_path: Path) -> None:
    ids, documents = tokens_of(4, seed=4)
    ids[1, 5] = VOCAB
    tokens = write_corpus(tmp_path / "corpus", ids, documents)
    assert refusal_of(tokens, study, tmp_path / "out") == (
        "config: subjects.tiny.corpus: token id 96 is beyond the subject's vocabulary of 96; "
        "use the subject's own tokenizer in corpora.*.tokenizer"
    )
    assert not (tmp_path / "out").exists()


def test_a_token_id_that_only_the_other_split_has_is_refused_before_it_is_read(
    study: Any, tmp_path: Path
) -> None:
    tokens = write_corpus(tmp_path / "corpus", *tokens_of(4, seed=4))
    write_json(tokens, {**json.loads(tokens.read_text()), "largest_token_id": VOCAB})
    assert f"token id {VOCAB} is beyond" in refusal_of(tokens, study, tmp_path / "out")


def test_contexts_that_are_too_long_are_refused(study: Any, tmp_path: Path) -> None:
    tokens = write_corpus(tmp_path / "corpus", *tokens_of(4, seed=4, context=33))
    assert refusal_of(tokens, study, tmp_path / "out") == (
        "config: subjects.tiny.corpus: contexts of 33 tokens, but the subject reads at most 32; "
        "lower corpora.*.context_tokens"
    )


def test_a_missing_source_is_refused(study: Any, tmp_path: Path) -> None:
    _, tokens, _ = study
    with pytest.raises(UserError, match=r"^--params: source is missing"):
        randomize_model(
            model_params(None), trained=None, eval_tokens=tokens, output=tmp_path / "out"
        )


def test_a_failed_gate_stops_the_variant(
    study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A randomization that forgets one tensor must not reach `gates.json`."""
    real = randomize

    def forgetful(model: Any, *args: Any, **keys: Any) -> Any:
        name, parameter = next(iter(model.named_parameters()))
        before = parameter.clone()
        changes = real(model, *args, **keys)
        with torch.no_grad():
            parameter.copy_(before)
        assert name in changes
        return changes

    monkeypatch.setattr(publish, "randomize", forgetful)
    with pytest.raises(UserError, match=r"gate 'changed' failed: .*weight: should have changed"):
        make(study, "rerandomized", "forgetful", norm_parameters="rerandomize")
    folder = study[2] / "forgetful"
    assert not (folder / "gates.json").exists()
    assert not (folder / "model.parquet").exists()


def test_a_draw_that_depends_on_more_than_its_key_is_refused(
    study: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(2))

    def moody(model: Any, *args: Any, draw: int, **keys: Any) -> Any:
        return randomize(model, *args, draw=draw + next(calls), **keys)

    monkeypatch.setattr(publish, "randomize", moody)
    with pytest.raises(UserError, match=r"gate 'repeatable' failed: .*weight: a second draw with"):
        make(study, "permuted_weights", "moody")


@pytest.mark.parametrize(
    ("variant", "gate"),
    [
        ("permuted_weights", "entries"),
        ("spectrum_matched", "spectrum"),
        ("permuted_embeddings", "rows"),
        ("rotated_embeddings", "rows"),
        ("fresh_init", "initializer"),
        ("rerandomized", "moments"),
        ("cascade", "changed"),
    ],
)
def test_a_variant_is_held_to_its_own_gate(
    study: Any, monkeypatch: pytest.MonkeyPatch, variant: str, gate: str
) -> None:
    """A change that passes every other gate: the result, slightly enlarged."""
    real = randomize

    def wrong(model: Any, *args: Any, **keys: Any) -> Any:
        changes = real(model, *args, **keys)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim > 1 and (name in changes) == (variant != "cascade"):
                    parameter.mul_(1.5)
        return changes

    monkeypatch.setattr(publish, "randomize", wrong)
    with pytest.raises(UserError, match=f"gate '{gate}' failed: .*weight: "):
        make(study, variant, f"wrong {variant}")
