"""Every page of the documentation is found, its links work, and its quotes are in the code."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from script_files import script_module

REPOSITORY = Path(__file__).parent.parent
DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.glob("*.md"))
BESIDE = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
MKDOCS = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)#\s]*)(?:#([^)\s]*))?\)")
PLACE = "…"


def site() -> Any:
    """Import the module that mkdocs calls."""
    [hook] = MKDOCS["hooks"]
    return script_module(hook)


def leaves(nav: Any) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    entries = nav.values() if isinstance(nav, dict) else nav
    return [page for entry in entries for page in leaves(entry)]


@cache
def prose(page: Path) -> str:
    return re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


@cache
def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ +(.+)$", prose(page), re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


def test_every_page_is_in_the_navigation_once() -> None:
    pages = {page.name for page in PAGES} | set(site().BESIDE)
    found = leaves(MKDOCS["nav"])
    assert sorted(found) == sorted(pages)


@pytest.mark.parametrize("page", [*PAGES, *BESIDE], ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    lost = []
    for path, anchor in LINK.findall(prose(page)):
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(f"{path}#{anchor}")
    assert lost == []


@pytest.mark.parametrize("page", [*PAGES, *BESIDE[1:]], ids=lambda page: page.name)
def test_links_on_the_site_lead_to_its_pages(page: Path) -> None:
    file = SimpleNamespace(src_uri=page.name)
    made = site().on_page_markdown(prose(page), SimpleNamespace(file=file))
    there = {file.name for file in DOCS.iterdir()} | set(site().BESIDE)
    assert {path for path, _ in LINK.findall(made) if path} <= there


@cache
def texts_of_the_code() -> list[str]:
    """Return all strings of the package except docstrings, with `…` for values filled in."""
    found = []
    for file in sorted((REPOSITORY / "src").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) in docstrings:
                continue
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = (p.value if isinstance(p, ast.Constant) else PLACE for p in node.values)
                found.append("".join(map(str, parts)))
    return found


QUOTED = re.findall(
    r"\*\*`(.+?)`\*\*", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.S
)


def test_troubleshooting_quotes_many_messages() -> None:
    assert len(QUOTED) == len(set(QUOTED)) > 30


@pytest.mark.parametrize("quoted", QUOTED)
def test_a_quoted_message_is_one_of_the_code(quoted: str) -> None:
    """`…` at an end stands for any text, elsewhere for one value that is filled in."""
    wanted = " ".join(quoted.split()).strip(f"{PLACE} ")
    assert any(wanted in text for text in texts_of_the_code())
