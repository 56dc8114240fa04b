"""What a study will ask of language models, counted before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nullsae import paths
from nullsae.autointerp.asking import FRAME_TOKENS, WINDOW_TOKENS
from nullsae.autointerp.prompting import load_prompt
from nullsae.config.explainers import OpenAIExplainer
from nullsae.config.scorers import IntruderScorer
from nullsae.config.study import Config
from nullsae.jobs.autointerp import explain_latents, score_latents
from nullsae.jobs.grid import explainer_cells, scorer_cells
from nullsae.tables import cell_schema, read_table

# English text, for models with some 100,000 tokens in their vocabulary.
CHARACTERS_PER_TOKEN = 4
# Around each window: its number, marks, line breaks, and for explainers the list of strengths.
TOKENS_AROUND_WINDOW, TOKENS_OF_STRENGTHS = 10, 12
EXPLANATION_TOKENS = 60


@dataclass
class Bill:
    """Questions of one explainer or scorer."""

    jobs: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, calls: int, prompt_tokens: int, completion_tokens: int) -> None:
        """One more job."""
        self.jobs += 1
        self.calls += calls
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens


@dataclass(frozen=True)
class Windows:
    """How many windows of one SAE there are to ask about."""

    explain_active: list[int]
    """Per latent."""
    score: list[int]
    """Active and silent, per latent."""
    score_active: list[int]
    counted: bool
    """Counted in the SAE's windows, or the most that the config allows."""


def bills(config: Config, root: Path) -> tuple[dict[tuple[str, str, str], Bill], bool]:
    """Questions by (explainer, scorer or "", model), in display order, and whether all are counted.

    Calls are exact where latents have been collected already, and else the most that there can be,
    as they always are of `intruder`, whose questions stay within a quantile; tokens are estimates.
    What has been answered before counts too.
    """
    found: dict[tuple[str, str, str], Bill] = {}
    all_counted = True
    for keys in explainer_cells(config):
        explainer = explain_latents(config, keys).explainer
        if isinstance(explainer, OpenAIExplainer):
            windows = _windows(config, root, keys, "random")
            all_counted &= windows.counted
            shown = [min(n, explainer.shown_windows) for n in windows.explain_active]
            each = config.latents.window_tokens + TOKENS_AROUND_WINDOW + TOKENS_OF_STRENGTHS
            fixed = _prompt_tokens("explain", explainer.prompt)
            bill = found.setdefault((keys["explainer"], "", explainer.model), Bill())
            bill.add(
                len(shown), len(shown) * fixed + sum(shown) * each, len(shown) * EXPLANATION_TOKENS
            )
    for keys in scorer_cells(config):
        section = score_latents(config, keys)
        if section.judge is None:
            continue
        scorer: Any = section.scorer
        windows = _windows(config, root, keys, scorer.negatives)
        all_counted &= windows.counted
        if isinstance(scorer, IntruderScorer):
            size = scorer.active_per_task + 1
            calls = [min(scorer.n_tasks, n // scorer.active_per_task) for n in windows.score_active]
            n_shown, answer = sum(calls) * size, FRAME_TOKENS // 2
        else:
            size = scorer.windows_per_prompt
            calls = [-(-n // size) for n in windows.score]
            n_shown, answer = sum(windows.score), FRAME_TOKENS // 2 + WINDOW_TOKENS // 2 * size
        fixed = _prompt_tokens(scorer.kind, scorer.prompt) + EXPLANATION_TOKENS
        each = config.latents.window_tokens + TOKENS_AROUND_WINDOW
        bill = found.setdefault((keys["explainer"], keys["scorer"], section.judge.model), Bill())
        bill.add(sum(calls), sum(calls) * fixed + n_shown * each, sum(calls) * answer)
    return found, all_counted


def _windows(config: Config, root: Path, keys: dict[str, str], negatives: str) -> Windows:
    path = root / paths.WINDOWS.format(**keys)
    settings = config.latents
    if not path.is_file():
        n, most = settings.n_sampled, settings.score_active_windows
        silent = most if negatives == "misplaced" else settings.score_silent_windows
        return Windows(
            [settings.explain_active_windows] * n, [most + silent] * n, [most] * n, False
        )
    columns = ["latent", "pool", "active", "silent_kind"]
    table = read_table(path, cell_schema("windows"), columns=columns)
    scoring = table.filter(pc.equal(table["pool"], "score"))
    active = scoring.filter(scoring["active"])
    others = active
    if negatives != "misplaced":
        others = scoring.filter(pc.equal(scoring["silent_kind"], negatives))
    explaining = table.filter(pc.and_(pc.equal(table["pool"], "explain"), table["active"]))
    return Windows(
        _per_latent(explaining),
        _per_latent(pa.concat_tables([active, others])),
        _per_latent(active),
        True,
    )


def _per_latent(table: pa.Table) -> list[int]:
    counts = table.group_by("latent").aggregate([([], "count_all")])
    found: list[int] = counts.sort_by("latent")["count_all"].to_pylist()
    return found


@cache
def _prompt_tokens(kind: str, path: str | None) -> int:
    """Length of a prompt without windows."""
    prompt = load_prompt(kind, path)
    messages = prompt.messages(explanation="", windows=[])
    return sum(len(m["content"]) for m in messages) // CHARACTERS_PER_TOKEN
