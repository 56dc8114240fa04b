"""Jobs of workflow/rules/activations.smk, and the keys by which later jobs know activations."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import NonNegativeInt, PositiveInt

from nullsae.config.activations import Activations, Exclude
from nullsae.config.compute import Compute
from nullsae.config.section import FloatType, Section
from nullsae.config.study import Config
from nullsae.config.variants import fitted_to
from nullsae.core.files import content_key
from nullsae.jobs.accepted import in_use
from nullsae.jobs.corpus import corpus_key
from nullsae.jobs.grid import captured_sites
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.rules import PRESENT, Codes, Wildcards, rule
from nullsae.jobs.subjects import model_key

# Config keys that decide a variant's activations.
ACTIVATIONS = ("seed", "compute", "corpora", "subjects", "randomization", "activations")

# Code that feeds SAEs, or checks inputs before the work starts.
_OF_TRAINING = ("activations/blocks.py", "activations/live.py", "activations/preflight.py")


class SplitParams(Section):
    """Settings of the activations of one split at all sites."""

    sites: tuple[str, ...]
    max_tokens: PositiveInt | None = None
    """Tokens to capture or sample; the whole split by default."""
    seed: NonNegativeInt
    dtype: FloatType
    shard_tokens: PositiveInt
    exclude: Exclude = Exclude()
    keep: bool = True
    """Whether shards contain the activations; if not, they are recomputed when they are read."""
    compute: Compute
    key: str = ""
    """Provenance, written into the manifests; by default made from the inputs."""
    shards_key: str = ""
    """The same for the shards alone, which `exclude` does not change."""


class CacheActivationsParams(SplitParams):
    """What `nullsae cache_activations` takes."""

    batch_contexts: PositiveInt


@rule("activations", but=(*_OF_TRAINING, "activations/gaussian.py", "activations/sampling.py"))
def cache_activations(config: Config, wildcards: Wildcards) -> CacheActivationsParams:
    """Build params for a variant's activations of one split at all sites, or a portion of them."""
    keys = ModelKeys.of(wildcards)
    return CacheActivationsParams(
        **_of_split(config, keys, wildcards["split"]),
        batch_contexts=config.activations.batch_contexts,
    )


class SampleGaussianParams(SplitParams):
    """What `nullsae sample_gaussian` takes."""

    keys: ModelKeys
    fitted_activations_key: str = ""
    """If given, activations to fit to are refused if their key differs."""


@rule("activations", "core/moments.py", but=(*_OF_TRAINING, "activations/capture.py"))
def sample_gaussian(config: Config, wildcards: Wildcards) -> SampleGaussianParams:
    """Build params for Gaussian data instead of a variant's activations, of one split."""
    keys = ModelKeys.of(wildcards)
    return SampleGaussianParams(
        **_of_split(config, keys, wildcards["split"]),
        keys=keys,
        fitted_activations_key=fitted_key(config, keys),
    )


def _of_split(config: Config, keys: ModelKeys, split: str) -> dict[str, Any]:
    settings = config.activations
    return {
        "sites": captured_sites(config, keys.subject),
        "max_tokens": _max_tokens(settings, split),
        "seed": config.seed,
        "dtype": settings.dtype,
        "shard_tokens": settings.shard_tokens,
        "exclude": settings.exclude,
        "keep": settings.kept,
        "compute": config.compute,
        "key": key_of(config, keys, split),
        "shards_key": shards_key(config, keys, split),
    }


def _max_tokens(settings: Activations, split: str) -> int | None:
    return settings.cached_tokens if split == "sae_train" else None


def activations_key(config: Config, subject: str, variant: str, draw: int, split: str) -> str:
    """Return a short key of all that determines a variant's activations at any one site.

    Sites are left out, so that adding one does not change the others' keys.
    """
    keys: dict[str, Any] = {"subject": subject, "variant": variant, "draw": draw}
    return key_of(config, ModelKeys(**keys), split)


def key_of(config: Config, keys: ModelKeys, split: str) -> str:
    """Return `activations_key` for a model's keys."""
    exclude = config.activations.exclude.model_dump(mode="json")
    return content_key([shards_key(config, keys, split), exclude])


def shards_key(config: Config, keys: ModelKeys, split: str) -> str:
    """Return the key of the shards, without the rule that excludes tokens."""
    return in_use().key(shards_key_by(config, keys, split))


def shards_key_by(config: Config, keys: ModelKeys, split: str, codes: Codes = PRESENT) -> str:
    """Return `shards_key` as made by this code, regardless of acceptances."""
    seed, settings = config.seed, config.activations
    if fitted := fitted_key(config, keys):
        return _sampled(fitted, seed, keys, settings, split, codes)
    subject = config.subjects[keys.subject]
    corpus = corpus_key(subject.corpus, config.corpora[subject.corpus], codes)
    model = model_key(seed, config.compute, keys, subject.source, config.randomization, codes)
    return _captured(corpus, model, seed, settings, split, codes)


def fitted_key(config: Config, keys: ModelKeys) -> str:
    """Return the key of the activations that Gaussian ones are fitted to; "" for a model's."""
    fitted = fitted_to(keys.variant, keys.draw)
    if fitted is None:
        return ""
    own = keys.model_copy(update=dict(zip(("variant", "draw"), fitted, strict=True)))
    return key_of(config, own, "sae_train")


@cache
def _captured(
    corpus: str, model: str, seed: int, settings: Activations, split: str, codes: Codes
) -> str:
    # Not the settings that only say how SAEs are trained on them.
    used = settings.model_dump(mode="json", include={"dtype", "shard_tokens", "batch_contexts"})
    code = codes.of(cache_activations)
    return content_key([corpus, model, seed, code, split, used, _max_tokens(settings, split)])


@cache
def _sampled(
    fitted: str, seed: int, keys: ModelKeys, settings: Activations, split: str, codes: Codes
) -> str:
    used = settings.model_dump(mode="json", include={"dtype", "shard_tokens"})
    own = [keys.variant, keys.draw, split, used, _max_tokens(settings, split)]
    return content_key([fitted, seed, codes.of(sample_gaussian), own])
