"""Refusals of an endpoint: what they are about, and what the user can do."""

from __future__ import annotations

import re
from dataclasses import dataclass

from nullsae.autointerp.llm.addresses import with_path
from nullsae.core.errors import UserError

CHAT = "/chat/completions"
SHOWN_CHARACTERS = 300
CONTEXT = re.compile(
    r"context.{0,9}(length|size|window)|maximum context|max_model_len|"
    r"(prompt|input|request).{0,20} too (long|large|many)|too many (input |prompt )?tokens",
    re.IGNORECASE,
)
NO_MODEL = re.compile(
    r"model.{0,120}(not? (exist|found|available|a valid)|does not|unknown|invalid|unsupported|"
    r"decommissioned|deprecated|retired|no longer)|"
    r"(unknown|invalid|no such|unsupported|not a valid) model",
    re.IGNORECASE,
)
# Servers fail with a 500 if a chat template does not accept the roles of the messages.
TEMPLATE = re.compile(
    r"jinja|chat.?template|template.{0,9}error|system (role|message|prompt)|roles? must alternate|"
    r"raise_exception|(only|supported).{0,40} roles?\b",
    re.IGNORECASE,
)
OTHER_FIELD = re.compile(
    r"(parameter|argument|field|property|input)s?\b(?!.{0,30}(role|messages\W{1,2}\d))",
    re.IGNORECASE,
)
A_FIELD = re.compile(r"(parameter|argument|field|property|value)s?\W{1,4}['\"`]\w", re.IGNORECASE)
NO_CREDIT = re.compile(r"credit.?balance|insufficient.{0,9}(balance|credit|fund)", re.IGNORECASE)
BAD_KEY = re.compile(
    r"api.?key.{0,20}(not valid|invalid|incorrect|expired|missing)|"
    r"(invalid|incorrect|missing|no).{0,9}api.?key",
    re.IGNORECASE,
)
LOGPROBS = re.compile(r"log.?prob", re.IGNORECASE)
SCHEMA = re.compile(r"response.?format|json.?schema|structured.?output|guided_", re.IGNORECASE)


class RefusedError(UserError):
    """The endpoint refuses a request like this one, however often it is sent."""

    def __init__(self, text: str, *, status: int, said: str) -> None:
        super().__init__(text)
        self.status = status
        self.said = said
        """The endpoint's own text, complete."""

    @property
    def names_a_field(self) -> bool:
        """Whether it is about log-probabilities or a schema, which are optional."""
        return bool(LOGPROBS.search(self.said) or SCHEMA.search(self.said))


@dataclass(frozen=True)
class Asked:
    """The endpoint, for error messages."""

    model: str
    address: str
    key_variable: str | None
    """The environment variables whose keys were sent; None if none was."""
    key_from: str = "api_key_env"
    """The config key that names them."""

    def __str__(self) -> str:
        return f"{self.model} at {self.address}"


def may_be_of_roles(refusal: RefusedError) -> bool:
    """Return whether a refusal may come from a template without system messages.

    Templates phrase this differently, so every refusal counts that names nothing else.
    """
    other = CONTEXT.search(refusal.said) or OTHER_FIELD.search(refusal.said)
    return refusal.status in (400, 422) and (not other or TEMPLATE.search(refusal.said) is not None)


def is_unclear(refusal: RefusedError) -> bool:
    """Return whether a refusal names no field, nor the model, the key, the length or money.

    It may then be about any field of the request.
    """
    known = (A_FIELD, NO_MODEL, BAD_KEY, CONTEXT, NO_CREDIT)
    return refusal.status in (400, 422) and not any(p.search(refusal.said) for p in known)


def shortened(text: str) -> str:
    """Return the first line of a text, shortened if it is long."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= SHOWN_CHARACTERS else line[:SHOWN_CHARACTERS] + " ..."


def mend(status: int, said: str, codes: str, asked: Asked) -> str:
    """Return one line that tells the user what to do."""
    text = shortened(said).rstrip(".") or "no text"
    for key, words in (("logprobs", LOGPROBS), ("structured_output", SCHEMA)):
        if words.search(said) and status != 402:
            return f"{key}: {asked} refuses them ({status}: {text}); set {key}: never"
    if status in (401, 403) or (status == 400 and BAD_KEY.search(said)):
        if asked.key_variable is None:
            return f"api_key_env: {asked} wants a key, but none was sent ({status}: {text})"
        return (
            f"{asked.key_from}: {asked} refuses the key in {asked.key_variable} "
            f"({status}: {text}); set it to a valid one that may use this model"
        )
    if status in (402, 429) or NO_CREDIT.search(said):
        return f"{asked}: the account has no credit left ({status}: {text})"
    if "model_not_found" in codes or (status in (400, 404, 422) and NO_MODEL.search(said)):
        return f"model: {asked.address} does not know {asked.model!r} ({status}: {text})"
    if status in (404, 405) or 300 <= status < 400:
        return (
            f"base_url: no chat endpoint at {with_path(asked.address, CHAT)} ({status}: {text}); "
            f"most addresses end in /v1, and Azure's in /openai/deployments/NAME?api-version=DATE"
        )
    if "context_length" in codes or status == 413 or CONTEXT.search(said):
        return (
            f"windows_per_prompt, shown_windows: a prompt is longer than {asked} accepts "
            f"({status}: {text}); set the scorer's windows_per_prompt or the explainer's "
            f"shown_windows lower, or give the server a longer context"
        )
    return f"{asked} refuses a request ({status}: {text})"
