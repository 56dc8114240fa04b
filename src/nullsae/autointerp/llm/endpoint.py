"""Finds out what an endpoint can do with a few tiny requests, and writes requests for it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

from nullsae.autointerp.llm.answers import AttemptError
from nullsae.autointerp.llm.kept_replies import Kept
from nullsae.autointerp.llm.messages import Request, object_schema, parse_json
from nullsae.autointerp.llm.refusals import RefusedError, is_unclear, may_be_of_roles
from nullsae.autointerp.reasoning import answer_alone
from nullsae.config.addresses import shown_address
from nullsae.config.endpoints import Endpoint
from nullsae.core.errors import UserError

log = logging.getLogger(__name__)

# Alternatives per token: the maximum at OpenAI, and at Fireworks and others.
TOP_LOGPROBS = (20, 5)
# Precedes the first question, to detect a template without system messages, or a server that drops
# them. No model says this word about the sky.
SIGN = "copper"
INSTRUCTION = f"Whatever you are asked, answer with the word {SIGN} and nothing else."
LONG_TASK = "Count from 1 to 200 in digits, separated by spaces."
# Fewer than the task needs. A model that reasons gets no further, which does no harm.
LONG_TASK_TOKENS = 64
QUESTION = "Is the sky above a desert blue by day?"
# A model that reasons spends tokens before it answers.
QUESTION_TOKENS = 400
# What a refusal says, by ability; "max_tokens: Field required" asks for the older field.
NAMED = {
    "token_limit": re.compile("max_(completion_)?tokens"),
    "temperature": re.compile("temperature"),
}
QUESTION_SCHEMA = object_schema({"answer": [0, 1]})


@dataclass(frozen=True)
class Abilities:
    """What an endpoint supports."""

    json_schema: bool = False
    """A schema is accepted and obeyed."""
    top_logprobs: int = 0
    """Alternatives per token that are returned; 0 without log-probabilities."""
    schema_with_logprobs: bool = False
    """Both at once; otherwise a request that wants both gets log-probabilities."""
    temperature: bool = True
    token_limit: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """The field that limits the length of an answer."""
    system_role: bool = True
    """System messages reach the model; otherwise their text is put before the user's first."""


def abilities_of(kept: Mapping[str, Any] | None) -> Abilities | None:
    """Return abilities that were stored as a dictionary; None if it is missing or incomplete."""
    usual = {field.name: field.default for field in fields(Abilities)}
    if kept is None or {name: type(value) for name, value in kept.items()} != {
        name: type(value) for name, value in usual.items()
    }:
        return None
    found = Abilities(**kept)
    return found if 0 <= found.top_logprobs <= max(TOP_LOGPROBS) else None


# The result of a probe: a reply, or why there is none.
Found: TypeAlias = Kept | RefusedError | AttemptError
Send: TypeAlias = Callable[[Request, Abilities], Awaitable[Found]]


def abilities_key(endpoint: Endpoint, longest: int) -> bytes:
    """Return the key for abilities: all settings of the endpoint that they depend on.

    `longest` is the most tokens that an answer may get (`longest_answer`): if they are too few, a
    model that reasons shows no ability.
    """
    settings = endpoint.model_dump(
        include={"model", "structured_output", "logprobs", "temperature", "extra_body"}
    )
    # Abilities stored by a version that knew fewer of them are not complete.
    known = [field.name for field in fields(Abilities)]
    text = json.dumps([endpoint.address, settings, longest, known], sort_keys=True)
    return blake2b(text.encode(), digest_size=16).digest()


def longest_answer(request: Request, endpoint: Endpoint) -> int:
    """Return the most tokens for an answer to a request, after truncation at fewer."""
    return max(request.max_completion_tokens, endpoint.completion_tokens_cap)


def request_body(request: Request, endpoint: Endpoint, abilities: Abilities) -> bytes:
    """Return a request as JSON with sorted keys: equal requests have equal bytes."""
    logprobs = request.logprobs and abilities.top_logprobs > 0
    body: dict[str, Any] = {
        "model": endpoint.model,
        "messages": request.messages if abilities.system_role else folded(request.messages),
        abilities.token_limit: request.max_completion_tokens,
    }
    if endpoint.temperature is not None and abilities.temperature:
        body["temperature"] = endpoint.temperature
    if endpoint.seed is not None:
        body["seed"] = endpoint.seed
    if logprobs:
        body["logprobs"] = True
        body["top_logprobs"] = abilities.top_logprobs
    takes_schema = abilities.json_schema and (abilities.schema_with_logprobs or not logprobs)
    if request.schema is not None and takes_schema:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": request.schema},
        }
    body.update(endpoint.extra_body)
    text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    # Text cut within a character may contain half a surrogate pair, which UTF-8 cannot encode.
    return text.encode(errors="replace")


def folded(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Merge system messages into the user's next message."""
    found: list[dict[str, str]] = []
    system: list[str] = []
    for message in messages:
        if message["role"] == "system":
            system.append(message["content"])
            continue
        if system and message["role"] != "user":
            found.append({"role": "user", "content": "\n\n".join(system)})
        elif system:
            message = {"role": "user", "content": "\n\n".join([*system, message["content"]])}
        system = []
        found.append(dict(message))
    return found + [{"role": "user", "content": "\n\n".join(system)}] * bool(system)


async def find_out(endpoint: Endpoint, send: Send) -> Abilities:
    """Probe an endpoint: first a plain question, then a schema and log-probabilities.

    What is refused, or never answered validly, counts as not supported; what the endpoint's
    settings exclude is not probed. `send` sends a request as the given abilities allow. Raises a
    `UserError` if a plain question is refused (wrong key, unknown model) or never answered.
    """
    abilities = await _plain(endpoint, send)
    abilities, limit = await asyncio.gather(
        _formats(abilities, endpoint, send), _token_limit(abilities, send)
    )
    return replace(abilities, token_limit=limit)


async def _formats(abilities: Abilities, endpoint: Endpoint, send: Send) -> Abilities:
    """Return the abilities with a schema and log-probabilities, if wanted and working."""
    wants_logprobs = endpoint.logprobs != "never"
    if endpoint.structured_output == "never":
        return await _with_logprobs(abilities, send) if wants_logprobs else abilities
    with_schema = replace(abilities, json_schema=True)
    if not wants_logprobs:
        found = await send(_question(schema=True), with_schema)
        return with_schema if _obeys(found) else abilities
    # Most endpoints support either both or neither, so both are probed at once.
    with_both = replace(with_schema, top_logprobs=TOP_LOGPROBS[0], schema_with_logprobs=True)
    alone, together = await asyncio.gather(
        send(_question(schema=True), with_schema),
        send(_question(schema=True, logprobs=True), with_both),
    )
    if not _obeys(alone):
        with_schema, with_both = abilities, replace(abilities, top_logprobs=TOP_LOGPROBS[0])
    if _gives_logprobs(together):
        return with_both
    return await _with_logprobs(with_schema, send)


async def _with_logprobs(abilities: Abilities, send: Send) -> Abilities:
    """Return the abilities with the alternatives per token that are returned, if any."""
    most, fewer = TOP_LOGPROBS
    # The maximum together with a schema has been probed already, if there is a schema.
    tries = [(most, False), *([(fewer, True)] if abilities.json_schema else []), (fewer, False)]
    for top, schema in tries:
        tried = replace(abilities, top_logprobs=top, schema_with_logprobs=schema)
        found = await send(_question(schema=schema, logprobs=True), tried)
        if _gives_logprobs(found):
            return tried
        if isinstance(found, Kept) and not schema:
            return abilities  # accepted but ignored, so fewer would be ignored as well
    return abilities


async def _plain(endpoint: Endpoint, send: Send) -> Abilities:
    """Find out how to ask a plain question."""
    known = abilities = Abilities()
    # What may be left out after a refusal that names nothing, one at a time.
    untried: dict[str, Any] = {"system_role": False, "token_limit": "max_tokens"}
    if endpoint.temperature is not None:
        untried["temperature"] = False
    first: RefusedError | None = None
    while True:
        found = await send(_question(system=True), abilities)
        if isinstance(found, AttemptError):
            address = shown_address(endpoint.base_url) if endpoint.base_url else endpoint.address
            raise UserError(
                f"{endpoint.model} at {address}: no valid reply to a first, plain question; "
                f"the last attempt failed with: {found}"
            )
        if isinstance(found, Kept):
            abilities, why = await _with_system_role(found, abilities, send)
            if not abilities.system_role:
                log.info(
                    "%s %s: their text is put before the user's first message instead",
                    *(endpoint.model, why),
                )
            return abilities
        # Leave out what the refusal names. If that does not help, the first one is most telling.
        first = first or found
        named = next((name for name, sign in NAMED.items() if sign.search(found.said)), "")
        if named in untried:
            known = abilities = replace(abilities, **{named: untried.pop(named)})
        elif "system_role" in untried and may_be_of_roles(found):
            # Templates phrase the refusal of system messages in many ways.
            abilities = replace(known, system_role=untried.pop("system_role"))
        elif untried and is_unclear(found):
            name = next(name for name in (*NAMED, "system_role") if name in untried)
            abilities = replace(known, **{name: untried.pop(name)})
        else:
            raise first


async def _with_system_role(first: Kept, abilities: Abilities, send: Send) -> tuple[Abilities, str]:
    """Find out whether system messages reach the model, by its first reply; return why not.

    A server may drop them silently. A model that obeys only the user's message never saw them; one
    that obeys neither is weak, which tells nothing about its server.
    """
    if not abilities.system_role:
        return abilities, "takes no system messages"
    said, folds = answer_alone(first.reply.content), replace(abilities, system_role=False)
    # A truncated or empty reply shows neither.
    if first.reply.is_cut or not said.strip() or SIGN in said.lower():
        return abilities, ""
    found = await send(_question(system=True), folds)
    if isinstance(found, Kept) and SIGN in answer_alone(found.reply.content).lower():
        return folds, "passes over system messages"
    return abilities, ""


async def _token_limit(
    abilities: Abilities, send: Send
) -> Literal["max_completion_tokens", "max_tokens"]:
    """Find out which field limits an answer: older servers ignore the newer one."""
    if abilities.token_limit == "max_tokens":
        return "max_tokens"
    request = Request(({"role": "user", "content": LONG_TASK},), LONG_TASK_TOKENS)
    found = await send(replace(request, may_be_cut=True), abilities)
    is_ignored = isinstance(found, Kept) and found.completion_tokens > LONG_TASK_TOKENS
    return "max_tokens" if is_ignored else "max_completion_tokens"


def _question(*, schema: bool = False, logprobs: bool = False, system: bool = False) -> Request:
    messages: tuple[dict[str, str], ...] = ({"role": "user", "content": QUESTION},)
    if system:
        messages = ({"role": "system", "content": INSTRUCTION}, *messages)
    return Request(messages, QUESTION_TOKENS, QUESTION_SCHEMA if schema else None, logprobs)


def _obeys(found: Found) -> bool:
    """Return whether an answer follows the schema, which the question does not mention."""
    try:
        said = answer_alone(found.reply.content) if isinstance(found, Kept) else "null"
        value = parse_json(said)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("answer") in (0, 1)


def _gives_logprobs(found: Found) -> bool:
    return isinstance(found, Kept) and any(len(t.alternatives) > 1 for t in found.reply.tokens)
