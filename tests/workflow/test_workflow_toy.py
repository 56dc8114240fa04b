"""`snakemake toy`: a target separate from the study."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from workflow_study import Study, new_study, replace

from nullsae import paths
from nullsae.tables import read_table
from nullsae.tables.toy import TOY

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
TOY_SECTION: dict[str, Any] = {
    "sources": {
        "sharkey": {"kind": "sharkey", "n_samples": 200, "d_input": 8, "n_true_features": 12},
        "words": {"kind": "word_vectors", "path": "vectors.txt"},
    },
    "expansion_factors": [2],
    "seeds": [0],
    "training": {"epochs": 2, "n_l1_coefficients": 3},
}
RULES = ("train_toy", "report_toy", "toy")


def write_vectors(study: Study, *, last: str = "0.5") -> None:
    lines = [f"word{i} {i}.25 {i * i % 7} {-i} 1" for i in range(60)]
    text = "\n".join([*lines, f"word 1 2 3 {last}"]) + "\n"
    replace(study.folder / "vectors.txt", text)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Study:
    """A folder in which only the toys were made."""
    study = new_study(tmp_path_factory.mktemp("toys") / "study", tree)
    study.configure(lambda config: config.update(toy=TOY_SECTION))
    write_vectors(study)
    study.make("toy")
    return study


def test_the_target_makes_the_toys_and_nothing_else(toys: Study) -> None:
    results = toys.folder / "results"
    assert {path.name for path in results.iterdir()} == {
        *("toy", "figures", "logs", "benchmarks", "run_config.yaml", "code.json"),
    }
    assert {path.name for path in (results / "figures").iterdir()} == {
        *("toy.sharkey.svg", "toy.sharkey_scalar.svg", "toy.sharkey_mmcs.svg"),
        *("toy.words.svg", "toy.words_scalar.svg"),
    }
    table = read_table(toys.folder / paths.TOY_TABLE, TOY)
    assert table.num_rows == 2 * 4 * 3
    assert set(table.column("n_train").to_pylist()) == {180, 55}
    assert (toys.folder / paths.TOY_PAGE).read_text(encoding="utf-8").count("<svg") == 5
    assert toys.jobs("toy") == {}


def test_the_default_target_runs_no_toys(toys: Study) -> None:
    jobs = toys.jobs()
    assert jobs
    assert not set(RULES) & set(jobs)


def test_an_edit_reruns_what_depends_on_it_and_nothing_else(toys: Study) -> None:
    try:
        toys.configure(lambda c: c.update(toy={**TOY_SECTION, "seeds": [0, 4]}))
        assert toys.jobs("toy") == {"train_toy": 8, "report_toy": 1, "toy": 1}
        toys.configure(lambda c: c.update(toy={**TOY_SECTION, "gaussian": "scalar"}))
        assert toys.jobs("toy") == {"train_toy": 4, "report_toy": 1, "toy": 1}
        toys.configure(lambda c: c.update(toy=TOY_SECTION, draws=2))
        assert toys.jobs("toy") == {}
        # A changed file of word vectors.
        write_vectors(toys, last="0.75")
        assert toys.jobs("toy") == {"train_toy": 4, "report_toy": 1, "toy": 1}
    finally:
        toys.configure(lambda c: c.update(toy=TOY_SECTION))
        write_vectors(toys)


def test_a_bad_file_of_word_vectors_is_named(tmp_path: Path, tree: Path) -> None:
    study = new_study(tmp_path / "study", tree)
    only = {**TOY_SECTION, "sources": {"words": TOY_SECTION["sources"]["words"]}}
    study.configure(lambda config: config.update(toy=only))
    write_vectors(study, last="half")
    sweep = paths.TOY_SWEEP.format(source="words", data="data", expansion=2, seed=0)
    result = study.snakemake(sweep)
    assert result.returncode != 0
    assert (
        "nullsae train_toy: error: vectors.txt: line 61: not a number (could not convert string "
        "to float: 'half')"
    ) in result.stdout
    assert "Traceback" not in result.stdout
    assert not (study.folder / sweep).exists()
