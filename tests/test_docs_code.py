"""All commands and code of the pages are run, or parsed by the program that they are for.

The tag of a block says what kind it is. Blocks that cannot be checked are tagged `text`.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import io
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from snakefmt.formatter import Formatter
from snakefmt.parser.parser import Snakefile
from snakemake.cli import get_argument_parser
from snakemake.utils import update_config
from typer.core import TyperGroup

from docs_world import N_LATENTS, make_world, score_latents
from nullsae.cli.main import app
from nullsae.config.parse import parse_config, resolve_subjects
from nullsae.config.study import Config
from nullsae.jobs.rules import rules
from small_chain import D_MODEL

REPOSITORY = Path(__file__).parent.parent
PAGES = [
    *sorted(page for page in REPOSITORY.glob("*.md") if page.name != "CHANGELOG.md"),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "notebooks").glob("*.md")),
    *(REPOSITORY / folder / "README.md" for folder in ("benchmarks", "config", "results")),
]
# Its blocks need a finished study, and run in the test that has one.
RUN_ELSEWHERE = {"results/README.md": "tests/workflow/test_workflow_reading.py"}
# Programs of others, for which only the named files are checked.
OTHERS = {
    *("export", "unset", "cd", "mkdir", "tar", ".", "git", "rsync", "tmux"),
    *(
        "conda",
        "conda-unpack",
        "snakedeploy",
        "pre-commit",
        "squeue",
        "awk",
        "xargs",
        "twine",
        "uv",
        "pixi",
    ),
}
OURS = ("nullsae", "snakemake", "make", "python")
# Pages use these names for the reader's own files.
OWN = {"mine.yaml", "first.yaml", "second.yaml"}
FOLDERS = ("benchmarks", "config", "docs", "envs", "notebooks", "profiles", "src", "workflow")
BLOCK = re.compile(r"^( *)```([^\n]*)\n(.*?)^\1```$", re.M | re.S)
OPERATORS = ("&&", "||", "|", ";", "&")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    tag: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@cache
def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks_of(page: Path) -> list[Block]:
    text, name = read(page), page.relative_to(REPOSITORY).as_posix()
    return [
        Block(name, text[: found.start()].count("\n") + 1, found[2].strip(), found[3])
        for found in BLOCK.finditer(text)
    ]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def tagged(*tags: str) -> Any:
    found = [block for block in BLOCKS if block.tag in tags]
    return pytest.mark.parametrize("block", found, ids=str)


@cache
def spans(page: Path) -> list[str]:
    """Return the code spans in the sentences of a page."""
    prose = BLOCK.sub("", read(page))
    return [" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each command in shell lines, without comments."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in OPERATORS:
                words.append(word)
            elif words:
                yield words
                words = []


def check_command(words: list[str], page: Path, *, whole: bool = True) -> None:
    """Parse a command with the program's own parser; if not `whole`, values may be missing."""
    while "=" in words[0]:
        words = words[1:]
    program, arguments = words[0], [word for word in words[1:] if word not in ("...", "…")]
    for word in arguments:
        inside = re.match(
            rf"(?:{'|'.join(FOLDERS)})/[\w./-]+$|requirements[\w-]*\.(txt|lock)$", word
        )
        assert not inside or (REPOSITORY / word).exists(), word
    if program == "nullsae":
        check_verb(arguments, whole=whole)
    elif program == "snakemake":
        check_snakemake(arguments, page)
    elif program == "make":
        check_make(arguments)
    elif program in ("python", "python3"):
        check_python(arguments)
    elif program == "pip":
        check_pip(arguments)
    elif program == "apptainer":
        image = next(n for n, word in enumerate(arguments) if word.endswith(".sif"))
        if arguments[0] == "run":
            check_snakemake(arguments[image + 1 :], page)
    else:
        assert program in OTHERS, f"{program} is nothing that is known here"


def check_verb(arguments: list[str], *, whole: bool) -> None:
    command, context, named = typer.main.get_command(app), None, "nullsae"
    whole = whole and "--help" not in arguments
    arguments = [word for word in arguments if word not in ("--help", "--install-completion")]
    while isinstance(command, TyperGroup):
        if not arguments:
            return
        context = command.make_context(named, arguments, parent=context)
        rest = [*context._protected_args, *context.args]
        if not rest or (not whole and re.fullmatch("[A-Z]+", rest[0])):
            return
        named, found, arguments = command.resolve_command(context, rest)  # type: ignore[assignment]
        assert found is not None
        command = found
    try:
        made = command.make_context(named, arguments, parent=context)
    except typer.BadParameter:  # a value is missing, or a placeholder
        assert not whole, arguments
        return
    if named == "run":
        check_snakemake(made.params["options"] or [], None)
    for file in made.params.get("configfile") or ():
        assert str(file) in OWN or (REPOSITORY / file).is_file(), file


def check_snakemake(arguments: list[str], page: Path | None) -> None:
    try:
        given = get_argument_parser().parse_args([w for w in arguments if not w.isupper()])
    except SystemExit:
        raise AssertionError(f"snakemake does not take {arguments}") from None
    for file in given.configfile or ():
        assert page is not None
        assert str(file) in OWN | written(page) or (REPOSITORY / file).is_file(), file
    for profile in given.profile or ():
        assert (REPOSITORY / profile).is_dir(), profile
    smk = "".join(read(file) for file in sorted((REPOSITORY / "workflow").rglob("*.smk")))
    for target in given.targets:
        name = target.removeprefix("nullsae_")
        assert "/" in name or name == "all" or f"rule {name}:" in smk, target


def written(page: Path) -> set[str]:
    """Return files that commands of a page write, or report to have written."""
    found = {name for one in blocks_of(page) for name in re.findall(r"--overlay (\S+)", one.text)}
    said = " ".join(block.text for block in blocks_of(page) if block.tag == "text")
    return found | {word for word in said.split() if word.endswith(".yaml")}


def check_make(arguments: list[str]) -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    for word in arguments:
        name, equals, _ = word.partition("=")
        pattern = rf"^{name} \?=" if equals else rf"^{re.escape(name)}:"
        assert re.search(pattern, makefile, re.M), word


def check_python(arguments: list[str]) -> None:
    kind, *rest = arguments
    if kind == "-c":
        compile(rest[0], "-c", "exec")
    elif kind == "-m":
        assert rest[0] in ("venv", "build") or importlib.util.find_spec(rest[0]), rest[0]
    elif kind != "-":
        assert (REPOSITORY / kind).is_file(), kind
        text = (REPOSITORY / kind).read_text(encoding="utf-8")
        for word in rest:
            option = re.match(r"\[?(--[\w-]+)", word)
            assert not option or f'"{option[1]}"' in text or f"{option[1]}" in text, word


def check_pip(arguments: list[str]) -> None:
    """Check that our extras exist, and that versions are those of a requirements file."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    pins = "".join(
        file.read_text()
        for pattern in ("requirements*", "envs/*")
        for file in REPOSITORY.glob(pattern)
        if file.is_file()
    )
    for word in arguments:
        if extra := re.fullmatch(r"nullsae\[([\w-]+)\]", word):
            assert extra[1] in project["optional-dependencies"], word
        elif "==" in word:
            assert word in pins, word


def test_pages_are_found() -> None:
    names = {page.relative_to(REPOSITORY).as_posix() for page in PAGES}
    assert {"README.md", "docs/python.md", "config/README.md", *RUN_ELSEWHERE} <= names
    assert len(BLOCKS) > 60


def test_each_block_says_what_it_is() -> None:
    known = {"bash", "python", "yaml", "toml", "json", "snakemake", "text"}
    assert [f"{block}: {block.tag!r}" for block in BLOCKS if block.tag not in known] == []


@tagged("bash")
def test_commands_are_read_by_their_own_parsers(block: Block) -> None:
    for words in commands(block.text):
        check_command(words, REPOSITORY / block.page)


@tagged("text")
def test_commands_that_are_shown_with_what_they_print_are_read_too(block: Block) -> None:
    for line in re.findall(r"^\$ (.*)$", block.text, re.M):
        for words in commands(line):
            check_command(words, REPOSITORY / block.page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_commands_in_sentences_name_verbs_and_options_that_are_there(page: Path) -> None:
    for span in spans(page):
        if span.startswith(tuple(f"{program} " for program in OURS)) and ": error:" not in span:
            for words in commands(span):
                check_command(words, page, whole=False)
    # Indented blocks without a fence.
    for line in re.findall(rf"^ {{4}}((?:{'|'.join(OURS)}) .+)$", BLOCK.sub("", read(page)), re.M):
        for words in commands(line):
            check_command(words, page)


@cache
def base() -> Any:
    return yaml.safe_load((REPOSITORY / "config.yaml").read_text(encoding="utf-8"))


@tagged("yaml")
def test_yaml_is_an_overlay_or_a_profile(block: Block) -> None:
    given = yaml.safe_load(block.text)
    if given.keys() <= Config.model_fields.keys():
        merged = copy.deepcopy(base())
        update_config(merged, given)
        resolve_subjects(parse_config(merged))
        return
    options = {
        option.removeprefix("--")
        for action in get_argument_parser()._actions
        for option in action.option_strings
    }
    if given.keys() == {"partitions"}:
        known = read(REPOSITORY / "profiles/slurm/partitions.yaml")
        limits = {name for one in given["partitions"].values() for name in one}
        assert [name for name in limits if f"{name}:" not in known] == []
        return
    assert given.keys() <= options
    assert given.get("set-resources", {}).keys() <= rules().keys()


@tagged("json")
def test_json_is_an_object(block: Block) -> None:
    assert isinstance(json.loads(block.text), dict)


@tagged("toml")
def test_entry_points_are_those_of_the_plugin_that_is_tested(block: Block) -> None:
    plugin = tomllib.loads((REPOSITORY / "tests/plugin/pyproject.toml").read_text())
    found = tomllib.loads(block.text)["project"]["entry-points"]
    assert found == plugin["project"]["entry-points"]


@tagged("snakemake")
def test_a_snakefile_is_one(block: Block) -> None:
    assert Formatter(Snakefile(io.StringIO(block.text))).get_formatted()


def is_quoted(statements: list[ast.stmt]) -> bool:
    """Return whether all are classes of the plugin, in part; `...` stands for a body."""
    files = (REPOSITORY / "tests/plugin/nullsae_example").glob("*.py")
    classes = {
        node.name: {form for member in node.body for form in (bare(member), bare(member, True))}
        for file in files
        for node in ast.parse(read(file)).body
        if isinstance(node, ast.ClassDef)
    }
    return all(
        isinstance(one, ast.ClassDef)
        and {bare(member) for member in one.body} <= classes.get(one.name, set())
        for one in statements
    )


def bare(member: ast.stmt, without_body: bool = False) -> str:
    """Return a class member without the types of a function, which pages leave out."""
    if isinstance(member, ast.FunctionDef):
        for argument in member.args.args:
            argument.annotation = None
        member.returns = None
        if without_body:
            member.body = [ast.Expr(ast.Constant(...))]
    return ast.unparse(member)


PYTHON = [page for page in PAGES if any(block.tag == "python" for block in blocks_of(page))]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder)
    return folder


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_python_of_a_page_runs_in_order(
    page: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    names: dict[str, Any] = {"score_latents": score_latents}
    said, before = io.StringIO(), sorted(world.rglob("*"))
    for block in (block for block in blocks_of(page) if block.tag == "python"):
        code = compile(block.text, str(block), "exec")
        if block.page not in RUN_ELSEWHERE and not is_quoted(ast.parse(block.text).body):
            with redirect_stdout(said):
                exec(code, names)
    assert sorted(world.rglob("*")) == before
    if page.name == "python.md":
        check_python_page(names, said.getvalue())


def check_python_page(names: dict[str, Any], said: str) -> None:
    assert "Verdict(word=" in said
    assert names["real"].shape[0] == N_LATENTS
    assert names["real"].passes_filter.sum() > 10
    assert names["real"].next_token_auroc.notna().sum() == names["real"].passes_filter.sum()
    assert [p.n_latents for p in names["placebos"].values()] == [
        *(N_LATENTS, 32, 32, 1 + int(names["ids"].max()), N_LATENTS, N_LATENTS)
    ]
    assert len(score_latents(names["model"])) == D_MODEL
    assert all(one.interval is not None for one in names["contrasts"])


@pytest.mark.parametrize("page", RUN_ELSEWHERE)
def test_what_runs_elsewhere_does(page: str) -> None:
    assert page in (REPOSITORY / RUN_ELSEWHERE[page]).read_text(encoding="utf-8")
