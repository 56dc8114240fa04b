"""Jobs of workflow/rules/toy.smk."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from nullsae.config.compute import Compute
from nullsae.config.section import Section
from nullsae.config.study import Config
from nullsae.config.toy import Toy, ToySource, ToyTraining, WordVectorsSource
from nullsae.jobs.file_stamps import named_file, stamps
from nullsae.jobs.keys import ToyKeys
from nullsae.jobs.rules import Wildcards, rule


class TrainToyParams(Section):
    """What `nullsae train_toy` takes."""

    seed: NonNegativeInt
    """The config's seed."""
    keys: ToyKeys
    source: ToySource
    gaussian: Literal["matched", "scalar"] | None = None
    """For Gaussian data."""
    mlp_hidden_factor: PositiveInt | None = None
    """For a random network's outputs."""
    training: ToyTraining
    compute: Compute
    local_files: tuple[str, ...] = ()
    """As in `PrepareCorpusParams`, for a file of word vectors."""


@rule("toy", "core/moments.py", but=("toy/charts.py", "toy/page.py", "toy/templates"))
def train_toy(config: Config, wildcards: Wildcards) -> TrainToyParams:
    """Build params for a sweep of toy SAEs on one kind of data."""
    toy, keys = config.toy or Toy(), ToyKeys.of(wildcards)
    source = toy.sources[keys.source]
    read = [named_file(source.path)] if isinstance(source, WordVectorsSource) else []
    return TrainToyParams(
        seed=config.seed,
        keys=keys,
        source=source,
        gaussian=toy.gaussian if "gaussian" in keys.data else None,
        mlp_hidden_factor=toy.mlp_hidden_factor if "mlp" in keys.data else None,
        training=toy.training,
        compute=config.compute,
        local_files=stamps(read),
    )


class ReportToyParams(Section):
    """What `nullsae report_toy` takes."""

    toy: Toy
    figure_formats: tuple[Literal["png", "pdf", "svg"], ...] = ("png", "pdf")


@rule("toy/charts.py", "toy/page.py", "toy/templates")
def report_toy(config: Config, _wildcards: Wildcards) -> ReportToyParams:
    """Build params for all sweeps."""
    return ReportToyParams(toy=config.toy or Toy(), figure_formats=config.report.figure_formats)
