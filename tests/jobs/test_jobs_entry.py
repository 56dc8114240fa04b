"""How Snakemake was started: what is refused, and what is parsed again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from snakemake.settings.types import SharedFSUsage, StorageSettings

from nullsae.core.errors import UserError
from nullsae.core.files import FULL
from nullsae.jobs.entry import (
    SNAKEMAKE_MEGABYTES,
    _executor,
    check_places,
    check_start,
    config_files,
    megabytes_beside,
    relative,
    typed_entries,
)
from refusing import refused


def workflow(*, is_main_process: bool = True, **storage: Any) -> SimpleNamespace:
    settings = StorageSettings(**storage)
    return SimpleNamespace(is_main_process=is_main_process, storage_settings=settings)


@pytest.mark.parametrize(
    ("storage", "said"),
    [
        ({"default_storage_provider": "s3"}, "--default-storage-provider s3: results/ must be"),
        ({"shared_fs_usage": frozenset()}, "--shared-fs-usage: lacks input-output, sources;"),
        (
            {"shared_fs_usage": frozenset({SharedFSUsage.INPUT_OUTPUT})},
            "--shared-fs-usage: lacks sources;",
        ),
    ],
)
def test_jobs_without_a_file_system_in_common_are_refused_in_one_line(
    storage: dict[str, Any], said: str
) -> None:
    line = refused(check_start, workflow(**storage), ["snakemake"])
    assert line.startswith(said)
    assert "docs/cluster.md" in line
    # Jobs may do what their run was allowed to.
    check_start(workflow(is_main_process=False, **storage), ["snakemake"])


@pytest.mark.parametrize("place", ["", ".snakemake", ".snakemake/locks"])
def test_a_folder_without_room_for_snakemake_s_records_is_refused(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / place).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    check_start(workflow(), ["snakemake"])
    full = SimpleNamespace(free=0)
    monkeypatch.setattr("nullsae.jobs.entry.shutil.disk_usage", lambda path: full)
    assert refused(check_start, workflow(), ["snakemake"]) == f"{tmp_path / place}: {FULL}"
    # The tests may run as root, who may write anywhere.
    monkeypatch.setattr("nullsae.jobs.entry.os.access", lambda path, mode: False)
    line = refused(check_start, workflow(), ["snakemake", "-n"])
    assert line.startswith(f"{tmp_path / place}: not writable, but Snakemake keeps its records")


def test_a_place_of_another_user_is_named_before_any_job_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("results/logs").mkdir(parents=True)
    job = SimpleNamespace(output=["results/tables/a.parquet"], log=["results/logs/aggregate/a.log"])
    dag = SimpleNamespace(needrun_jobs=lambda: [job])
    check_places(dag)
    foreign = Path("results/logs")
    monkeypatch.setattr("nullsae.jobs.entry.os.access", lambda path, mode: Path(path) != foreign)
    assert refused(check_places, dag).startswith("results/logs: not writable by this user, but ")


def test_a_source_cache_of_each_node_is_no_hindrance() -> None:
    usage = SharedFSUsage.all() - {SharedFSUsage.SOURCE_CACHE, SharedFSUsage.SOFTWARE_DEPLOYMENT}
    check_start(workflow(shared_fs_usage=usage), ["snakemake", "--configfile", "a", "b"])


@pytest.mark.parametrize(
    "line", ["--configfile a --configfile b", "--configfile=a --cores 2 --configfiles b"]
)
def test_a_second_configfile_that_would_replace_the_first_is_refused(line: str) -> None:
    with pytest.raises(UserError, match=r"^--configfile: given twice.*first.yaml second.yaml$"):
        check_start(workflow(), ["snakemake", *line.split()])


@pytest.mark.parametrize(
    ("line", "executor"),
    [
        ("--cores 2", None),
        ("--executor kubernetes", "kubernetes"),
        ("--executor=tes -n", "tes"),
        ("-e slurm", "slurm"),
        ("--profile mine", "googlebatch"),
        ("--profile mine --executor local", "local"),
        ("--profile mine --workflow-profile=other", "slurm"),
        ("--profile none", None),
    ],
)
def test_the_executor_is_the_command_lines_or_a_profiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, executor: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    for name, text in {
        "mine": "executor: googlebatch\njobs: 3\n",
        "other": "executor: slurm",
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "profile.yaml").write_text(text)
    assert _executor(line.split()) == executor
    on_a_cluster = executor not in (None, "local")
    assert megabytes_beside(line.split()) == on_a_cluster * SNAKEMAKE_MEGABYTES


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["saes={topk: {k: 5, lr: 1.0e-3}}"], {"saes": {"topk": {"k": 5, "lr": 0.001}}}),
        (
            ["saes={a: {k: 5}}", "saes={a: {n_latents: 8}}"],
            {"saes": {"a": {"k": 5, "n_latents": 8}}},
        ),
        (["variants=[trained, step0]", "draws=2"], {"variants": ["trained", "step0"]}),
        ("evaluation={gaussian_floors: false}", {"evaluation": {"gaussian_floors": False}}),
        (["title={", "other=a: b: c", "flag=true", "empty="], {}),
        (None, {}),
    ],
)
def test_nested_numbers_of_the_command_line_are_numbers(
    entries: Any, expected: dict[str, Any]
) -> None:
    assert typed_entries(entries) == expected


def test_a_whole_path_is_seen_from_the_working_folder(tmp_path: Path) -> None:
    folder = (tmp_path / "study").resolve()
    (folder / "results").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(folder)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (folder / "results/saes").symlink_to(scratch)
    for start in (folder, link, f"{folder}/../study", f"{folder}/./"):
        assert relative(f"{start}/results/a.json", folder) == "results/a.json"
    assert relative(f"{link}/results/saes/x", folder) == "results/saes/x"
    assert relative("/elsewhere/results/a.json", folder) == "/elsewhere/results/a.json"


def main_snakefile(*given: Path) -> SimpleNamespace:
    return SimpleNamespace(
        modifier=SimpleNamespace(is_main_snakefile=lambda: True),
        config_settings=SimpleNamespace(configfiles=given),
    )


def test_a_config_file_that_is_empty_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("\ufeffseed: 0\r\n", encoding="utf-8")
    Path("study.yaml").write_text("# nothing yet\n")
    assert config_files(main_snakefile()) == ["config.yaml"]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("title: Größe\n".encode("latin-1"), "not text in UTF-8"),
        (b"seed:\n\t0\n", "not YAML"),
        (b"- a\n", "not a config"),
        (b"seed: 0\n---\nseed: 1\n", "not YAML"),
        (b"seed: 0\nseed: 1\n", "'seed' is given twice"),
    ],
)
@pytest.mark.parametrize("name", ["config.yaml", "study.yaml", "given.yaml"])
def test_a_config_file_that_snakemake_would_misread_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("seed: 0\n")
    Path(name).write_bytes(data)
    with pytest.raises(SystemExit) as ended:
        config_files(main_snakefile(Path(name)))
    assert str(ended.value).startswith(f"{name}: {said}")
