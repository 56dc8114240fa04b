"""Models behind OpenAI-compatible endpoints."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from nullsae.config.addresses import INSTEAD, check_address, is_local
from nullsae.config.keys import has_key, is_variable, secret_field
from nullsae.config.section import Section, Trusted

OPENAI_URL = "https://api.openai.com/v1"
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class ManagedServer(Section):
    """An OpenAI-compatible server that each job starts and stops for itself."""

    command: Annotated[
        tuple[str, ...], Field(min_length=1), Trusted("jobs run this program as you")
    ]
    """Program and arguments; `{port}` becomes a free port, on which it must listen on the loopback
    interface. Requests carry a key, new in each run, which the program gets in the environment
    variables `LLAMA_API_KEY`, `VLLM_API_KEY` and `NULLSAE_SERVER_KEY`."""
    health: Annotated[str, Field(pattern="^/")] = "/health"
    """Path that returns 200 once the server is ready."""
    ready_seconds: PositiveFloat = 120.0
    """How long to wait for `health`."""


class Endpoint(Section):
    """A model behind an OpenAI-compatible chat endpoint."""

    model: Annotated[str, Field(min_length=1)]
    """Name of the model at the endpoint."""
    base_url: str | None = None
    """Address, usually ending in /v1; by default OpenAI's. A query, such as Azure's
    `?api-version=...`, is sent with each request."""
    server: ManagedServer | None = None
    """Instead of `base_url`: a server that the job starts itself."""
    api_key_env: Annotated[
        str | None, Trusted("jobs send what this environment variable holds to the endpoint")
    ] = "OPENAI_API_KEY"
    """Environment variable with the key, sent as `Authorization: Bearer`; null, the default with
    `server` or `headers_env`, sends none. A config must not contain keys."""
    headers_env: Annotated[
        dict[str, str], Trusted("jobs send what these environment variables hold to the endpoint")
    ] = Field(default_factory=dict)
    """Further headers, each with the environment variable that has its value, such as Azure's
    `api-key: AZURE_OPENAI_API_KEY`."""
    temperature: NonNegativeFloat | None = 0.0
    """Not sent if the endpoint refuses it."""
    seed: int | None = None
    """Sent with each request; null sends none."""
    structured_output: Literal["auto", "never"] = "auto"
    """Request JSON by a schema if the endpoint supports it, which is tested once per endpoint."""
    logprobs: Literal["auto", "never"] = "auto"
    """Use the log-probabilities of the answer's tokens if the endpoint returns them."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of each request, such as `reasoning_effort: minimal`. They appear in logs and
    process lists, so secrets are refused."""
    completion_tokens_cap: PositiveInt = 8192
    """An answer cut off at `max_completion_tokens` is requested again with four times as many, up
    to this. Reasoning tokens count."""

    @field_validator("base_url")
    @classmethod
    def url_is_complete(cls, url: str | None) -> str | None:
        if url is not None:
            check_address(url)
        return url

    @field_validator("api_key_env")
    @classmethod
    def key_is_a_name(cls, name: str | None) -> str | None:
        if name is not None and not is_variable(name):
            # The text is not shown: it may be the key itself.
            raise ValueError(
                "not the name of an environment variable, such as OPENAI_API_KEY; put the key into "
                "that variable"
            )
        return name

    @field_validator("headers_env")
    @classmethod
    def headers_name_variables(cls, headers: dict[str, str]) -> dict[str, str]:
        for name, variable in headers.items():
            if not _HEADER.fullmatch(name) or has_key(name):
                shown = "this" if has_key(name) else repr(name)
                raise ValueError(f"{shown} is not the name of a header, such as api-key")
            if not is_variable(variable):
                # The text is not shown: it may be the key itself.
                raise ValueError(
                    f"{name}: not the name of an environment variable, such as "
                    f"AZURE_OPENAI_API_KEY; put the header's value into that variable"
                )
        return headers

    @field_validator("extra_body")
    @classmethod
    def body_has_no_secrets(cls, body: dict[str, Any]) -> dict[str, Any]:
        if (field := secret_field(body)) is not None:
            raise ValueError(f"{field} looks like a secret, and {INSTEAD}")
        return body

    @model_validator(mode="after")
    def own_servers_get_no_key(self) -> Self:
        # The default names a key that is worth money elsewhere. It is dropped here, because params
        # no longer tell a default from what the config says.
        elsewhere = self.server is not None or self.headers_env
        if elsewhere and "api_key_env" not in self.model_fields_set:
            object.__setattr__(self, "api_key_env", None)
        return self

    @model_validator(mode="after")
    def one_address(self) -> Self:
        if self.base_url is not None and self.server is not None:
            raise ValueError("give either base_url or server; a job picks its server's address")
        return self

    def sent_in_clear(self, insecure_hosts: Collection[str]) -> str | None:
        """Return an error message if a key would be sent without encryption, else None.

        `insecure_hosts` may get keys so.
        """
        url = urlsplit(self.base_url or OPENAI_URL)
        key = "headers_env" if self.headers_env else "api_key_env"
        has_secrets = bool(self.headers_env or self.api_key_env) and self.server is None
        if not has_secrets or url.scheme != "http" or is_local(url.geturl()):
            return None
        if (url.hostname or "") in insecure_hosts:
            return None
        return (
            f"{key}: keys would go to {url.hostname} without encryption (http://); write https://, "
            f"set {key}: {'{}' if self.headers_env else 'null'} if it needs none, or name the host "
            f"in llm.insecure_hosts"
        )

    @property
    def address(self) -> str:
        """Cache key of replies: the address, or the command of a job's own server."""
        if self.server is not None:
            return "server: " + " ".join(self.server.command)
        return (self.base_url or OPENAI_URL).rstrip("/")


@dataclass(frozen=True)
class WindowCounts:
    """Numbers of an SAE's windows to ask about."""

    explain_active: list[int]
    """Per latent."""
    score: list[int]
    """Active and silent, per latent."""
    score_active: list[int]
    """Per latent."""
    window_tokens: int
    counted: bool
    """Whether counted in the SAE's windows, rather than the most that the config allows."""


@dataclass(frozen=True)
class Questions:
    """What one job asks an endpoint, including cached answers."""

    calls: int
    prompt_tokens: int
    completion_tokens: int
