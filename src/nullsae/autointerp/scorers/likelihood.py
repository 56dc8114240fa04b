"""How much likelier does an explanation make a window, to a language model in the job itself?"""

from __future__ import annotations

from itertools import compress
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from nullsae.autointerp.marking import shown_examples
from nullsae.autointerp.score import Judged, ScoreJob
from nullsae.config.compute import Compute
from nullsae.config.latents import SilentKind
from nullsae.config.scorers import Scorer
from nullsae.config.subjects import GgufSource, PretrainedSource
from nullsae.core.errors import UserError

# Approximate number of tokens of instruction and explanation before each window.
PROMPT_TOKENS = 60


class LikelihoodScorer(Scorer):
    """How much likelier an explanation makes a window, to a language model in the job itself."""

    name: ClassVar[str] = "likelihood"
    position: ClassVar[int] = 3

    kind: Literal["likelihood"]
    model: Annotated[PretrainedSource | GgufSource, Field(discriminator="kind")]
    """Any causal language model; from about 100 million parameters on, it beats chance."""
    form: Literal["detection", "fuzzing"] = "detection"
    """`detection` weighs all tokens of a window, `fuzzing` only the marked ones."""
    negatives: SilentKind | Literal["misplaced"] = "random"
    """As in the scorer of that form."""
    mark_threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """A token is marked if it is active above this share of its window's maximum."""
    batch_windows: PositiveInt = 16
    """Windows per forward pass."""
    prompt: str | None = None
    """File that replaces nullsae's own prompt in `autointerp/prompts`."""

    @model_validator(mode="after")
    def marks_are_shown(self) -> Self:
        if self.form == "detection" and self.negatives == "misplaced":
            raise ValueError("negatives: 'misplaced' needs form: fuzzing, which alone shows marks")
        return self

    @property
    def marks_above(self) -> float | None:
        return self.mark_threshold if self.form == "fuzzing" else None

    @property
    def model_in_job(self) -> PretrainedSource | GgufSource:
        return self.model

    @property
    def text(self) -> str:
        which = "the marked tokens" if self.form == "fuzzing" else "a window"
        return (
            f"How much likelier the explanation makes {which} to a language model."
            f"{self.negatives_text}"
        )

    def tokens_read(self, window_tokens: int) -> tuple[int, int]:
        # With the explanation, and with the neutral text.
        return 2 * window_tokens + 2 * PROMPT_TOKENS, window_tokens + PROMPT_TOKENS

    def predict(self, job: ScoreJob) -> Judged:
        """Return the probability of each window by Bayes' rule, from even odds."""
        tokenizer = job.tokenizer
        if job.model is None:
            raise UserError("--judge: missing; a scorer of kind likelihood runs a model itself")
        # Imported here because these load torch.
        import torch

        from nullsae.autointerp.local_model import load_judge
        from nullsae.autointerp.log_odds import Likelihood, load_likelihood_prompt, probability
        from nullsae.core.devices import device_of

        compute = job.params.compute or Compute()
        torch.set_num_threads(compute.threads)
        prompt = load_likelihood_prompt(self.prompt)
        judge = load_judge(job.model, device_of(compute.device))
        likelihood = Likelihood(judge, prompt, self.batch_windows)
        examples, explained = job.examples, job.explained
        found = np.full(len(examples.latent), np.nan)
        latents, texts = (explained[name].to_pylist() for name in ("latent", "explanation"))
        for done, (latent, text) in enumerate(zip(latents, texts, strict=True), 1):
            rows = np.flatnonzero(examples.latent == latent)
            if text is not None and len(rows):
                shown = shown_examples(tokenizer, examples, rows)
                spans = None
                if self.form == "fuzzing":
                    spans = [list(compress(s.spans, marked)) for s, marked in shown]
                log_odds = likelihood.log_odds(text, [s.text for s, _ in shown], spans)
                found[rows] = probability(log_odds)
            if job.session.progress is not None:
                job.session.progress(done, len(latents), "")
        evidence = [None if np.isnan(p) else "likelihood" for p in found]
        return Judged(found, evidence, judge.name, prompt.hash)
