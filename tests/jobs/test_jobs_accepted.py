"""Accepted code counts, job by job, as the code that made the job's files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nullsae import paths
from nullsae.config.parse import parse_config
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.jobs import accepted, code_record
from nullsae.jobs.accepted import Acceptance, AcceptedCode
from nullsae.jobs.activations import cache_activations, shards_key, shards_key_by
from nullsae.jobs.code_changes import changed_code_line, recorded_code
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.rules import Codes, job_code, rule_params
from nullsae.jobs.saes import train_sae
from small_config import SMALL_CONFIG

OLD, OLDER = "0" * 15 + "1", "0" * 15 + "2"
CELL = {
    **{"subject": "small", "variant": "trained", "draw": "0"},
    **{"site": "resid_post.0", "sae": "topk", "seed": "0"},
}
OTHER = {**CELL, "variant": "rerandomized"}
MODEL = ModelKeys(subject="small", variant="trained", draw=0)


@pytest.fixture(autouse=True)
def nothing_accepted() -> Iterator[None]:
    yield
    accepted.honour(accepted.Accepted())


@pytest.fixture
def config() -> Config:
    return parse_config(SMALL_CONFIG)


def accept(rule: str, present: str, old: str, *jobs: dict[str, str], **keys: str) -> Acceptance:
    names = tuple(map(accepted.job_name, jobs))
    code = AcceptedCode(rule=rule, present=present, accepted=old, jobs=names)
    return Acceptance(date="2026-11-29", nullsae="1", codes=(code,), activations=keys)


def used(*acceptances: Acceptance) -> None:
    found = accepted.Accepted()
    for acceptance in acceptances:
        found.add(acceptance)
    accepted.honour(found)


def test_only_the_accepted_job_counts_by_the_older_code(config: Config) -> None:
    present = job_code(config, "train_sae", CELL)
    used(accept("train_sae", present, OLD, CELL))
    assert job_code(config, "train_sae", CELL) == OLD
    for other in (OTHER, {**CELL, "seed": "1"}):
        assert job_code(config, "train_sae", other) == present
    assert job_code(config, "evaluate_sae", CELL) not in (OLD, present)


def test_jobs_of_one_rule_keep_the_hash_that_each_was_made_by(config: Config) -> None:
    present = job_code(config, "train_sae", CELL)
    used(accept("train_sae", present, OLD, CELL), accept("train_sae", present, OLDER, OTHER))
    assert [job_code(config, "train_sae", keys) for keys in (CELL, OTHER)] == [OLD, OLDER]


def test_code_that_changes_once_more_is_a_change_again(config: Config) -> None:
    present = job_code(config, "train_sae", CELL)
    used(accept("train_sae", "f" * 16, OLD, CELL))
    assert job_code(config, "train_sae", CELL) == present


def test_a_later_acceptance_of_a_job_outweighs_an_earlier_one(config: Config) -> None:
    present = job_code(config, "train_sae", CELL)
    used(accept("train_sae", present, OLDER, CELL), accept("train_sae", present, OLD, CELL))
    assert job_code(config, "train_sae", CELL) == OLD


def test_keys_of_other_order_and_jobs_without_keys_are_found(config: Config) -> None:
    present = job_code(config, "train_sae", CELL)
    used(accept("train_sae", present, OLD, dict(reversed(CELL.items()))))
    assert job_code(config, "train_sae", CELL) == OLD
    present = job_code(config, "aggregate", {})
    used(accept("aggregate", present, OLD, {}))
    assert job_code(config, "aggregate", {}) == OLD


def test_accepted_activations_keep_their_key_in_all_that_reads_them(config: Config) -> None:
    before = shards_key_by(config, MODEL, "eval", Codes((("cache_activations", OLD),)))
    present = shards_key(config, MODEL, "eval")
    assert before != present
    text = rule_params(config, "evaluate_sae", CELL)
    used(accept("cache_activations", cache_activations.code(), OLD, **{present: before}))
    assert shards_key(config, MODEL, "eval") == before
    assert shards_key(config, MODEL, "sae_train") != before
    [was] = json.loads(text)["models"]
    [now] = json.loads(rule_params(config, "evaluate_sae", CELL))["models"]
    [other] = json.loads(rule_params(config, "evaluate_sae", OTHER))["models"]
    assert now["eval_activations_key"] not in (was["eval_activations_key"], None, "")
    assert now == {**was, "eval_activations_key": now["eval_activations_key"]}
    assert other["eval_activations_key"] != was["eval_activations_key"]


def test_an_sae_is_known_by_the_accepted_code_inside_its_job_too(config: Config) -> None:
    present = job_code(config, "train_sae", CELL)
    keys = {name: CELL[name] for name in ("subject", "variant", "draw")}
    made = train_sae(config, keys)
    used(accept("train_sae", present, OLD, CELL))
    kept = train_sae(config, keys)
    assert [kept.code(cell) for cell in kept.cells] == [OLD, present]
    assert [made.code(cell) for cell in made.cells] == [present, present]
    new = kept.cells[1]
    assert kept.cell_key(new, kept.code(new)) == made.cell_key(new, present)


def test_what_is_recorded_is_read_again(tmp_path: Path) -> None:
    first, second = accept("train_sae", "a" * 16, OLD, CELL), accept("report", OLD, OLDER, {})
    for each in (first, second):
        accepted.append_acceptance(tmp_path, each)
    assert accepted.read_acceptances(tmp_path) == (first, second)
    found = accepted.read_accepted(tmp_path)
    assert found.code("train_sae", CELL, "a" * 16) == OLD
    assert found.code("report", {}, OLD) == OLDER


def test_without_a_file_nothing_is_accepted(tmp_path: Path) -> None:
    assert accepted.read_acceptances(tmp_path) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "accepted.json: not readable"),
        ("[]", "accepted.json"),
        ('{"acceptances": [{"date": "x"}]}', "acceptances"),
        ('{"accepted": []}', "accepted"),
    ],
)
def test_a_damaged_file_of_acceptances_is_named(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / paths.ACCEPTED
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(UserError, match=said) as found:
        accepted.read_acceptances(tmp_path)
    assert str(file) in str(found.value)


def test_the_record_of_code_grows_and_says_what_two_hashes_differ_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: dict[str, dict[str, tuple[Path, ...]]] = {}
    monkeypatch.setattr(code_record, "_noted", noted)
    files = [tmp_path / name for name in ("one.py", "two.py", "three.py")]
    for file in files:
        file.write_text(f"x = {file.stem!r}\n")
    code_record.note_code("train_sae", OLDER, tuple(files[:2]))
    code_record.write_record(tmp_path)
    noted.clear()
    code_record.note_code("train_sae", OLD, tuple(files[1:]))
    code_record.note_code("report", OLD, ())
    code_record.write_record(tmp_path)
    record = code_record.read_record(tmp_path)
    assert set(record) == {"train_sae", "report"}
    before, now = record["train_sae"][OLDER], record["train_sae"][OLD]
    folder = tmp_path.name
    assert code_record.changed_files(before, now) == [
        f"{folder}/one.py (gone)",
        f"{folder}/three.py (new)",
    ]
    edited: dict[str, Any] = {**now, f"{folder}/two.py": "0"}
    assert code_record.changed_files(now, edited) == [f"{folder}/two.py (changed)"]


def test_a_record_that_does_not_change_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(code_record, "_noted", {"report": {OLD: ()}})
    code_record.write_record(tmp_path)
    stat = (tmp_path / paths.CODE).stat()
    code_record.write_record(tmp_path)
    assert (tmp_path / paths.CODE).stat().st_ino == stat.st_ino


def test_the_hash_of_code_is_found_among_recorded_params() -> None:
    assert recorded_code(["'results/x'", "'{\"a\":1}'", f"'{OLD}'", "''"]) == OLD
    assert recorded_code(["'results/x'"]) is None
    assert recorded_code(None) is None


def test_the_line_about_changed_code_holds_the_command_for_this_study() -> None:
    line = changed_code_line(["train_sae", "report"], 31, "--root 'my study'")
    assert line == (
        "code of train_sae, report changed since results/ was made: 31 jobs run again; `nullsae "
        "accept train_sae report --root 'my study'` keeps what was made, if the change does not "
        "alter it"
    )
    assert "1 job runs again; `nullsae accept report` " in changed_code_line(["report"], 1, "")
