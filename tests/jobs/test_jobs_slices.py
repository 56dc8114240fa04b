"""Each job's slice of the config has exactly what the job uses."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nullsae import paths
from nullsae.config.parse import parse_config, parse_section, resolve_subjects
from nullsae.config.study import Config
from nullsae.config.variants import VARIANTS
from nullsae.core.errors import UserError
from nullsae.core.files import write_json
from nullsae.jobs.activations import activations_key
from nullsae.jobs.autointerp import check_imported
from nullsae.jobs.grid import cell_files, cross_cells, floor_cells, sae_cells
from nullsae.jobs.metrics import EvaluateSaesParams
from nullsae.jobs.rules import rule_params
from nullsae.jobs.saes import TrainSaeParams, pretrained_sae_path
from nullsae.jobs.shared_training import SharedJob, shared_jobs, whole_saes

STUDY: dict[str, Any] = {
    "corpora": {
        "c": {"source": {"kind": "builtin"}, "tokenizer": {"kind": "train", "vocab_size": 300}}
    },
    "subjects": {
        "s": {"corpus": "c", "source": {"kind": "train", "n_layers": 4}, "sites": ["resid_post.*"]}
    },
    "variants": list(VARIANTS),
    "draws": 2,
    "activations": {"sae_train_tokens": 4096},
    "saes": {"topk": {"k": 4, "n_latents": 64}},
    "evaluation": {"cross_tokens": 1024},
    "explainers": {"lexical": {"kind": "lexical"}},
    "scorers": {"detection": {"kind": "detection"}},
}
CELL = {"subject": "s", "draw": "1", "site": "resid_post.1", "sae": "topk", "seed": "0"}


def study(**changes: Any) -> Config:
    """Return the study with values at keys such as `saes__topk__k` replaced, and resolved."""
    data = copy.deepcopy(STUDY)
    for path, value in changes.items():
        *sections, key = path.split("__")
        inner = data
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[key] = value
    return resolve_subjects(parse_config(data))


def params(config: Config, rule: str, **wildcards: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rule_params(config, rule, wildcards))
    return found


def test_patterns_of_sites_do_not_reach_the_jobs() -> None:
    config = study(subjects__s__sites=["embed", "resid_post.0..-1..2", "mlp_out.-1"])
    assert config.subjects["s"].sites == ("embed", "resid_post.0", "resid_post.2", "mlp_out.3")


@pytest.mark.parametrize("variant", STUDY["variants"][2:-1])
def test_a_randomization_depends_only_on_its_own_settings(variant: str) -> None:
    key = {"subject": "s", "variant": variant, "draw": "1"}
    plain = params(study(), "randomize_model", **key)
    changed = {
        name: params(study(**{f"randomization__{name}": value}), "randomize_model", **key) != plain
        for name, value in (
            ("norm_parameters", "keep"),
            ("embedding_noise_std", 2.0),
            ("first_random_block", 1),
        )
    }
    redrawn = variant.startswith(("rerandomized", "permuted_w", "spectrum", "cascade"))
    assert changed == {
        "norm_parameters": redrawn,
        "embedding_noise_std": variant == "noise_embeddings",
        "first_random_block": variant == "cascade",
    }


def test_gaussian_activations_follow_the_trained_ones() -> None:
    config = study()
    keys = {
        (draw, split): activations_key(config, "s", "gaussian", draw, split)
        for draw in (0, 1)
        for split in ("sae_train", "eval")
    }
    assert len(set(keys.values())) == 4
    longer = study(subjects__s__source={"kind": "train", "n_layers": 4, "steps": 7})
    assert activations_key(longer, "s", "gaussian", 0, "eval") != keys[0, "eval"]
    same = study(saes__topk__k=8, randomization__embedding_noise_std=2.0)
    assert activations_key(same, "s", "gaussian", 0, "eval") == keys[0, "eval"]


@pytest.mark.parametrize("variant", ["trained", "gaussian"])
def test_another_site_does_not_make_the_activations_look_different(variant: str) -> None:
    fewer = study(subjects__s__sites=["resid_post.1"])
    found = activations_key(fewer, "s", variant, 0, "eval")
    assert found == activations_key(study(), "s", variant, 0, "eval")


def test_cross_evaluation_uses_its_own_draw_of_its_own_variant() -> None:
    config = study()
    cells = cross_cells(config, {**CELL, "variant": "rerandomized"})
    assert [cell["variant"] for cell in cells] == STUDY["variants"]
    assert {cell["variant"]: cell["draw"] for cell in cells if cell["draw"]} == {"rerandomized": 1}
    found = params(config, "cross_evaluate", **CELL, variant="rerandomized")
    assert [v["variant"] for v in found["variants"]] == STUDY["variants"]
    assert found["activations_keys"] == [
        activations_key(config, "s", c["variant"], c["draw"], "eval") for c in cells
    ]


def test_cross_evaluation_does_not_run_unasked() -> None:
    without = study(evaluation__cross_tokens=None)
    with pytest.raises(ValueError, match="cross_tokens"):
        rule_params(without, "cross_evaluate", {**CELL, "variant": "trained"})


def test_a_pretrained_sae_is_sought_in_the_place_of_each_site() -> None:
    assert pretrained_sae_path("org/name::{site}", "mlp_out.11") == ("org/name", "mlp_out.11")
    assert pretrained_sae_path("/x/{layer}/sae", "resid_post.3") == ("/x/3/sae", "")
    assert pretrained_sae_path("org/name::layers.{layer}", "resid_post.10")[1] == "layers.10"


@pytest.mark.parametrize("pretrained", ["{folder}/{{site}}", "{folder}::{{site}}"])
def test_an_edit_of_a_local_pretrained_sae_is_noticed(tmp_path: Path, pretrained: str) -> None:
    folder = tmp_path / "resid_post.1"
    folder.mkdir()
    (folder / "cfg.json").write_text("{}")
    config = study(saes__topk={"pretrained": pretrained.format(folder=tmp_path)})
    cell = {**CELL, "variant": "trained", "draw": "0"}
    before = params(config, "train_sae", **cell)
    assert len(before["cells"][0]["local_files"]) == 1
    (folder / "cfg.json").write_text("{ }")
    assert params(config, "train_sae", **cell) != before


def with_theirs(folder: Path, path: str, **section: Any) -> Config:
    """Return a study whose cells may have their own files in a folder."""
    theirs = {"kind": "import", "path": f"{folder}/{path}", "source": "{site}", **section}
    return study(explainers__theirs=theirs)


def test_an_edit_of_what_was_made_elsewhere_is_noticed_by_its_own_model(tmp_path: Path) -> None:
    for variant in STUDY["variants"]:
        for draw in (0, 1):
            run = tmp_path / f"{variant}{draw}" / "explanations"
            run.mkdir(parents=True)
            (run / "m_latent1.txt").write_text('"a text"')
    config = with_theirs(tmp_path, "{variant}{draw}")

    def files(variant: str) -> list[str]:
        keys = {"subject": "s", "variant": variant, "draw": "0"}
        found: list[str] = params(config, "explain_and_score", **keys)["local_files"]
        return found

    before = {variant: files(variant) for variant in STUDY["variants"]}
    assert before["trained"][0].startswith("explanations: 1 files ")
    (tmp_path / "trained0/explanations/m_latent2.txt").write_text('"another"')
    changed = [variant for variant, found in before.items() if files(variant) != found]
    assert changed == ["trained"]
    (tmp_path / "trained0/log.txt").write_text("of no explanation")
    assert files("trained")[0].startswith("explanations: 2 files ")
    with pytest.raises(UserError, match=r"other0: does not exist, but kind import"):
        rule_params(
            with_theirs(tmp_path, "other{draw}"),
            "explain_and_score",
            {"subject": "s", "variant": "trained", "draw": "0"},
        )


def test_one_file_for_two_saes_is_refused_with_the_key_that_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    config = with_theirs(tmp_path, "a", cells={"variant": "rerandomized"})
    message = r"explainers.theirs.path: .* the same file for draw 0 and for draw 1, .* \{draw\} "
    with pytest.raises(UserError, match=message):
        check_imported(config)
    with pytest.raises(
        UserError, match=r"theirs.cells: the study has no SAE of variant trained, s"
    ):
        check_imported(with_theirs(tmp_path, "a", cells={"sae": "no"}))


def many(n_seeds: int = 2, **activations: Any) -> Config:
    """Return a study of six sites, with five SAEs of some seeds each."""
    saes = {
        name: {"k": 4, "n_latents": 64, "seeds": list(range(n_seeds))}
        for name in ("topk", "matryoshka_wide", "frozen_decoder", "soft_frozen", "jumprelu")
    }
    return study(
        subjects__s__sites=[f"resid_post.{layer}" for layer in range(4)] + ["embed", "mlp_out.1"],
        saes=saes,
        variants=["trained", "gaussian"],
        activations={"sae_train_tokens": 4096, **activations},
    )


def write_saes(root: Path, jobs: list[SharedJob]) -> None:
    """Write the outputs of these jobs that the workflow looks at."""
    for job in jobs:
        keys = [job.params.cell_key(cell, job.params.code(cell)) for cell in job.params.cells]
        for key, file in zip(keys, job.files(paths.SAE_CONFIG), strict=True):
            write_json(root / file, {"key": key})
        for file in (*job.files(paths.SAE_WEIGHTS), *job.files(paths.HISTORY)):
            (root / file).touch()


def jobs_in(root: Path, config: Config) -> tuple[list[SharedJob], list[SharedJob]]:
    """Return the jobs that have SAEs to make, and those whose SAEs are complete."""
    jobs = shared_jobs(config, whole_saes(config, root))
    return [job for job in jobs if not job.whole], [job for job in jobs if job.whole]


@pytest.mark.parametrize(
    ("mode", "n_jobs"), [({"mode": "stream"}, 3), ({"shared_pass": True}, 18), ({}, 0)]
)
def test_jobs_that_share_a_pass_hold_every_sae_once(
    tmp_path: Path, mode: dict[str, Any], n_jobs: int
) -> None:
    config = many(5, **mode)
    jobs = shared_jobs(config)
    files = [file for job in jobs for file in job.files(paths.SAE_CONFIG)]
    # Trained, and two draws of gaussian.
    assert len(jobs) == n_jobs
    assert len(set(files)) == len(files) == (3 * 6 * 25 if n_jobs else 0)
    names = [job.name for job in jobs]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() for name in names)
    for job in jobs:
        # The shell gets the whole command as one argument.
        assert len(job.text) < 131_072 / 2
        parsed = TrainSaeParams.model_validate_json(job.text)
        assert parsed == job.params
        recipe = parsed.recipe(parsed.cells[-1])
        assert recipe == config.saes["jumprelu"].model_copy(update={"seeds": (4,)})


@pytest.mark.parametrize("mode", [{"mode": "stream"}, {"shared_pass": True}])
def test_a_finished_sae_is_not_made_again_when_one_is_added(
    tmp_path: Path, mode: dict[str, Any]
) -> None:
    config = many(**mode)
    first = shared_jobs(config)
    write_saes(tmp_path, first)
    # Jobs that are done keep their names and all of their SAEs.
    assert jobs_in(tmp_path, config) == ([], [replace(job, whole=True) for job in first])
    edited = config.saes["topk"].model_copy(update={"lr": 1e-3})
    grown = config.saes["topk"].model_copy(update={"seeds": (0, 1, 7)})
    for saes in ({"new": edited}, {"topk": edited}, {"topk": grown}):
        changed = config.model_copy(update={"saes": {**config.saes, **saes}})
        jobs, whole = jobs_in(tmp_path, changed)
        assert [job.name for job in jobs] == [job.name for job in first]
        assert [job.name for job in whole] == [f"{job.name}_whole" for job in first]
        cells = [cell for job in jobs for cell in job.params.cells]
        expected = {("new", s) for s in range(2)} if "new" in saes else {("topk", 7)}
        if saes == {"topk": edited}:
            expected = {("topk", s) for s in range(2)}
        assert {(cell.sae, cell.seed) for cell in cells} == expected
        assert len(cells) == 18 * len(expected)
        assert {name for job in jobs for name in job.params.saes} == {n for n, _ in expected}
        left = {(cell.sae, cell.seed) for job in whole for cell in job.params.cells}
        assert not left & expected
        assert len(left | expected) == len(
            {(c.sae, c.seed) for j in shared_jobs(changed) for c in j.params.cells}
        )


def test_an_sae_that_is_lost_or_damaged_has_a_job_to_make_it(tmp_path: Path) -> None:
    config = many(mode="stream")
    (job, *others) = shared_jobs(config)
    write_saes(tmp_path, [job, *others])
    weights, history = job.files(paths.SAE_WEIGHTS)[3], job.files(paths.HISTORY)[9]
    for file in (weights, history):
        (tmp_path / file).unlink()
    config_file = job.files(paths.SAE_CONFIG)[20]
    (tmp_path / config_file).write_text('{"key": ')
    (found,), whole = jobs_in(tmp_path, config)
    assert (found.name, found.keys) == (job.name, job.keys)
    assert found.params.cells == tuple(job.params.cells[i] for i in (3, 9, 20))
    assert [len(job.params.cells) for job in whole] == [57, 60, 60]


def test_neither_the_mode_nor_what_is_trained_beside_it_changes_an_sae(tmp_path: Path) -> None:
    """A change would alter its key and train it again."""
    shared = shared_jobs(many(shared_pass=True))
    wildcards = {**CELL, "draw": "0", "variant": "trained"}
    one = TrainSaeParams.model_validate_json(rule_params(many(), "train_sae", wildcards))
    (of_site,) = (
        job for job in shared if job.keys["site"] == CELL["site"] and "trained" in job.name
    )
    cell = next(cell for cell in of_site.params.cells if (cell.sae, cell.seed) == ("topk", 0))
    assert of_site.params.cell_key(cell, "code") == one.cell_key(one.cells[0], "code")
    assert len({of_site.params.cell_key(c, "code") for c in of_site.params.cells}) == 10
    assert one.cell_key(one.cells[0], "other code") != one.cell_key(one.cells[0], "code")


def test_a_cell_without_a_recipe_is_refused() -> None:
    text = params(many(), "train_sae", **{**CELL, "draw": "0", "variant": "trained"})
    text["cells"][0]["sae"] = "topic"
    with pytest.raises(UserError, match=r"--params: .*'topic' is not one of saes \(topk\)"):
        parse_section(TrainSaeParams, text, where="--params")


def test_the_page_lists_saes_in_the_order_of_the_config() -> None:
    saes = {name: {"k": 4, "n_latents": 64} for name in ("topk", "frozen", "pca")}
    assert list(params(study(saes=saes), "report")["study"]["saes"]) == list(saes)


def test_an_sae_along_its_training_is_measured_by_the_same_slice() -> None:
    config = study(saes__topk__checkpoints=[0.1])
    along = {**CELL, "variant": "trained", "draw": "0", "sae": "topk@0.1"}
    found = params(config, "evaluate_sae", **along)
    whole = params(study(), "evaluate_sae", **along)
    saes = found["models"][0].pop("saes")
    assert [sae for sae in saes if sae["sae"] == "topk"] == whole["models"][0].pop("saes")
    assert {sae["sae"] for sae in saes} == {"topk", "topk@0.1"}
    assert found == whole
    for rule in ("cross_evaluate", "collect_latents", "explain_latents"):
        own = {"explainer": "lexical"} if rule == "explain_latents" else {}
        found = params(config, rule, **along, **own)
        whole = params(study(), rule, **{**along, "sae": "topk"}, **own)
        assert found["keys"].pop("sae") == "topk@0.1"
        assert whole["keys"].pop("sae") == "topk"
        assert found == whole


def test_overlap_depends_on_its_recipe_and_the_variants_of_the_study_alone() -> None:
    of_recipe = {"subject": "s", "site": "resid_post.1", "sae": "topk"}
    plain = params(study(), "match_dictionaries", **of_recipe)
    # Two variants have one draw, all others two.
    assert len(plain["cells"]) == 2 + 2 * (len(STUDY["variants"]) - 2)
    assert plain["cells"][0] == {"variant": "trained", "draw": 0, "seed": 0}
    assert {name: plain[name] for name in of_recipe} == of_recipe
    for same in (
        {"evaluation__fidelity_tokens": 512, "evaluation__gaussian_floors": True},
        {"saes__topk__k": 5, "latents": {"n_sampled": 3}},
        {"saes__topk__checkpoints": [0.5]},
        {"saes__other": {"k": 4, "n_latents": 32}},
    ):
        assert params(study(**same), "match_dictionaries", **of_recipe) == plain, same
    for other in (
        {"evaluation__matching_latents": 64},
        {"saes__topk__seeds": [0, 3]},
        {"variants": ["trained", "step0"]},
        {"draws": 3},
        {"seed": 1},
    ):
        assert params(study(**other), "match_dictionaries", **of_recipe) != plain, other


def test_matching_more_latents_does_not_evaluate_an_sae_again() -> None:
    cell = {**CELL, "variant": "trained", "draw": "0"}
    more = study(evaluation__matching_latents=64)
    assert params(more, "evaluate_sae", **cell) == params(study(), "evaluate_sae", **cell)
    other = study(seed=1)
    assert params(other, "evaluate_sae", **cell)["seed"] == 1


# Floors


def with_floors(**changes: Any) -> Config:
    return study(evaluation__gaussian_floors=True, **changes)


def test_activations_of_floors_follow_those_they_are_fitted_to() -> None:
    config = with_floors()
    names = ["gaussian", *("gaussian@" + name for name in list(VARIANTS)[:-1])]
    keys = {
        (name, draw, split): activations_key(config, "s", name, draw, split)
        for name in names
        for draw in (0, 1)
        for split in ("sae_train", "eval")
    }
    assert len(set(keys.values())) == len(names) * 4
    # `gaussian@trained` has the moments of `gaussian`, and other samples.
    noisy = with_floors(randomization__embedding_noise_std=2.0)
    changed = {k for k, v in keys.items() if activations_key(noisy, "s", *k) != v}
    assert {name for name, _, _ in changed} == {"gaussian@noise_embeddings"}
    assert len(changed) == 4


def test_a_job_insists_on_what_its_floor_is_fitted_to() -> None:
    config = with_floors(activations__mode="stream")
    place = {"subject": "s", "draw": "1"}
    for variant, fitted in (
        ("gaussian@cascade", ("cascade", 1)),
        ("gaussian", ("trained", 0)),
    ):
        wanted = activations_key(config, "s", *fitted, "sae_train")
        keys = {**place, "variant": variant}
        for split in ("sae_train", "eval"):
            sampled = params(config, "sample_gaussian", **keys, split=split)
            assert sampled["fitted_activations_key"] == wanted
            assert sampled["key"] == activations_key(config, "s", variant, 1, split)
            assert sampled["keys"]["variant"] == variant
        assert params(config, "train_sae", **keys)["stream"]["fitted_activations_key"] == wanted
    captured = params(config, "train_sae", **place, variant="cascade")
    assert captured["stream"]["fitted_activations_key"] == ""


def test_floors_change_no_job_of_a_variant() -> None:
    """Params decide what runs again."""
    plain, config = study(), with_floors()
    cells = list(sae_cells(plain))
    for cell in cells:
        judged = {"explainer": "lexical", "scorer": "detection"}
        for rule in (
            *("train_sae", "cross_evaluate", "collect_latents"),
            *("explain_latents", "score_latents", "explain_and_score"),
        ):
            keys = {**cell, **judged}
            own = cell if rule == "train_sae" else keys
            assert rule_params(config, rule, own) == rule_params(plain, rule, own), rule
        # A floor is evaluated by the job of its variant, after the variant's SAEs.
        with_floor = EvaluateSaesParams.model_validate_json(
            rule_params(config, "evaluate_sae", cell)
        )
        without = EvaluateSaesParams.model_validate_json(rule_params(plain, "evaluate_sae", cell))
        alone = list(without.each())
        assert list(with_floor.each())[: len(alone)] == alone
    keys = {"corpus": "c"}
    assert rule_params(config, "prepare_corpus", keys) == rule_params(plain, "prepare_corpus", keys)
    assert len(list(floor_cells(config))) == 4 * (1 + 10 * 2)
    assert not list(floor_cells(plain))
    assert cell_files(plain) != cell_files(config)


def changed_or_not(changes: dict[str, Any]) -> list[Config]:
    return [with_floors(**changes), with_floors()]


def test_a_floor_has_the_slice_of_its_variant_but_for_what_it_does_not_use() -> None:
    own: dict[str, Any] = {"saes__topk__checkpoints": [0.5], "evaluation__fidelity_tokens": 512}
    place = {**CELL, "variant": "gaussian@cascade"}
    trained = params(with_floors(), "train_sae", **place)
    # Checkpoints have no floors, and there is no model to measure fidelity in.
    assert params(with_floors(**own), "train_sae", **place) == trained
    variant = {**CELL, "variant": "cascade"}
    measured = [params(config, "evaluate_sae", **variant) for config in changed_or_not(own)]
    assert measured[0]["models"][0] != measured[1]["models"][0]
    assert measured[0]["models"][1] == measured[1]["models"][1]
    floors = [
        list(parse_section(EvaluateSaesParams, found, where="").each())[-4:] for found in measured
    ]
    assert floors[0] == floors[1]
    assert {one.keys.variant for one in floors[0]} == {"gaussian@cascade"}
    trained_by = [params(config, "train_sae", **variant) for config in changed_or_not(own)]
    assert trained_by[0] != trained_by[1]
    of_variant = params(with_floors(), "train_sae", **{**CELL, "variant": "cascade"})
    assert trained["saes"] == of_variant["saes"]
    assert trained["cells"] == of_variant["cells"]


@pytest.mark.parametrize(
    ("mode", "per_variant"), [({"mode": "stream"}, 1), ({"shared_pass": True}, 6)]
)
def test_jobs_that_share_a_pass_keep_floors_apart_and_miss_none(
    tmp_path: Path, mode: dict[str, Any], per_variant: int
) -> None:
    config = many(**mode)
    config = config.model_copy(
        update={
            "evaluation": config.evaluation.model_copy(update={"gaussian_floors": True}),
            "variants": ("trained", "rerandomized", "step0"),
        }
    )
    plain = config.model_copy(update={"evaluation": many().evaluation})
    before, jobs = shared_jobs(plain), shared_jobs(config)
    # Trained and step0, and two draws of rerandomized.
    assert len(before) == 4 * per_variant
    assert len(jobs) == 2 * len(before)
    # The jobs of variants, and their names, do not change.
    assert [(job.name, job.text) for job in jobs[: len(before)]] == [
        (job.name, job.text) for job in before
    ]
    floors = jobs[len(before) :]
    for floor, job in zip(floors, before, strict=True):
        assert floor.keys == {**job.keys, "variant": f"gaussian@{job.keys['variant']}"}
        assert floor.params.cells == job.params.cells
        assert floor.name.isidentifier()
    assert len({job.name for job in jobs}) == len(jobs)
    write_saes(tmp_path, before)
    missing, whole = jobs_in(tmp_path, config)
    assert [job.name for job in missing] == [f.name for f in floors]
    assert [job.name for job in whole] == [job.name for job in before]
