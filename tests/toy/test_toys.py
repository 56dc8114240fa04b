"""The section `toy` of the config, and the slices of it that jobs get."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from nullsae.config.parse import parse_config
from nullsae.config.read import read_merged_config
from nullsae.config.study import Config
from nullsae.config.toy import DATA, Toy, toy_cells, toy_figures
from nullsae.core.errors import UserError
from nullsae.core.files import checksum
from nullsae.jobs.rules import rule_params

REPOSITORY = Path(__file__).parents[2]
CELL = {"source": "sharkey", "data": "data", "expansion": "2", "seed": "0"}


def study(toy: Any = None) -> Config:
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    return parse_config({**config, "toy": toy})


def params(config: Config, **changed: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rule_params(config, "train_toy", {**CELL, **changed}))
    return found


def test_coefficients_are_evenly_spaced_by_their_logarithm() -> None:
    toy = read_merged_config([REPOSITORY / "config.yaml", REPOSITORY / "config/toy.yaml"]).toy
    assert toy is not None
    np.testing.assert_allclose(toy.training.l1_coefficients, np.logspace(-3, 2, 21))


def test_the_papers_sweep_is_the_published_one() -> None:
    toy = read_merged_config([REPOSITORY / "config.yaml", REPOSITORY / "config/toy.yaml"]).toy
    assert toy is not None
    (source,) = toy.sources.values()
    assert source.model_dump(exclude={"kind", "normalize_covariance"}) == {
        "n_samples": 10_000,
        "d_input": 256,
        "n_true_features": 512,
        "mean_active": 5.0,
        "probability_exponent": 0.99,
    }
    assert [256 * factor for factor in toy.expansion_factors] == [512, 1024, 2048, 4096]
    training = toy.training
    assert (training.epochs, training.batch_samples, training.lr) == (100, 256, 1e-3)
    assert (len(toy.seeds), toy.mlp_hidden_factor, training.heldout_share) == (10, 4, 0.1)
    assert len(list(toy_cells(toy))) == 4 * 4 * 10


def test_a_config_without_the_section_has_no_toy_jobs_of_its_own() -> None:
    assert study().toy is None
    cells = list(toy_cells(Toy()))
    assert len(cells) == len(DATA) * 2 * 3
    assert params(study()) == params(study({}))
    assert toy_figures(Toy()) == [
        *("toy.sharkey", "toy.sharkey_scalar", "toy.sharkey_mmcs"),
    ]
    vectors = {"glove": {"kind": "word_vectors", "path": "v.txt"}, "sharkey": None}
    assert toy_figures(study({"sources": vectors}).toy or Toy()) == [
        "toy.glove",
        "toy.glove_scalar",
    ]


@pytest.mark.parametrize(
    ("toy", "said"),
    [
        ({"seed": 1}, "config: toy.seed: unknown key; did you mean 'seeds'?"),
        ({"sources": {}}, "config: toy.sources: is empty; give at least 1"),
        ({"sources": {"a/b": {"kind": "sharkey"}}}, "config: toy.sources: 'a/b' is not a name"),
        ({"sources": {"a": {"kind": "glove"}}}, "config: toy.sources.a: kind: 'glove' is not one"),
        ({"sources": {"a": {"kind": "word_vectors"}}}, "config: toy.sources.a.path: missing"),
        (
            {"sources": {"a": {"kind": "sharkey", "mean_active": 9.0, "n_true_features": 8}}},
            "config: toy.sources.a: mean_active 9 is more than n_true_features 8",
        ),
        ({"seeds": [1, 1]}, "config: toy.seeds: '1' is named twice"),
        ({"expansion_factors": [0]}, "config: toy.expansion_factors.0: 0: input should be greater"),
        (
            {"training": {"min_l1_coefficient": 2.0}},
            "config: toy.training: max_l1_coefficient 1 is not above min_l1_coefficient 2",
        ),
        ({"training": {"lr": "1e-3"}}, "config: toy.training.lr: '1e-3' is text, not a number"),
    ],
)
def test_a_mistake_is_refused_and_named(toy: Any, said: str) -> None:
    with pytest.raises(UserError) as caught:
        study(toy)
    assert str(caught.value).startswith(said)


def test_a_job_depends_only_on_what_it_uses() -> None:
    toy: dict[str, Any] = {
        "sources": {"sharkey": {"kind": "sharkey"}},
        "gaussian": "scalar",
        "expansion_factors": [2],
        "seeds": [0],
        "mlp_hidden_factor": 2,
    }
    more = copy.deepcopy(toy)
    more["sources"]["other"] = {"kind": "sharkey", "d_input": 8}
    more |= {"expansion_factors": [8, 2], "seeds": [5, 0]}
    for data in DATA:
        assert params(study(toy), data=data) == params(study(more), data=data)
    # The control and the network affect only the data made from them.
    for key, value, used in (
        ("gaussian", "matched", {"gaussian", "mlp_of_gaussian"}),
        ("mlp_hidden_factor", 3, {"mlp_of_data", "mlp_of_gaussian"}),
    ):
        edited = study({**toy, key: value})
        changed = {d for d in DATA if params(study(toy), data=d) != params(edited, data=d)}
        assert changed == used


def test_the_report_of_the_study_does_not_depend_on_the_toys() -> None:
    assert rule_params(study(), "report", {}) == rule_params(study({"seeds": [7]}), "report", {})
    assert rule_params(study(), "report_toy", {}) != rule_params(
        study({"seeds": [7]}), "report_toy", {}
    )


def test_an_edit_of_the_file_of_word_vectors_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "v.txt"
    config = study({"sources": {"sharkey": {"kind": "word_vectors", "path": str(file)}}})
    assert params(config)["local_files"] == []
    file.write_text("word 1 2\n", encoding="utf-8")
    (stamp,) = params(config)["local_files"]
    assert stamp == f"v.txt {checksum(file)}"
