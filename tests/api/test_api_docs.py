"""What docs/python.md lists; its code is run by tests/test_docs_code.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import nullsae

PAGE = Path(__file__).parents[2] / "docs/python.md"
CODE = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_snippet_at_the_top_has_five_lines() -> None:
    assert len(CODE[0].splitlines()) == 5


def test_every_public_function_is_in_the_table_of_the_page() -> None:
    functions = {name for name in nullsae.__all__ if name[0].islower()}
    listed = re.findall(r"^\| `(\w+)\(", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(listed) == functions


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)", PAGE.read_text(encoding="utf-8")))
def test_links_lead_somewhere(link: str) -> None:
    assert (PAGE.parent / link).exists()
