"""Models behind OpenAI-compatible endpoints."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from nullsae.config.section import Section, Trusted

OPENAI_URL = "https://api.openai.com/v1"
# Names of query parameters that hold a secret somewhere; `api-version` and the like do not.
_SECRET = re.compile(r"key|token|secret|password|signature|^sig$|^code$", re.IGNORECASE)
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class ManagedServer(Section):
    """An OpenAI-compatible server that each job starts for itself and ends with itself."""

    command: Annotated[
        tuple[str, ...], Field(min_length=1), Trusted("jobs run this program as you")
    ]
    """Program and arguments; `{port}` becomes a free port of the loopback interface, where it is to
    listen itself. It finds the key that requests carry, another one in each run, in its environment
    as `LLAMA_API_KEY`, `VLLM_API_KEY` and `NULLSAE_SERVER_KEY`."""
    health: Annotated[str, Field(pattern="^/")] = "/health"
    """Path that answers with 200 as soon as the server is ready."""
    ready_seconds: PositiveFloat = 120.0
    """How long to wait for that."""


class Endpoint(Section):
    """A model behind an OpenAI-compatible chat endpoint."""

    model: Annotated[str, Field(min_length=1)]
    """Name of the model, as the endpoint wants it."""
    base_url: str | None = None
    """Address, usually ending in /v1; by default OpenAI's own. A query, such as Azure's
    `?api-version=...`, is sent with each request."""
    server: ManagedServer | None = None
    """Instead of `base_url`: a server that the job starts itself."""
    api_key_env: Annotated[
        str | None, Trusted("jobs send what this environment variable holds to the endpoint")
    ] = "OPENAI_API_KEY"
    """Environment variable that holds the key, sent as `Authorization: Bearer`; null, the default
    with `server` or `headers_env`, sends none. Keys never stand in a config."""
    headers_env: Annotated[
        dict[str, str], Trusted("jobs send what these environment variables hold to the endpoint")
    ] = Field(default_factory=dict)
    """Further headers, each with the environment variable that holds its value, such as Azure's
    `api-key: AZURE_OPENAI_API_KEY`."""
    temperature: NonNegativeFloat | None = 0.0
    """Left out where the endpoint refuses it."""
    seed: int | None = None
    """Sent where given; by default none is."""
    structured_output: Literal["auto", "never"] = "auto"
    """Ask for JSON by a schema where the endpoint can; found out once per endpoint."""
    logprobs: Literal["auto", "never"] = "auto"
    """Read probabilities off the answer's tokens where the endpoint gives them."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, as they are, such as `reasoning_effort: minimal`."""
    completion_tokens_cap: PositiveInt = 8192
    """An answer that is cut at `max_completion_tokens` is asked for again with four times as many,
    up to this. A model that reasons spends them on its reasoning, too."""

    @field_validator("base_url")
    @classmethod
    def url_is_complete(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme not in ("http", "https")):
            raise ValueError(f"{url!r} has no scheme; write http://{url} or https://{url}")
        if url is not None and not urlsplit(url).hostname:
            raise ValueError(f"{url!r} names no host; it looks like http://localhost:8000/v1")
        for name, _ in parse_qsl(urlsplit(url or "").query, keep_blank_values=True):
            if _SECRET.search(name):
                # Without the address, which holds the secret.
                raise ValueError(
                    f"its query has {name!r}, and secrets never stand in a config; put it into an "
                    f"environment variable and name that in api_key_env or headers_env"
                )
        return url

    @field_validator("headers_env")
    @classmethod
    def headers_name_variables(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, variable in headers.items():
            if not _HEADER.fullmatch(name):
                raise ValueError(f"{name!r} is not the name of a header, such as api-key")
            if not _VARIABLE.fullmatch(variable):
                # Without the text, which may be the key itself.
                raise ValueError(
                    f"what stands under {name!r} is not the name of an environment variable, such "
                    f"as AZURE_OPENAI_API_KEY; the header's value goes into that variable"
                )
        return headers

    @model_validator(mode="after")
    def own_servers_get_no_key(self) -> Self:
        # The default names a key that is worth money elsewhere. Here, because params that were
        # written out no longer tell a default from what the config says.
        elsewhere = self.server is not None or self.headers_env
        if elsewhere and "api_key_env" not in self.model_fields_set:
            object.__setattr__(self, "api_key_env", None)
        return self

    @model_validator(mode="after")
    def one_address(self) -> Self:
        if self.base_url is not None and self.server is not None:
            raise ValueError("give base_url or server, not both: a job's own server picks its port")
        return self

    @property
    def address(self) -> str:
        """What replies are kept under: the address, or for a job's own server its command."""
        if self.server is not None:
            return "server: " + " ".join(self.server.command)
        return (self.base_url or OPENAI_URL).rstrip("/")


@dataclass(frozen=True)
class WindowCounts:
    """How many windows of one SAE there are to ask about."""

    explain_active: list[int]
    """Per latent."""
    score: list[int]
    """Active and silent, per latent."""
    score_active: list[int]
    """Per latent."""
    window_tokens: int
    counted: bool
    """Counted in the SAE's windows, or the most that the config allows."""


@dataclass(frozen=True)
class Questions:
    """What one job asks an endpoint, answers that were kept included."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
