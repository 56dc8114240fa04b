"""Names of Gaussian data, and which activations they are fitted to."""

from __future__ import annotations

import pytest

from nullsae.config.parse import parse_section
from nullsae.config.variants import VARIANTS, fitted_to, floor_name, has_model, is_floor
from nullsae.jobs.keys import ModelKeys
from refusing import refused


def test_every_variant_has_the_name_of_a_floor() -> None:
    captured = [name for name in VARIANTS if name != "gaussian"]
    assert captured == [name for name in VARIANTS if has_model(name)]
    for name in (*VARIANTS, *map(floor_name, captured)):
        keys = {"subject": "s", "draw": 0, "variant": name}
        assert parse_section(ModelKeys, keys, where="--params").variant == name


def test_a_floor_is_fitted_to_the_draw_of_its_variant() -> None:
    for floor in (floor_name(name) for name in VARIANTS if name != "gaussian"):
        assert is_floor(floor)
        assert not has_model(floor)
        assert fitted_to(floor, 3) == (floor.partition("@")[2], 3)
    # Two samples of one fit: trained has no second draw.
    assert fitted_to("gaussian", 0) == fitted_to("gaussian", 3) == ("trained", 0)
    for variant in VARIANTS:
        assert not is_floor(variant)
        assert variant == "gaussian" or fitted_to(variant, 3) is None


@pytest.mark.parametrize("name", ["gaussian@gaussian", "gaussian@", "gaussian@step1", "step0@"])
def test_params_that_name_a_floor_that_does_not_exist_are_refused(name: str) -> None:
    keys = {"subject": "s", "draw": 0}
    known = parse_section(ModelKeys, {**keys, "variant": "gaussian@step0"}, where="--params")
    assert known.variant == "gaussian@step0"
    said = refused(parse_section, ModelKeys, {**keys, "variant": name}, where="--params")
    assert said.startswith(f"--params: variant: {name!r} is not one of trained, ")
