"""Which arms were not made alike, and that no table depends on who made it."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import pytest
from test_aggregation_study import study, write_tree

from nullsae import paths, tables
from nullsae.aggregation import aggregate
from nullsae.aggregation.provenance import artifacts, differences, in_short, read_provenance
from nullsae.config.study import Config
from nullsae.core import provenance
from nullsae.core.files import write_json
from nullsae.tables.study import PROVENANCE

JOB: dict[str, Any] = {
    **{"verb": "train_sae", "nullsae": "0.1.0", "commit": "abc", "python": "3.12.1"},
    **{"torch": "2.6.0", "transformers": "5.0.0", "cuda": "12.4", "device": "NVIDIA H200"},
    **{"device_kind": "cuda", "host": "gpu1", "dtype": "float32", "threads": 2},
    "precision": "bfloat16",
}


def note(config: Config, root: Path, **of_variants: dict[str, Any]) -> None:
    """Make folders of all artifacts as if by one job, except as given for single variants."""
    for _, keys, folder in artifacts(config):
        job = {**JOB, **of_variants.get(keys.get("variant", ""), {})}
        write_json(
            root / folder / provenance.FILE, {"jobs": [job], "revisions": {"model a/b": "1"}}
        )


def test_two_machines_have_the_same_tables_and_other_provenance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = study()
    for host in ("one", "other"):
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        root = tmp_path / host
        write_tree(config, root)
        for _, _, folder in artifacts(config):
            if (root / folder).is_dir():
                provenance.record(root / folder)
        aggregate(config, root)
    one, other = (
        {file.name: file.read_bytes() for file in (tmp_path / host / "results/tables").iterdir()}
        for host in ("one", "other")
    )
    assert one == other
    for host in ("one", "other"):
        rows = tables.read_table(tmp_path / host / paths.PROVENANCE, PROVENANCE).to_pylist()
        assert {row["host"] for row in rows} == {host}
        assert {row["differs_from_trained"] for row in rows} == {None}
        assert {row["kind"] for row in rows} == {
            *("model", "sae", "metrics", "overlap", "latents", "explanations", "scores")
        }


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"torch": "2.5.1"}, "torch 2.5.1 (trained: 2.6.0)"),
        ({"device_kind": "cpu", "device": "EPYC"}, "device cpu (trained: cuda)"),
        ({"dtype": "bfloat16"}, "dtype bfloat16 (trained: float32)"),
        ({"precision": "float32"}, "precision float32 (trained: bfloat16)"),
        (
            {"nullsae": "0.2.0", "commit": "def"},
            "nullsae 0.2.0 (trained: 0.1.0), commit def (trained: abc)",
        ),
        ({"host": "gpu2", "device": "NVIDIA H100", "threads": 8}, None),
        ({"transformers": None, "cuda": None}, None),
    ],
)
def test_arms_that_differ_in_versions_device_kind_or_dtype_are_named(
    tmp_path: Path, other: dict[str, Any], told: str | None
) -> None:
    config = study()
    note(config, tmp_path, rerandomized=other)
    rows = read_provenance(config, tmp_path)
    assert {row["differs_from_trained"] for row in rows if row["variant"] == "trained"} == {None}
    assert {r["differs_from_trained"] for r in rows if r["variant"] == "rerandomized"} == {told}
    found = differences(rows)
    assert len(found) == (told is not None)
    for subject, text in found:
        assert subject == "small"
        assert text.startswith(f"rerandomized and trained were not made alike: {told}, in model; ")


def test_an_arm_is_all_draws_and_all_jobs_of_a_cell(tmp_path: Path) -> None:
    config = study()
    note(config, tmp_path)
    cells = [(keys, f) for kind, keys, f in artifacts(config) if kind == "sae"]
    (folder,) = (f for k, f in cells if (k["variant"], k["draw"]) == ("rerandomized", "1"))
    jobs = [JOB, {**JOB, "torch": "2.7.0"}]
    write_json(tmp_path / folder / provenance.FILE, {"jobs": jobs, "tokens_seen": 4096})
    rows = read_provenance(config, tmp_path)
    saes = [row for row in rows if row["kind"] == "sae" and row["variant"] == "rerandomized"]
    assert [(row["draw"], row["job"], row["torch"], row["tokens_seen"]) for row in saes] == [
        (0, 0, "2.6.0", None),
        (1, 0, "2.6.0", 4096),
        (1, 1, "2.7.0", 4096),
    ]
    ((_, text),) = differences(rows)
    assert text == (
        "rerandomized and trained were not made alike: torch 2.6.0 and 2.7.0 (trained: 2.6.0), "
        "in sae resid_post.1 topk"
    )


def test_results_without_provenance_aggregate_as_unknown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = study()
    write_tree(config, tmp_path)
    aggregate(config, tmp_path)
    rows = tables.read_table(tmp_path / paths.PROVENANCE, PROVENANCE).to_pylist()
    assert rows
    assert {(row["torch"], row["host"], row["threads"]) for row in rows} == {
        ("unknown", "unknown", None)
    }
    line, differing = in_short(rows)
    assert "torch unknown" in line
    assert differing == []
    # Later artifacts are known, and do not count as differing from unknown ones.
    for _, keys, folder in artifacts(config):
        if keys.get("variant") == "rerandomized" and (tmp_path / folder).is_dir():
            write_json(tmp_path / folder / provenance.FILE, {"jobs": [JOB]})
    caplog.set_level(logging.WARNING)
    aggregate(config, tmp_path)
    assert caplog.records == []
    rows = tables.read_table(tmp_path / paths.PROVENANCE, PROVENANCE).to_pylist()
    assert differences(rows) == []
    assert {
        (row["value"], tuple(row["variants"]))
        for row in in_short(rows)[1]
        if (row["kind"], row["what"]) == ("sae", "torch")
    } == {("unknown", ("trained",)), ("2.6.0", ("rerandomized",))}


def test_aggregate_logs_a_warning_about_arms_made_differently(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = study()
    write_tree(config, tmp_path)
    note(config, tmp_path, rerandomized={"device_kind": "cpu"})
    caplog.set_level(logging.WARNING)
    aggregate(config, tmp_path)
    (record,) = caplog.records
    assert record.getMessage().startswith(
        "warning: subject small: rerandomized and trained were not made alike: device cpu "
        "(trained: cuda), in "
    )
    rows = tables.read_table(tmp_path / paths.PROVENANCE, PROVENANCE).to_pylist()
    assert {row["revisions"] for row in rows} == {"model a/b@1"}


def test_the_makers_of_a_study_fit_on_one_line(tmp_path: Path) -> None:
    config = study()
    note(config, tmp_path)
    line, differing = in_short(read_provenance(config, tmp_path))
    assert differing == []
    assert line == (
        "nullsae 0.1.0, commit abc, torch 2.6.0, transformers 5.0.0, Python 3.12.1, CUDA 12.4, "
        "dtype float32, precision bfloat16, device NVIDIA H200, threads 2"
    )
