"""The text of tokens, for people and for language models; does not load transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nullsae.core.errors import UserError
from nullsae.core.files import rebuild_command

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# How SentencePiece vocabularies write a space.
METASPACE = "\u2581"
# Decoders, or none, that put the space between two words, so that no token has it.
BETWEEN_WORDS = ("NoneType", "WordPiece")


def read_tokenizer(path: Path) -> Tokenizer:
    """Read `tokenizer.json`; raise a `UserError` if it is missing or invalid."""
    from tokenizers import Tokenizer

    rebuild = rebuild_command(path)
    if not Path(path).is_file():
        raise UserError(f"{path}: the file is missing; rebuild it with: {rebuild}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise UserError(f"{path}: not a tokenizer ({error}); rebuild it with: {rebuild}") from None


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """Return the text of one token as it reads inside a text, with its leading space.

    SentencePiece-like decoders drop that space. A token with a part of a character gives U+FFFD,
    an id unknown to the tokenizer an empty text.
    """
    name = tokenizer.id_to_token(token_id)
    if name is not None and name.startswith(METASPACE):
        return str(name).replace(METASPACE, " ")
    text: str = tokenizer.decode([token_id], skip_special_tokens=False)
    if type(tokenizer.decoder).__name__ in BETWEEN_WORDS:
        twice = str(tokenizer.decode([token_id, token_id], skip_special_tokens=False))
        return twice[len(text) :] if twice.startswith(text) else text
    return text
