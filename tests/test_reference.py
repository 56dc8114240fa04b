"""What a reference keeps of a study, and when a study agrees with it."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest
import yaml

from nullsae import paths, tables
from nullsae.config.metrics import is_defined
from nullsae.config.parse import parse_config
from nullsae.core.files import write_json
from nullsae.statistics.answer import Answer, answer
from nullsae.tables.study import CONTRASTS, PROVENANCE, VERDICTS

REPOSITORY = Path(__file__).parent.parent
FOLDERS = sorted(path for path in (REPOSITORY / "docs/reference").iterdir() if path.is_dir())
WORDS = {"cosine": "separates", "explained_variance": "equivalent", "ce_score": "inconclusive"}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    yield __import__("reference")
    sys.modules.pop("reference")


def save(root: Path, table: str, schema: pa.Schema, rows: list[dict[str, object]]) -> None:
    empty = dict.fromkeys(schema.names)
    path = root / (paths.PROVENANCE if table == "provenance" else paths.TABLE.format(table=table))
    tables.write_table(path, [empty | row for row in rows], schema)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Return the tables of a study of three metrics and two nulls."""
    base = yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))
    base["variants"] = ["trained", "rerandomized"]
    base["subjects"]["small"]["source"] = {"kind": "pretrained", "path": "/somewhere/of/mine"}
    config = parse_config(base).model_dump(mode="json")
    (tmp_path / "results").mkdir()
    (tmp_path / paths.RUN_CONFIG).write_text(yaml.safe_dump(config), encoding="utf-8")
    rows = []
    for metric, word in WORDS.items():
        for null, value in (("step0", 0.61), ("rerandomized", 0.59)):
            keys = {"stage": "model", "subject": "small", "site": "resid_post.1", "sae": "topk"}
            keys |= {"metric": metric, "variant": null, "real": "trained", "null": null}
            numbers = {"real_value": 0.8123456, "real_low": 0.8, "real_high": 0.825}
            numbers |= {"value": value, "value_low": value - 0.01, "value_high": value + 0.01}
            numbers |= {"difference": value - 0.8123456, "difference_low": value - 0.83}
            numbers |= {"difference_high": value - 0.79, "margin": 0.05, "real_l0": 16.0}
            numbers |= {"l0": 15.99, "real_training_tokens": 2e5, "training_tokens": 2e5}
            counts = {"n_draws": 1, "n_seeds": 1, "unit": "document", "family": "f"}
            counts |= {"speaks_of": "documents", "scope": "this randomization"}
            counts |= {
                "is_replicated": False,
                "margin_rule": "",
                "n_family": 1,
                "real_n_units": 9,
                "n_units": 9,
            }
            said = {"verdict": word, "reason": ""}
            rows.append({**keys, **numbers, **counts, **said})
    save(tmp_path, "contrasts", CONTRASTS, [{n: r.get(n) for n in CONTRASTS.names} for r in rows])
    save(tmp_path, "verdicts", VERDICTS, [{n: r.get(n) for n in VERDICTS.names} for r in rows])
    made = {"verb": "train_sae", "nullsae": "0.1.0", "python": "3.11.7", "host": "my-host"}
    made |= {"device": "cpu", "device_kind": "cpu", "kind": "sae", "job": 0}
    save(tmp_path, "provenance", PROVENANCE, [made, made, {**made, "verb": "evaluate_sae"}])
    given = [{"explainer": None, "scorer": None} | row for row in rows]
    write_json(tmp_path / paths.ANSWER, answer(given, [r["verdict"] for r in rows]).as_json())
    return tmp_path


def changed(study: Path, table: str, column: str, place: int, value: object) -> None:
    """Give one row of a table another value."""
    path, schema = study / paths.TABLE.format(table=table), tables.SCHEMAS[table]
    rows = tables.read_table(path, schema).to_pylist()
    rows[place][column] = value
    tables.write_table(path, rows, schema)


def test_a_study_agrees_with_the_reference_that_was_made_of_it(
    script: ModuleType, study: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "reference"
    script.write(study, folder)
    assert script.disagreements(study, folder) == []
    text = (folder / "contrasts.csv").read_text(encoding="utf-8")
    assert "0.81235,0.8,0.825,0.61,0.6,0.62" in text
    assert text.count("\n") == 7
    kept = Answer.of_json(json.loads((folder / "answer.json").read_text(encoding="utf-8")))
    assert [one.metric for one in kept.findings] == ["cosine", "explained_variance", "ce_score"]
    with (folder / "provenance.csv").open(encoding="utf-8") as file:
        assert [(row["verb"], row["n"]) for row in csv.DictReader(file)] == [
            *(("train_sae", "2"), ("evaluate_sae", "1"))
        ]
    whole = "".join(file.read_text(encoding="utf-8") for file in folder.iterdir())
    assert "my-host" not in whole
    assert "/somewhere" not in whole
    assert "path: mine" in whole


@pytest.mark.parametrize(
    ("column", "value", "agrees"),
    [
        # At most half of both intervals (0.0125 each) apart, or the margin (0.05).
        ("real_value", 0.824, True),
        ("real_value", 0.77, True),
        ("real_value", 0.75, False),
        ("value", 0.67, False),
        ("difference", None, False),
        ("l0", 16.5, True),
        ("l0", 17.0, False),
        ("training_tokens", 1e5, False),
    ],
)
def test_numbers_may_move_within_their_intervals_and_margins_alone(
    script: ModuleType, study: Path, tmp_path: Path, column: str, value: object, agrees: bool
) -> None:
    folder = tmp_path / "reference"
    script.write(study, folder)
    changed(study, "contrasts", column, 0, value)
    lines = script.disagreements(study, folder)
    assert (lines == []) == agrees
    assert all(line.startswith("model, small, resid_post.1, topk, cosine, step0") for line in lines)


@pytest.mark.parametrize(("place", "word"), [(0, "equivalent"), (2, "reversed"), (0, "none")])
def test_no_verdict_may_become_another_one(
    script: ModuleType, study: Path, tmp_path: Path, place: int, word: str
) -> None:
    folder = tmp_path / "reference"
    script.write(study, folder)
    changed(study, "verdicts", "verdict", place, word)
    [line] = script.disagreements(study, folder)
    assert f": {word}, in the reference " in line


def test_few_verdicts_may_become_inconclusive(
    script: ModuleType, study: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "reference"
    script.write(study, folder)
    changed(study, "verdicts", "verdict", 0, "inconclusive")
    # One of six.
    assert script.disagreements(study, folder) == []
    changed(study, "verdicts", "verdict", 1, "inconclusive")
    assert len(script.disagreements(study, folder)) == 2


def test_few_values_may_be_further_off(
    script: ModuleType, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "reference"
    script.write(study, folder)
    changed(study, "contrasts", "value", 0, 0.9)
    # One of eighteen.
    assert len(script.disagreements(study, folder)) == 1
    monkeypatch.setattr(script, "SHARE_FAR", 1 / 18)
    assert script.disagreements(study, folder) == []


def test_a_comparison_that_is_new_or_missing_is_named(
    script: ModuleType, study: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "reference"
    script.write(study, folder)
    for table in ("contrasts", "verdicts"):
        changed(study, table, "site", 0, "embed")
    lines = script.disagreements(study, folder)
    assert [line.rpartition(": ")[2] for line in lines] == [
        *("not in the reference", "not in the study")
    ]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_is_kept_is_small_reads_back_and_names_no_machine(
    script: ModuleType, folder: Path
) -> None:
    files = {file.name: file.read_text(encoding="utf-8") for file in folder.iterdir()}
    assert set(files) == {"answer.json", "contrasts.csv", "provenance.csv", "config.yaml"}
    assert sum(map(len, files.values())) < 500_000
    assert not re.search(r"/(home|root|work|tmp|Users|mnt)\b", "".join(files.values()))
    config = parse_config(yaml.safe_load(files["config.yaml"]))
    rows = script.read(folder)
    assert {row["variant"] for row in rows} <= {"trained", *config.variants}
    kept = Answer.of_json(json.loads(files["answer.json"]))
    assert {row["metric"] for row in rows} >= {one.metric for one in kept.findings}
    # The answer is the one that its contrasts give.
    of_models = [row for row in rows if row["stage"] == "model"]
    for one in kept.findings:
        own = [
            row["verdict"]
            for row in of_models
            if (row["metric"], row["explainer"], row["scorer"])
            == (one.metric, one.explainer, one.scorer)
            and is_defined(row["metric"], row["variant"])
        ]
        assert len(own) <= sum(sum(each.verdicts.values()) for each in one.against)
        if one.tier == "tells":
            assert set(own) <= {"separates", "equivalent"}


def test_a_folder_without_a_finished_study_is_one_line(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["reference.py", "--check", str(tmp_path), "default"])
    with pytest.raises(SystemExit, match=r"^error: .*config\.yaml: No such file"):
        script.main()
