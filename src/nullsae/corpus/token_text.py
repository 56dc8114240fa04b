"""The text of tokens, for people and for language models. Light: it loads no transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nullsae.core.errors import UserError
from nullsae.core.files import rebuild_command

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# How a SentencePiece vocabulary spells a space.
METASPACE = "\u2581"


def read_tokenizer(path: Path) -> Tokenizer:
    """Read `tokenizer.json`; `UserError` if it is missing or no tokenizer."""
    from tokenizers import Tokenizer

    rebuild = rebuild_command(path)
    if not Path(path).is_file():
        raise UserError(f"{path}: the file is missing; rebuild it with: {rebuild}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise UserError(f"{path}: not a tokenizer ({error}); rebuild it with: {rebuild}") from None


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """The text of one token as it reads inside a text, with the space that it begins with.

    Decoders in the way of SentencePiece drop that space. A token that holds a part of a character
    gives U+FFFD, an id that the tokenizer does not know an empty text.
    """
    name = tokenizer.id_to_token(token_id)
    if name is not None and name.startswith(METASPACE):
        return str(name).replace(METASPACE, " ")
    text: str = tokenizer.decode([token_id], skip_special_tokens=False)
    return text
