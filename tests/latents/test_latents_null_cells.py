"""Null cells are at the floor, as far from it as their standard errors say."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import planted
import pytest
import torch
from test_latents_collect import settings
from test_latents_statistics import firings_of
from torch import Tensor

from nullsae.core.randomness import numpy_generator, torch_generator
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.latents.causal import Tokens, changes_at, equal_norms
from nullsae.latents.effects import COLUMNS, effect_columns
from nullsae.latents.next_token import Successors
from nullsae.latents.places import firing_places
from nullsae.latents.split import Split
from nullsae.latents.store import Firings
from nullsae.metrics.catalogue.effects import AblationCeGain, AblationKlLogRatio
from nullsae.sae.initialization import initialize
from nullsae.statistics.spread import Spread, mean_of_units
from nullsae.subjects.interventions import Interventions
from nullsae.subjects.loading import Subject
from small_chain import COMPUTE, CONTEXT, CPU, D_MODEL, VOCAB, cell, tiny_model

SITE = "resid_post.1"
SEEDS, ERRORS, INSIDE = range(100), 3.0, 95
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """A model on a text in which tokens follow each other, and an SAE of its activations."""

    subject: Subject
    firings: Firings
    passing: Array
    """The latents with 20 firings or more."""
    rows: Tensor

    @classmethod
    def of(cls, split: Split, seed: int, model: Any) -> Case:
        """Draw the weights of a model by the seed, in place."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" not in name:
                    generator = torch_generator(seed, "null_model", name)
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
        subject = Subject(model, {"vocab_size": VOCAB}, CPU)
        ids = torch.from_numpy(split.ids.reshape(-1, CONTEXT)).long()
        where: dict[str, Any] = {"split": "eval", "contexts": range(len(ids))}
        x = subject.activations(ids, sites=[SITE], **where)[SITE].reshape(-1, D_MODEL)
        sae = initialize(x, n_latents=48, k=4, generator=torch_generator(seed, "null_sae"))
        top = ((x - sae.b_dec) @ sae.w_enc.T + sae.b_enc).topk(4, dim=1)
        codes = torch.zeros(len(x), sae.n_latents).scatter(1, top.indices, top.values.relu())
        firings = firings_of(codes.numpy())
        return cls(subject, firings, np.flatnonzero(firings.counts >= 20), sae.w_dec)

    def errors(self, split: Split, seed: int, rows: Tensor) -> dict[str, float]:
        """Return, by column, how many standard errors its mean is from a half."""
        found = effect_columns(
            *(params(seed), self.subject, rows, self.firings, split, self.passing),
            *(self.passing[:0],),
            site=SITE,
        )
        return {name: errors_from(found.numbers[name][self.passing], 0.5) for name in COLUMNS}


def params(seed: int) -> CollectLatentsParams:
    return CollectLatentsParams(seed=seed, keys=cell(SITE), latents=settings(), compute=COMPUTE)


def errors_from(values: Array, floor: float) -> float:
    """Return how many standard errors the mean of latents [n] is from the floor, as in tables."""
    error = Spread.of([mean_of_units(values)]).standard_error
    assert error == pytest.approx(values.std(ddof=1) / len(values) ** 0.5, rel=1e-12)
    return float((values.mean() - floor) / error)


def assert_null(found: list[dict[str, float]]) -> None:
    """Check that at least 95 of 100 cells are within three standard errors."""
    assert len(found) == len(SEEDS)
    for name in found[0]:
        z = np.array([one[name] for one in found])
        assert (np.abs(z) <= ERRORS).sum() >= INSIDE, name


@pytest.fixture(scope="module")
def split() -> Split:
    ids, documents = planted.text_of((np.arange(VOCAB) + 1) % VOCAB, 180)
    return Split(ids.reshape(-1), documents.reshape(-1), CONTEXT, None, Path("manifest.json"))


def test_random_directions_are_within_three_standard_errors_of_a_half(split: Split) -> None:
    """The firings of an SAE, with rows that are unrelated to them."""
    case, found = Case.of(split, 0, tiny_model("gpt_neox")), []
    for seed in SEEDS:
        generator = torch_generator(seed, "null_rows")
        rows = torch.randn(len(case.rows), D_MODEL, generator=generator)
        found.append(case.errors(split, seed, rows))
    assert_null(found)
    for name in COLUMNS:
        # Latents are independent here, so the errors are neither too small nor too large: the
        # spread of 50 z is 1 +- 0.1.
        assert np.std([one[name] for one in found]) == pytest.approx(1, abs=0.25), name


def test_random_models_are_within_three_standard_errors_of_a_half(split: Split) -> None:
    """The whole cell is null: weights are drawn, and rows are in the span of their activations.

    All latents of a cell share one unembedding, whose part in the error their spread does not show:
    z spreads by 1.4 over draws. Verdicts on more than "this randomization" rest on draws.
    """
    found, model = [], tiny_model("gpt_neox")
    for seed in SEEDS:
        case = Case.of(split, seed, model)
        found.append(case.errors(split, seed, case.rows))
    assert_null(found)


def test_random_directions_matter_as_little_as_each_other(split: Split) -> None:
    """Own against foreign, by passes of the subject: 0 if both are random."""
    case = Case.of(split, 0, tiny_model("gpt_neox"))
    latents = case.passing[:12]
    interventions, successors = Interventions(case.subject, SITE), Successors.of(split)
    found = []
    for seed in SEEDS:
        order = numpy_generator(seed, "contexts").permutation(split.n_tokens // CONTEXT)
        places = firing_places(
            *(case.firings, latents, successors.pair, split, order, 4),
            partial(numpy_generator, seed, "places"),
        )
        generator = torch_generator(seed, "null_rows")
        rows = torch.randn(len(latents), D_MODEL, generator=generator)
        kl, gain = changes_at(
            *(interventions, split, places, -places.value),
            *(equal_norms([rows, rows.roll(1, dims=0)]), Tokens.of_places(split, places)),
        )
        errors = {}
        for metric, values in ((AblationKlLogRatio(), kl), (AblationCeGain(), -gain)):
            of_latents = metric.value(dict(zip(metric.columns, values.T, strict=True)))
            errors[metric.name] = errors_from(np.asarray(of_latents), 0.0)
        found.append(errors)
    assert_null(found)
