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

# Names of these jobs' rules begin so.
PREFIX = "train_saes_"
# In the environment while a plan asks for the jobs of a study as if it had no results.
NO_RESULTS = "NULLSAE_NO_RESULTS"
# There, too, for the jobs of a run: which SAEs were whole when it began.
WHOLE_SAES = "NULLSAE_WHOLE_SAES"


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
    whole: bool = False
    """Whether all that it makes is made already."""

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


def shared_jobs(config: Config, whole: Sequence[int] = ()) -> list[SharedJob]:
    """The jobs that train SAEs together, where the config asks for it.

    SAEs that are whole have a job of their own, for Snakemake runs all that depends on a job that
    runs.

    Args:
        config: the checked config, sites resolved.
        whole: which SAEs are whole, as `whole_saes` has it; none by default.
    """
    jobs = []
    for index, (keys, params) in enumerate(_groups(config)):
        bits = whole[index] if whole else 0
        name = PREFIX + re.sub(r"[^A-Za-z0-9_]", "_", "_".join([str(index), *keys.values()]))
        made = tuple(cell for i, cell in enumerate(params.cells) if bits >> i & 1)
        missing = tuple(cell for cell in params.cells if cell not in made)
        if missing:
            jobs.append(SharedJob(name, keys, params.only(missing)))
        if made:
            own = f"{name}_whole" if missing else name
            jobs.append(SharedJob(own, keys, params.only(made), whole=True))
    return jobs


def whole_saes(config: Config, root: Path = Path()) -> list[int]:
    """Per job of several SAEs, a bit for each of them: whether it is made as the config says now.

    Args:
        config: the checked config, sites resolved.
        root: the folder that holds `results/`.
    """
    return [
        sum(_is_made(params, cell, root) << i for i, cell in enumerate(params.cells))
        for _, params in _groups(config)
    ]


def whole_once(config: Config, is_main: bool) -> list[int]:
    """`whole_saes` as the run found it when it began, in a variable that its jobs inherit.

    Snakemake starts itself again in a job of a cluster, or of a group, perhaps after an earlier
    attempt made some of the SAEs. The job must still be the one that was asked for.

    Args:
        config: the checked config, sites resolved.
        is_main: whether this Snakemake is the run, not a job of one.
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
    """Keys and params of each job of several SAEs, as if none were made."""
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
    """Whether an SAE's files are there and its `cfg.json` names what the config says now."""
    keys = params.cell_keys(cell).model_dump()
    patterns = (paths.SAE_CONFIG, paths.SAE_WEIGHTS, paths.HISTORY)
    config, *others = (pattern.format(**keys) for pattern in patterns)
    if not all((root / other).is_file() for other in others):
        return False
    return bool(key_in(root / config) == params.cell_key(cell, params.code(cell)))
