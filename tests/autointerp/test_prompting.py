"""Prompt files: what they make of values, and what is wrong with one that is not a prompt."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from nullsae.autointerp.prompting import PROMPTS, check_prompt, load_prompt, one_line
from nullsae.core.errors import UserError

VALUES = {"explanation": "the word and", "windows": ["bread << and>> butter", "no \\n thing"]}


@pytest.mark.parametrize("kind", ["detection", "fuzzing", "intruder"])
def test_a_question_holds_its_windows_after_fixed_turns(kind: str) -> None:
    prompt = load_prompt(kind)
    messages = prompt.messages(**VALUES)
    assert [m["role"] for m in messages[:2]] == ["system", "user"]
    assert messages[-1]["role"] == "user"
    for i, window in enumerate(VALUES["windows"], 1):
        assert f"Window {i}: {window}" in messages[-1]["content"]
    assert (
        prompt.hash
        == hashlib.blake2b((PROMPTS / f"{kind}.txt").read_bytes(), digest_size=8).hexdigest()
    )


@pytest.mark.parametrize("kind", ["detection", "fuzzing", "intruder"])
def test_each_attempt_is_another_question_with_the_same_start(kind: str) -> None:
    asked = [load_prompt(kind).messages(attempt, **VALUES) for attempt in (1, 2, 3)]
    assert len({m[-1]["content"] for m in asked}) == 3
    assert asked[1][-1]["content"].startswith(asked[0][-1]["content"])
    assert asked[0][:-1] == asked[1][:-1] == asked[2][:-1]


@pytest.mark.parametrize("kind", ["detection", "fuzzing"])
def test_what_changes_last_stands_last(kind: str) -> None:
    """Servers keep the start of a prompt: questions about one latent share all but the windows."""
    first = load_prompt(kind).messages(explanation="E", windows=["one"])[-1]["content"]
    second = load_prompt(kind).messages(explanation="E", windows=["two"])[-1]["content"]
    assert first.index("one") == second.index("two")
    assert first[: first.index("one")] == second[: second.index("two")]


def test_braces_in_a_text_are_only_text() -> None:
    window = "{{ explanation }} {% for x in y %} <b>&amp;</b>"
    question = load_prompt("detection").messages(explanation="E", windows=[window])[-1]["content"]
    assert window in question


def test_a_window_stays_on_its_line() -> None:
    assert one_line("a\nb\r\nc") == "a\\nb\\r\\nc"


def test_a_prompt_of_the_users_own_is_read_and_hashed(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(
        "=== user\n{{ explanation }}: {{ windows | length }}\n=== again\n{{ attempt }}!"
    )
    prompt = load_prompt("detection", str(file))
    assert prompt.messages(2, explanation="E", windows=[""]) == (
        {"role": "user", "content": "E: 1\n\n2!"},
    )
    assert prompt.hash != load_prompt("detection").hash


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hello", "a prompt starts with '=== system' or '=== user'"),
        ("=== user\nx", "has an '=== again'"),
        ("=== assistant\nx\n=== again\ny", "ends with a question"),
        ("=== robot\nx\n=== user\ny\n=== again\nz", "'=== robot' is not one of"),
        ("=== user\n{% for %}\n=== again\nz", "not a template"),
    ],
)
def test_a_file_that_is_no_prompt_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.txt"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_prompt("detection", str(file))
    assert str(file) in str(error.value)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt: cannot be read as a prompt"):
        load_prompt("detection", str(tmp_path / "gone.txt"))


def test_a_name_that_a_prompt_does_not_have_is_named_before_anything_is_sent(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("=== user\n{{ explanaton }}\n=== again\nz")
    with pytest.raises(UserError, match="'explanaton' is undefined; what there is: explanation, w"):
        check_prompt(load_prompt("detection", str(file)), str(file), **VALUES)
