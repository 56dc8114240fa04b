"""The jobs of a plan: Snakemake's for a study without results."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nullsae import paths
from nullsae.config.read import read_merged_config
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.core.home import snakefile_of
from nullsae.jobs.activations import activations_key
from nullsae.jobs.resources import Needs
from nullsae.jobs.shared_training import rule_of, shared_jobs, whole_saes
from nullsae.planning.show import Plan, make_plan

pytestmark = pytest.mark.usefixtures("warm")

REPOSITORY = Path(__file__).parents[2]
SHARED = (
    "variants: [trained, rerandomized]\nactivations: {shared_pass: true}\n"
    "saes: {topk: {seeds: [0, 1]}}\n"
    "evaluation: {gaussian_floors: false, null_dictionaries: []}\n"
)


def study(folder: Path, text: str) -> Config:
    (folder / "more.yaml").write_text(text)
    return read_merged_config([folder / "config.yaml", folder / "more.yaml"])


def tree(folder: Path) -> dict[str, bytes]:
    files = (file for file in (folder / "results").rglob("*") if file.is_file())
    return {str(file): file.read_bytes() for file in files}


def counts(plan: Plan) -> dict[str, int]:
    return {row.rule: row.jobs for row in plan.rows}


def test_a_plan_counts_what_is_finished_and_writes_nothing(folder: Path) -> None:
    config = study(folder, SHARED)
    before = make_plan(config, folder)
    for job in shared_jobs(config):
        for cell in job.params.cells:
            keys = job.params.cell_keys(cell).model_dump()
            key = job.params.cell_key(cell, job.params.code(cell))
            for pattern in (paths.SAE_CONFIG, paths.SAE_WEIGHTS, paths.HISTORY):
                file = folder / pattern.format(**keys)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(json.dumps({"key": key}))
            for split in ("sae_train", "eval"):
                own = {**keys, "split": split}
                made = activations_key(config, keys["subject"], keys["variant"], 0, split)
                for pattern in (paths.SITE + "/manifest.json", paths.ACTIVATIONS_MANIFEST):
                    file = folder / pattern.format(**own)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_text(json.dumps({"key": made}))
    assert all(job.whole for job in shared_jobs(config, whole_saes(config, folder)))
    lock = folder / ".snakemake/locks/0.input.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.write_text("results/tables/latents.parquet\n")
    held = tree(folder)
    after = make_plan(config, folder)
    assert counts(after) == counts(before)
    assert counts(after)["train_sae"] == 4
    assert after.longest_chain_seconds == before.longest_chain_seconds
    assert tree(folder) == held
    assert lock.read_text() == "results/tables/latents.parquet\n"


ASKED = """
import json, sys
from pathlib import Path
from nullsae.planning.dag import opened_dag

with opened_dag(*map(Path, sys.argv[1:])) as dag:
    names = ("mem_mb", "runtime", "disk_mb")
    found = [(j.rule.name, [j.resources.get(n) for n in names]) for j in dag.jobs if j.output]
print(json.dumps(found))
"""


def test_a_plan_prints_what_the_rules_ask_for(folder: Path) -> None:
    config = study(folder, SHARED)
    (folder / "whole.json").write_text(json.dumps(config.model_dump(mode="json")))
    plan = make_plan(config, folder)
    done = subprocess.run(
        [sys.executable, "-c", ASKED, REPOSITORY / "Snakefile", folder, folder / "whole.json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not (folder / "results").exists()
    asked: dict[str, list[list[int]]] = {}
    for rule, each in json.loads(done.stdout):
        asked.setdefault(rule_of(rule), []).append(each)
    assert {rule: len(each) for rule, each in asked.items()} == counts(plan)
    for row in plan.rows:
        most = [max(numbers) for numbers in zip(*asked[row.rule], strict=True)]
        assert most == [row.megabytes, row.minutes, row.disk_megabytes], row.rule


def test_unknown_sizes_are_asked_what_was_asked_of_all(folder: Path) -> None:
    text = (
        "corpora: {sotu: {sae_train_tokens: 300_000, eval_tokens: 100_000}}\n"
        "subjects:\n  small: null\n  other:\n    corpus: sotu\n    sites: [resid_post.0]\n"
        "    source: {kind: pretrained, path: nobody/nothing, step0_revision: step0}\n"
        "variants: [trained, step0, rerandomized]\n"
    )
    needs = Needs(study(folder, text))
    model = {"subject": "other", "variant": "trained", "draw": "0"}
    asked = needs.asked("randomize_model", [model])
    assert (asked.megabytes, asked.minutes, asked.known) == (8_000, 60, False)
    cells = [{**model, "site": "resid_post.0", "sae": "topk", "seed": str(n)} for n in range(3)]
    asked = needs.asked("train_sae", cells)
    assert (asked.megabytes, asked.minutes, asked.known) == (16_000, 720, False)


def test_the_folder_s_own_snakefile_goes_before_that_of_the_checkout(folder: Path) -> None:
    assert snakefile_of(folder) == REPOSITORY / "Snakefile"
    (folder / "Snakefile").write_text("raise ValueError('no workflow at all')\n")
    assert snakefile_of(folder) == folder / "Snakefile"
    with pytest.raises(UserError, match=r"Snakefile: Snakemake found no jobs: .*no workflow"):
        make_plan(read_merged_config([folder / "config.yaml"]), folder)
