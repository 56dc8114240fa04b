from __future__ import annotations

from pathlib import Path

import pytest

from nullsae.core.errors import UserError
from nullsae.planning import slurm_profile as cluster

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [
        ("infinite", float("inf")),
        ("2-00:00:00", 2 * 1440),
        ("1-02:30:30", 1440 + 150.5),
        ("4:00:00", 240),
        ("30:00", 30),
        ("7-00:00:00", cluster.MAX_RUNTIME_MINUTES),
    ],
)
def test_a_time_limit_of_slurm_is_read_right(limit: str, minutes: float) -> None:
    assert cluster._minutes(limit) == minutes


def refusal(profile: Path) -> str:
    with pytest.raises(UserError) as caught:
        cluster.check_cluster(profile)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_machine_without_slurm_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refusal(REPOSITORY / "profiles/slurm")
    assert said.startswith("scontrol: not found: no SLURM on this machine; ")


def test_a_controller_that_does_not_answer_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a command that fails as SLURM's do where slurmctld is gone."""
    command = tmp_path / "scontrol"
    command.write_text("#!/bin/sh\necho 'slurm_load_ctl_conf error: Unable to contact' >&2\nexit 1")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    said = refusal(REPOSITORY / "profiles/slurm")
    assert said == "scontrol show config: slurm_load_ctl_conf error: Unable to contact"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no profile.yaml there"),
        ("executor: [slurm", "not readable as YAML"),
        ("slurm", "not a YAML mapping"),
    ],
)
def test_a_profile_that_cannot_be_read_gets_one_line(
    tmp_path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / "profile.yaml").write_text(content)
    assert said in refusal(tmp_path)


def test_the_checks_know_the_limits_of_the_rules() -> None:
    rules = (REPOSITORY / "workflow/rules/common.smk").read_text()
    assert f'most("mem_mb", {cluster.MAX_MEGABYTES:_})' in rules
    assert 'most("runtime", 7 * 24 * 60)' in rules
    profile = cluster._mapping(REPOSITORY / "profiles/slurm/profile.yaml")
    given = profile["default-resources"]
    assert given["max_mem_mb"] == cluster.MAX_MEGABYTES
    assert given["max_runtime"] == cluster.MAX_RUNTIME_MINUTES


def test_partitions_of_the_profile_are_read_right(tmp_path: Path) -> None:
    (tmp_path / "profile.yaml").write_text(
        "slurm-partition-config: partitions.yaml\n"
        "default-resources: {slurm_partition: day}\n"
        "set-resources: {train_sae: {slurm_partition: a100}, report: {runtime: 5}}\n"
    )
    (tmp_path / "partitions.yaml").write_text("partitions: {short: {max_runtime: 60}, day: {}}\n")
    file = tmp_path / "profile.yaml"
    names, limits_file, limits = cluster._named_partitions(file, cluster._mapping(file))
    assert names == {
        "day": f"{file}: default-resources.slurm_partition",
        "a100": f"{file}: set-resources.train_sae.slurm_partition",
        "short": f"{tmp_path / 'partitions.yaml'}: partitions.short",
    }
    assert limits_file == tmp_path / "partitions.yaml"
    assert limits == {"short": {"max_runtime": 60}, "day": {}}
    limits_file.write_text("partitions: {short: }\n")
    with pytest.raises(UserError, match=r"partitions\.short: None; write \{\} for none$"):
        cluster._named_partitions(file, cluster._mapping(file))


def test_defaults_that_are_written_as_a_list_are_read() -> None:
    listed = {"default-resources": ["max_mem_mb=64000", "slurm_partition=day"]}
    assert cluster._defaults(listed) == {"max_mem_mb": "64000", "slurm_partition": "day"}
    with pytest.raises(UserError, match=r"^here: '64GB'; write a whole number$"):
        cluster._whole("64GB", "here")
    assert cluster._whole("64000", "here") == 64_000


def test_the_profile_sends_jobs_with_a_gpu_where_gpus_are() -> None:
    """A partition in `default-resources` would be taken whatever the job needs, and a rule that is
    not there would be set nothing.
    """
    profile = cluster._mapping(REPOSITORY / "profiles/slurm/profile.yaml")
    assert "slurm_partition" not in profile["default-resources"]
    names, file, limits = cluster._named_partitions(
        REPOSITORY / "profiles/slurm/profile.yaml", profile
    )
    assert file == REPOSITORY / "profiles/slurm/partitions.yaml"
    assert set(names) == {"main", "gpu"}
    assert {name for name, limit in limits.items() if limit.get("max_gpu")} == {"gpu"}
    rules = "".join(f.read_text() for f in (REPOSITORY / "workflow/rules").glob("*.smk"))
    for rule in profile.get("set-resources", {}):
        assert f"rule {rule}:" in rules
