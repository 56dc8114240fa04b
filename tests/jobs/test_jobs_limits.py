"""Limits of jobs' requests, as profiles and command lines write them."""

from __future__ import annotations

from typing import Any

import pytest
from snakemake.resources import Resource, Resources
from snakemake.settings.types import ResourceSettings

from nullsae.core.errors import UserError
from nullsae.jobs.limits import Kind, default_limit, limit, read_set_resources, set_as_for


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("mem_mb", 64_000, 64_000),
        ("mem_mb", "64000", 64_000),
        ("mem_mb", "64GB", 64_000),
        ("mem_mb", '"64 GB"', 64_000),
        ("mem_mb", "0.5TB", 500_000),
        ("mem_mb", "1GiB", 1_074),
        ("runtime", 720, 720),
        ("runtime", "12h", 720),
        ("runtime", "'1d'", 1_440),
        ("runtime", "90 minutes", 90),
        ("runtime", "2w", 20_160),
    ],
)
def test_a_limit_is_read_with_its_unit(kind: Kind, given: Any, expected: int) -> None:
    assert limit(kind, given, "here") == expected


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        *(("mem_mb", given) for given in ("much", "-1", True, None)),
        *(("runtime", given) for given in ("64GB", "", "0")),
    ],
)
def test_an_invalid_amount_is_refused_with_the_right_form(kind: Kind, given: Any) -> None:
    example = "64GB" if kind == "mem_mb" else "12h"
    with pytest.raises(UserError, match=rf"^profile: .*; write .* such as {example}$"):
        limit(kind, given, "profile")


@pytest.mark.parametrize(
    ("kind", "resources", "expected"),
    [
        ("runtime", [], 99),
        ("runtime", ["slurm_account=us"], 99),
        ("runtime", ['runtime="2h"', "mem_mb=1000"], 99),
        ("runtime", ["max_runtime=600"], 600),
        ("runtime", ['max_runtime="24h"'], 1_440),
        ("runtime", ["max_runtime=60 * 24"], 1_440),
        ("runtime", ["max_runtime=attempt * 30"], 30),
        ("mem_mb", ['max_mem_mb="64GB"'], 64_000),
        ("mem_mb", ["max_mem_mb=4 * 16_000"], 64_000),
    ],
)
def test_default_resources_of_any_form_set_the_limit(
    kind: Kind, resources: list[str], expected: int
) -> None:
    given = Resources.parse(resources, allow_expressions=True) if resources else None
    assert default_limit(given, kind, 99) == expected


@pytest.mark.parametrize("given", ["max_runtime=1 / 0", 'max_runtime="soon"', "max_runtime=[1]"])
def test_an_invalid_limit_is_one_line(given: str) -> None:
    with pytest.raises(UserError, match=r"^--default-resources max_runtime: ") as caught:
        default_limit(Resources.parse([given], allow_expressions=True), "runtime", 99)
    assert "\n" not in str(caught.value)


def given(*assignments: str) -> ResourceSettings:
    """Parse `--set-resources` of `train_sae` as Snakemake's command line does."""
    parsed = Resources.parse(list(assignments), allow_expressions=True)
    return ResourceSettings(overwrite_resources={"train_sae": parsed})


@pytest.mark.parametrize(
    ("assignment", "megabytes"),
    [
        ('mem_mb="2GB"', 2_000),
        ("mem_mb=2GB", 2_000),
        ("mem_mb='0.5 TB'", 500_000),
        ('mem="2GB"', 2_000),
        ('disk_mb="3GB"', 3_000),
        ("mem_mb=4000", 4_000),
        ("mem_mb=attempt * 4000", 8_000),
        ('mem="8GB" if attempt > 1 else "1GB"', 8_000),
    ],
)
def test_set_resources_takes_sizes_with_units_and_expressions(
    assignment: str, megabytes: int
) -> None:
    settings = given(assignment)
    read_set_resources(settings)
    kind = assignment.partition("=")[0].removesuffix("_mb")
    found = settings.overwrite_resources["train_sae"][f"{kind}_mb"]
    assert isinstance(found, Resource)
    if found.is_evaluable():
        job = {"input": [], "attempt": 2, "threads": 1, "rulename": "", "async_run": None}
        found = found.evaluate({}, **job)
    assert found.value == megabytes


@pytest.mark.parametrize("assignment", ['mem_mb="much"', "disk_mb='2 hours'", "mem_mb=3hours"])
def test_an_invalid_size_is_one_line_that_names_the_rule(assignment: str) -> None:
    with pytest.raises(UserError, match=r"^--set-resources train_sae:.*_mb: .*64GB$") as caught:
        read_set_resources(given(assignment))
    assert "\n" not in str(caught.value)


def test_what_is_set_for_trainings_holds_for_those_of_several_saes() -> None:
    settings = given("mem_mb=5000", "slurm_partition=long")
    set_as_for(settings, "train_sae", "train_saes_0")
    set_as_for(settings, "evaluate_sae", "train_saes_0")
    found = settings._parsed_overwrite_resources["train_saes_0"]
    assert found["mem_mb"].value == 5_000
