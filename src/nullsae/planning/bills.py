"""Count a study's requests to language models before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from nullsae import paths
from nullsae.config.endpoints import Questions, WindowCounts
from nullsae.config.explainers import Explainer
from nullsae.config.scorers import Scorer
from nullsae.config.study import Config
from nullsae.jobs.grid import explainer_cells, scorer_cells
from nullsae.tables import cell_schema, of_pool, read_table


@dataclass
class Bill:
    """Requests of one explainer or scorer."""

    jobs: int = 0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def add(self, job: Questions) -> None:
        """Add a job's requests."""
        self.jobs += 1
        self.calls += job.calls
        self.prompt_tokens += job.prompt_tokens
        self.completion_tokens += job.completion_tokens


def bills(config: Config, root: Path) -> tuple[dict[tuple[str, str, str], Bill], bool]:
    """Return requests by (explainer, scorer or "", model), and whether all are counted.

    Calls are exact if latents have been collected already, and else an upper bound; for `intruder`,
    whose questions stay within a quantile, they always are. Tokens are estimates. Cached answers
    count too.
    """
    found: dict[tuple[str, str, str], Bill] = {}
    all_counted = True
    for keys in (*explainer_cells(config), *scorer_cells(config)):
        asker: Explainer | Scorer = config.explainers[keys["explainer"]]
        endpoint, negatives = asker.endpoint, "random"
        if "scorer" in keys:
            asker = scorer = config.scorers[keys["scorer"]]
            endpoint, negatives = config.asked(keys["explainer"], keys["scorer"]), scorer.negatives
        if endpoint is not None:
            counts = _windows(config, root, keys, negatives)
            all_counted &= counts.counted
            key = keys["explainer"], keys.get("scorer", ""), endpoint.model
            found.setdefault(key, Bill()).add(asker.questions(counts))
    return found, all_counted


def _windows(config: Config, root: Path, keys: dict[str, str], negatives: str) -> WindowCounts:
    path = root / paths.WINDOWS.format(**keys)
    settings = config.latents
    if not path.is_file():
        most = settings.score_active_windows
        silent = most if negatives == "misplaced" else settings.score_silent_windows
        sizes = settings.explain_active_windows, most + silent, most
        shown, scored, active_ones = ([size] * settings.n_sampled for size in sizes)
        length = settings.window_tokens
        return WindowCounts(shown, scored, active_ones, length, counted=False)
    columns = ["latent", "pool", "active", "silent_kind"]
    table = read_table(path, cell_schema("windows"), columns=columns)
    scoring = of_pool(table, "score")
    active = others = scoring.filter(scoring["active"])
    if negatives != "misplaced":
        others = scoring.filter(pc.equal(scoring["silent_kind"], negatives))
    explaining = of_pool(table, "explain")
    explaining = explaining.filter(explaining["active"])
    scored = _per_latent(pa.concat_tables([active, others]))
    shown, length = _per_latent(explaining), settings.window_tokens
    return WindowCounts(shown, scored, _per_latent(active), length, counted=True)


def _per_latent(table: pa.Table) -> Any:
    counts = table.group_by("latent").aggregate([([], "count_all")])
    return counts.sort_by("latent")["count_all"].to_pylist()
