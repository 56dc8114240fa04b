"""Config key `explainers`: who explains latents."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from nullsae.config.endpoints import Endpoint
from nullsae.config.section import Section


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


Explainer = Annotated[
    LexicalExplainer | OpenAIExplainer | SwappedExplainer, Field(discriminator="kind")
]
