"""Jobs of workflow/rules/latents.smk."""

from __future__ import annotations

from pathlib import Path

from pydantic import NonNegativeInt

from nullsae.config.compute import Compute
from nullsae.config.latents import Latents
from nullsae.config.metrics import METRICS, with_column
from nullsae.config.section import Section
from nullsae.config.study import Config
from nullsae.jobs.activations import key_of
from nullsae.jobs.code_hash import thing_files
from nullsae.jobs.keys import CellKeys
from nullsae.jobs.rules import Wildcards, rule
from nullsae.jobs.subjects import OF_LATENTS


class CollectLatentsParams(Section):
    """What `nullsae collect_latents` takes."""

    seed: NonNegativeInt
    keys: CellKeys
    latents: Latents
    compute: Compute
    eval_activations_key: str = ""
    """If given, activations of `eval` with another key are refused."""


def _columns(_config: Config, _wildcards: Wildcards) -> tuple[Path, ...]:
    """The files of the metrics that add a column to the table `latents`."""
    return thing_files(METRICS, *(metric.name for metric, _ in with_column()))


@rule("latents", *OF_LATENTS, but=("latents/exports",), things=_columns)
def collect_latents(config: Config, wildcards: Wildcards) -> CollectLatentsParams:
    """The latents of an SAE."""
    keys = CellKeys.of(wildcards)
    return CollectLatentsParams(
        seed=config.seed,
        keys=keys,
        latents=config.latents,
        compute=config.compute,
        eval_activations_key=key_of(config, keys.model, "eval"),
    )
