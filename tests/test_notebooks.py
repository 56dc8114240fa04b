"""The notebooks run and give the committed outputs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from script_files import script_module

REPOSITORY = Path(__file__).parent.parent
NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")


def runner() -> Any:
    """Import the module that `make notebooks` runs."""
    return script_module("notebooks/run.py")


def words_and_numbers(text: str) -> tuple[list[str], list[float]]:
    """Split a text into its words, without layout that depends on numbers, and its numbers."""
    return NUMBER.sub("", text).split(), [float(number) for number in NUMBER.findall(text)]


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=() if file.stem == "reading_tables" else pytest.mark.slow)
        for file in NOTEBOOKS
    ],
    ids=lambda file: file.stem,
)
def test_a_notebook_runs_and_says_what_is_committed(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another processor rounds differently, and training amplifies that as another seed would."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    committed = nbformat.read(file, as_version=4)
    nbformat.validate(committed)
    for old, new in zip(committed.cells, runner().run_notebook(file).cells, strict=True):
        if old.cell_type != "code":
            continue
        assert old.execution_count == new.execution_count
        assert len(old.outputs) == len(new.outputs)
        for was, now in zip(old.outputs, new.outputs, strict=True):
            assert was.output_type == now.output_type
            pair = [one.text if "text" in one else one.data["text/plain"] for one in (was, now)]
            (old_words, old_numbers), (words, numbers) = map(words_and_numbers, pair)
            assert words == old_words
            assert numbers == pytest.approx(old_numbers, abs=0.1, rel=0.15)


def test_there_are_three_and_all_cells_have_run() -> None:
    assert len(NOTEBOOKS) == 3
    for file in NOTEBOOKS:
        cells = [c for c in nbformat.read(file, as_version=4).cells if c.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert any(cell.outputs for cell in cells)
        assert file.stat().st_size < 500_000


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_links_of_a_notebook_lead_to_files(file: Path) -> None:
    text = "\n".join(c.source for c in nbformat.read(file, as_version=4).cells)
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert links
    assert [link for link in links if not (file.parent / link).exists()] == []


def test_a_cell_that_raises_is_named(tmp_path: Path) -> None:
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    file = tmp_path / "bad.ipynb"
    nbformat.write(book, file)
    with pytest.raises(ZeroDivisionError) as caught:
        runner().run_notebook(file)
    assert any("bad.ipynb, cell 1" in str(entry.path) for entry in caught.traceback)


def test_what_a_cell_shows_is_its_print_and_the_value_of_its_last_line(tmp_path: Path) -> None:
    sources = ("x = 2\nprint(x)\nx + 1", "x = x * 2", "x")
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(s) for s in sources])
    file = tmp_path / "good.ipynb"
    nbformat.write(book, file)
    first, second, third = runner().run_notebook(file).cells
    assert [one.output_type for one in first.outputs] == ["stream", "execute_result"]
    assert first.outputs[0].text == "2\n"
    assert first.outputs[1].data == {"text/plain": "3"}
    assert second.outputs == []
    assert third.outputs[0].data == {"text/plain": "4"}
