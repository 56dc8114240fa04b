"""Models behind OpenAI-compatible endpoints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, PositiveFloat, field_validator, model_validator

from nullsae.config.section import Section

OPENAI_URL = "https://api.openai.com/v1"


class ManagedServer(Section):
    """An OpenAI-compatible server that each job starts for itself and ends with itself."""

    command: Annotated[tuple[str, ...], Field(min_length=1)]
    """Program and arguments; `{port}` becomes a free port of the loopback interface."""
    health: Annotated[str, Field(pattern="^/")] = "/health"
    """Path that answers with 200 as soon as the server is ready."""
    ready_seconds: PositiveFloat = 120.0
    """How long to wait for that."""


class Endpoint(Section):
    """A model behind an OpenAI-compatible chat endpoint."""

    model: Annotated[str, Field(min_length=1)]
    """Name of the model, as the endpoint wants it."""
    base_url: str | None = None
    """Address, usually ending in /v1; by default OpenAI's own."""
    server: ManagedServer | None = None
    """Instead of `base_url`: a server that the job starts itself."""
    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable that holds the key; null, the default with `server`, sends none. Keys
    never stand in a config."""
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

    @field_validator("base_url")
    @classmethod
    def url_is_complete(cls, url: str | None) -> str | None:
        if url is not None and (urlsplit(url).scheme not in ("http", "https")):
            raise ValueError(f"{url!r} has no scheme; write http://{url} or https://{url}")
        if url is not None and not urlsplit(url).hostname:
            raise ValueError(f"{url!r} names no host; it looks like http://localhost:8000/v1")
        return url

    @model_validator(mode="after")
    def own_servers_get_no_key(self) -> Self:
        # The default names a key that is worth money elsewhere. Here, because params that were
        # written out no longer tell a default from what the config says.
        if self.server is not None and "api_key_env" not in self.model_fields_set:
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
