"""The tables of docs/scaling.md are the plan's, as `benchmarks/scale_on_paper.py` prints them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.usefixtures("warm")

REPOSITORY = Path(__file__).parent.parent
PAGE = (REPOSITORY / "docs/scaling.md").read_text(encoding="utf-8")
STALE = "formulas changed: run python benchmarks/scale_on_paper.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    yield __import__("scale_on_paper")
    for name in ("scale_on_paper", "study_numbers"):
        sys.modules.pop(name)


def rows_of(mark: str) -> list[list[str]]:
    """Return the cells of a table of the page, without its head."""
    found = re.search(rf"<!-- numbers: {mark} -->\n(.*?)<!-- end", PAGE, re.DOTALL)
    assert found is not None
    return [line.strip("| ").split(" | ") for line in found[1].splitlines()[2:]]


def test_a_row_of_the_page_is_what_the_plan_says_today(script: ModuleType) -> None:
    [case, *_] = script.BY_SIZE
    found = script.figures(case)
    assert script.row(case.subject, found) == rows_of("by_size")[0], STALE
    # Pythia-70m: 12 d^2 + 13 d weights in each of 6 blocks, two embeddings, a norm, in bfloat16;
    # four bytes of text for each token read, a tenth of which goes to `eval`.
    n = 6 * (12 * 512**2 + 13 * 512) + 2 * 50_304 * 512 + 2 * 512
    assert found.download_bytes == pytest.approx(2 * n + 4 * 100e6 / 0.9, rel=1e-6)
    # An SAE with gradients and moments, 32 m d bytes, is on the GPU together with the subject.
    assert found.gpu_bytes["train_sae"] > 32 * 16 * 512**2 + 2 * n


def test_every_case_has_its_row(script: ModuleType) -> None:
    assert [row[0] for row in rows_of("by_size")] == [case.subject for case in script.BY_SIZE]
    tokens = [script.tokens_text(case.tokens) for case in script.BY_TOKENS]
    assert [row[0] for row in rows_of("by_tokens")] == tokens
    assert tokens == ["1M", "10M", "100M", "1B", "4B", "16B"]
    assert [row[0] for row in rows_of("by_gpus")] == [str(case.gpus) for case in script.BY_GPUS]
