"""Jobs of workflow/rules/latents.smk."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import NonNegativeInt

from nullsae.config.compute import Compute
from nullsae.config.latents import Latents
from nullsae.config.metrics import METRICS, with_column
from nullsae.config.section import Section, drop_if_null
from nullsae.config.study import Config
from nullsae.jobs.activations import key_of
from nullsae.jobs.code_hash import thing_files
from nullsae.jobs.grid import sae_cells
from nullsae.jobs.keys import CellKeys, ModelKeys
from nullsae.jobs.rules import Wildcards, rule
from nullsae.jobs.subjects import OF_LATENTS


class SaeBeside(Section):
    """Another SAE of the same model."""

    site: str
    sae: str
    seed: NonNegativeInt


class CollectLatentsParams(Section):
    """What `nullsae collect_latents` takes."""

    seed: NonNegativeInt
    keys: CellKeys
    beside: tuple[SaeBeside, ...] | None = None
    """Further SAEs of the model whose latents the job collects."""
    latents: Latents
    compute: Compute
    eval_activations_key: str = ""
    """If given, activations of `eval` are refused if their key differs."""

    _dumped = drop_if_null("beside")

    def each(self) -> Iterator[CollectLatentsParams]:
        """Yield the params for each SAE of the job alone."""
        of_model = self.keys.model.model_dump()
        others = (CellKeys(**of_model, **own.model_dump()) for own in self.beside or ())
        for keys in (self.keys, *others):
            yield self.model_copy(update={"keys": keys, "beside": None})


def _columns(_config: Config, _wildcards: Wildcards) -> tuple[Path, ...]:
    """Return the files of the metrics that add a column to the table `latents`."""
    return thing_files(METRICS, *(metric.name for metric, _ in with_column()))


@rule(
    *("latents", *OF_LATENTS),
    but=("latents/exports", "latents/collect_all.py"),
    things=_columns,
)
def collect_latents(config: Config, wildcards: Wildcards) -> CollectLatentsParams:
    """Build params for the latents of an SAE, or of all SAEs of a model or of one of its sites."""
    of_model, cells = ModelKeys.of(wildcards), [wildcards]
    if "sae" not in wildcards:
        cells = [cell for cell in sae_cells(config) if wildcards.items() <= cell.items()]
    keys, *others = map(CellKeys.of, cells)
    names = {"site", "sae", "seed"}
    return CollectLatentsParams(
        seed=config.seed,
        keys=keys,
        beside=tuple(SaeBeside(**one.model_dump(include=names)) for one in others) or None,
        latents=config.latents,
        compute=config.compute,
        eval_activations_key=key_of(config, of_model, "eval"),
    )
