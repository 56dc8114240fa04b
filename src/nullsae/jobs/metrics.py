"""Jobs of workflow/rules/metrics.smk."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveInt

from nullsae.config.compute import Compute
from nullsae.config.evaluation import Evaluation
from nullsae.config.section import Section
from nullsae.config.study import Config
from nullsae.config.variants import VariantName, has_model
from nullsae.jobs.activations import key_of
from nullsae.jobs.grid import cross_cells, matched_cells
from nullsae.jobs.keys import CellKeys, ModelKeys
from nullsae.jobs.rules import Wildcards, rule


class EvaluateSaeParams(Section):
    """What `nullsae evaluate_sae` takes."""

    seed: NonNegativeInt
    keys: CellKeys
    fidelity_tokens: PositiveInt | None = Evaluation().fidelity_tokens
    """Tokens of `eval` for cross-entropy and KL, where there is a model; null for all."""
    compute: Compute
    activations_key: str = ""
    """If given, activations of `sae_train` with another key are refused."""
    eval_activations_key: str = ""
    """The same for those of `eval`."""


@rule(
    *("metrics", "core/moments.py", "sae/token_means.py"),
    but=("metrics/catalogue", "metrics/cross.py", "metrics/overlap.py"),
)
def evaluate_sae(config: Config, wildcards: Wildcards) -> EvaluateSaeParams:
    """An SAE on its own variant's activations, or a floor on its own."""
    keys = CellKeys.of(wildcards)
    return EvaluateSaeParams(
        seed=config.seed,
        keys=keys,
        fidelity_tokens=config.evaluation.fidelity_tokens if has_model(keys.variant) else None,
        compute=config.compute,
        activations_key=key_of(config, keys.model, "sae_train"),
        eval_activations_key=key_of(config, keys.model, "eval"),
    )


class CrossEvaluateParams(Section):
    """What `nullsae cross_evaluate` takes."""

    keys: CellKeys
    """Of the SAE."""
    variants: tuple[ModelKeys, ...]
    """Whose activations it is evaluated on, in the order of the given manifests."""
    max_tokens: PositiveInt
    """Tokens of `eval`, from its start."""
    compute: Compute
    activations_keys: tuple[str, ...] = ()
    """If given, activations with other keys are refused."""


@rule("metrics/cross.py", "metrics/reconstruction.py")
def cross_evaluate(config: Config, wildcards: Wildcards) -> CrossEvaluateParams:
    """An SAE on the activations of all variants."""
    if config.evaluation.cross_tokens is None:
        raise ValueError("evaluation.cross_tokens is not set")
    others = tuple(ModelKeys(**cell) for cell in cross_cells(config, wildcards))
    return CrossEvaluateParams(
        keys=CellKeys.of(wildcards),
        variants=others,
        max_tokens=config.evaluation.cross_tokens,
        compute=config.compute,
        activations_keys=tuple(key_of(config, other, "eval") for other in others),
    )


class MatchedSae(Section):
    """One SAE of a job, beside the subject, site and recipe that all of its SAEs share."""

    variant: VariantName
    draw: NonNegativeInt
    seed: NonNegativeInt


class MatchDictionariesParams(Section):
    """What `nullsae match_dictionaries` takes."""

    seed: NonNegativeInt
    subject: str
    site: str
    sae: str
    cells: tuple[MatchedSae, ...]
    """The SAEs that are compared with each other."""
    matching_latents: PositiveInt
    compute: Compute


@rule("metrics/geometry.py", "metrics/overlap.py")
def match_dictionaries(config: Config, wildcards: Wildcards) -> MatchDictionariesParams:
    """All SAEs of one recipe at one site."""
    return MatchDictionariesParams(
        seed=config.seed,
        subject=wildcards["subject"],
        site=wildcards["site"],
        sae=wildcards["sae"],
        cells=tuple(MatchedSae(**cell) for cell in matched_cells(config, wildcards["sae"])),
        matching_latents=config.evaluation.matching_latents,
        compute=config.compute,
    )
