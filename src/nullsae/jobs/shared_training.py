"""Jobs that train several SAEs in one pass over the activations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nullsae import paths
from nullsae.config.saes import Sae
from nullsae.config.study import Config
from nullsae.core.files import content_key
from nullsae.jobs.grid import trained_together
from nullsae.jobs.of_models import NUMBER
from nullsae.jobs.rules import as_json
from nullsae.jobs.saes import SaeCell, TrainSaeParams, train_sae

# Names of these jobs' rules begin so.
PREFIX = "train_saes_"
# In the environment while a plan asks for the jobs of a study as if it had no results.
NO_RESULTS = "NULLSAE_NO_RESULTS"


def rule_of(name: str) -> str:
    """The rule of a job by the name that Snakemake gives: `train_sae` for those made here.

    Rules of `jobs.of_models` differ in a number at the end.
    """
    return "train_sae" if name.startswith(PREFIX) else name.partition(NUMBER)[0]


@dataclass(frozen=True)
class SharedJob:
    """A job that trains several SAEs in one pass over the activations."""

    name: str
    """Of its rule."""
    keys: dict[str, str]
    """Subject, variant, draw, and the site where the pass is over one."""
    params: TrainSaeParams

    @property
    def text(self) -> str:
        """Its params as sorted JSON."""
        return as_json(self.params)

    @property
    def sites(self) -> list[str]:
        return list(dict.fromkeys(cell.site for cell in self.params.cells))

    @property
    def recipes(self) -> list[Sae]:
        return list(self.params.saes.values())

    @property
    def code(self) -> str:
        """Hash of the code that makes its SAEs."""
        return content_key(sorted({self.params.code(cell) for cell in self.params.cells}))

    def files(self, pattern: str) -> list[str]:
        """A pattern of `nullsae.paths` filled in for each SAE."""
        keys = [self.params.cell_keys(cell).model_dump() for cell in self.params.cells]
        return [pattern.format(**each) for each in keys]


def shared_jobs(
    config: Config, *, root: Path = Path(), named: Callable[[str], bool] = lambda _file: False
) -> list[SharedJob]:
    """The jobs that train SAEs together, where the config asks for it.

    An SAE that was made of just what the config says now is left out, and so is a job without any
    other: Snakemake deletes what a job is to make, and runs all that depends on it.

    Args:
        config: the checked config, sites resolved.
        root: the folder that holds `results/`.
        named: whether a `cfg.json` needs a job that makes it, whatever it says.
    """
    stream = config.activations.mode == "stream"
    if not (stream or config.activations.shared_pass):
        return []
    together = stream and config.activations.sites_together
    names = ("subject", "variant", "draw", *(() if together else ("site",)))
    groups = {tuple(cell[name] for name in names): None for cell in trained_together(config, {})}
    jobs = []
    for index, values in enumerate(groups):
        keys = dict(zip(names, values, strict=True))
        params = train_sae(config, keys)
        cells = [cell for cell in params.cells if not _is_made(params, cell, root, named)]
        if cells:
            name = PREFIX + re.sub(r"[^A-Za-z0-9_]", "_", "_".join([str(index), *values]))
            jobs.append(SharedJob(name, keys, params.only(tuple(cells))))
    return jobs


def _is_made(
    params: TrainSaeParams, cell: SaeCell, root: Path, named: Callable[[str], bool]
) -> bool:
    """Whether an SAE's files are there and its `cfg.json` names what the config says now."""
    keys = params.cell_keys(cell).model_dump()
    patterns = (paths.SAE_CONFIG, paths.SAE_WEIGHTS, paths.HISTORY)
    config, *others = (pattern.format(**keys) for pattern in patterns)
    if named(config) or not all((root / other).is_file() for other in others):
        return False
    try:
        found = json.loads((root / config).read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(found == params.cell_key(cell, params.code(cell)))
