"""Jobs of workflow/rules/metrics.smk."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import NonNegativeInt, PositiveInt

from nullsae.config.compute import Compute
from nullsae.config.evaluation import Evaluation
from nullsae.config.pretrained import FromSaeLens
from nullsae.config.saelens_list import published
from nullsae.config.saes import Expect, recipe_name
from nullsae.config.section import Section, drop_if_null
from nullsae.config.study import Config
from nullsae.config.variants import ModelName, VariantName, has_model
from nullsae.jobs.activations import key_of
from nullsae.jobs.grid import cross_cells, evaluated_with, matched_cells
from nullsae.jobs.keys import CellKeys, ModelKeys, SaeKeys
from nullsae.jobs.rules import Wildcards, rule


class EvaluateSaeParams(Section):
    """How one SAE is evaluated."""

    seed: NonNegativeInt
    keys: CellKeys
    fidelity_tokens: PositiveInt | None = Evaluation().fidelity_tokens
    """Tokens of `eval` for cross-entropy and KL, if there is a model; null for all."""
    expect: Expect | None = None
    """The published figures of a pretrained SAE."""
    compute: Compute
    activations_key: str = ""
    """If given, activations of `sae_train` are refused if their key differs."""
    eval_activations_key: str = ""
    """The same for `eval`."""


class EvaluatedSae(SaeKeys):
    """One SAE of a job, without the keys that all of its SAEs share."""

    expect: Expect | None = None

    _dumped = drop_if_null("expect")


class EvaluatedModel(Section):
    """What SAEs of a job were trained on: a model, or Gaussian data instead."""

    variant: ModelName
    saes: tuple[EvaluatedSae, ...]
    activations_key: str = ""
    """If given, activations of `sae_train` are refused if their key differs."""
    eval_activations_key: str = ""
    """The same for `eval`."""


class EvaluateSaesParams(Section):
    """What `nullsae evaluate_sae` takes."""

    seed: NonNegativeInt
    subject: str
    draw: NonNegativeInt
    models: tuple[EvaluatedModel, ...]
    """A variant, and its floor if it has one."""
    fidelity_tokens: PositiveInt | None = Evaluation().fidelity_tokens
    """As in `EvaluateSaeParams`."""
    sites_together: bool = True
    """Whether all sites share the forward passes that recompute activations."""
    compute: Compute

    def each(self) -> Iterator[EvaluateSaeParams]:
        """Yield how each SAE is evaluated."""
        for model in self.models:
            fidelity = self.fidelity_tokens if has_model(model.variant) else None
            for sae in model.saes:
                keys = CellKeys(
                    subject=self.subject,
                    variant=model.variant,
                    draw=self.draw,
                    **sae.model_dump(exclude={"expect"}),
                )
                yield EvaluateSaeParams(
                    seed=self.seed,
                    keys=keys,
                    fidelity_tokens=fidelity,
                    expect=sae.expect,
                    compute=self.compute,
                    activations_key=model.activations_key,
                    eval_activations_key=model.eval_activations_key,
                )


def _expected(config: Config, cell: Wildcards) -> Expect | None:
    """Return the figures of a cell's SAE made elsewhere: the config's, or else SAELens'."""
    name = recipe_name(cell["sae"])
    recipe = config.saes[name]
    if recipe.pretrained is None or cell["variant"] != "trained":
        return None
    given = recipe.pretrained
    if isinstance(given, FromSaeLens):
        given = given.at(cell["site"])
    known = published(given, f"config: saes.{name}.pretrained")
    known |= {} if recipe.expect is None else recipe.expect.model_dump(exclude_none=True)
    return Expect(**known) if known else None


@rule(
    *("metrics", "core/moments.py", "sae/token_means.py"),
    but=(
        *("metrics/catalogue", "metrics/cross.py", "metrics/overlap.py"),
        "metrics/evaluate_all.py",
    ),
)
def evaluate_sae(config: Config, wildcards: Wildcards) -> EvaluateSaesParams:
    """Build params for all SAEs of a model on their own activations, and its floors on theirs."""
    of_model = ModelKeys.of(wildcards)
    saes: dict[str, list[EvaluatedSae]] = {}
    for cell in evaluated_with(config, wildcards):
        own = EvaluatedSae(**dict(SaeKeys.of(cell)), expect=_expected(config, cell))
        saes.setdefault(cell["variant"], []).append(own)
    models = []
    for variant, each in saes.items():
        keys = of_model.model_copy(update={"variant": variant})
        models.append(
            EvaluatedModel(
                variant=variant,
                saes=tuple(each),
                activations_key=key_of(config, keys, "sae_train"),
                eval_activations_key=key_of(config, keys, "eval"),
            )
        )
    return EvaluateSaesParams(
        seed=config.seed,
        subject=of_model.subject,
        draw=of_model.draw,
        models=tuple(models),
        fidelity_tokens=config.evaluation.fidelity_tokens if has_model(of_model.variant) else None,
        sites_together=config.activations.sites_together,
        compute=config.compute,
    )


class CrossEvaluateParams(Section):
    """What `nullsae cross_evaluate` takes."""

    keys: CellKeys
    """Keys of the SAE."""
    variants: tuple[ModelKeys, ...]
    """The models whose activations it is evaluated on, in the order of the manifests."""
    max_tokens: PositiveInt
    """Tokens of `eval`, from its start."""
    compute: Compute
    activations_keys: tuple[str, ...] = ()
    """If given, activations are refused if their keys differ."""


@rule("metrics/cross.py", "metrics/reconstruction.py")
def cross_evaluate(config: Config, wildcards: Wildcards) -> CrossEvaluateParams:
    """Build params for an SAE on the activations of all variants."""
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
    """One SAE of a job, without the subject, site and recipe that all of its SAEs share."""

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
    """The SAEs to compare with each other."""
    matching_latents: PositiveInt
    compute: Compute


@rule("metrics/geometry.py", "metrics/overlap.py")
def match_dictionaries(config: Config, wildcards: Wildcards) -> MatchDictionariesParams:
    """Build params for all SAEs of one recipe at one site."""
    return MatchDictionariesParams(
        seed=config.seed,
        subject=wildcards["subject"],
        site=wildcards["site"],
        sae=wildcards["sae"],
        cells=tuple(
            MatchedSae(**cell)
            for cell in matched_cells(
                config, *(wildcards[name] for name in ("subject", "site", "sae"))
            )
        ),
        matching_latents=config.evaluation.matching_latents,
        compute=config.compute,
    )
