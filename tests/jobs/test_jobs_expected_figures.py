from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from nullsae.config.parse import parse_config
from nullsae.config.saes import Sae
from nullsae.config.study import Config
from nullsae.jobs.rules import rule_params
from small_config import SMALL_CONFIG

MODEL = {"subject": "small", "variant": "trained", "draw": "0"}
CELL = {**MODEL, "site": "resid_post.0", "sae": "theirs", "seed": "0"}


def study(folder: Path, **keys: Any) -> Config:
    recipe = {"pretrained": str(folder), "k": 4, **keys}
    return parse_config({**SMALL_CONFIG, "saes": {"theirs": recipe}})


def expected(config: Config, variant: str) -> list[Any]:
    params = json.loads(rule_params(config, "evaluate_sae", {**MODEL, "variant": variant}))
    return [sae.get("expect") for model in params["models"] for sae in model["saes"]]


def test_figures_are_expected_only_of_the_given_sae(tmp_path: Path) -> None:
    config = study(tmp_path, expect={"l0": 71, "explained_variance": 0.8})
    assert expected(config, "trained") == [{"l0": 71.0, "explained_variance": 0.8}]
    assert expected(config, "rerandomized") == [None]
    assert expected(study(tmp_path), "trained") == [None]


@pytest.mark.parametrize("variant", ["trained", "rerandomized"])
def test_other_figures_train_no_null_again(tmp_path: Path, variant: str) -> None:
    cell = {**CELL, "variant": variant}
    first, second = (
        rule_params(study(tmp_path, expect={"l0": l0}), "train_sae", cell) for l0 in (71, 72)
    )
    assert first == second == rule_params(study(tmp_path), "train_sae", cell)


@pytest.mark.parametrize(
    ("expect", "said"),
    [({"l0": 0}, "greater than 0"), ({"explained_variance": 1.5}, "less than or equal to 1")],
)
def test_figures_that_no_sae_can_have_are_refused(expect: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Sae.of(pretrained="./theirs", k=4, expect=expect)


def test_figures_are_known_of_a_given_sae_only() -> None:
    with pytest.raises(ValidationError, match="expect: only for an SAE with pretrained"):
        Sae.of(n_latents=32, k=4, expect={"l0": 4.0})
