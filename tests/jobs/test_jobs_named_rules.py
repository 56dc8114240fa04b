"""Snakemake's options that name a rule apply to all rules made from it."""

from __future__ import annotations

from pathlib import Path

import pytest
from snakemake.api import SnakemakeApi
from snakemake.settings.types import DAGSettings, GroupSettings, ResourceSettings

from nullsae.jobs.named_rules import forced, mean_all

MADE = {"train_sae": ["train_saes_0", "train_saes_1"], "measure": ["measure", "measure__1"]}


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("snakemake --cores 2 all", set()),
        ("snakemake --forcerun a results/b.json --cores 2 c", {"a", "results/b.json"}),
        ("snakemake -R a --until b", {"a"}),
        ("snakemake --forcerun=a -n", {"a"}),
        ("snakemake -R a -- b", {"a"}),
        ("snakemake --forceall -R a", None),
        ("snakemake -F", None),
    ],
)
def test_what_is_forced_is_read_from_the_command_line(line: str, found: set[str] | None) -> None:
    assert forced(line.split()) == found


def test_an_option_that_names_a_rule_means_all_that_are_made_of_it(tmp_path: Path) -> None:
    (tmp_path / "Snakefile").write_text("rule all:\n")
    with SnakemakeApi() as snakemake:
        made = snakemake.workflow(ResourceSettings(cores=1), snakefile=tmp_path / "Snakefile")
        workflow = made._workflow
        mean_all(workflow, MADE)
        # As Snakemake does after the rules are read.
        workflow.dag_settings = DAGSettings(
            forcerun={"train_sae", "results/a.json"}, until={"measure"}, omit_from={"report"}
        )
        workflow.group_settings = GroupSettings(
            overwrite_groups={"train_sae": "cell", "train_saes_1": "other", "report": "tables"}
        )
        workflow.dag_settings = workflow.dag_settings
        settings, groups = workflow.dag_settings, workflow.group_settings.overwrite_groups
    assert settings.forcerun == {"train_saes_0", "train_saes_1", "results/a.json"}
    assert settings.until == {"measure", "measure__1"}
    assert settings.omit_from == {"report"}
    assert {rule: groups[rule] for rule in ("train_saes_0", "train_saes_1", "report")} == {
        **{"train_saes_0": "cell", "train_saes_1": "other", "report": "tables"},
    }
