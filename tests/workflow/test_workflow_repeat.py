from __future__ import annotations

from pathlib import Path

import pytest
from workflow_study import Study, new_study

from nullsae import paths, tables

pytestmark = pytest.mark.workflow


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Study:
    """The same study on one core, in another folder."""
    study = new_study(tmp_path_factory.mktemp("serial") / "study", tree)
    ran = study.run(study.command(cores=1))
    assert ran.returncode == 0, ran.stdout[-6000:]
    return study


def test_tables_depend_on_neither_the_folder_nor_the_number_of_cores(
    study: Study, serial: Study
) -> None:
    names = [paths.ANSWER, *(paths.TABLE.format(table=table) for table in tables.AGGREGATED)]
    assert sorted(names) == sorted(
        str(p.relative_to(study.folder)) for p in (study.folder / "results/tables").iterdir()
    )
    differing = [
        name
        for name in names
        if (study.folder / name).read_bytes() != (serial.folder / name).read_bytes()
    ]
    assert differing == []


def test_figures_and_report_are_the_same_bytes_too(study: Study, serial: Study) -> None:
    folders = ("results/figures", "results/report")
    files = [p for f in folders for p in sorted((study.folder / f).rglob("*")) if p.is_file()]
    assert files
    differing = [
        str(file.relative_to(study.folder))
        for file in files
        if file.read_bytes() != (serial.folder / file.relative_to(study.folder)).read_bytes()
    ]
    assert differing == []
