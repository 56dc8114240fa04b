"""Prompts: text files of turns, the last of which is a template."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from nullsae.autointerp.examples import Flags
from nullsae.autointerp.llm.messages import Reply, Request
from nullsae.autointerp.marking import LEFT, RIGHT, Shown, mark, marks_are_clear
from nullsae.autointerp.templates import RENDERER, TemplateError
from nullsae.core.errors import UserError, first_line
from nullsae.core.folders import expanded
from nullsae.core.visible import visible

if TYPE_CHECKING:
    from nullsae.autointerp.llm.client import LanguageModel

PROMPTS = Path(__file__).parent / "prompts"
_PART = re.compile(r"^=== *(\w+) *$", re.MULTILINE)
# Longer than any prompt, and than most models read.
MAX_FILE_BYTES = 1_000_000
# Alternative marks, for texts that contain the earlier ones.
MARKS = ((LEFT, RIGHT), ("[[", "]]"), ("{{", "}}"))
ROLES = ("system", "user", "assistant", "again")

# Estimates for `nullsae plan`, for English text and vocabularies of about 100,000 tokens. A window
# is surrounded by its number, marks, delimiters and line breaks.
CHARACTERS_PER_TOKEN, TOKENS_AROUND_WINDOW, EXPLANATION_TOKENS = 4, 16, 60

# Attempts at one question, including the first, before its answer counts as missing.
MAX_ATTEMPTS = 3

T = TypeVar("T")


@dataclass(frozen=True)
class Notation:
    """The signs that separate corpus text and marks from the rest of one question.

    The text is never changed; if a window contains a sign, other signs are used.
    """

    left: str = LEFT
    """Precedes marked tokens; `right` follows them."""
    right: str = RIGHT
    opening: str = "<text>"
    """Precedes each window; `closing` follows it."""
    closing: str = "</text>"

    @classmethod
    def of(cls, windows: Sequence[tuple[Shown, Flags]]) -> Notation:
        """Return the first signs that do not occur in the windows of one question.

        Each window is its text and which of its tokens are marked, bool [n_tokens].
        """
        marks = next(
            (left, right)
            for left, right in chain(MARKS, ((f"<mark{n}>", f"</mark{n}>") for n in count(1)))
            if all(marks_are_clear(*w, left, right) for w in windows if w[1].any())
        )
        every = "\n".join(
            text.casefold() for w in windows for text in (w[0].text, mark(*w, *marks))
        )
        names = chain(["text"], (f"text{n}" for n in count(2)))
        name = next(n for n in names if not re.search(rf"<\s*/?\s*{n}(?!\d)", every))
        return cls(*marks, f"<{name}>", f"</{name}>")

    def window(self, shown: Shown, marked: Flags) -> str:
        """Return a window on one line, as data that cannot close itself."""
        text = one_line(mark(shown, marked, self.left, self.right))
        return f"{self.opening}{text}{self.closing}"

    def spell(self, turn: str) -> str:
        """Rewrite a fixed turn of a prompt, which uses the usual signs, in these signs."""
        for usual, own in zip(astuple(USUAL), astuple(self), strict=True):
            turn = turn.replace(usual, own)
        return turn


USUAL = Notation()


@dataclass(frozen=True)
class Prompt:
    """A conversation that ends with the question."""

    turns: tuple[dict[str, str], ...]
    """The fixed turns: instructions and worked examples."""
    question: str
    """A Jinja template, like `again`."""
    again: str
    """Added to the question after an answer that could not be used."""
    file: Path
    """The prompt file, for messages."""
    hash: str
    """16 hex digits over the file, recorded in tables to tell scores of two prompts apart."""

    @property
    def examples(self) -> list[str]:
        """The answers of the worked examples."""
        return [turn["content"] for turn in self.turns if turn["role"] == "assistant"]

    def messages(
        self, attempt: int = 1, notation: Notation = USUAL, **values: Any
    ) -> tuple[dict[str, str], ...]:
        """Return the messages of one question, with JSON `values` for the template.

        Attempts count from 1; later ones add the reminder, so no two are the same. `notation` is
        that of the windows among the values. A `UserError` names the file of a template that cannot
        be rendered: it uses an unknown value, is forbidden, or takes too much time or memory.
        """
        question = self._rendered(self.question, values).strip()
        if attempt > 1:
            question += "\n\n" + self._rendered(self.again, {"attempt": attempt, **values}).strip()
        turns = self.turns
        if notation != USUAL:
            turns = tuple({**turn, "content": notation.spell(turn["content"])} for turn in turns)
        return (*turns, {"role": "user", "content": question})

    def check(self, **values: Any) -> None:
        """Render the prompt before anything is sent; raises like `messages`."""
        self.messages(2, **values)

    def _rendered(self, template: str, values: Mapping[str, Any]) -> str:
        try:
            return RENDERER.render(template, values)
        except TemplateError as error:
            said = first_line(error)
            if error.kind == "syntax":
                raise UserError(f"{self.file}: not a template: {said}") from None
            if error.kind == "undefined":
                known = ", ".join([*(v for v in values if v != "attempt"), "attempt (in again)"])
                raise UserError(f"{self.file}: {said}; a prompt can use {known}") from None
            raise UserError(f"{self.file}: cannot be rendered: {said}") from None

    async def ask(
        self,
        model: LanguageModel,
        read: Callable[[Reply], T | None],
        max_tokens: int,
        schema: Mapping[str, Any] | None = None,
        notation: Notation = USUAL,
        **values: Any,
    ) -> T | None:
        """Ask until `read` accepts an answer; return None if it never does.

        With a schema, log-probabilities are requested too.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            messages = self.messages(attempt, notation, **values)
            request = Request(messages, max_tokens, schema, logprobs=schema is not None)
            reply = await model.ask(request)
            if reply is None:
                return None
            if said := read(reply):
                return said
        return None


def read_parts(kind: str, path: str | None = None) -> tuple[Path, str, list[tuple[str, str]], str]:
    """Read the text under each `=== name` of nullsae's prompt of a kind, or of the file `path`.

    Returns the file; the text before the first name; (name, text) in order; 16 hex digits over the
    file. Texts are stripped. A `UserError` names a file that cannot be read or is not text.
    """
    file = expanded(path) if path else PROMPTS / f"{kind}.txt"
    try:
        if file.exists() and not file.is_file():
            raise UserError(f"{file}: cannot be read as a prompt: not a file")
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise UserError(f"{file}: not a prompt: it has more than {MAX_FILE_BYTES:,} bytes")
        before, *parts = _PART.split(data.decode("utf-8"))
    except OSError as error:
        raise UserError(f"{file}: cannot be read as a prompt: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not text in UTF-8") from None
    named = [(name, text.strip()) for name, text in zip(parts[::2], parts[1::2], strict=True)]
    return file, before.strip(), named, hashlib.blake2b(data, digest_size=8).hexdigest()


@cache
def load_prompt(kind: str, path: str | None = None) -> Prompt:
    """Read nullsae's prompt of a kind (explain, detection, fuzzing, intruder), or the file `path`.

    Turns follow lines `=== system`, `=== user`, `=== assistant`. The last turn of the user is the
    question, a Jinja template; `=== again` is added to it after an unusable answer. A `UserError`
    names a missing or invalid file, and the line that is wrong.
    """
    file, before, turns, digest = read_parts(kind, path)
    if unknown := [role for role, _ in turns if role not in ROLES]:
        raise UserError(f"{file}: '=== {unknown[0]}' is not one of {', '.join(ROLES)}")
    again = "".join(body for role, body in turns if role == "again")
    turns = [(role, body) for role, body in turns if role != "again"]
    if not turns or turns[-1][0] != "user" or not again or before:
        raise UserError(
            f"{file}: a prompt starts with '=== system' or '=== user', ends with a question under "
            f"'=== user', and has an '=== again' for unusable answers"
        )
    fixed = tuple({"role": role, "content": body} for role, body in turns[:-1])
    return Prompt(fixed, turns[-1][1], again, file, digest)


@cache
def prompt_tokens(kind: str, path: str | None) -> int:
    """Estimate how many tokens a prompt has without windows."""
    messages = load_prompt(kind, path).messages(explanation="", windows=[])
    return sum(len(message["content"]) for message in messages) // CHARACTERS_PER_TOKEN


def one_line(text: str) -> str:
    r"""Escape a text for a prompt, so that each line is a window and nothing is hidden.

    Line breaks are escaped as \n and the like, and so are control, direction and invisible
    characters; all other text, including tabs, does not change.
    """
    return visible(text).replace("\n", "\\n")
