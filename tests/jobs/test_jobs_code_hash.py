"""The hash of a rule's code changes only with what the code computes."""

from __future__ import annotations

import io
import re
import tokenize
from pathlib import Path, PurePath

import pytest

from nullsae.core.registry import Registry
from nullsae.jobs import code_hash
from nullsae.jobs.code_hash import PACKAGE, code_tokens, files_in, thing_files, with_siblings

TEXT = '''"""What it does."""

from nullsae.core.errors import UserError, first_line
from nullsae.core.files import (
    read_json as read,
)

LIMIT = 3


class Rows(list):
    """A docstring alone."""


def rows(values, limit=LIMIT):
    """Some text."""
    found = [f"{v:>{limit}}" for v in values if "#" not in v]  # a comment
    if not found:
        raise UserError("none", (first_line,))
    return (found, read)
'''


def edited(*pairs: tuple[str, str]) -> str:
    text = TEXT
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize(
    "pair",
    [
        ("What it does.", "What it does, said at length."),
        ("    " + '"""Some text."""' + "\n", ""),
        ("  # a comment", ""),
        ("LIMIT = 3\n", "LIMIT = 3\n\n\n# More.\n"),
        ("LIMIT = 3\n", 'LIMIT = 3\n"""What a field means."""\n'),
        ("nullsae.core.errors", "nullsae.elsewhere"),
        ("UserError, first_line\n", "(\n    first_line,\n    UserError,\n)\n"),
        ("rows(values, limit=LIMIT)", "rows(\n    values,\n    limit=LIMIT,\n)"),
        ('UserError("none", (first_line,))', 'UserError(\n    "none",\n    (first_line,),\n  )'),
        ("= 3", "=3"),
        ("\n", "\r\n"),
        ("    ", "  "),
    ],
)
def test_text_that_computes_nothing_leaves_the_hash(pair: tuple[str, str]) -> None:
    assert code_tokens(edited(pair)) == code_tokens(TEXT)


@pytest.mark.parametrize(
    "pair",
    [
        ("= 3", "= 4"),
        ('"#"', '"# "'),
        ('"none"', '"some"'),
        ("(first_line,)", "(first_line)"),
        ("read_json as read", "read_text as read"),
        ("    return", "        return"),
        ("{limit}", "{limit }"),
        ("(list)", "(dict)"),
    ],
)
def test_an_edit_that_computes_something_else_changes_the_hash(pair: tuple[str, str]) -> None:
    assert code_tokens(edited(pair)) != code_tokens(TEXT)


def test_tokens_are_those_of_python() -> None:
    ends = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    for file in files_in(["."]):
        if file.suffix != ".py":
            continue
        text = file.read_text(encoding="utf-8")
        own = [t for t in code_hash._TOKEN.findall(text) if t[0] not in "#\n\\"]
        read = tokenize.generate_tokens(io.StringIO(text).readline)
        python = "".join(token.string for token in read if token.type not in ends)
        assert _plain("".join(own)) == _plain(python), file


def _plain(code: str) -> str:
    """Leave out what Python 3.12 changes when it tokenizes inside f-strings."""
    return re.sub(r"(?<=\{)\{+|(?<=\})\}+", "", "".join(code.split()))


def test_a_hash_is_of_contents_alone_and_not_of_names_and_order(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    files = [tmp_path / name for name in ("a.py", "b.py", "inner/c.py", "d.py", "e.txt")]
    for file, text in zip(
        files, ("x = 1", "y = 2", "y = 2\n", '"""Words."""', "words"), strict=True
    ):
        file.write_text(text)
    a, b, moved, words, prompt = files
    assert code_hash.code_hash(a, b) == code_hash.code_hash(moved, a, words)
    assert len({code_hash.code_hash(*own) for own in ((a,), (b,), (a, b), (a, prompt))}) == 4


def test_a_thing_comes_with_what_it_imports_from_beside_it(tmp_path: Path) -> None:
    texts = {
        "thing": "from things.parent import Parent\n",
        "parent": "import os\nfrom . import (\n    far,\n)\n",
        "far": "x = 'other'\n",
        "other": "",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    found = with_siblings(tmp_path / "thing.py")
    assert [file.stem for file in found] == ["far", "parent", "thing"]


def test_files_of_a_folder_leave_out_what_is_named() -> None:
    found = files_in(["sae"], but=["sae/exchange", "sae/kernels.py"])
    assert PACKAGE / "sae/trainer.py" in found
    assert not [file for file in found if file.stem == "kernels" or "exchange" in file.parts]


def test_a_thing_of_a_registry_counts_by_its_file_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "hashed_things"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "shared.py").write_text("HALF = 0.5\n")
    (folder / "round.py").write_text(
        "from hashed_things.shared import HALF\n"
        "from pathlib import PurePath\n\n\n"
        "class Round(PurePath):\n    name = 'round'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("things", PurePath, "hashed_things")
    assert thing_files(registry, "round") == (folder / "round.py", folder / "shared.py")
