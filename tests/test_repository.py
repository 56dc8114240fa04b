"""What the repository offers to others: a workflow to deploy, automation, a citation."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import nullsae

REPOSITORY = Path(__file__).parent.parent
GITHUB = REPOSITORY / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
# What `snakedeploy deploy-workflow` writes, besides copies of config/ and profiles/.
DEPLOYED = """\
from snakemake.utils import min_version

min_version("6.10.0")

configfile: "config/config.yaml"

module nullsae:
    snakefile:
        "{snakefile}"
    config:
        config

use rule * from nullsae
"""


def read(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))


def dry_run(folder: Path, *arguments: str) -> dict[str, int]:
    """Return the number of jobs of each rule, in a folder without results."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    command = [sys.executable, "-m", "snakemake", "-n", "--quiet", "rules", "--cores", "1"]
    done = subprocess.run(
        [*command, *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    table = re.search(r"^Job stats:\njob +count\n[- ]+\n(.*?)^total", done.stdout, re.M | re.S)
    assert table is not None, done.stdout
    return {name: int(n) for name, n in map(str.split, table[1].splitlines())}


@pytest.mark.slow
def test_the_catalogue_s_entry_and_a_deployed_copy_have_the_same_jobs(tmp_path: Path) -> None:
    copy, empty = tmp_path / "copy", tmp_path / "empty"
    empty.mkdir()
    for name in ("config", "profiles"):
        shutil.copytree(REPOSITORY / name, copy / name)
    (copy / "workflow").mkdir()
    text = DEPLOYED.format(snakefile=REPOSITORY / "workflow/Snakefile")
    (copy / "workflow/Snakefile").write_text(text)
    quick = ("--configfile", f"{copy}/config/quick.yaml")
    jobs = dry_run(empty, "-s", f"{REPOSITORY}/Snakefile", *quick)
    assert {"all", "aggregate", "report"} <= jobs.keys()
    assert len([name for name in jobs if name.startswith("train_saes_")]) == 3, "one a model"
    assert dry_run(empty, "-s", f"{REPOSITORY}/workflow/Snakefile", *quick) == jobs
    assert dry_run(copy, *quick) == jobs


def test_the_catalogue_finds_what_it_looks_for() -> None:
    usage = read(".snakemake-workflow-catalog.yml")["usage"]
    assert usage["mandatory-flags"]["flags"] == "--resources gpu=1"
    assert usage["software-stack-deployment"].keys() == {"conda", "apptainer", "apptainer+conda"}
    assert usage["report"] is True
    assert read("config/config.yaml") == read("config.yaml")
    page = (REPOSITORY / "config/README.md").read_text(encoding="utf-8")
    schema = read("workflow/schemas/config.schema.json")
    assert [key for key in schema["properties"] if f"`{key}`" not in page] == []
    named = set(re.findall(r"`([\w-]+\.yaml)`", page)) - {"mine.yaml"}
    assert [name for name in named if not (REPOSITORY / "config" / name).is_file()] == []


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_automation_calls_only_commands_that_a_checkout_has(file: Path) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    steps = [step for job in read(str(file))["jobs"].values() for step in job["steps"]]
    commands = [step["run"].split() for step in steps if "run" in step]
    assert commands
    for program, *arguments in commands:
        if program == "make":
            assert re.search(rf"^{arguments[0]}:", makefile, re.M), arguments
        else:
            assert program.startswith(".ci/")
            assert os.access(REPOSITORY / program, os.X_OK), program


def test_pull_requests_are_tried_on_every_python_that_is_supported() -> None:
    tested = read(".github/workflows/ci.yml")["jobs"]["test"]["strategy"]["matrix"]["python"]
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    [(first, end)] = re.findall(r'^requires-python = ">=3\.(\d+),<3\.(\d+)"', project, re.M)
    assert tested == [f"3.{minor}" for minor in range(int(first), int(end))]


def test_a_commit_is_formatted_by_the_versions_that_tests_use() -> None:
    lock = (REPOSITORY / "requirements-dev.lock").read_text(encoding="utf-8")
    pinned = dict(re.findall(r"^([\w-]+)==(.+)$", lock, re.M))
    found = {
        hook["id"].partition("-")[0]: repo["rev"]
        for repo in read(".pre-commit-config.yaml")["repos"]
        for hook in repo["hooks"]
    }
    assert found == {name: f"v{pinned[name]}" for name in ("ruff", "snakefmt")}


def test_a_bug_report_asks_for_what_is_needed_and_warns_of_secrets() -> None:
    form = read(".github/ISSUE_TEMPLATE/bug.yml")
    fields = {item["id"]: item for item in form["body"] if "id" in item}
    required = {
        name for name, item in fields.items() if item.get("validations", {}).get("required")
    }
    assert required == {"what", "command", "bundle"}
    asked = fields["bundle"]["attributes"]["description"]
    assert "`nullsae report STUDY --bundle bug.zip`" in asked
    [warning] = [i["attributes"]["value"] for i in form["body"] if i["type"] == "markdown"]
    assert "Remove keys, tokens" in warning


def test_the_citation_is_of_this_version_and_each_reference_is_complete() -> None:
    """Fields and kinds follow the Citation File Format 1.2.0."""
    citation = read("CITATION.cff")
    preferred = citation["preferred-citation"]
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == preferred["version"] == nullsae.__version__
    for entry in [preferred, *citation["references"]]:
        assert entry["type"] in {"article", "conference-paper", "software"}
        assert entry["title"]
        assert isinstance(entry["year"], int)
        people = ({"given-names", "family-names"}, {"name"})
        assert entry["authors"]
        assert all(author.keys() in people for author in entry["authors"])
        if entry["type"] == "conference-paper":
            assert entry["conference"].keys() == {"name"}


def test_who_is_credited_is_cited() -> None:
    page = (REPOSITORY / "docs/credit.md").read_text(encoding="utf-8")
    urls = {reference["url"] for reference in read("CITATION.cff")["references"]}
    assert len(urls) >= 7
    assert [url for url in urls if url not in page] == []
    papers = set(re.findall(r"https://(?:arxiv|openreview)\.\S+", page))
    assert papers == urls
