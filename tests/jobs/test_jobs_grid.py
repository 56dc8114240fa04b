"""Checkpoints are cells of their own, but not trained by jobs of their own."""

from __future__ import annotations

import copy
import fnmatch
from typing import Any

import pytest

from nullsae import paths
from nullsae.config.parse import parse_config, resolve_subjects
from nullsae.config.saes import checkpoint_name, recipe_name
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.jobs.grid import (
    captured_sites,
    cell_files,
    floor_cells,
    floor_recipes,
    recipe_cells,
    sae_cells,
    sae_names,
    source_cell,
    trained_together,
    variant_cells,
)
from refusing import refused

STUDY: dict[str, Any] = {
    "corpora": {
        "c": {"source": {"kind": "builtin"}, "tokenizer": {"kind": "train", "vocab_size": 300}}
    },
    "subjects": {
        "s": {"corpus": "c", "source": {"kind": "train"}, "sites": ["embed", "resid_post.1"]}
    },
    "variants": ["trained", "step0"],
    "activations": {"sae_train_tokens": 4096},
    "saes": {
        "wide": {"n_latents": 128, "checkpoints": [0.3, 0.05], "seeds": [0, 4]},
        "plain": {"n_latents": 64},
    },
    "explainers": {"lexical": {"kind": "lexical"}},
    "scorers": {"detection": {"kind": "detection"}},
}
NAMES = ["wide@0.05", "wide@0.3", "wide", "plain"]


def study(**wide: Any) -> Config:
    data = copy.deepcopy(STUDY)
    data["saes"]["wide"] |= wide
    return parse_config(data)


def with_transcoder(**keys: Any) -> Config:
    data = copy.deepcopy(STUDY)
    data["subjects"]["s"]["sites"] = ["resid_post.1", "mlp_in.0", "mlp_in.1"]
    given = {"pretrained": "./made", "input_site": "mlp_in", "output_site": "mlp_out"}
    data["saes"]["transcoder"] = {**given, **keys}
    return parse_config(data)


def test_a_transcoder_is_made_where_it_reads_and_for_trained_alone() -> None:
    config = with_transcoder()
    cells = [cell for cell in sae_cells(config) if cell["sae"] == "transcoder"]
    assert [(c["variant"], c["site"]) for c in cells] == [
        ("trained", "mlp_in.0"),
        ("trained", "mlp_in.1"),
    ]
    assert captured_sites(config, "s") == (
        *("resid_post.1", "mlp_in.0", "mlp_in.1"),
        *("mlp_out.0", "mlp_out.1"),
    )
    assert not [cell for cell in floor_cells(config) if cell["sae"] == "transcoder"]
    compared = [cell for cell in recipe_cells(config) if cell["sae"] == "transcoder"]
    assert compared == []
    several = {cell["site"] for cell in recipe_cells(config)}
    assert several == {"resid_post.1", "mlp_in.0", "mlp_in.1"}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"pretrained": None, "n_latents": 8}, "transcoders are not trained here; give pretrained"),
        ({"input_site": None}, "input_site: missing; a transcoder has an input_site and out"),
        ({"output_site": "mlp"}, "output_site: 'mlp' is not one of resid_pre, hook_z, "),
        ({"output_site": "attn_out"}, "output_site: attn_out does not come after mlp_in in a"),
    ],
)
def test_a_transcoder_with_other_ends_is_refused(keys: dict[str, Any], said: str) -> None:
    line = refused(with_transcoder, **keys)
    assert line.startswith("config: saes.transcoder: ")
    assert said in line


def test_a_study_without_a_site_that_a_transcoder_reads_is_refused() -> None:
    config = with_transcoder(input_site="hook_z", output_site="attn_out")
    assert refused(resolve_subjects, config) == (
        "config: saes.transcoder.input_site: no subject has a site hook_z; name one in "
        "subjects.*.sites"
    )


def refusal(**wide: Any) -> str:
    return refused(study, **wide)


def test_an_sae_along_its_training_is_a_cell_before_the_whole_one() -> None:
    assert list(sae_names(study())) == NAMES
    assert sae_names(study())["wide@0.05"] == "wide"
    first = [
        (cell["sae"], cell["seed"])
        for cell in sae_cells(study())
        if (cell["variant"], cell["site"]) == ("step0", "embed")
    ]
    seeds = {name: ("0", "4") if name.startswith("wide") else ("0",) for name in NAMES}
    assert first == [(name, seed) for name in NAMES for seed in seeds[name]]


def test_a_checkpoint_is_not_trained_as_an_sae_of_its_own() -> None:
    whole = {"subject": "s", "variant": "trained", "draw": "0", "site": "embed"}
    assert [cell["sae"] for cell in trained_together(study(), whole)] == ["wide", "wide", "plain"]
    one = {**whole, "sae": "wide", "seed": "4"}
    assert trained_together(study(), one) == [one]
    assert trained_together(study(), {**one, "sae": "wide@0.3"}) == []


def test_checkpoints_go_through_all_stages_that_they_have_part_in() -> None:
    none = ("models", "cross_evaluation", "overlap")
    for table, files in cell_files(study()).items():
        along = fnmatch.filter(files, "*/sae=wide@*")
        n_cells = 2 * 2 * 2 * 2  # variants, sites, checkpoints, seeds
        assert len(along) == (0 if table in none else n_cells), table
    file = cell_files(study())["scores"][0]
    assert paths.partition_keys(file)["sae"] == "wide@0.05"


def test_the_path_of_a_checkpoint_is_that_of_a_cell() -> None:
    keys = next(cell for cell in sae_cells(study()) if cell["sae"] == "wide@0.3")
    taken = paths.TAKEN.format(**{**keys, "sae": "wide"}, share="0.3")
    assert taken == paths.SAE.format(**keys)


@pytest.mark.parametrize("share", [0.1, 1e-5, 0.123456])
def test_the_name_of_a_checkpoint_leads_back_to_its_recipe(share: float) -> None:
    name = checkpoint_name("a-b.c_d", share)
    assert recipe_name(name) == recipe_name("a-b.c_d") == "a-b.c_d"
    assert float(name.partition("@")[2]) == share


def test_a_recipe_with_the_name_of_a_checkpoint_is_refused() -> None:
    data = copy.deepcopy(STUDY)
    data["saes"]["wide@0.3"] = {"n_latents": 64}
    with pytest.raises(UserError, match=r"'wide@0\.3' is not a name"):
        parse_config(data)


@pytest.mark.parametrize("shares", [[0.3, 0.3], [0.3, 0.30000001]])
def test_two_checkpoints_of_one_name_are_refused(shares: list[float]) -> None:
    assert refusal(checkpoints=shares) == "config: saes.wide.checkpoints: '0.3' is named twice"


@pytest.mark.parametrize("share", [0, 1, -0.5, 7])
def test_a_checkpoint_outside_the_training_is_refused(share: float) -> None:
    assert refusal(checkpoints=[share]).startswith("config: saes.wide.checkpoints.0: ")


@pytest.mark.parametrize(
    ("made", "why"),
    [
        ({"dictionary": "pca", "n_latents": None}, "'pca' is not trained"),
        ({"pretrained": "a/b", "n_latents": None}, "the training of a pretrained SAE is unknown"),
    ],
)
def test_checkpoints_of_what_is_not_trained_are_refused(made: dict[str, Any], why: str) -> None:
    assert why in refusal(**made)


def floored(*, floors: bool = True, **changes: Any) -> Config:
    """Return a study of two draws, two sites, and a recipe of each kind."""
    data = copy.deepcopy(STUDY)
    data["evaluation"] = {"gaussian_floors": floors, "cross_tokens": 64}
    data |= {"variants": ["trained", "step0", "rerandomized"], "draws": 2}
    data["saes"]["components"] = {"dictionary": "pca", "k": 4}
    data["saes"]["lookup"] = {"dictionary": "token_lookup"}
    data["saes"]["given"] = {"pretrained": "a/b"}
    return parse_config(data | changes)


def test_every_variant_draw_and_recipe_has_one_floor() -> None:
    cells = [tuple(cell.values()) for cell in floor_cells(floored())]
    variants = [("trained", "0"), ("step0", "0"), ("rerandomized", "0"), ("rerandomized", "1")]
    # No floors of token lookup, of pretrained SAEs, and of checkpoints.
    saes = [("wide", "0"), ("wide", "4"), ("plain", "0"), ("components", "0")]
    assert cells == [
        ("s", f"gaussian@{variant}", draw, site, *sae)
        for variant, draw in variants
        for site in ("embed", "resid_post.1")
        for sae in saes
    ]


def test_the_floor_of_the_trained_variant_is_not_made_twice() -> None:
    config = floored(variants=["gaussian", "rerandomized", "trained"])
    floors = {(cell["variant"], cell["draw"]) for cell in floor_cells(config)}
    assert floors == {("gaussian@rerandomized", "0"), ("gaussian@rerandomized", "1")}
    assert {cell["variant"] for cell in sae_cells(config)} == {
        "gaussian",
        "rerandomized",
        "trained",
    }


def test_floors_come_only_when_asked_for_and_are_no_variants() -> None:
    assert list(floor_cells(floored(floors=False))) == []
    for cells in (variant_cells, sae_cells):
        assert list(cells(floored())) == list(cells(floored(floors=False)))


def test_floors_go_through_the_stages_that_they_have_part_in_alone() -> None:
    with_floors, without = cell_files(floored()), cell_files(floored(floors=False))
    places = [paths.CELL_KEYS.format(**cell) for cell in floor_cells(floored())]
    measured = {"reconstruction", "documents", "history", "geometry"} & with_floors.keys()
    assert len(measured) >= 3
    for table, files in with_floors.items():
        # After all others: tables are about a study's variants first.
        added = files[len(without[table]) :]
        assert files[: len(without[table])] == without[table], table
        expected = places if table in measured else []
        assert len(added) == len(expected), table
        assert all(f"/{p}/" in file for p, file in zip(expected, added, strict=True)), table
    assert without.keys() == with_floors.keys()


def test_a_floor_is_trained_apart_from_its_variant() -> None:
    place = {"subject": "s", "draw": "1", "site": "embed"}
    own = trained_together(floored(), {**place, "variant": "gaussian@rerandomized"})
    assert [(cell["sae"], cell["seed"]) for cell in own] == [
        *(("wide", "0"), ("wide", "4"), ("plain", "0"), ("components", "0"))
    ]
    of_variant = {**place, "variant": "rerandomized"}
    assert trained_together(floored(), of_variant) == trained_together(
        floored(floors=False), of_variant
    )


def with_derived(**keys: Any) -> Config:
    """Return the study with SAEs made from others: three rotations of one, and two seeds."""
    data = copy.deepcopy(STUDY)
    data["saes"]["rotated"] = {"dictionary": "rotated", "from": "plain", "seeds": [0, 1, 2]} | keys
    data["saes"]["moved"] = {"dictionary": "given", "from": "wide", "seeds": [4]}
    return parse_config(data)


def test_what_is_made_from_another_sae_is_a_cell_without_a_training() -> None:
    config = with_derived()
    names = {cell["sae"] for cell in sae_cells(config)}
    assert names == {*NAMES, "rotated", "moved"}
    assert {cell["sae"] for cell in trained_together(config, {})} == {"wide", "plain"}
    # They have no floors either.
    assert set(floor_recipes(config)) == {"wide", "plain"}


def test_a_null_is_made_from_the_sae_of_its_own_cell_and_a_given_one_from_trained() -> None:
    config = with_derived()
    here = {"subject": "s", "variant": "step0", "draw": "0", "site": "embed"}
    trained = {**here, "variant": "trained"}
    rotated = source_cell(config, {**here, "sae": "rotated", "seed": "2"})
    # One SAE, rotated three times.
    assert rotated == {**here, "sae": "plain", "seed": "0"}
    moved = source_cell(config, {**here, "sae": "moved", "seed": "4"})
    assert moved == {**trained, "sae": "wide", "seed": "4"}
    cells = [*sae_cells(config)]
    assert rotated in cells
    assert moved in cells


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"from": "moved"}, "from: 'moved' is not one of the learned and pretrained SAEs"),
        ({"from": "wide@0.3"}, "from: 'wide@0.3' is not one of .* (wide, plain)"),
        ({"from": "wide", "seeds": [0, 1]}, "seeds: 1 is not one of the seeds of wide (0, 4)"),
    ],
)
def test_an_invalid_source_is_refused_with_the_key(keys: dict[str, Any], line: str) -> None:
    said = refused(with_derived, **keys)
    start, _, end = line.partition(".* ")
    assert f"saes.rotated.{start}" in said
    assert end in said
