"""Config key `scorers`: who judges explanations."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from nullsae.config.endpoints import Endpoint
from nullsae.config.latents import SilentKind
from nullsae.config.section import Section
from nullsae.config.subjects import GgufSource, PretrainedSource


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


Scorer = Annotated[
    DetectionScorer | FuzzingScorer | IntruderScorer | LikelihoodScorer,
    Field(discriminator="kind"),
]
