"""Config sections for who explains latents and who judges the explanations."""

from __future__ import annotations

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

from nullsae.inputs import GgufSource, PretrainedSource, Section

OPENAI_URL = "https://api.openai.com/v1"
# Windows in which a latent is silent, by how they are chosen; see `Latents.silent_windows`.
SilentKind = Literal["random", "co_occurring", "nearest"]


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
    def name(self) -> str:
        """What replies are kept under: the address, or for a job's own server its command."""
        if self.server is not None:
            return "server: " + " ".join(self.server.command)
        return (self.base_url or OPENAI_URL).rstrip("/")


class LexicalExplainer(Section):
    """Token statistics; needs no language model."""

    kind: Literal["lexical"]
    context: Literal["token", "bigram"] = "token"
    """What the judge looks at: each token, or each token with its predecessor."""
    top_tokens: PositiveInt = 10
    """Tokens named in the text of an explanation; the judge uses the statistics of all."""


class OpenAIExplainer(Endpoint):
    """A language model that is shown a latent's active windows."""

    kind: Literal["openai"]
    shown_windows: PositiveInt = 40
    """Active windows in the prompt, strongest first; no more than
    `latents.explain_active_windows`."""
    mark_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """A token is marked when it is active above this share of its window's maximum."""
    max_completion_tokens: PositiveInt = 500
    """Length of an answer; a model that reasons needs more."""
    prompt: str | None = None
    """File to use in the place of nullsae's own prompt; `autointerp/prompts` has that."""


class SwappedExplainer(Section):
    """The placebo: another latent's explanation."""

    kind: Literal["swapped"]
    of: str
    """The explainer whose explanations are exchanged among the latents of an SAE."""


class AskingScorer(Section):
    """What scorers that ask a language model share."""

    judge: Endpoint | None = None
    """Who judges explanations that are text; by default the model that wrote them. Explanations
    of kind `lexical` are judged by their token statistics, without a model."""
    windows_per_prompt: PositiveInt = 5
    """Windows in one question to a language model. More are cheaper; `docs/llm.md` measures what
    they cost in quality."""
    max_completion_tokens: PositiveInt | None = None
    """Length of an answer, by default what the windows need; a model that reasons needs more."""
    prompt: str | None = None
    """File to use in the place of nullsae's own prompt; `autointerp/prompts` has that."""


class DetectionScorer(AskingScorer):
    """Is the latent active in this window?"""

    kind: Literal["detection"]
    negatives: SilentKind = "random"
    """The silent windows to tell from active ones; one of `latents.silent_windows`."""


class FuzzingScorer(AskingScorer):
    """Are these the tokens that the latent is active at?"""

    kind: Literal["fuzzing"]
    mark_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """A token is marked when it is active above this share of its window's maximum."""
    negatives: SilentKind | Literal["misplaced"] = "random"
    """What wrong marks stand in: silent windows (one of `latents.silent_windows`), or, `misplaced`,
    the active windows themselves, at tokens where the latent is silent."""


class IntruderScorer(Section):
    """Which of a few windows does not belong? Says how alike a latent's windows are, without any
    explanation.
    """

    kind: Literal["intruder"]
    judge: Endpoint
    """Who is asked."""
    n_tasks: PositiveInt = 25
    """Questions per latent, at most: each quantile holds so many active windows."""
    active_per_task: Annotated[int, Field(ge=2)] = 4
    """Active windows of one quantile beside the one silent window."""
    negatives: SilentKind = "random"
    """The silent windows to draw intruders from; one of `latents.silent_windows`."""
    mark_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """A token is marked when it is active above this share of its window's maximum. Tokens of the
    intruder are marked at random, as many as in an active window."""
    max_completion_tokens: PositiveInt | None = None
    """Length of an answer, by default what the windows need; a model that reasons needs more."""
    prompt: str | None = None
    """File to use in the place of nullsae's own prompt; `autointerp/prompts` has that."""


class LikelihoodScorer(Section):
    """How much likelier an explanation makes a window, to a language model in the job itself."""

    kind: Literal["likelihood"]
    model: Annotated[PretrainedSource | GgufSource, Field(discriminator="kind")]
    """Any causal language model; of 100 million parameters and more it is better than chance."""
    form: Literal["detection", "fuzzing"] = "detection"
    """`detection` weighs all tokens of a window, `fuzzing` the marked ones only."""
    negatives: SilentKind | Literal["misplaced"] = "random"
    """As in the scorer of that form."""
    mark_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """A token is marked when it is active above this share of its window's maximum."""
    batch_windows: PositiveInt = 16
    """Windows in one forward pass."""
    prompt: str | None = None
    """File to use in the place of nullsae's own prompt; `autointerp/prompts` has that."""

    @model_validator(mode="after")
    def marks_are_shown(self) -> Self:
        if self.form == "detection" and self.negatives == "misplaced":
            raise ValueError("negatives: 'misplaced' needs form: fuzzing, which alone shows marks")
        return self


Explainer = Annotated[
    LexicalExplainer | OpenAIExplainer | SwappedExplainer, Field(discriminator="kind")
]
Scorer = Annotated[
    DetectionScorer | FuzzingScorer | IntruderScorer | LikelihoodScorer,
    Field(discriminator="kind"),
]


class Price(Section):
    """What a model costs."""

    input_usd_per_million_tokens: NonNegativeFloat
    output_usd_per_million_tokens: NonNegativeFloat


class Llm(Section):
    """How endpoints are asked. Nothing here changes an answer, so an edit re-runs nothing."""

    concurrency: PositiveInt = 32
    """Requests of one job in flight; fewer after an endpoint said 429, until it says no more."""
    timeout_seconds: PositiveFloat = 120.0
    """Of one attempt."""
    max_attempts: PositiveInt = 8
    """Of one request, waiting longer after each, before it counts as failed."""
    max_failures_in_a_row: PositiveInt = 25
    """Failed attempts without one that succeeds, after which a job gives up: the endpoint is down.
    What came before is kept."""
    max_cost_usd: PositiveFloat | None = None
    """Stop before all replies in the cache together have cost more; null for no limit."""
    prices: dict[str, Price] = Field(default_factory=dict)
    """By name of the model; a model without a price counts as free."""
    cache: str = "results/cache/replies.sqlite"
    """SQLite file of all replies, relative to the folder of the study. A network file system that
    several machines write to at once is no place for it."""
