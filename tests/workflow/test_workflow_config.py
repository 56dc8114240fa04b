from __future__ import annotations

import re
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from snakemake.utils import update_config
from workflow_study import REPOSITORY, Study, cell, copy_of, edited

from nullsae import paths
from nullsae.config.parse import config_schema, parse_config, resolve_subjects
from nullsae.config.subjects import GgufSource

pytestmark = pytest.mark.workflow
SCHEMA = REPOSITORY / "workflow/schemas/config.schema.json"
# config/config.yaml is the base of deployments.
OVERLAYS = sorted(set((REPOSITORY / "config").glob("*.yaml")) - {REPOSITORY / "config/config.yaml"})


def default_config() -> dict[str, Any]:
    config = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    assert isinstance(config, dict)
    return config


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^[\s-]*([A-Za-z0-9_.-]+)==([^\s;]+)", text, re.M))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_schema_for_editors_is_that_of_the_models() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == config_schema()


def test_the_default_config_fits_both_the_models_and_the_schema() -> None:
    resolve_subjects(parse_config(default_config()))
    jsonschema.Draft202012Validator(yaml.safe_load(config_schema())).validate(default_config())


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.name)
def test_every_overlay_parses_on_top_of_the_default_config(overlay: Path) -> None:
    config, added = default_config(), yaml.safe_load(overlay.read_text(encoding="utf-8"))
    update_config(config, added)
    assert config != default_config()
    parsed = parse_config(config)
    sources = [subject.source for subject in parsed.subjects.values()]
    packages = [source.package for source in sources if isinstance(source, GgufSource)]
    if all(find_spec(package or "") for package in packages):
        resolve_subjects(parsed)


def test_there_are_overlays_to_check() -> None:
    assert OVERLAYS


def test_an_overlay_merges_into_the_config_and_null_drops_an_entry(
    study: Study, tmp_path: Path
) -> None:
    copied = copy_of(study, tmp_path / "s")
    overlay = copied.folder / "mine.yaml"
    overlay.write_text(
        "explainers: {swapped: null}\nstatistics: {n_resamples: 300}\n"
        "saes: {topk: {seeds: [0, 7]}}\n",
        encoding="utf-8",
    )
    # One more seed per variant; its latents and the old ones' explained by `lexical` alone.
    assert copied.jobs("--configfile", str(overlay)) == {
        **{"train_sae": 2, "evaluate_sae": 2, "collect_latents": 2},
        **{"explain_and_score": 2, "match_dictionaries": 1},
        **{"aggregate": 1, "report": 1},
    }
    file, wanted = copied.folder / paths.RUN_CONFIG, edited()
    # A dry run, with any config, changes nothing in a study.
    assert yaml.safe_load(file.read_text()) == parse_config(wanted).model_dump(mode="json")
    copied.make(cell(paths.SAE_CONFIG, seed="7"), "--configfile", str(overlay))
    written = yaml.safe_load(file.read_text(encoding="utf-8"))
    del wanted["explainers"]["swapped"]
    wanted["statistics"]["n_resamples"] = 300
    wanted["saes"]["topk"]["seeds"] = [0, 7]
    assert written == parse_config(wanted).model_dump(mode="json")


def test_the_conda_environment_pins_what_the_lock_file_pins() -> None:
    conda = pins((REPOSITORY / "envs/nullsae.yaml").read_text(encoding="utf-8"))
    lock = {
        canonical(name): version
        for name, version in pins((REPOSITORY / "requirements.lock").read_text()).items()
    }
    assert conda
    assert {name: lock.get(canonical(name)) for name in conda} == conda


def test_the_conda_environment_names_every_dependency() -> None:
    # It is used with `pip install --no-deps`, so anything left out is missing.
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = {canonical(re.split(r"[<>=!~ \[;]", d, maxsplit=1)[0]) for d in project["dependencies"]}
    conda = pins((REPOSITORY / "envs/nullsae.yaml").read_text(encoding="utf-8"))
    assert names - {canonical(name) for name in conda} == set()
