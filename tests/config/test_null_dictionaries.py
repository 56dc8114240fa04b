"""Null dictionaries that a study adds to its learned ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from nullsae.config.parse import parse_config, resolve_subjects
from nullsae.config.read import merge, read_config
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.jobs.grid import derived_recipes, floor_cells, recipe_cells, sae_cells
from nullsae.jobs.of_models import collecting_rules
from nullsae.jobs.rules import rule_params
from nullsae.jobs.shared_training import shared_jobs

BASE = Path(__file__).parents[2] / "config.yaml"
NULLS = ("rate_matched_random", "rotated", "pca", "identity")


def study(**saes: dict[str, Any]) -> Config:
    """Return the default study with these recipes instead of its own."""
    data = yaml.safe_load(BASE.read_text(encoding="utf-8"))
    if saes:
        data["saes"] = saes
    return resolve_subjects(parse_config(data))


def test_the_default_study_has_them_for_trained_at_the_last_site() -> None:
    config = study()
    names = [f"topk.{null}" for null in NULLS]
    assert [*config.saes] == ["topk", *names]
    found = [cell for cell in sae_cells(config) if cell["sae"] != "topk"]
    assert [cell["sae"] for cell in found] == names
    assert {(cell["variant"], cell["site"]) for cell in found} == {("trained", "resid_post.2")}
    # They have neither a floor nor others of their kind to match with.
    assert {cell["sae"] for cell in floor_cells(config)} == {"topk"}
    assert {cell["sae"] for cell in recipe_cells(config)} == {"topk"}
    assert derived_recipes(config) == dict.fromkeys(names[:2], "topk")
    assert {config.saes[name].given_k for name in names} == {None, 16}
    # The params of the tables already include them.
    again = parse_config(config.model_dump(mode="json"))
    assert resolve_subjects(again) == config


@pytest.mark.parametrize(
    ("overlay", "real"), [("published", ("published",)), ("all-controls", ("topk",))]
)
def test_the_answer_speaks_of_no_null_dictionary_that_stands_on_every_variant(
    overlay: str, real: tuple[str, ...]
) -> None:
    config = parse_config(merge(*map(read_config, (BASE, BASE.parent / f"config/{overlay}.yaml"))))
    assert config.answering_saes == real
    assert len(config.saes) > len(real)


def test_the_answer_of_a_study_of_null_dictionaries_alone_speaks_of_them() -> None:
    config = study(pca={"dictionary": "pca", "k": 8}, identity={"dictionary": "identity", "k": 8})
    assert config.answering_saes == ("pca", "identity")


def test_they_have_the_seeds_and_the_k_of_their_sae() -> None:
    config = study(mine={"k": 8, "n_latents": 64, "seeds": [0, 3]})
    assert {name: (sae.given_k, sae.seeds) for name, sae in config.saes.items()} == {
        "mine": (8, (0, 3)),
        "mine.rate_matched_random": (None, (0, 3)),
        "mine.rotated": (None, (0, 3)),
        "mine.pca": (8, (0,)),
        "mine.identity": (8, (0,)),
    }


def test_what_has_no_k_or_is_a_null_gets_none_that_needs_it() -> None:
    config = study(
        gated={"architecture": "gated", "l1_coefficient": 0.1, "n_latents": 64},
        frozen={"dictionary": "frozen_decoder", "k": 4, "n_latents": 64},
    )
    assert [*config.saes] == ["gated", "frozen", "gated.rate_matched_random", "gated.rotated"]


def test_a_recipe_is_made_where_it_says_and_its_saes_do_not_depend_on_that() -> None:
    recipe = {"k": 8, "n_latents": 64}
    plain = study(mine=recipe)
    narrow = study(mine={**recipe, "variants": ["trained", "step0"], "sites": ["resid_post.1"]})
    found = [cell for cell in sae_cells(narrow) if cell["sae"] == "mine"]
    assert [(cell["variant"], cell["site"]) for cell in found] == [
        ("trained", "resid_post.1"),
        ("step0", "resid_post.1"),
    ]
    keys = {**found[0], "subject": "small"}
    assert rule_params(plain, "train_sae", keys) == rule_params(narrow, "train_sae", keys)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"variants": ["step0"]}, "variants: 'trained' is missing; every contrast is against it"),
        ({"variants": ["trained", "cascade"]}, "saes.mine.variants: 'cascade' is not one of"),
        ({"sites": ["resid_post.9"]}, "saes.mine.sites: no subject has a site resid_post.9"),
    ],
)
def test_a_place_that_the_study_lacks_is_refused(keys: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        study(mine={"k": 8, "n_latents": 64, **keys})
    assert said in str(error.value)


def test_jobs_of_the_default_study_take_all_saes_of_a_model() -> None:
    config = study()
    assert [len(job.params.cells) for job in shared_jobs(config)] == [4, *(11 * [2])]
    assert [(len(rule.variants), len(rule.cells)) for rule in collecting_rules(config)] == [
        (1, 6),
        (5, 2),
    ]
