"""Jobs that do small work for all SAEs of a model: metrics, and explaining without endpoints.

A job per SAE would take a few seconds, mostly to start Python and its libraries, so one job does it
for a subject, variant and draw. Snakemake requires all files of a rule to have the same wildcards,
so models with different sites or floors have separate rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nullsae.config.study import Config
from nullsae.config.variants import floor_name
from nullsae.jobs.autointerp import free_explainers, free_pairs
from nullsae.jobs.grid import MODEL, Keys, evaluated_with, of_model, sae_cells, variant_cells

# Separates a rule's name from a number, in rules that differ only in their files.
NUMBER = "__"


@dataclass(frozen=True)
class ModelRule:
    """A rule of jobs that each take all SAEs of a model."""

    name: str
    """The plain name, or with a number except for the first."""
    subjects: tuple[str, ...]
    variants: tuple[str, ...]
    """Each job is for one of these subjects and variants."""
    cells: tuple[Keys, ...]
    """What a job makes; `{subject}`, `{variant}` and `{draw}` are the job's own."""
    writer: str | None = None
    """The explainer with an endpoint whose explanations the job exchanges."""
    site: str | None = None
    """The site of all SAEs, if each site of a model has its own job."""

    def files(self, *patterns: str) -> list[str]:
        """Fill in patterns of `nullsae.paths` for each cell that they apply to."""
        return [
            pattern.format(**cell)
            for pattern in patterns
            for cell in self.cells
            if ("{scorer}" in pattern) == ("scorer" in cell)
        ]

    def cells_of(self, wildcards: Mapping[str, str]) -> list[Keys]:
        """Return what one job makes."""
        own = of_model(wildcards)
        return [{name: v.format(**own) for name, v in cell.items()} for cell in self.cells]


def evaluation_rules(config: Config) -> list[ModelRule]:
    """Return the rules that evaluate SAEs, together with their floors."""
    cells = ((model, c) for model in variant_cells(config) for c in evaluated_with(config, model))
    return _rules("evaluate_sae", cells)


def collecting_rules(config: Config) -> list[ModelRule]:
    """Return the rules that collect latents for all SAEs of a model, or of a site, in one job.

    There are some if the config says so, or if activations are recomputed: one pass serves all.
    """
    settings, cells = config.activations, list(sae_cells(config))
    if settings.kept and settings.shared_pass != "model":
        return []
    apart = not (settings.kept or settings.sites_together)
    found: list[ModelRule] = []
    for site in dict.fromkeys(cell["site"] for cell in cells) if apart else (None,):
        own = ((of_model(cell), cell) for cell in cells if site in (None, cell["site"]))
        found += _rules("collect_latents", own, first=len(found), site=site)
    return found


def free_rules(config: Config) -> list[ModelRule]:
    """Return the rules of explainers and scorers that need neither an endpoint nor a model.

    Those that exchange what a language model wrote wait for it, and so have separate rules.
    """
    found: list[ModelRule] = []
    for writer in (None, *config.explainers):
        explainers, pairs = free_explainers(config, writer), free_pairs(config, writer)
        made: list[Keys] = [{"explainer": explainer} for explainer in explainers]
        made += [{"explainer": explainer, "scorer": scorer} for explainer, scorer in pairs]
        cells = [(of_model(cell), {**cell, **own}) for cell in sae_cells(config) for own in made]
        found += _rules("explain_and_score", cells, writer, len(found))
    return found


def _rules(
    rule: str,
    cells: Iterable[tuple[Keys, Keys]],
    writer: str | None = None,
    first: int = 0,
    site: str | None = None,
) -> list[ModelRule]:
    """Group models whose files differ only in the models' keys into one rule."""
    by_model: dict[tuple[str, ...], list[tuple[tuple[str, str], ...]]] = {}
    for model, cell in cells:
        opened = {name: f"{{{name}}}" for name in MODEL}
        if cell["variant"] != model["variant"]:
            opened["variant"] = floor_name(opened["variant"])
        by_model.setdefault(tuple(model.values()), []).append(tuple({**cell, **opened}.items()))
    # The names of a model's files depend on the subject through its sites, and on the variant
    # through floors, so groups are all combinations of some subjects and some variants.
    alike: dict[tuple[tuple[tuple[str, str], ...], ...], list[tuple[str, ...]]] = {}
    for key, own in by_model.items():
        alike.setdefault(tuple(own), []).append(key)
    return [
        ModelRule(
            name=rule if not index else f"{rule}{NUMBER}{index}",
            subjects=tuple(dict.fromkeys(model[0] for model in models)),
            variants=tuple(dict.fromkeys(model[1] for model in models)),
            cells=tuple(map(dict, own)),
            writer=writer,
            site=site,
        )
        for index, (own, models) in enumerate(alike.items(), start=first)
    ]
