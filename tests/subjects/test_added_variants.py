"""A variant unknown to nullsae: one class, found by its entry point or registered here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nullsae.config.parse import config_schema, parse_config
from nullsae.config.randomization import Settings
from nullsae.config.subjects import GgufSource, TrainSource
from nullsae.config.variants import VARIANTS, Variant, fitted_to, floor_name, has_model
from nullsae.core.errors import UserError
from nullsae.jobs.grid import model_cells
from nullsae.jobs.rules import rule_params
from nullsae.report import style
from nullsae.report.controls import controls
from nullsae.subjects.changes import REDRAWN, Change, change_weights
from nullsae.subjects.loading import load_subject
from nullsae.subjects.publish import randomize_model
from refusing import refused
from small_chain import CPU, Chain, model_params

REPOSITORY = Path(__file__).parents[2]
# All that another package needs besides its entry point.
SIGNS = '''
"""Random signs."""

from nullsae.config.variants import Variant
from nullsae.subjects.changes import PERMUTED, Change, change_weights


class SignFlip(Change):
    """Each entry has a random sign."""

    def new(self, tensor, generator):
        import torch

        signs = torch.randint(2, tensor.shape, generator=generator) * 2 - 1
        return tensor * signs.to(tensor.dtype)

    def gate(self, before, after, names, **_):
        from nullsae.subjects.gates import failed, passed

        same = all(bool((before[name].abs() == after[name].abs()).all()) for name in names)
        return (passed if same else failed)("sizes", f"{len(names)} tensors")


class RandomSigns(Variant):
    name = "random_signs"
    group = "rearranged weights"
    text = "Each weight keeps its size and gets a random sign."
    reads = ("norm_parameters",)

    @classmethod
    def changes(cls, model, settings):
        return change_weights(model, settings, SignFlip())
'''


class Upper(Variant):
    """Everything except embeddings and norms."""

    name = "upper"
    position = 20
    group = "redrawn weights"
    text = "Only the last block is redrawn."
    reads = ("norm_parameters",)

    @classmethod
    def changes(cls, model: Any, settings: Settings) -> Mapping[str, Change]:
        last = f"layers.{model.config.num_hidden_layers - 1}."
        names = {name for name, _ in model.named_parameters() if last in name}
        return change_weights(model, settings, REDRAWN, names=names)


class Forgetful(Variant):
    """It claims to change weights, but names none."""

    name = "forgetful"


class Idle(Variant):
    """It claims to change what runs on the weights."""

    name = "idle"
    changes_weights = False


class Step1(Variant):
    """Weights of a source, from its own revision."""

    name = "step1"
    origin = "source"
    fixed = True
    changes_weights = False

    @classmethod
    def revision(cls, source: Any) -> tuple[str | None, str]:
        return "step1", "path"


class GaussianCascade(Variant):
    """Activations without a model, fitted to another variant than `trained`."""

    name = "gaussian_cascade"
    sampled_from = "cascade"
    changes_weights = False


ADDED = (Upper, Forgetful, Idle, Step1, GaussianCascade)


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> None:
    len(VARIANTS)  # find nullsae's own first
    for variant in ADDED:
        monkeypatch.setitem(VARIANTS._found, variant.name, variant)


def study(*variants: str, **sections: Any) -> Any:
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    return parse_config(config | {"variants": ["trained", *variants]} | sections)


def make(chain: Chain, variant: str, output: Path, **keys: Any) -> Path:
    randomize_model(
        model_params(None, variant, **keys),
        trained=chain.recipe,
        eval_tokens=chain.eval_tokens,
        output=output,
    )
    return output


def test_an_unknown_variant_is_refused_and_the_known_ones_are_listed() -> None:
    said = refused(study, "uper")
    names = ", ".join(VARIANTS)
    assert said == f"config: variants.1: 'uper' is not one of {names}"


@pytest.mark.usefixtures("added")
def test_an_added_variant_is_parsed_listed_and_drawn() -> None:
    config = study("upper", "gaussian_cascade", draws=2, randomization={"norm_parameters": "keep"})
    assert list(config.draws_of("upper", "small")) == [0, 1]
    assert "upper" in json.loads(config_schema())["properties"]["variants"]["items"]["enum"]
    keys = {"subject": "small", "variant": "upper", "draw": "1"}
    params = json.loads(rule_params(config, "randomize_model", keys))
    assert (params["norm_parameters"], params["embedding_noise_std"]) == ("keep", None)
    assert keys in list(model_cells(config))
    entries = {e.name: e for _, stage in controls(config) for e in stage}
    assert entries["upper"].kind == "redrawn weights"
    assert entries["upper"].text == (
        "Only the last block is redrawn. Normalization layers are kept."
    )


@pytest.mark.usefixtures("added")
def test_an_added_variant_without_a_model_is_fitted_to_what_it_says() -> None:
    config = study("cascade", "gaussian_cascade", draws=2)
    assert not has_model("gaussian_cascade")
    assert fitted_to("gaussian_cascade", 1) == ("cascade", 1)
    assert fitted_to(floor_name("upper"), 1) == ("upper", 1)
    assert {keys["variant"] for keys in model_cells(config)} == {"trained", "cascade"}
    rule_params(
        config,
        "sample_gaussian",
        {
            **{"subject": "small", "variant": "gaussian_cascade", "draw": "1", "split": "eval"},
        },
    )


@pytest.mark.usefixtures("added")
def test_an_added_variant_is_randomized_and_gated(chain: Chain, tmp_path: Path) -> None:
    folder = make(chain, "upper", tmp_path / "upper", norm_parameters="keep", draw=1)
    written = json.loads((folder / "gates.json").read_text())["gates"]
    assert [gate["gate"] for gate in written] == [
        *("inventory", "changed", "moments", "uncorrelated", "repeatable"),
        *("alone", "causal", "own rows", "reloads", "finite"),
    ]
    before, after = (
        dict(load_subject(recipe, CPU).model.named_parameters())
        for recipe in (chain.recipe, folder / "recipe.json")
    )
    changed = {name for name in before if not bool((before[name] == after[name]).all())}
    assert changed
    assert all("layers.2." in name and "norm" not in name for name in changed)


@pytest.mark.usefixtures("added")
@pytest.mark.parametrize(
    ("variant", "reason"),
    [
        ("forgetful", "no tensor differs from the original's"),
        ("idle", "no gate distinguishes it from the trained variant"),
    ],
)
def test_a_variant_that_changes_nothing_fails_a_gate(
    chain: Chain, tmp_path: Path, variant: str, reason: str
) -> None:
    assert refused(make, chain, variant, tmp_path / variant).endswith(
        f"gate 'changed' failed: {reason}"
    )
    assert not (tmp_path / variant / "gates.json").exists()


@pytest.mark.usefixtures("added")
def test_weights_of_a_source_are_never_the_trained_ones_under_another_name(
    chain: Chain, tmp_path: Path
) -> None:
    for variant in ("step0", "step1"):
        with pytest.raises(UserError, match=rf"^--trained: '{variant}' is not made from the"):
            make(chain, variant, tmp_path / variant)
    sources = TrainSource(kind="train"), GgufSource(kind="gguf", path="model.gguf")
    assert [Step1.lacks(source) for source in sources] == [
        "kind: 'train' has no weights of step1",
        "kind: 'gguf' has no weights of step1",
    ]
    with pytest.raises(UserError, match=r"subjects\.small\.source\.kind: 'train' has no weights"):
        study("step1")


@pytest.mark.usefixtures("added")
def test_a_recipe_of_a_variant_that_is_gone_is_refused(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make(chain, "upper", tmp_path / "upper")
    monkeypatch.delitem(VARIANTS._found, "upper")
    with pytest.raises(UserError, match=r"recipe\.json: variant 'upper' is not one of trained, "):
        load_subject(folder / "recipe.json", CPU)


@pytest.mark.usefixtures("added")
def test_looks_made_from_names_stay_apart_and_repeat() -> None:
    light = [style.colour(variant) for variant in VARIANTS]
    dark = [style.dark()[colour] for colour in light]
    for colours in (light, dark):
        channels = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in colours]
        for i, one in enumerate(channels):
            for other in channels[:i]:
                assert np.abs(np.subtract(one, other)).max() > 10
    assert len({style.shape(variant) for variant in VARIANTS}) == len(VARIANTS)
    assert len({tuple(style.dash(variant)) for variant in VARIANTS}) == len(VARIANTS)
    assert style.colour("upper") == "#f600aa"


PROBE = """
import json, sys
from pathlib import Path
import yaml
from nullsae.config.parse import parse_config
config = yaml.safe_load(Path(sys.argv[1]).read_text())
parsed = parse_config(config | {"variants": ["trained", "random_signs"]})
light = {"torch", "transformers", "datasets", "altair"} & set(sys.modules)
from nullsae.report import style
from nullsae.report.controls import controls
from nullsae.subjects.publish import randomize_model
from small_chain import model_params
recipe, tokens, output = map(Path, sys.argv[2:])
randomize_model(
    model_params(None, "random_signs"), trained=recipe, eval_tokens=tokens, output=output
)
look = style.colour("random_signs"), style.shape("random_signs"), style.dash("random_signs")
texts = {e.name: e.text for _, stage in controls(parsed) for e in stage}
print(json.dumps([sorted(light), look, texts["random_signs"]]))
"""


def test_a_variant_of_another_package_needs_one_file_and_an_entry_point(
    chain: Chain, tmp_path: Path
) -> None:
    (tmp_path / "signs.py").write_text(SIGNS, encoding="utf-8")
    about = tmp_path / "signs-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: signs\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[nullsae.variants]\nsigns = signs:RandomSigns\n")
    given = [REPOSITORY / "config.yaml", chain.recipe, chain.eval_tokens, tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *map(str, given)],
        env={**os.environ, "PYTHONPATH": ":".join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded, (colour, shape, dash), text = json.loads(done.stdout.splitlines()[-1])
    assert loaded == []
    assert colour not in style.dark()
    assert shape not in {style.shape(variant) for variant in VARIANTS}
    assert len(dash) == 4
    assert text == "Each weight keeps its size and gets a random sign."
    written = json.loads((tmp_path / "out/gates.json").read_text())["gates"]
    assert [gate["gate"] for gate in written][2] == "sizes"
