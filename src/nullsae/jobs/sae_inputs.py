"""Inputs of jobs that train SAEs or read activations."""

from __future__ import annotations

import os
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from nullsae import paths
from nullsae.config.saes import Sae, recipe_name
from nullsae.config.study import Config
from nullsae.config.variants import fitted_to, is_positive_control, runs_on_trained
from nullsae.core.files import key_in
from nullsae.jobs.activations import activations_key
from nullsae.jobs.grid import of_model
from nullsae.jobs.rules import Wildcards
from nullsae.jobs.saes import aimed_at
from nullsae.jobs.shared_training import NO_RESULTS

Inputs = dict[str, list[str]]
# Inputs that only some trainings have, by their names in a rule.
SOME_HAVE = ("train_tokens", "eval_tokens", "model", "fitted", "given")
# Rules that this run is forced to repeat; None for all.
_forced: Collection[str] | None = ()


def captured_by(config: Config, keys: Wildcards) -> str:
    """Return the manifest of one site's activations, as Snakemake should see it.

    One capture job makes all sites of a split. Snakemake runs everything downstream of a job that
    runs, or, for `ancient` inputs, ignores all other reasons to run it. Neither works here: a new
    site must leave the SAEs of the others alone, but an edit of their recipe must still reach them.
    So a site that is already captured as the config asks is read through its own manifest, which no
    rule makes. It is recorded under the name of the split's manifest, so that the set of inputs
    stays the same between the run that captures it and later ones. A run that is forced to make the
    activations again, or what they depend on, reads the split's manifest: `capture_again`.
    """
    from snakemake.io import ancient, flag

    of_split = paths.ACTIVATIONS_MANIFEST.format(**keys)
    if _is_again(keys):
        return of_split
    of_site = str(Path(paths.SITE.format(**keys)) / "manifest.json")
    names = keys["subject"], keys["variant"], int(keys["draw"]), keys["split"]
    if _key_in(of_site) != activations_key(config, *names):
        return of_split
    flagged: str = ancient(flag(of_site, "sourcecache_entry", of_split))
    return flagged


def capture_again(forced: Collection[str] | None) -> None:
    """Set which rules this run is forced to repeat; None for all."""
    global _forced
    _forced = forced


def _is_again(keys: Wildcards) -> bool:
    """Return whether the run repeats one of the rules that activations come from."""
    sampled = fitted_keys(keys)
    own = {"prepare_corpus", "train_subject", "capture_portion", "cache_activations"}
    own |= {"sample_gaussian"} if sampled else set()
    variant = (sampled or keys)["variant"]
    own.add("retrain_subject" if is_positive_control(variant) else "randomize_model")
    return _forced is None or not own.isdisjoint(_forced)


@cache
def _key_in(manifest: str) -> Any:
    return None if NO_RESULTS in os.environ else key_in(Path(manifest))


def captured_for_sae(config: Config, keys: Wildcards) -> list[str]:
    """Return `captured_by` for the site that an SAE reads, and for the one that it writes.

    A transcoder always gets two, even if both are the split's manifest, so that the number of
    inputs does not change later.
    """
    recipe, site = config.saes[recipe_name(keys["sae"])], keys["site"]
    sites = dict.fromkeys((site, recipe.output_of(site)))
    return [captured_by(config, {**keys, "site": each}) for each in sites]


def fitted_keys(keys: Wildcards) -> dict[str, str] | None:
    """Return keys of the activations that Gaussian ones are fitted to; None for a model's."""
    fitted = fitted_to(keys["variant"], int(keys["draw"]))
    if fitted is None:
        return None
    variant, draw = fitted
    return {**keys, "variant": variant, "draw": str(draw), "split": "sae_train"}


def sae_inputs(
    config: Config, keys: Wildcards, sites: Iterable[str], recipes: Iterable[Sae]
) -> Inputs:
    """Return the inputs of a job that makes SAEs of these recipes at these sites, by name.

    Args:
        config: the checked config, sites resolved.
        keys: subject, variant and draw, and possibly more.
        sites: where the SAEs are trained.
        recipes: how they are made.
    """
    model = of_model(keys)
    stream, recipes = config.activations.streams, list(recipes)
    looked_up = any(sae.origin.reads_tokens for sae in recipes)
    # A pretrained SAE is compared with the corpus, which knows whether contexts begin with BOS.
    compared = keys["variant"] == "trained" and any(sae.pretrained for sae in recipes)
    corpus = config.subjects[keys["subject"]].corpus
    train_tokens, eval_tokens = (
        [paths.CORPUS_MANIFEST.format(corpus=corpus, split=split)]
        for split in ("sae_train", "eval")
    )
    fitted = fitted_keys(model)
    trained = paths.RECIPE.format(subject=keys["subject"], variant="trained", draw=0)

    sites = list(sites)
    written = (s.output_of(at) for at in sites for s in recipes if s.is_made(at, "trained"))
    places = list(dict.fromkeys((*sites, *written)))

    def captured(**more: str) -> list[str]:
        each = (captured_by(config, {**model, **more, "site": site}) for site in places)
        return list(dict.fromkeys(each))

    return {
        "train": captured(split="sae_train"),
        "heldout": captured(split="eval"),
        "train_tokens": train_tokens if stream or looked_up or compared else [],
        "eval_tokens": eval_tokens if looked_up else [],
        "model": [paths.RECIPE.format(**model)] if stream and not fitted else [],
        # Not an option: a variant's own recipe says where its weights are.
        "weights": [trained] if stream and runs_on_trained(keys["variant"]) else [],
        "fitted": captured(**fitted) if stream and fitted else [],
    }


def given_saes(config: Config, cells: Iterable[Wildcards]) -> list[str]:
    """Return the `cfg.json` of the pretrained SAEs whose L0 some SAEs aim at.

    On `trained` a job measures that L0 itself, since it may make the pretrained SAE too.
    """
    found = (aimed_at(config, cell) for cell in cells if cell["variant"] != "trained")
    return list(dict.fromkeys(paths.SAE_CONFIG.format(**keys) for keys in found if keys))


def settled(inputs: Inputs) -> Inputs:
    """Mark the inputs of a job whose outputs are known to be complete as no reason to run it.

    `ancient` keeps it from running after an upstream job. A `checkpoint_target`, which to Snakemake
    is an input not yet known for certain, keeps Snakemake from comparing times, and params, code
    and inputs with its records, which may be of another job that made the same files.
    """
    from snakemake.io import ancient, checkpoint_target

    still = {name: [ancient(file) for file in files] for name, files in inputs.items()}
    return {**still, "heldout": [checkpoint_target(file) for file in still["heldout"]]}


def given_option(keys: Wildcards) -> str:
    """Return the value of `--given`: the path of `given_saes`, with {site}, {sae} and {seed}."""
    still = {name: f"{{{name}}}" for name in ("site", "sae", "seed")}
    return paths.SAE_CONFIG.format(subject=keys["subject"], variant="trained", draw=0, **still)


def options_of(keys: Wildcards, inputs: Mapping[str, Iterable[str]]) -> Iterator[str]:
    """Yield the command line's options for the inputs that only some trainings have."""
    for name in SOME_HAVE:
        files = list(inputs[name])
        if files and name == "fitted":
            # Snakemake may see one site's own manifest: `captured_by`.
            files = [paths.ACTIVATIONS_MANIFEST.format(**(fitted_keys(keys) or {}))]
        if files and name == "given":
            files = [given_option(keys)]
        yield from (f"--{name.replace('_', '-')} {shlex.quote(file)}" for file in files)
