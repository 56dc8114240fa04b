from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from nullsae.core.errors import UserError
from nullsae.core.files import (
    STARTED_WITH,
    atomic_path,
    checksum,
    content_key,
    read_json,
    rebuild_command,
    verify,
    write_json,
    write_text,
)
from nullsae.core.home import workflow_folder
from refusing import refused


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def write_and_fail(path: Path) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("hal")
        raise RuntimeError("killed")


def test_a_failed_write_leaves_no_half_file_and_keeps_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.parquet"
    for old in (None, "whole"):
        if old is not None:
            write_text(path, old)
        with pytest.raises(RuntimeError, match="killed"):
            write_and_fail(path)
        assert (path.read_text() if path.exists() else None) == old
        assert names(path.parent) == ([] if old is None else ["table.parquet"])


def test_a_reader_sees_the_file_only_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with atomic_path(path) as temporary:
        temporary.write_text("{}")
        assert not path.exists()
        assert temporary.parent == tmp_path  # a rename must not cross file systems
        assert temporary.suffix == ".json"
    assert names(tmp_path) == ["a.json"]


def test_the_same_value_gives_the_same_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "one", {"b": [1, 2.5], "a": None})
    write_json(tmp_path / "two", {"a": None, "b": [1, 2.5]})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert read_json(tmp_path / "one", rebuild="make") == {"a": None, "b": [1, 2.5]}


def test_a_missing_or_broken_json_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    assert (
        refused(read_json, path, rebuild="make it")
        == f"{path}: the file is missing; rebuild it with: make it"
    )
    path.write_bytes(b'{"a": 1')
    assert refused(read_json, path, rebuild="make it").startswith(f"{path}: not readable as JSON (")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not readable as JSON"):
        read_json(path, rebuild="make it")


def test_the_checksum_skips_no_bytes(tmp_path: Path) -> None:
    path = tmp_path / "big"
    data = bytearray(b"\x01" * ((1 << 22) + 17))  # more than one block
    path.write_bytes(data)
    expected = checksum(path)
    assert expected == xxhash.xxh3_128_hexdigest(bytes(data))
    verify(path, expected, rebuild="make")
    for offset in (0, 1 << 22, len(data) - 1):
        data[offset] ^= 1
        path.write_bytes(data)
        assert refused(verify, path, expected, rebuild="make") == (
            f"{path}: damaged ({len(data)} bytes, checksum differs from the manifest's); "
            f"rebuild it with: make"
        )
        data[offset] ^= 1
    path.unlink()
    with pytest.raises(UserError, match="the file is missing; rebuild it with: make"):
        verify(path, expected, rebuild="make")


def test_the_rebuild_command_names_the_file() -> None:
    assert rebuild_command("results/a.json") == (
        "snakemake --cores all --resources gpu=1 --forcerun results/a.json -- results/a.json"
    )


def test_the_rebuild_command_finds_the_study_of_a_file_read_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(STARTED_WITH, raising=False)
    file = tmp_path / "results of mine/results/a.json"
    place = f"-s {workflow_folder() / 'Snakefile'} --directory {shlex.quote(str(file.parents[1]))}"
    assert rebuild_command(file) == (
        f"snakemake --cores all --resources gpu=1 {place} --forcerun results/a.json "
        f"-- results/a.json"
    )
    file.parents[1].mkdir()
    (file.parents[1] / "Snakefile").touch()
    assert f"-s {shlex.quote(str(file.parents[1] / 'Snakefile'))} " in rebuild_command(file)
    monkeypatch.chdir(file.parents[1])
    assert rebuild_command("results/a.json").count("--directory") == 0
    monkeypatch.setenv(STARTED_WITH, "--configfile b.yaml")
    assert rebuild_command("results/a.json").split()[5:7] == ["--configfile", "b.yaml"]


values = st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4), max_size=4)


@given(values, values)
def test_content_keys_do_not_depend_on_the_order_and_do_not_collide(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    key = content_key(one)
    assert key == content_key(dict(reversed(one.items())))
    assert key == content_key(json.loads(json.dumps(one)))
    assert (key == content_key(two)) == (one == two)
    assert len(key) == 16


def test_a_private_file_is_for_its_owner_alone_even_if_it_was_public(tmp_path: Path) -> None:
    file = tmp_path / "run_config.yaml"
    for private in (False, True, True):
        write_text(file, "a: 1\n", private=private)
        assert not private or file.stat().st_mode & 0o777 == 0o600
    assert file.read_text() == "a: 1\n"


def test_an_error_names_the_unwritable_file_not_its_temporary_name(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 250)  # the temporary name is longer than a name may be
    with pytest.raises(OSError, match="too long") as caught:
        write_text(path, "")
    assert caught.value.filename == str(path)
