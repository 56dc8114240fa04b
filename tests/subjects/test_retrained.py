"""The positive control: the subject from another seed, trained here or read from elsewhere."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hub_cache import add_revision
from nullsae.config.corpora import TrainedTokenizer
from nullsae.config.parse import parse_config, resolve_subjects
from nullsae.config.study import Config
from nullsae.config.subjects import PretrainedSource, RetrainedModel, TrainSource
from nullsae.config.variants import VARIANTS, is_null, is_positive_control
from nullsae.core.errors import UserError
from nullsae.core.files import read_json, write_json
from nullsae.corpus.store import load_tokens
from nullsae.corpus.tokenizer import save_tokenizer, train_tokenizer
from nullsae.fetching.study import wanted
from nullsae.jobs.activations import activations_key
from nullsae.jobs.grid import cross_cells, matched_cells, model_cells
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.rules import rule_params, rules
from nullsae.jobs.subjects import RetrainSubjectParams, TrainSubjectParams
from nullsae.subjects.loading import load_subject
from nullsae.subjects.publish import randomize_model, train_subject
from nullsae.subjects.retraining import retrain_subject, training_seed
from nullsae.subjects.training import train_model
from refusing import refused
from small_chain import (
    COMPUTE,
    CPU,
    Chain,
    model_params,
    save_source,
    tiny_model,
    tokens_of,
    write_corpus,
)

REPOSITORY = Path(__file__).parents[2]
TINY = TrainSource(kind="train", n_layers=2, d_model=16, n_heads=2, steps=12, batch_contexts=8)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("corpus")
    found = []
    for split, n, seed in (("sae_train", 64, 1), ("eval", 16, 2)):
        found.append(write_corpus(root / split, *tokens_of(n, seed=seed)))
        manifest = read_json(found[-1], rebuild="")
        write_json(found[-1], manifest | {"eos_token_id": 0})
    return found[0], found[1]


def params(source: TrainSource | PretrainedSource, draw: int = 0, seed: int = 0) -> Any:
    keys = ModelKeys(subject="tiny", variant="retrained", draw=draw)
    given = VARIANTS["retrained"].source_of(source, draw)
    return RetrainSubjectParams(seed=seed, keys=keys, source=given, compute=COMPUTE)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_subject(folder / "recipe.json", CPU).model.named_parameters())


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def train_again(corpus: tuple[Path, Path], output: Path, **keys: Any) -> Path:
    train, heldout = corpus
    where = {"train_tokens": train, "eval_tokens": heldout, "work": output.parent / "work"}
    retrain_subject(params(TINY, **keys), output=output, **where)
    return output


def test_a_draw_is_the_recipe_of_trained_from_a_seed_of_its_own(
    corpus: tuple[Path, Path], tmp_path: Path
) -> None:
    """The seed is computed by hand here, and passed to the plain training."""
    folder = train_again(corpus, tmp_path / "one", draw=1, seed=5)
    text = '[5,"retrained","tiny",1]'
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
    assert seed == training_seed(params(TINY, draw=1, seed=5))
    model, initial, steps = train_model(
        *(TINY, load_tokens(corpus[0])),
        **{"seed": seed, "subject": "tiny", "device": CPU},  # type: ignore[arg-type]
        checkpoint=tmp_path / "unused.safetensors",
    )
    assert same(weights(folder), dict(model.named_parameters()))
    assert not same(weights(folder), {n: initial[n] for n in weights(folder)})
    recipe = read_json(folder / "recipe.json", rebuild="")
    assert (recipe["variant"], recipe["draw"], recipe["seed"]) == ("retrained", 1, 5)
    assert recipe["source"]["training_seed"] == seed
    assert recipe["source"]["log"] == steps
    assert not list((tmp_path / "work").glob("*.safetensors")), "its checkpoint is left"


def test_draws_and_config_seeds_give_trainings_that_repeat_and_differ(
    corpus: tuple[Path, Path], tmp_path: Path
) -> None:
    train, heldout = corpus
    train_subject(
        TrainSubjectParams(seed=0, subject="tiny", source=TINY, compute=COMPUTE),
        **{"train_tokens": train, "eval_tokens": heldout},
        **{name: tmp_path / name for name in ("trained", "step0", "work")},
    )
    found = {
        "trained": weights(tmp_path / "trained"),
        "first": weights(train_again(corpus, tmp_path / "first")),
        "second": weights(train_again(corpus, tmp_path / "second", draw=1)),
        "seed": weights(train_again(corpus, tmp_path / "seed", seed=1)),
    }
    assert same(found["first"], weights(train_again(corpus, tmp_path / "again")))
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    for one, other in [(a, b) for a in found for b in found if a < b]:
        stacked = torch.stack([found[one][name].flatten(), found[other][name].flatten()])
        # 1,024 entries: 0.1 is three standard errors of independent ones.
        assert abs(float(torch.corrcoef(stacked)[0, 1])) < 0.15, (one, other)
    # Its own gates, and the same table as any variant.
    passed = read_json(tmp_path / "first/gates.json", rebuild="")
    assert {"alone", "causal", "own rows", "untrained", "reloads", "finite"} == {
        gate["gate"] for gate in passed["gates"]
    }
    assert (tmp_path / "first/model.parquet").is_file()


def fetch_again(chain: Chain, source: PretrainedSource, output: Path, **files: Path) -> Path:
    given = {"eval_tokens": chain.eval_tokens, "trained": chain.recipe, **files}
    retrain_subject(params(source), output=output, work=output.parent / "work", **given)
    return output


def with_retrained(chain: Chain, path: Path | str, **keys: Any) -> PretrainedSource:
    again = RetrainedModel(path=str(path), **keys)
    return chain.source.model_copy(update={"retrained": again})


def another(kind: str = "gpt_neox", **keys: Any) -> Any:
    """Return a model whose tensors are not those of `tiny_model`."""
    model = tiny_model(kind, **keys)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.flip(0) * 1.1 + 0.01)
    return model


def test_a_model_of_the_hub_is_read_as_it_is(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = another()
    for revision, commit, of in (
        ("main", "a" * 40, tiny_model("gpt_neox")),
        ("s1", "b" * 40, model),
    ):
        add_revision(tmp_path / "hub/models--someone--tiny-seed1", revision, commit, of)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    source = with_retrained(chain, "someone/tiny-seed{n}", revision="s{n}")
    folder = fetch_again(chain, source, tmp_path / "out")
    assert same(weights(folder), dict(model.named_parameters()))
    recipe = read_json(folder / "recipe.json", rebuild="")
    assert recipe["source"]["retrained"] == {"path": "someone/tiny-seed1", "revision": "s1"}
    gates = {gate["gate"] for gate in read_json(folder / "gates.json", rebuild="")["gates"]}
    assert {"changed", "alone", "causal"} <= gates
    # The branch without its own seed has the subject's weights.
    source = with_retrained(chain, "someone/tiny-seed{n}")
    with pytest.raises(UserError, match=r"gate 'changed' failed: .* should have changed"):
        fetch_again(chain, source, tmp_path / "copy")
    assert not (tmp_path / "copy/gates.json").exists()


@pytest.mark.parametrize(
    ("keys", "reason"),
    [
        (
            {"hidden_size": 32},
            "gpt_neox.embed_in.weight is [96, 32], but [96, 16] in the subject",
        ),
        (
            {"num_hidden_layers": 2},
            "gpt_neox.layers.2.attention.dense.bias is missing, but [16] in the subject",
        ),
        ({"num_attention_heads": 4}, "num_attention_heads is 4, but 2 in the subject"),
    ],
)
def test_another_architecture_is_refused_in_one_line(
    chain: Chain, tmp_path: Path, keys: dict[str, Any], reason: str
) -> None:
    another(**keys).save_pretrained(tmp_path / "model")
    said = refused(fetch_again, chain, with_retrained(chain, tmp_path / "model"), tmp_path / "out")
    path = str(tmp_path / "model")
    assert said == (
        f"config: subjects.tiny.source.retrained.path: {path!r} is not the subject from another "
        f"seed: {reason}"
    )


def test_another_tokenizer_is_refused_in_one_line(chain: Chain, tmp_path: Path) -> None:
    def tokenizer(text: str) -> Any:
        kind = TrainedTokenizer(kind="train", vocab_size=300)
        return train_tokenizer([text] * 4, kind).tokenizer

    model = tmp_path / "model"
    another().save_pretrained(model)
    own = tokenizer("one hundred years of state and union addresses")
    corpus = tmp_path / "corpus/tokenizer"
    save_tokenizer(own, corpus)
    manifest = tmp_path / "corpus/eval/manifest.json"
    manifest.parent.mkdir()
    for file in chain.eval_tokens.parent.iterdir():
        (manifest.parent / file.name).write_bytes(file.read_bytes())
    source = with_retrained(chain, model)
    fetch_again(chain, source, tmp_path / "none", eval_tokens=manifest)
    own.save_pretrained(model)
    fetch_again(chain, source, tmp_path / "same", eval_tokens=manifest)
    other = tokenizer("entirely different words make entirely different merges")
    other.save_pretrained(model)
    said = refused(fetch_again, chain, source, tmp_path / "other", eval_tokens=manifest)
    texts = [{i: text for text, i in each.get_vocab().items()} for each in (own, other)]
    first = next(i for i in sorted(texts[0]) if texts[0][i] != texts[1].get(i))
    assert said == (
        f"config: subjects.tiny.source.retrained.path: {str(model)!r} has another tokenizer than "
        f"the subject: token {first} is {texts[1].get(first)!r} there and {texts[0][first]!r} in "
        f"the corpus"
    )


def test_a_model_that_has_learned_nothing_of_the_text_is_refused(
    chain: Chain, tmp_path: Path
) -> None:
    another().save_pretrained(tmp_path / "model")
    for file in chain.eval_tokens.parent.iterdir():
        (tmp_path / "eval").mkdir(exist_ok=True)
        (tmp_path / "eval" / file.name).write_bytes(file.read_bytes())
    heldout = tmp_path / "eval/manifest.json"
    write_json(heldout, read_json(heldout, rebuild="") | {"unigram_loss_nats": 0.5})
    source = with_retrained(chain, tmp_path / "model")
    with pytest.raises(
        UserError, match=r"^config: subjects\.tiny\.source\.retrained: .* nats, no b"
    ):
        fetch_again(chain, source, tmp_path / "out", eval_tokens=heldout)
    assert not (tmp_path / "out/gates.json").exists()


def test_it_is_not_made_by_a_randomization(chain: Chain, tmp_path: Path) -> None:
    another().save_pretrained(tmp_path / "model")
    source = with_retrained(chain, tmp_path / "model")
    with pytest.raises(UserError, match="use nullsae retrain_subject"):
        randomize_model(
            model_params(source, "retrained"),
            **{"trained": None, "eval_tokens": chain.eval_tokens, "output": tmp_path / "out"},
        )


def test_it_alone_is_no_null() -> None:
    assert [name for name in VARIANTS if is_positive_control(name)] == ["retrained"]
    others = [name for name in VARIANTS if name not in ("trained", "retrained")]
    assert [name for name in VARIANTS if is_null(name)] == others


def study(**sections: Any) -> Config:
    default = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    return resolve_subjects(parse_config(default | sections))


def of_hub(variants: list[str], draws: int = 1, **keys: Any) -> Config:
    source = {"kind": "pretrained", "path": "someone/tiny", "step0_revision": "step0", **keys}
    subject = {"corpus": "sotu", "source": source, "sites": ["resid_post.1"]}
    return study(subjects={"tiny": subject}, variants=variants, draws=draws)


WITH, WITHOUT = ["trained", "step0", "retrained"], ["trained", "step0"]
AGAIN = {"retrained": {"path": "someone/tiny-seed{n}"}}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (
            {},
            "subjects.tiny.source.retrained: missing, but variants names retrained; give {path, "
            "revision} of the subject trained from another seed (EleutherAI/pythia-14m-seed{n} of "
            "PolyPythias for EleutherAI/pythia-14m), or drop retrained from variants",
        ),
        (
            {"retrained": {"path": "someone/tiny"}},
            "subjects.tiny.source: retrained: 'someone/tiny' is the subject itself; give one from "
            "another seed",
        ),
        (
            {"retrained": {"path": "./gone", "revision": "v2"}},
            "subjects.tiny.source: retrained.revision: './gone' is a local folder, which has no "
            "revisions",
        ),
        (
            {"retrained": {"path": "./gone"}},
            "subjects.tiny.source.retrained.path: './gone' holds no config.json; give a local "
            "model folder or a hub id such as EleutherAI/pythia-70m",
        ),
    ],
)
def test_a_mistake_in_the_config_is_one_line(keys: dict[str, Any], said: str) -> None:
    assert refused(of_hub, WITH, **keys) == f"config: {said}"


def test_a_gguf_file_has_no_other_training() -> None:
    source = {"kind": "gguf", "path": "model.gguf"}
    subject = {"corpus": "sotu", "source": source, "sites": ["resid_post.1"]}
    with pytest.raises(UserError, match=r"source\.kind: 'gguf' has no weights of retrained$"):
        study(subjects={"tiny": subject}, variants=["trained", "retrained"])


def test_a_local_folder_of_another_size_is_refused_before_anything_runs(tmp_path: Path) -> None:
    own, other = tmp_path / "own", tmp_path / "other"
    save_source("gpt_neox", own)
    save_source("gpt_neox", other, hidden_size=32)
    said = refused(
        of_hub,
        WITH[:1] + WITH[2:],
        path=str(own),
        step0_revision=None,
        retrained={"path": str(other)},
    )
    assert said == (
        f"config: subjects.tiny.source.retrained.path: {str(other)!r} has d_model 32, the subject "
        f"16; give the same architecture, trained from another seed"
    )


def test_a_hub_has_as_many_draws_as_models(tmp_path: Path) -> None:
    def draws(config: Config) -> list[int]:
        cells = [c for c in model_cells(config) if c["variant"] == "retrained"]
        return [int(cell["draw"]) for cell in cells]

    one, each = {"path": "someone/tiny-seed1"}, {"path": "someone/tiny", "revision": "seed{n}"}
    assert draws(of_hub(WITH, 3, retrained=one)) == [0]
    assert draws(of_hub(WITH, 3, retrained=each)) == [0, 1, 2]
    none = of_hub(WITH, 3, retrained={"path": None})
    assert draws(none) == []
    assert {c["variant"] for c in matched_cells(none, "tiny", "resid_post.1", "topk")} == set(
        WITHOUT
    )
    keys = {"subject": "tiny", "variant": "trained", "draw": "0"}
    assert [c["variant"] for c in cross_cells(none, keys)] == WITHOUT
    fetched, _ = wanted(of_hub(WITH, 2, retrained=each), tmp_path)
    assert [item.describe() for item in fetched] == [
        "model someone/tiny",
        "model someone/tiny at seed1",
        "model someone/tiny at seed2",
        "model someone/tiny at step0",
    ]
    params = json.loads(
        rule_params(
            of_hub(WITH, 2, retrained=each),
            "retrain_subject",
            {
                "subject": "tiny",
                "variant": "retrained",
                "draw": "1",
            },
        )
    )
    assert params["source"]["retrained"] == {"path": "someone/tiny", "revision": "seed2"}


@pytest.mark.parametrize("hub", [False, True])
def test_other_variants_are_made_as_without_it(hub: bool) -> None:
    """The params and keys of their jobs do not change, so existing studies run none again."""

    def made(config: Config) -> list[str]:
        subject = next(iter(config.subjects))
        found = []
        if not hub:
            found.append(rule_params(config, "train_subject", {"subject": subject}))
        for variant in ("trained", "step0", "rerandomized"):
            keys = {"subject": subject, "variant": variant, "draw": "0"}
            found.append(rule_params(config, "randomize_model", keys))
            for split in ("sae_train", "eval"):
                of_split = {**keys, "split": split}
                found.append(rule_params(config, "cache_activations", of_split))
                found.append(activations_key(config, subject, variant, 0, split))
            found.append(rule_params(config, "train_sae", keys))
        return found

    plain, more = [*WITHOUT, "rerandomized"], [*WITH, "rerandomized"]
    before = made(of_hub(plain) if hub else study(variants=plain))
    after = made(of_hub(more, **AGAIN) if hub else study(variants=more))
    assert before == after
    # Identical to what it was before the key existed.
    assert not any('"retrained"' in params for params in before)


def test_what_makes_it_counts_in_no_hash_of_other_models() -> None:
    own = {file.name for file in rules()["retrain_subject"].files}
    assert "retraining.py" in own
    for name in ("train_subject", "randomize_model"):
        assert "retraining.py" not in {file.name for file in rules()[name].files}
