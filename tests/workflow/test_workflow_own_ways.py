"""Snakemake's options, targets and modules work on a study as on any workflow."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_workflow_untouched import content
from workflow_study import Study, cell, copy_of, edited, new_study

from nullsae import paths

pytestmark = pytest.mark.workflow
TABLE = paths.TABLE.format(table="verdicts")
MODULE = """
configfile: "mine.yaml"

module nullsae:
    snakefile: {snakefile!r}
    config: config["study"]

use rule * from nullsae{renamed}

rule mine:
    output: "{{draw}}.txt"
    shell: "(trap; test ! -e {{output}}) > {{output}}.traps; echo {{wildcards.draw}} > {{output}}"
"""


def dry(study: Study, *arguments: str) -> str:
    return study.make(*arguments, "--dry-run")


def test_a_whole_path_and_one_with_a_dot_are_targets(study: Study) -> None:
    table, report = f"{study.folder}/{TABLE}", f"./{paths.REPORT}"
    assert study.jobs(table, report) == {}
    assert study.jobs(table, "--forcerun", table) == {"aggregate": 1}


def test_several_configs_and_nested_numbers_merge_in_their_order(
    study: Study, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("saes: {topk: {k: 6}, wide: {k: 4, n_latents: 48}}\n")
    second.write_text("saes: {wide: {n_latents: 64}}\n")
    overlays = ("--configfile", str(first), str(second), "--config", "saes={topk: {k: 5}}")
    said = dry(study, cell(paths.SAE_CONFIG), cell(paths.SAE_CONFIG, sae="wide"), *overlays, "-p")
    recipes: dict[str, Any] = {}
    for params in re.findall(r"train_sae --params '(.*?)' --", said):
        recipes |= json.loads(params)["saes"]
    assert {n: (r["k"], r["n_latents"]) for n, r in recipes.items()} == {
        "topk": (5, 32),
        "wide": (4, 64),
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--shared-fs-usage", "none"), "--shared-fs-usage: lacks input-output, sources; results/"),
        (
            ("--configfile", "config.yaml", "--configfile", "config.yaml"),
            "--configfile: given twice, but Snakemake reads only the last",
        ),
    ],
)
def test_what_cannot_work_is_one_line(study: Study, arguments: tuple[str, ...], said: str) -> None:
    refused = study.snakemake("-n", *arguments)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stdout
    assert refused.stdout.splitlines()[-1].startswith(said)


def test_an_executor_whose_jobs_share_no_files_is_one_line(study: Study, tmp_path: Path) -> None:
    plugin = tmp_path / "site/snakemake_executor_plugin_faraway"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text(
        "from snakemake.executors.local import Executor\n"
        "from snakemake_interface_executor_plugins.settings import CommonSettings\n"
        "common_settings = CommonSettings(non_local_exec=True, implies_no_shared_fs=True,\n"
        "    job_deploy_sources=True, can_transfer_local_files=True)\n"
    )
    (tmp_path / "far").mkdir()
    (tmp_path / "far/profile.yaml").write_text("executor: faraway\njobs: 2\n")
    path = f"{tmp_path / 'site'}{os.pathsep}{study.environment['PYTHONPATH']}"
    refused = subprocess.run(
        study.as_a_user().command("-n", "--profile", str(tmp_path / "far")),
        cwd=study.folder,
        env={**study.environment, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert refused.returncode == 1
    last = refused.stdout.splitlines()[-1]
    assert last.startswith("--executor faraway: its jobs share no files; results/ must be one")
    assert "docs/cluster.md" in last


def test_a_dry_run_from_elsewhere_takes_an_edit_of_the_config_for_no_change_of_code(
    study: Study, tmp_path: Path
) -> None:
    fewer = copy_of(study, tmp_path / "s", linked=True).configure(
        lambda config: config["scorers"].pop("fuzzing")
    )
    found = Study(tmp_path, study.tree).run(fewer.command("-n", "-q", "rules"))
    assert re.search(r"^report +1$", found.stdout, re.M), found.stdout
    assert "code of " not in found.stdout


def test_a_snakefile_elsewhere_brings_its_config_where_there_is_none(
    study: Study, tmp_path: Path
) -> None:
    command = ["snakemake", "-n", "--cores", "1", "-s", f"{study.tree}/Snakefile", "-q"]
    elsewhere = Study(tmp_path, study.tree)
    found = elsewhere.run([*command, "rules"])
    assert found.returncode == 0, found.stdout
    default = yaml.safe_load((study.tree / "config.yaml").read_text())
    n_models = int(re.search(r"^randomize_model +(\d+)$", found.stdout, re.M)[1])  # type: ignore[index]
    assert 0 < n_models <= len(default["variants"]) * default.get("draws", 1)
    assert list(tmp_path.iterdir()) in ([], [tmp_path / ".snakemake"])
    # An existing one counts.
    there = elsewhere.run([*command, "rules", "--directory", str(study.folder)])
    assert "Nothing to be done" in there.stdout


@pytest.mark.parametrize("prefix", ["", "ns_"])
def test_an_importer_keeps_its_rules_config_and_shells_to_itself(
    study: Study, tmp_path: Path, prefix: str
) -> None:
    copied = copy_of(study, tmp_path / "s", linked=True)
    own = {"samples": 3, "study": yaml.safe_load((copied.folder / "config.yaml").read_text())}
    (copied.folder / "config.yaml").unlink()
    (copied.folder / "mine.yaml").write_text(yaml.safe_dump(own))
    renamed = f" as {prefix}*" if prefix else ""
    text = MODULE.format(snakefile=f"{study.tree}/Snakefile", renamed=renamed)
    (copied.folder / "Snakefile").write_text(text)
    options = ["--cores", "1", "--resources", "gpu=1"]
    # Its wildcard `draw` is not a number there, and its shell traps no signal.
    made = copied.run(["snakemake", "first.txt", *options])
    assert made.returncode == 0, made.stdout
    assert "TERM" not in (copied.folder / "first.txt.traps").read_text()
    target = cell(paths.EXPLANATIONS)
    forced = [target, f"{prefix}all", "-n", "-p", "--forcerun", target]
    said = copied.run(["snakemake", *forced, *options])
    assert said.returncode == 0, said.stdout
    assert re.search(rf"^{prefix}explain_and_score +\d", said.stdout, re.M)
    assert "not present in the Snakefile" not in said.stdout


@pytest.mark.slow
def test_every_rule_can_be_forced_when_all_is_done(study: Study) -> None:
    every = study.jobs("--forceall")
    listed = re.findall(r"^[a-z]\w*$", study.make("--list-rules"), re.M)
    some = {"train_sae", "cache_activations", "prepare_corpus", "report"}
    assert some <= every.keys() <= set(listed)
    assert study.jobs("--forcerun", *every) == every


@pytest.mark.slow
def test_until_and_omit_from_cut_the_study_where_they_say(study: Study, tmp_path: Path) -> None:
    def other_k(config: dict[str, Any]) -> None:
        config["saes"]["topk"]["k"] = 5

    changed = copy_of(study, tmp_path / "s", linked=True).configure(other_k)
    assert set(changed.jobs("--until", "train_sae")) == {"train_sae"}
    # Downstream jobs are left out, and so are others with nothing to do.
    assert changed.jobs("--omit-from", "train_sae") == {}
    mine = f"{changed.folder}/{cell(paths.SAE_CONFIG)}"
    assert changed.jobs("--until", mine) == {"train_sae": 1}
    first = changed.jobs("--batch", "aggregate=1/2", "aggregate")
    second = changed.jobs("--batch", "aggregate=2/2", "aggregate")
    assert "aggregate" not in first
    assert second["aggregate"] == 1
    assert 0 < first.get("train_sae", 0) + second.get("train_sae", 0) <= 8


@pytest.mark.slow
def test_a_finished_study_is_listed_touched_reported_and_deleted(
    study: Study, tmp_path: Path
) -> None:
    copied = copy_of(study, tmp_path / "s")
    before = content(copied.folder / "results")
    summary = [line.split("\t") for line in copied.make("--summary").splitlines() if "\t" in line]
    status = {row[0]: row[-1] for row in summary[1:]}
    assert set(status.values()) == {"no update"}
    assert {TABLE, cell(paths.SAE_CONFIG)} <= status.keys()
    copied.make("--report", str(tmp_path / "report.zip"))
    assert (tmp_path / "report.zip").stat().st_size > 10_000
    copied.make("--touch")
    assert content(copied.folder / "results") == before
    assert copied.jobs() == {}
    copied.make("--delete-all-output")
    left = {Path(name).suffix for name in content(copied.folder / "results")}
    assert not (copied.folder / TABLE).exists()
    assert not (copied.folder / cell(paths.SAE_CONFIG)).exists()
    assert ".svg" not in left


@pytest.mark.slow
def test_a_profile_of_a_site_with_one_key_is_enough(study: Study, tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    profile = tmp_path / "site/profile.yaml"
    for text in (
        "default-resources: {slurm_account: us}\n",
        'set-resources: {train_sae: {runtime: "2d"}}\n',
        "cores: 3\n",
    ):
        profile.write_text(text)
        assert study.jobs("--profile", str(tmp_path / "site")) == {}


@pytest.mark.slow
def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(
    tree: Path, tmp_path: Path
) -> None:
    study = new_study(tmp_path / "study", tree)
    first = subprocess.Popen(
        study.command(cell(paths.SAE_CONFIG)),
        cwd=study.folder,
        env=study.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    while not (study.folder / paths.RUN_CONFIG).exists():  # it holds the lock by then
        assert first.poll() is None
        time.sleep(0.05)
    config = yaml.safe_dump(edited(lambda c: c.update(seed=1)), sort_keys=False)
    (study.folder / "other.yaml").write_text(config)
    said = study.snakemake(TABLE, "--configfile", "other.yaml")
    assert said.returncode != 0
    assert "Directory cannot be locked" in said.stdout
    written = yaml.safe_load((study.folder / paths.RUN_CONFIG).read_text())
    assert written["seed"] == 0
    assert first.communicate()[0]
    assert first.returncode == 0
    assert (study.folder / cell(paths.SAE_CONFIG)).is_file()
