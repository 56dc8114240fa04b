"""Where contexts begin and documents end: the token ids of BOS and of the separator."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from nullsae.config.corpora import Corpus
from nullsae.core.errors import UserError
from nullsae.corpus.tokenizer import EOS, Encoder

log = logging.getLogger(__name__)

# Tokens that end a turn in chat models; some of their tokenizers use one as EOS.
TURN_ENDS = frozenset(
    {
        *("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|eot|>", "<|end|>", "<|return|>", "<|user|>"),
        *("<end_of_turn>", "<turn|>", "<|end_of_turn|>", "<|END_OF_TURN_TOKEN|>", "<|role_end|>"),
    }
)
# Tokens that end a text in pretraining, the most common first.
TEXT_ENDS = (
    *(
        EOS,
        "<|end_of_text|>",
        "</s>",
        "<eos>",
        "<|eos|>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",
    ),
    *("<EOS_TOKEN>", "[EOS]", "<|END_OF_TEXT|>"),
)


class UnfitError(UserError):
    """The config does not fit the text or the tokenizer, so the same run would fail again."""


@dataclass(frozen=True)
class Boundaries:
    """Token ids that no text contains, as a corpus uses them."""

    prepend_bos: bool
    """Whether each context begins with `bos_token_ids`."""
    bos_token_ids: tuple[int, ...]
    """The tokenizer's BOS, usually one id or none; EOS if a requested BOS is missing."""
    separator_token_id: int | None
    """The token after each document; None for none."""
    eos_token_id: int | None
    """The tokenizer's own EOS."""

    @property
    def before_context(self) -> tuple[int, ...]:
        """The ids at the start of each context."""
        return self.bos_token_ids if self.prepend_bos else ()

    def manifest(self) -> dict[str, Any]:
        """Return the entries for a corpus' manifest."""
        return {
            "prepend_bos": self.prepend_bos,
            "bos_token_ids": list(self.bos_token_ids),
            "separator_token_id": self.separator_token_id,
            "eos_token_id": self.eos_token_id,
        }


def boundaries(encoder: Encoder, corpus: Corpus, where: str) -> Boundaries:
    """Apply the settings `prepend_bos` and `separator` of a corpus to its tokenizer.

    Raises:
        UnfitError: the tokenizer has no such token and no substitute, or BOS fills a context; names
            the key below `where`.
    """
    bos, prepend = encoder.bos_token_ids, corpus.prepend_bos
    if prepend == "auto":
        prepend = encoder.wants_bos
    if prepend and not bos:
        # As in TransformerLens for Qwen and others, and so in SAEs trained with it.
        if (eos := encoder.eos_token_id) is None:
            raise UnfitError(
                f"{where}.prepend_bos: true, but the tokenizer has neither a BOS nor an EOS token; "
                f"write auto or false"
            )
        bos = (eos,)
        log.info("%s.prepend_bos: the tokenizer has no BOS; EOS is used instead", where)
    if prepend and len(bos) >= corpus.context_tokens:
        raise UnfitError(
            f"{where}.context_tokens: {corpus.context_tokens} leaves no room after the "
            f"{len(bos)} tokens that the tokenizer puts before a text; raise it"
        )
    separator = _separator(encoder, corpus.separator, where)
    return Boundaries(bool(prepend), bos, separator, encoder.eos_token_id)


def _separator(encoder: Encoder, wanted: str, where: str) -> int | None:
    """Return the id that ends documents, or None."""
    found: int | None = None
    if wanted == "none":
        return None
    if wanted == "auto":
        found = _end_of_text(encoder, where)
    elif wanted == "eos":
        found = encoder.eos_token_id
    elif wanted == "bos":
        found = next(iter(reversed(encoder.bos_token_ids)), None)
    else:
        found = encoder.token_id(wanted)
    if found is None:
        lacking = {"auto": "EOS token", "eos": "EOS token", "bos": "BOS token"}
        raise UnfitError(
            f"{where}.separator: {wanted}, but the tokenizer has no "
            f"{lacking.get(wanted, 'such token')}; write none, or a token that it has, such as "
            f"{_example(encoder)!r}"
        )
    return found


def _end_of_text(encoder: Encoder, where: str) -> int | None:
    """Return EOS or, if that ends a chat turn or is missing, the first known end of a text."""
    own, tokenizer = encoder.eos_token_id, encoder.tokenizer
    name: str | None = None
    if own is not None:
        name = str(tokenizer.convert_ids_to_tokens(own))
        ends_turns = name in TURN_ENDS or name in str(tokenizer.chat_template)
        if name in TEXT_ENDS or not ends_turns:
            return own
    special = encoder.special_tokens
    for token in TEXT_ENDS:
        if token in special:
            why = f"EOS, {name}, ends chat turns" if name else "tokenizer has no EOS"
            log.info("%s.separator: auto is %s: the %s", where, token, why)
            return special[token]
    return own


def _example(encoder: Encoder) -> str:
    """Return a token that could separate documents."""
    return next(iter(encoder.special_tokens), encoder.tokenizer.convert_ids_to_tokens(0))
