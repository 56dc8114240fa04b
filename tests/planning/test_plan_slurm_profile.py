from __future__ import annotations

from pathlib import Path

import pytest

from nullsae.core.errors import UserError
from nullsae.planning import slurm_profile as cluster
from refusing import refused

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
    return refused(cluster.check_cluster, profile)


def test_a_machine_without_slurm_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said = refusal(REPOSITORY / "profiles/slurm")
    assert said.startswith("scontrol: not found: this machine has no SLURM; ")


def test_a_controller_that_does_not_answer_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command fails as SLURM's do without slurmctld."""
    command = tmp_path / "scontrol"
    command.write_text("#!/bin/sh\necho 'slurm_load_ctl_conf error: Unable to contact' >&2\nexit 1")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    said = refusal(REPOSITORY / "profiles/slurm")
    assert said == "scontrol show config: slurm_load_ctl_conf error: Unable to contact"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "has no profile.yaml"),
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
    """A partition in `default-resources` would be used whatever the job needs, and settings of an
    unknown rule would have no effect.
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


# Sites that submit jobs by something other than a partition

PERLMUTTER = """\
regular_milan_ss11|up|infinite|515072|(null)|cpu,amd
regular_gpu_ss11|up|infinite|257024|gpu:a100:4|gpu,a100,hbm40g
shared_gpu_ss11|up|infinite|515072|gpu:a100:4|gpu,a100,hbm80g
old|inact|infinite|1000000|(null)|knl
"""
WITH_DEFAULT = """\
day*|up|1-00:00:00|128000|(null)|(null)
week|up|7-00:00:00|256000|(null)|(null)
"""
TWO_CLUSTERS = """\
CLUSTER: far
main*|up|2-00:00:00|192000|gpu:h100:8(S:0-1)|h100
"""
QOS = "regular|2-00:00:00\ndebug|00:30:00\nopen|\n"
CAPS = "max_runtime: 1440, max_mem_mb: 200000"


def site(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    *,
    sinfo: str = PERLMUTTER,
    qos: str | None = QOS,
    clusters: str = "",
) -> Path:
    """Write a profile, and commands that answer as SLURM's at a site with accounting.

    With `clusters`, sinfo and scontrol know only these.
    """
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    asked = f'[ "$1 $2" = "-M {clusters}" ]' if clusters else '[ "$1" != -M ]'
    refused = "echo \"sinfo: error: No cluster '$2' known by database.\" >&2; exit 1"
    answers = {
        "scontrol": "AccountingStorageType   = accounting_storage/slurmdbd\nMinJobAge = 300 sec\n",
        "sinfo": sinfo,
        "sacctmgr": qos,
        "sacct": "",
    }
    for name, answer in answers.items():
        if answer is not None:
            check = f"{asked} || {{ {refused}; }}\n" if name in ("sinfo", "scontrol") else ""
            (bin_folder / name).write_text(f"#!/bin/sh\n{check}cat <<'END'\n{answer}END\n")
            (bin_folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_folder}:/bin:/usr/bin")
    # The environment of these tests does not have the executor.
    monkeypatch.setattr(cluster, "PLUGIN", "pytest")
    file = folder / "profile.yaml"
    file.write_text(profile)
    return file


@pytest.mark.parametrize(
    ("profile", "more", "fits"),
    [
        (
            f"default-resources: {{constraint: gpu, qos: regular, {CAPS}}}\n",
            {},
            ["constraint gpu: no time limit, 515,072 MB, GPUs"],
        ),
        (
            f"default-resources: {{constraint: cpu, qos: open, {CAPS}}}\n"
            "set-resources: {train_sae: {constraint: 'gpu&hbm80g'}}\n",
            {},
            [
                "constraint cpu: no time limit, 515,072 MB",
                "constraint gpu&hbm80g: no time limit, 515,072 MB, GPUs",
            ],
        ),
        (
            f"default-resources: {{slurm_extra: \"'-q regular --constraint=[a100*2|cpu]'\", "
            f"{CAPS}}}\n",
            {},
            ["constraint [a100*2|cpu]: no time limit, 515,072 MB, GPUs"],
        ),
        (
            "default-resources: [qos=regular, max_runtime=1440, max_mem_mb=200000]\n",
            {},
            ["regular: no time limit, 515,072 MB, GPUs"],
        ),
        (
            f"default-resources: {{clusters: far, {CAPS.replace('200000', '150000')}}}\n",
            {"sinfo": TWO_CLUSTERS, "clusters": "far"},
            ["main: 2,880 minutes, 192,000 MB, GPUs"],
        ),
        (
            f"default-resources: {{slurm_extra: '--clusters far', slurm_partition: main, "
            f"{CAPS.replace('200000', '150000')}}}\n",
            {"sinfo": TWO_CLUSTERS, "clusters": "far"},
            ["main: 2,880 minutes, 192,000 MB, GPUs"],
        ),
        # Jobs without a partition go to the default one.
        (
            "default-resources: {max_runtime: 1440, max_mem_mb: 128000}\n",
            {"sinfo": WITH_DEFAULT},
            ["day: 1,440 minutes, 128,000 MB"],
        ),
        # What a quality of service grants is unknown here.
        (
            f"slurm-qos: whatever\ndefault-resources: {{{CAPS}}}\n",
            {"qos": None},
            ["whatever: no time limit, 515,072 MB, GPUs"],
        ),
    ],
)
def test_a_site_without_partitions_fits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    profile: str,
    more: dict[str, str],
    fits: list[str],
) -> None:
    file = site(tmp_path, monkeypatch, profile, **more)
    assert cluster.check_cluster(file) == ([], fits)


@pytest.mark.parametrize(
    ("profile", "sinfo", "said"),
    [
        (
            f"default-resources: {{constraint: v100, {CAPS}}}\n",
            PERLMUTTER,
            "default-resources.constraint: no node has the feature 'v100'; nodes here have a100, "
            "amd, cpu, gpu, hbm40g, hbm80g, knl (sinfo -o %f)",
        ),
        (
            f"default-resources: {{constraint: knl, {CAPS}}}\n",
            PERLMUTTER,
            "default-resources.constraint: all nodes of 'knl' are down (sinfo -o '%P %a %f')",
        ),
        (
            f"default-resources: {{constraint: gpu, qos: regulr, {CAPS}}}\n",
            PERLMUTTER,
            "default-resources.qos: no quality of service 'regulr' on this cluster; it has debug, "
            "open, regular",
        ),
        (
            f"default-resources: {{constraint: gpu, {CAPS}}}\n"
            "set-resources: {report: {slurm_extra: --qos=debug}}\n",
            PERLMUTTER,
            "default-resources.max_runtime: 1440: jobs of qos debug get at most 30 minutes here; "
            "write 30 or less",
        ),
        (
            "default-resources: {constraint: cpu, max_mem_mb: 600000, max_runtime: 60}\n",
            PERLMUTTER,
            "default-resources.max_mem_mb: 600000: jobs without a GPU get at most 515072 MB here "
            "(constraint cpu); write 515072 or less",
        ),
        (
            "default-resources: {max_runtime: 2000, max_mem_mb: 100000}\n",
            WITH_DEFAULT,
            "default-resources.max_runtime: 2000: jobs without a GPU get at most 1440 minutes here "
            "(day); write 1440 or less",
        ),
        (
            f"default-resources: {{{CAPS}}}\n",
            PERLMUTTER,
            "names no partition, but this cluster has no default one; give slurm_partition, "
            "constraint or qos in default-resources, or slurm-partition-config",
        ),
    ],
)
def test_what_a_site_does_not_have_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile: str, sinfo: str, said: str
) -> None:
    file = site(tmp_path, monkeypatch, profile, sinfo=sinfo)
    wrong, _ = cluster.check_cluster(file)
    assert wrong == [f"{file}: {said}"]


def test_a_cluster_that_is_not_known_gets_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "default-resources: {clusters: fare}\n"
    file = site(tmp_path, monkeypatch, text, sinfo=TWO_CLUSTERS, clusters="far")
    said = refusal(file)
    assert said.endswith("No cluster 'fare' known by database.")


def test_jobs_of_seconds_are_no_jobs_of_their_own() -> None:
    profile = cluster._mapping(REPOSITORY / "profiles/slurm/profile.yaml")
    assert profile["groups"] == {"aggregate": "tables", "report": "tables"}
    rules = "".join(f.read_text() for f in (REPOSITORY / "workflow/rules").glob("*.smk"))
    for rule in profile["groups"]:
        assert f"rule {rule}:" in rules
    # Copying files is for the machine that Snakemake runs on.
    taken = rules.partition("rule take_checkpoint:")[2].partition("\nrule ")[0]
    assert "\n    localrule: True\n" in taken
