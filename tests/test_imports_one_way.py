from __future__ import annotations

import ast
from pathlib import Path

import nullsae

PACKAGE = Path(nullsae.__file__).parent
MAX_LINES = 400
# A module or folder imports only from what stands before it; within a folder anything goes.
ORDER = (
    *(
        "errors",
        "files",
        "stopping",
        "cluster",
        "saved_state",
        "randomness",
        "progress",
        "sites",
        "inputs",
        "outputs",
        "recipes",
        "floors",
        "judges",
        "toys",
    ),
    *(
        "config",
        "paths",
        "shapes",
        "validation",
        "cells",
        "stages",
        "params",
        "local_files",
        "slices",
        "shared_jobs",
        "schemas",
        "tables",
    ),
    *("moments", "corpus", "subjects", "activations", "sae", "metrics", "latents"),
    *(
        "autointerp",
        "statistics",
        "aggregation",
        "report",
        "toy",
        "terminal",
        "arguments",
        "planning",
        "fetching",
        "verbs",
        "cli",
    ),
)


def part(path: Path) -> str:
    """The module or folder right below the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Parts of the package that a file imports anywhere, also under TYPE_CHECKING."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    inside = {name.split(".")[1] for name in names if name.startswith("nullsae.")}
    return {name for name in inside if not name.startswith("__")}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def test_every_part_of_the_package_has_a_place_in_the_order() -> None:
    assert {part(path) for path in sources()} - {"__init__"} == set(ORDER)


def test_no_module_imports_from_one_that_comes_after_it() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sources()
        for name in sorted(imported(path) - {part(path)})
        if ORDER.index(name) > ORDER.index(part(path))
    ]
    assert wrong == []


def test_the_package_itself_imports_nothing_of_its_own() -> None:
    assert imported(PACKAGE / "__init__.py") == set()


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    lengths = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in sources()}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}
