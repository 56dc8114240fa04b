"""What an endpoint can do, found out by a few tiny requests, and requests written for it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

from nullsae.autointerp.llm.answers import AttemptError, RefusedError, may_be_of_roles
from nullsae.autointerp.llm.kept_replies import Kept
from nullsae.autointerp.llm.messages import Request, object_schema, parse_json
from nullsae.autointerp.reasoning import answer_alone
from nullsae.config.addresses import shown_address
from nullsae.config.endpoints import Endpoint
from nullsae.core.errors import UserError

log = logging.getLogger(__name__)

# Alternatives per token: what OpenAI gives at most, and what Fireworks and others do.
TOP_LOGPROBS = (20, 5)
# Stands before the first question, so that a template without system messages, or a server that
# passes them over, shows itself. Nobody says this word of the sky.
SIGN = "copper"
INSTRUCTION = f"Whatever you are asked, answer with the word {SIGN} and nothing else."
LONG_TASK = "Count from 1 to 200 in digits, separated by spaces."
# Fewer than the task needs. A model that reasons gets no further than that, which is no harm.
LONG_TASK_TOKENS = 64
QUESTION = "Is the sky above a desert blue by day?"
# A model that reasons spends tokens before it answers.
QUESTION_TOKENS = 400
QUESTION_SCHEMA = object_schema({"answer": [0, 1]})


@dataclass(frozen=True)
class Abilities:
    """What an endpoint takes and gives."""

    json_schema: bool = False
    """A schema is accepted and obeyed."""
    top_logprobs: int = 0
    """Alternatives per token that come back; 0 where no log-probabilities do."""
    schema_with_logprobs: bool = False
    """Both at once; else a request that wants both gets log-probabilities."""
    temperature: bool = True
    token_limit: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    """The field that limits the length of an answer."""
    system_role: bool = True
    """System messages reach the model; else what they say opens the first message of the user."""


def abilities_of(kept: Mapping[str, Any] | None) -> Abilities | None:
    """The abilities that were kept as a dictionary; None where that is none, or not whole."""
    usual = {field.name: field.default for field in fields(Abilities)}
    if kept is None or {name: type(value) for name, value in kept.items()} != {
        name: type(value) for name, value in usual.items()
    }:
        return None
    found = Abilities(**kept)
    return found if 0 <= found.top_logprobs <= max(TOP_LOGPROBS) else None


# What comes back for a request that finds out something: a reply, or why there is none.
Found: TypeAlias = Kept | RefusedError | AttemptError
Send: TypeAlias = Callable[[Request, Abilities], Awaitable[Found]]


def abilities_key(endpoint: Endpoint, longest: int) -> bytes:
    """What abilities are kept under: all settings of the endpoint that they depend on.

    `longest` is the most tokens that an answer may get (`longest_answer`): where they are too few,
    a model that reasons shows no ability.
    """
    settings = endpoint.model_dump(
        include={"model", "structured_output", "logprobs", "temperature", "extra_body"}
    )
    # What was found out before there was a further ability does not say whether there is that one.
    known = [field.name for field in fields(Abilities)]
    text = json.dumps([endpoint.address, settings, longest, known], sort_keys=True)
    return blake2b(text.encode(), digest_size=16).digest()


def longest_answer(request: Request, endpoint: Endpoint) -> int:
    """The most tokens that the answer to a request may get, after it was cut at fewer."""
    return max(request.max_completion_tokens, endpoint.completion_tokens_cap)


def request_body(request: Request, endpoint: Endpoint, abilities: Abilities) -> bytes:
    """A request as it is sent: JSON with sorted keys, the same bytes for the same request."""
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
    # Text cut within a character may hold half a surrogate pair, which no UTF-8 can.
    return text.encode(errors="replace")


def folded(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Messages without system messages: these open the next message of the user instead."""
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
    """Ask an endpoint what it can do: a plain question first, a schema, log-probabilities.

    What is refused, or never answered validly, counts as not supported; what the endpoint's
    settings rule out is not asked for. `send` sends a request as those abilities allow. A
    `UserError` says that a plain question is refused (wrong key, unknown model), or never answered.
    """
    abilities = await _plain(endpoint, send)
    abilities, limit = await asyncio.gather(
        _formats(abilities, endpoint, send), _token_limit(abilities, send)
    )
    return replace(abilities, token_limit=limit)


async def _formats(abilities: Abilities, endpoint: Endpoint, send: Send) -> Abilities:
    """The abilities with a schema and log-probabilities, as far as they are wanted and work."""
    wants_logprobs = endpoint.logprobs != "never"
    if endpoint.structured_output == "never":
        return await _with_logprobs(abilities, send) if wants_logprobs else abilities
    with_schema = replace(abilities, json_schema=True)
    if not wants_logprobs:
        found = await send(_question(schema=True), with_schema)
        return with_schema if _obeys(found) else abilities
    # Most endpoints can do either both or neither, so that both are asked for at once.
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
    """The abilities with as many alternatives per token as come back, if any do."""
    most, fewer = TOP_LOGPROBS
    # The most of them together with a schema has been asked for where there is one.
    tries = [(most, False), *([(fewer, True)] if abilities.json_schema else []), (fewer, False)]
    for top, schema in tries:
        tried = replace(abilities, top_logprobs=top, schema_with_logprobs=schema)
        found = await send(_question(schema=schema, logprobs=True), tried)
        if _gives_logprobs(found):
            return tried
        if isinstance(found, Kept) and not schema:
            return abilities  # taken and passed over: fewer would be, too
    return abilities


async def _plain(endpoint: Endpoint, send: Send) -> Abilities:
    """How a plain question has to be put."""
    abilities = Abilities()
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
                    "%s %s: their text opens the first message of the user instead",
                    *(endpoint.model, why),
                )
            return abilities
        # Go without what the refusal names. If that does not help, the first one says most.
        first = first or found
        limits_newly = abilities.token_limit == "max_completion_tokens"
        sends_temperature = abilities.temperature and endpoint.temperature is not None
        if "max_completion_tokens" in found.said and limits_newly:
            abilities = replace(abilities, token_limit="max_tokens")
        elif "temperature" in found.said and sends_temperature:
            abilities = replace(abilities, temperature=False)
        elif abilities.system_role and may_be_of_roles(found):
            # Templates refuse system messages in words of their own.
            abilities = replace(abilities, system_role=False)
        else:
            raise first


async def _with_system_role(first: Kept, abilities: Abilities, send: Send) -> tuple[Abilities, str]:
    """Whether system messages reach the model, by its reply to the first question; and why not.

    A server may drop them without a word. A model that does as it is told by the user alone never
    saw them; one that does it in neither case is weak, which says nothing of its server.
    """
    if not abilities.system_role:
        return abilities, "takes no system messages"
    said, folds = answer_alone(first.reply.content), replace(abilities, system_role=False)
    # What was cut or says nothing shows neither.
    if first.reply.is_cut or not said.strip() or SIGN in said.lower():
        return abilities, ""
    found = await send(_question(system=True), folds)
    if isinstance(found, Kept) and SIGN in answer_alone(found.reply.content).lower():
        return folds, "passes over system messages"
    return abilities, ""


async def _token_limit(
    abilities: Abilities, send: Send
) -> Literal["max_completion_tokens", "max_tokens"]:
    """Which field limits an answer: older servers pass over the one that they do not know."""
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
    """Whether an answer follows the schema, of which the question says nothing."""
    try:
        said = answer_alone(found.reply.content) if isinstance(found, Kept) else "null"
        value = parse_json(said)
    except ValueError:
        return False
    return isinstance(value, dict) and value.get("answer") in (0, 1)


def _gives_logprobs(found: Found) -> bool:
    return isinstance(found, Kept) and any(len(t.alternatives) > 1 for t in found.reply.tokens)
