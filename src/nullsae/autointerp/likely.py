"""A scorer that compares likelihoods: explanations and windows in, probabilities out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer

from nullsae.autointerp.examples import Examples, Floats
from nullsae.autointerp.likelihood import Likelihood, load_likelihood_prompt, probability
from nullsae.autointerp.llm.session import Asked
from nullsae.autointerp.local_judge import load_judge
from nullsae.autointerp.marking import window_texts
from nullsae.config.compute import Compute
from nullsae.config.scorers import LikelihoodScorer
from nullsae.subjects.loading import pick_device


def judge_by_likelihood(
    scorer: LikelihoodScorer,
    examples: Examples,
    explained: pa.Table,
    tokenizer: Tokenizer,
    manifest: Path,
    compute: Compute,
    asked: Asked,
) -> tuple[Floats, str, str]:
    """The probability of each example by Bayes' rule, from even odds.

    Args:
        scorer: its form, prompt and batches.
        examples: windows; `marked` tokens are what counts in the form `fuzzing`.
        explained: the table `explanations`, sorted by latent.
        tokenizer: the corpus' tokenizer.
        manifest: of the model, as `prepare_judge` wrote it.
        compute: threads and device.
        asked: whose `report` is called with (latents done, latents in all, "").

    Returns:
        float64 [n_examples], NaN for latents without an explanation; the model's name; the
        prompt's hash.

    Raises:
        UserError: the model or the prompt's file cannot be used, or a window is too long.
    """
    torch.set_num_threads(compute.threads)
    prompt = load_likelihood_prompt(scorer.prompt)
    judge = load_judge(manifest, pick_device(compute.device))
    likelihood = Likelihood(judge, prompt, scorer.batch_windows)
    found = np.full(len(examples.latent), np.nan)
    latents = explained["latent"].to_pylist()
    texts = explained["explanation"].to_pylist()
    for done, (latent, text) in enumerate(zip(latents, texts, strict=True), 1):
        rows = np.flatnonzero(examples.latent == latent)
        if text is not None and len(rows):
            bounds = [(examples.starts[i], examples.starts[i + 1]) for i in rows]
            shown = window_texts(tokenizer, [examples.tokens[a:b] for a, b in bounds])
            spans = None
            if scorer.form == "fuzzing":
                spans = [
                    [span for span, on in zip(s.spans, examples.marked[a:b], strict=True) if on]
                    for s, (a, b) in zip(shown, bounds, strict=True)
                ]
            log_odds = likelihood.log_odds(text, [s.text for s in shown], spans)
            found[rows] = probability(log_odds)
        if asked.report is not None:
            asked.report(done, len(latents), "")
    return found, judge.name, prompt.hash
