from __future__ import annotations

import subprocess

import pytest
from workflow_study import TIMEOUT_SECONDS, Study

from nullsae import paths, tables

pytestmark = pytest.mark.workflow
SerialRun = tuple[Study, "subprocess.Popen[bytes]"]


def test_tables_depend_on_neither_the_folder_nor_the_number_of_cores(
    study: Study, serial_run: SerialRun
) -> None:
    serial, process = serial_run
    assert process.wait(TIMEOUT_SECONDS) == 0, (serial.folder / "run.log").read_text()[-6000:]
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


def test_figures_and_report_are_the_same_bytes_too(study: Study, serial_run: SerialRun) -> None:
    serial, process = serial_run
    assert process.wait(TIMEOUT_SECONDS) == 0
    folders = ("results/figures", "results/report")
    files = [p for f in folders for p in sorted((study.folder / f).rglob("*")) if p.is_file()]
    assert files
    differing = [
        str(file.relative_to(study.folder))
        for file in files
        if file.read_bytes() != (serial.folder / file.relative_to(study.folder)).read_bytes()
    ]
    assert differing == []
