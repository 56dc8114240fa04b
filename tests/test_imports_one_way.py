"""The house: rooms in the order in which data flows, and imports that go one way."""

from __future__ import annotations

import ast
from pathlib import Path

import nullsae

PACKAGE = Path(nullsae.__file__).parent
MAX_LINES = 400
MAX_FUNCTION_LINES = 80
# A module or folder imports only from what stands before it.
ORDER = (
    *("core", "paths", "config", "tables", "jobs", "corpus", "subjects", "activations", "sae"),
    *("metrics", "latents", "autointerp", "statistics", "aggregation", "report", "toy"),
    *("planning", "fetching", "watching", "api", "cli", "__main__", "__init__"),
)


def part(path: Path) -> str:
    """The module or folder right below the package that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    """The dotted name of a file, without the package's; that of a folder for its `__init__`."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """What a file imports of the package anywhere, also under TYPE_CHECKING: modules and names."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    inside = {name.removeprefix("nullsae.") for name in names if name.startswith("nullsae.")}
    return {name for name in inside if not name.startswith("__")}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def graph() -> dict[str, set[str]]:
    """Which modules each module imports."""
    modules = {module(path) for path in sources()}
    return {
        module(path): {
            found
            for name in imported(path)
            for found in [name if name in modules else name.rpartition(".")[0]]
            if found in modules and found != module(path)
        }
        for path in sources()
    }


def test_every_part_of_the_package_has_a_place_in_the_order() -> None:
    assert {part(path) for path in sources()} == set(ORDER)


def test_only_paths_stands_beside_the_rooms() -> None:
    names = {path.name for path in PACKAGE.glob("*.py")}
    assert names == {"__init__.py", "__main__.py", "paths.py"}


def test_modules_import_only_from_rooms_before_their_own() -> None:
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in sources()
        for name in sorted({name.split(".")[0] for name in imported(path)} - {part(path)})
        if ORDER.index(name) > ORDER.index(part(path))
    ]
    assert wrong == []


def test_no_modules_import_each_other_however_long_the_way_round() -> None:
    edges, circles = graph(), []
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        if name in way:
            circles.append(" -> ".join((*way[way.index(name) :], name)))
        elif name not in done:
            for other in sorted(edges[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in sorted(edges):
        visit(name, ())
    assert circles == []


def test_no_module_is_longer_than_a_reader_can_hold() -> None:
    lengths = {str(p.relative_to(PACKAGE)): len(p.read_text().splitlines()) for p in sources()}
    assert {name: n for name, n in lengths.items() if n > MAX_LINES} == {}


def test_no_function_is_longer_than_a_screen() -> None:
    long = {
        f"{path.relative_to(PACKAGE)}: {node.name}": node.end_lineno - node.lineno + 1
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES
    }
    assert long == {}
