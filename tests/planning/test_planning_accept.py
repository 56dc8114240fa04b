"""Which jobs a code upgrade affects: the current code against the recorded one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from nullsae import paths
from nullsae.cli import accept_code
from nullsae.config.parse import parse_config
from nullsae.config.study import Config
from nullsae.core.files import content_key, write_json
from nullsae.jobs import accepted
from nullsae.jobs import rules as jobs
from nullsae.jobs.accepted import Acceptance
from nullsae.jobs.activations import shards_key_by
from nullsae.jobs.code_changes import is_other_code
from nullsae.jobs.code_record import Record, noted_record
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.saes import train_sae
from nullsae.planning.accept import Comparison
from nullsae.planning.made import MadeJob
from refusing import refused
from small_config import SMALL_CONFIG

OLD, OLDER = "0" * 15 + "1", "0" * 15 + "2"
MODEL = {"subject": "small", "variant": "trained", "draw": "0"}
SPLITS = [{**MODEL, "split": split} for split in ("sae_train", "eval")]
CELLS = [{**MODEL, "site": "resid_post.0", "sae": "topk", "seed": seed} for seed in ("0", "1")]


@pytest.fixture(autouse=True)
def nothing_accepted() -> Iterator[None]:
    accepted.honour(accepted.Accepted())
    yield
    accepted.honour(accepted.Accepted())


class Made:
    """Return captures and SAEs of one model, made while rules had the given hashes."""

    def __init__(self, root: Path, config: Config, **codes: str) -> None:
        self.root, self.config, self.codes = root, config, codes
        self.jobs: list[MadeJob] = []
        # Params as the builders wrote them then, with other hashes.
        then = accepted.Accepted()
        accepted.honour(then)
        model = ModelKeys.of(MODEL)
        for keys in SPLITS:
            given = jobs.Codes(tuple(codes.items()))
            shards = shards_key_by(config, model, keys["split"], given)
            then.keys[shards_key_by(config, model, keys["split"])] = shards
            exclude = config.activations.exclude.model_dump(mode="json")
            manifest = paths.ACTIVATIONS_MANIFEST.format(**keys)
            write_json(root / manifest, {"key": content_key([shards, exclude])})
            self.add("cache_activations", keys, [], [manifest])
        read = [paths.ACTIVATIONS_MANIFEST.format(**keys) for keys in SPLITS]
        for keys in CELLS:
            self.add("train_sae", keys, read, [paths.SAE_CONFIG.format(**keys)])
        accepted.honour(accepted.Accepted())

    def add(self, rule: str, keys: dict[str, str], inputs: list[str], outputs: list[str]) -> None:
        present = jobs.rules()[rule].present_code(self.config, keys)
        code = self.codes.get(f"{rule}_{keys.get('seed')}") or self.codes.get(rule) or present
        accepted.in_use().add_code(rule, keys, present, code)
        recorded = [repr(code), repr(jobs.rule_params(self.config, rule, keys)), "'folder'"]
        self.jobs.append(
            MadeJob(
                name=rule,
                rule=rule,
                keys=keys,
                inputs=inputs,
                outputs=outputs,
                recorded={outputs[0]: recorded},
                others=["'folder'"],
                has_config=True,
                differs=False,
            )
        )

    def compare(
        self, *rules: str, config: Config | None = None, record: Record | None = None
    ) -> Comparison:
        accepted.honour(accepted.read_accepted(self.root))
        found = Comparison(config or self.config, rules, record or {}, self.root)
        found.look_at(self.jobs)
        return found

    def moved(self) -> Made:
        """Without Snakemake's records."""
        self.jobs = [MadeJob(**{**vars(job), "recorded": {}, "others": []}) for job in self.jobs]
        return self

    def kept(self, *rules: str, config: Config | None = None) -> dict[str, int]:
        """Return the jobs that can be kept, by rule."""
        found = self.compare(*rules, config=config)
        kept: dict[str, int] = {}
        for change in found.changes.values():
            if change.jobs:
                kept[change.rule] = kept.get(change.rule, 0) + len(change.jobs)
        return kept


@pytest.fixture
def config() -> Config:
    return parse_config(SMALL_CONFIG)


def test_without_code_changes_nothing_can_be_accepted(tmp_path: Path, config: Config) -> None:
    found = Made(tmp_path, config).compare("train_sae", "cache_activations")
    assert (found.changes, found.activations, found.others) == ({}, {}, set())


def test_an_accepted_rule_keeps_its_jobs(tmp_path: Path, config: Config) -> None:
    made = Made(tmp_path, config, train_sae=OLD)
    assert made.kept("train_sae") == {"train_sae": 2}
    assert made.kept("report") == {}


def test_accepted_captures_keep_what_was_trained_on_them(tmp_path: Path, config: Config) -> None:
    made = Made(tmp_path, config, cache_activations=OLD)
    assert made.kept("cache_activations") == {"cache_activations": 2}
    found = made.compare("cache_activations")
    assert len(found.activations) == 2
    assert found.others == set()


def test_activations_without_records_of_snakemake_are_known_by_their_manifests(
    tmp_path: Path, config: Config
) -> None:
    made = Made(tmp_path, config, cache_activations=OLD).moved()
    record: Record = {"cache_activations": {OLDER: {}, OLD: {}}}
    assert len(made.compare("cache_activations", record=record).activations) == 2
    assert made.compare("train_sae", record=record).activations == {}
    assert made.compare("cache_activations").activations == {}


def test_saes_of_one_pass_are_known_by_their_own_keys(tmp_path: Path, config: Config) -> None:
    made = Made(tmp_path, config, train_sae=OLD)
    params = train_sae(config, MODEL)
    files = [paths.SAE_CONFIG.format(**keys) for keys in CELLS]
    for file, cell, code in zip(files, params.cells, (OLD, OLDER), strict=True):
        write_json(tmp_path / file, {"key": params.cell_key(cell, code)})
    made.jobs = [
        MadeJob(
            name="train_saes_0",
            rule="train_sae",
            keys={},
            inputs=[],
            outputs=files,
            recorded={},
            others=[],
            has_config=True,
            differs=False,
        )
    ]
    record: Record = {"train_sae": {OLD: {}, OLDER: {}}}
    found = made.compare("train_sae", record=record)
    assert {change.recorded: len(change.jobs) for change in found.changes.values()} == {
        OLD: 1,
        OLDER: 1,
    }
    kept = train_sae(config, MODEL)
    assert [kept.code(cell) for cell in kept.cells] == [OLD, OLDER]
    other = parse_config(
        SMALL_CONFIG | {"saes": {"topk": {"k": 5, "n_latents": 32, "seeds": [0, 1]}}}
    )
    found = made.compare("train_sae", record=record, config=other)
    assert [change for change in found.changes.values() if change.jobs] == []


def test_code_before_a_capture_is_accepted_by_its_own_name(tmp_path: Path, config: Config) -> None:
    made = Made(tmp_path, config, prepare_corpus=OLD, cache_activations=OLDER, train_sae=OLD)
    rules = ("cache_activations", "train_sae")
    # The corpus has no job here: only the record has its former code.
    record: Record = {"prepare_corpus": {OLD: {}}}
    refused = made.compare(*rules, record=record)
    assert [change.jobs for change in refused.changes.values()] == [[], []]
    taken = made.compare(*rules, "prepare_corpus", record=record)
    assert sorted(len(change.jobs) for change in taken.changes.values()) == [2, 2]


def test_what_reads_files_that_are_made_again_is_not_kept(tmp_path: Path, config: Config) -> None:
    made = Made(tmp_path, config, cache_activations=OLD, train_sae=OLD)
    assert made.kept("train_sae") == {}
    assert made.compare("train_sae").others == {"cache_activations"}
    only = Made(tmp_path, config, cache_activations=OLD).compare("train_sae")
    assert (only.others, only.again) == (
        {"cache_activations"},
        {"train_sae": 2},
    )
    assert made.kept("train_sae", "cache_activations") == {"train_sae": 2, "cache_activations": 2}


def test_seeds_of_different_code_each_keep_their_own(tmp_path: Path, config: Config) -> None:
    made = Made(tmp_path, config, train_sae_0=OLD, train_sae_1=OLDER)
    found = made.compare("train_sae")
    by_code = {code.accepted: code.jobs for code in found.codes({})}
    assert by_code == {
        old: (accepted.job_name(keys),) for old, keys in zip((OLD, OLDER), CELLS, strict=True)
    }
    # Once recorded, Snakemake compares it with its own record.
    acceptance = Acceptance(date="", nullsae="", codes=tuple(found.codes({})))
    accepted.append_acceptance(tmp_path, acceptance)
    assert made.compare("train_sae").changes == {}
    assert [jobs.job_code(config, "train_sae", keys) for keys in CELLS] == [OLD, OLDER]


@pytest.mark.parametrize(
    "edit",
    [
        {"saes": {"topk": {"k": 5, "n_latents": 32, "seeds": [0, 1]}}},
        {"seed": 1},
        {"activations": {"sae_train_tokens": 8_192}},
    ],
    ids=str,
)
def test_an_edit_of_the_config_is_not_accepted_with_the_code(
    tmp_path: Path, config: Config, edit: dict[str, Any]
) -> None:
    made = Made(tmp_path, config, cache_activations=OLD, train_sae=OLD)
    assert "train_sae" not in made.kept(
        "train_sae", "cache_activations", config=parse_config(SMALL_CONFIG | edit)
    )


def test_another_command_line_of_the_workflow_is_not_accepted(
    tmp_path: Path, config: Config
) -> None:
    made = Made(tmp_path, config, train_sae=OLD)
    first = made.jobs[-1]
    made.jobs[-1] = MadeJob(**{**vars(first), "differs": True})
    assert made.kept("train_sae") == {"train_sae": 1}


def test_a_config_that_uses_other_files_is_no_other_code(config: Config) -> None:
    more = parse_config(
        SMALL_CONFIG | {"variants": ["trained", "rerandomized", "step0", "gaussian"]}
    )
    one, other = (jobs.rules()["report"].present_code(each, {}) for each in (config, more))
    assert one != other
    noted = noted_record()
    assert not is_other_code("report", one, other, noted)
    assert not is_other_code("report", other, one, noted)
    edited = json.loads(json.dumps(noted))
    edited["report"][other]["report/build.py"] = "0"
    assert is_other_code("report", one, other, edited)
    del edited["report"][other]["report/build.py"]
    assert is_other_code("report", one, other, edited)
    assert is_other_code("report", one, other, {})


def test_nothing_is_accepted_under_a_run_that_began_meanwhile(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Made(tmp_path, config, train_sae=OLD)
    (tmp_path / "config.yaml").write_text(json.dumps(SMALL_CONFIG))
    lock = tmp_path / ".snakemake/locks/0.output.lock"

    def begin() -> None:
        lock.parent.mkdir(parents=True)
        lock.write_text("results/tables/models.parquet\n")

    monkeypatch.setattr(accept_code, "made_jobs", lambda _config, _root: made.jobs)
    monkeypatch.setattr(accept_code, "_ask", begin)
    accept = partial(
        accept_code.accept_code, tmp_path, ["train_sae"], all_rules=False, overlays=(), pairs=()
    )
    said = refused(accept, yes=False)
    assert "Snakemake is running here, so nothing was recorded" in said
    assert not (tmp_path / paths.ACCEPTED).exists()
    lock.unlink()
    accept(yes=True)
    (acceptance,) = accepted.read_acceptances(tmp_path)
    assert [code.accepted for code in acceptance.codes] == [OLD]
