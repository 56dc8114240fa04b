"""Jobs that train several SAEs in one pass over the activations."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nullsae import paths
from nullsae.config.saes import Sae
from nullsae.config.study import Config
from nullsae.core.files import content_key, key_in
from nullsae.jobs.grid import MODEL, trained_together
from nullsae.jobs.of_models import NUMBER
from nullsae.jobs.rules import as_json
from nullsae.jobs.saes import SaeCell, TrainSaeParams, train_sae

# Prefix of these jobs' rules.
PREFIX = "train_saes_"
# Environment variable, set while a plan asks for a study's jobs as if it had no results.
NO_RESULTS = "NULLSAE_NO_RESULTS"
# Environment variable for a run's jobs: which SAEs were complete when the run started.
WHOLE_SAES = "NULLSAE_WHOLE_SAES"


def rule_of(name: str) -> str:
    """Return the rule that a Snakemake rule was made from: `train_sae` for those made here.

    Rules of `jobs.of_models` may have a number at the end.
    """
    return "train_sae" if name.startswith(PREFIX) else name.partition(NUMBER)[0]


@dataclass(frozen=True)
class SharedJob:
    """A job that trains several SAEs in one pass over the activations."""

    name: str
    """Name of its rule."""
    keys: dict[str, str]
    """Subject, variant, draw, and the site if the pass is over only one."""
    params: TrainSaeParams
    whole: bool = False
    """Whether all its outputs exist already."""

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
        """Fill in a pattern of `nullsae.paths` for each SAE."""
        keys = [self.params.cell_keys(cell).model_dump() for cell in self.params.cells]
        return [pattern.format(**each) for each in keys]


def shared_jobs(config: Config, whole: Sequence[int] = ()) -> list[SharedJob]:
    """Return the jobs that train SAEs together, if the config asks for them.

    Complete SAEs have a separate job, because Snakemake runs everything that depends on a job that
    runs.

    Args:
        config: the checked config, sites resolved.
        whole: which SAEs are complete, as from `whole_saes`; none by default.
    """
    jobs = []
    for index, (keys, params) in enumerate(_groups(config)):
        bits = whole[index] if whole else 0
        name = PREFIX + re.sub(r"[^A-Za-z0-9_]", "_", "_".join([str(index), *keys.values()]))
        made = tuple(cell for i, cell in enumerate(params.cells) if bits >> i & 1)
        missing = tuple(cell for i, cell in enumerate(params.cells) if not bits >> i & 1)
        if missing:
            jobs.append(SharedJob(name, keys, params.only(missing)))
        if made:
            own = f"{name}_whole" if missing else name
            jobs.append(SharedJob(own, keys, params.only(made), whole=True))
    return jobs


def whole_saes(config: Config, root: Path = Path()) -> list[int]:
    """Return a bit for each SAE of each job of several: whether it is made as the config says now.

    Args:
        config: the checked config, sites resolved.
        root: the folder with `results/`.
    """
    return [
        sum(_is_made(params, cell, root) << i for i, cell in enumerate(params.cells))
        for _, params in _groups(config)
    ]


def whole_once(config: Config, is_main: bool) -> list[int]:
    """Return `whole_saes` at the start of the run, kept in a variable that its jobs inherit.

    Snakemake starts itself again in a cluster or group job, possibly after an earlier attempt made
    some of the SAEs. The job must still be the one that was submitted.

    Args:
        config: the checked config, sites resolved.
        is_main: whether this Snakemake is the run itself rather than one of its jobs.
    """
    if NO_RESULTS in os.environ:
        return []
    study = content_key([params.model_dump(mode="json") for _, params in _groups(config)])
    of_study, _, given = os.environ.get(WHOLE_SAES, "").partition(":")
    if not is_main and of_study == study:
        return [int(bits, 16) for bits in given.split(",") if bits]
    found = whole_saes(config)
    os.environ[WHOLE_SAES] = f"{study}:{','.join(f'{bits:x}' for bits in found)}"
    return found


def _groups(config: Config) -> list[tuple[dict[str, str], TrainSaeParams]]:
    """Return keys and params of each job of several SAEs, as if none were made."""
    settings = config.activations
    stream = settings.streams
    if not (stream or settings.shared_pass):
        return []
    together = settings.sites_together if stream else settings.shared_pass == "model"
    names = (*MODEL, *(() if together else ("site",)))
    groups = {tuple(cell[name] for name in names): None for cell in trained_together(config, {})}
    keys = [dict(zip(names, values, strict=True)) for values in groups]
    return [(each, train_sae(config, each)) for each in keys]


def _is_made(params: TrainSaeParams, cell: SaeCell, root: Path) -> bool:
    """Return whether an SAE's files exist and its `cfg.json` has the key of the config now."""
    keys = params.cell_keys(cell).model_dump()
    patterns = (paths.SAE_CONFIG, paths.SAE_WEIGHTS, paths.HISTORY)
    config, *others = (pattern.format(**keys) for pattern in patterns)
    if not all((root / other).is_file() for other in others):
        return False
    return bool(key_in(root / config) == params.cell_key(cell, params.code(cell)))
