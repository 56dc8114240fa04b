"""The checked config, and what all rules share. No rules here."""

import json
import os
import sys
from functools import cache
from inspect import signature
from pathlib import Path

import yaml
from snakemake.io import flag

from nullsae import paths, tables
from nullsae.jobs import rules as jobs
from nullsae.jobs.activations import ACTIVATIONS, activations_key
from nullsae.jobs.autointerp import asks, is_shared_out
from nullsae.jobs.grid import cell_files, cross_cells, matched_cells, trained_here
from nullsae.config.study import NO_EXPLAINER
from nullsae.core.errors import UserError
from nullsae.core.files import write_text
from nullsae.config.variants import FLOOR_PREFIX, VARIANTS, fitted_to, has_model
from nullsae.jobs.limits import default_limit
from nullsae.jobs.resources import Needs
from nullsae.jobs.shared_training import NO_RESULTS, shared_jobs
from nullsae.jobs.started import remember_options
from nullsae.report.names import figure_names
from nullsae.config.parse import resolve_subjects, parse_config

# A job that is told to end keeps what it has first; its shell must not end before it.
shell.prefix("set -euo pipefail; trap : TERM; ")

try:
    STUDY = resolve_subjects(parse_config(config))
except UserError as error:
    # A traceback through Snakemake would bury the one line that matters.
    sys.exit(str(error))


remember_options(workflow, sys.argv)

# What each job asks of its machine.
NEEDS = Needs(STUDY)
CELL_FILES = cell_files(STUDY)
TABLE_FILES = [paths.TABLE.format(table=table) for table in tables.AGGREGATED]
FIGURE_FILES = [
    paths.FIGURE.format(figure=figure, format=form)
    for figure in figure_names(STUDY)
    for form in STUDY.report.figure_formats
]
REPORT_FILES = [paths.REPORT, *FIGURE_FILES]
# GPUs of a job that can use one.
GPUS = 0 if STUDY.compute.device == "cpu" else 1
# Jobs that share the capture of a split.
N_PORTIONS = STUDY.activations.chunks
# A pattern that matches no name.
NOTHING = "$."
# Variants without a model, and floors.
SAMPLED = "|".join(
    [*(name for name in VARIANTS if not has_model(name)), f"{FLOOR_PREFIX}[^/]+"]
)


wildcard_constraints:
    corpus="[^/]+",
    subject="[^/]+",
    variant="[^/]+",
    draw=r"\d+",
    split="sae_train|eval",
    site="[^/]+",
    sae="[^/]+",
    seed=r"\d+",
    explainer="[^/]+",
    scorer="[^/]+",
    shard=r"\d+",
    portion=r"\d+",
    portions=r"\d+",


def known(function):
    """A function whose parameters Snakemake need not look up again for each job."""
    function.__signature__ = signature(function)
    return function


def job_params(rule, *keys):
    """A function of wildcards: what a job uses of these keys of the config, as JSON.

    Without keys, of all. A builder of params that reads another key fails.
    """
    config = jobs.only(STUDY, keys) if keys else STUDY
    return known(lambda wildcards: jobs.rule_params(config, rule, dict(wildcards)))


def job_code(rule):
    """A function of wildcards: the hash of the code that the job runs."""
    return known(lambda wildcards: jobs.job_code(STUDY, rule, dict(wildcards)))


def most(resource, otherwise):
    """What no job asks more of: `max_<resource>` in a profile's `default-resources`."""
    defaults = workflow.resource_settings.default_resources
    try:
        return default_limit(defaults, resource, otherwise)
    except UserError as error:
        sys.exit(str(error))


def doubled(resource, first, cap):
    """What a job asks for, twice as much with each attempt, up to a cap.

    `first` gives the `Asked` of a job's wildcards.
    """
    return known(
        lambda wildcards, attempt: min(
            getattr(first(wildcards), resource) * 2 ** (attempt - 1), cap
        )
    )


def needed(rule, cells=None):
    """Memory, run time and disk of a rule's jobs; of one job, if `cells` names what it makes."""
    first = lambda wildcards: NEEDS.asked(rule, cells or [dict(wildcards)])
    return {
        "mem_mb": doubled("megabytes", first, most("mem_mb", 256_000)),
        "runtime": doubled("minutes", first, most("runtime", 7 * 24 * 60)),
        "disk_mb": known(lambda wildcards: first(wildcards).disk_megabytes),
    }


def corpus_file(pattern, **keys):
    """A file of the corpus that the job's subject reads."""

    @known
    def path(wildcards):
        corpus = STUDY.subjects[wildcards.subject].corpus
        return pattern.format(corpus=corpus, **{**dict(wildcards), **keys})

    return path


def looked_up_tokens(split):
    """The corpus' tokens of a split where an SAE's codes depend on them; else none."""

    @known
    def path(wildcards):
        if not STUDY.saes[wildcards.sae].origin.reads_tokens:
            return []
        return corpus_file(paths.CORPUS_MANIFEST, split=split)(wildcards)

    return path


def captured(split):
    """A function of wildcards: the manifest of a site's activations.

    One capture job makes all sites of a split, and Snakemake runs all that is below a job that
    runs, or, for `ancient` inputs, looks at no other reason to run it. Neither will do: a new site
    must leave the SAEs of the others alone, and an edit of their recipe must still reach them. So
    a site that is already captured as the config asks for is read by its own manifest, which no
    rule makes, recorded under the name of the split's manifest, so that the set of inputs does
    not change between the run that captures it and later ones.
    """

    return known(lambda wildcards: captured_by({**dict(wildcards), "split": split}))


@known
def captured_of_all_variants(wildcards):
    """The `eval` activations that an SAE is cross-evaluated on."""
    return [
        captured_by({**cell, "split": "eval", "site": wildcards.site})
        for cell in cross_cells(STUDY, dict(wildcards))
    ]


@known
def saes_of_recipe(wildcards):
    """The SAEs that are compared with each other."""
    return [
        paths.SAE_CONFIG.format(**wildcards, **cell)
        for cell in matched_cells(STUDY, wildcards.sae)
    ]


def captured_by(keys):
    """The manifest of one site's activations, as `captured` explains."""
    of_split = paths.ACTIVATIONS_MANIFEST.format(**keys)
    of_site = Path(paths.SITE.format(**keys)) / "manifest.json"
    wanted = activations_key(
        STUDY, keys["subject"], keys["variant"], int(keys["draw"]), keys["split"]
    )
    if key_of(of_site) != wanted:
        return of_split
    return ancient(flag(str(of_site), "sourcecache_entry", of_split))


@cache
def key_of(manifest):
    """The provenance that a manifest states; None where there is none."""
    if NO_RESULTS in os.environ:
        return None
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))["key"]
    except (OSError, ValueError, KeyError):
        return None


@known
def trained_recipe(wildcards):
    """The trained variant that a randomization starts from; none if it is read from its source."""
    own = wildcards.subject in trained_here(STUDY)
    if not own and VARIANTS[wildcards.variant].origin == "source":
        return []
    return paths.RECIPE.format(subject=wildcards.subject, variant="trained", draw=0)


@known
def model_recipe(wildcards):
    """The variant's weights; none where there are only activations."""
    return paths.RECIPE.format(**wildcards) if has_model(wildcards.variant) else []


def fitted_keys(keys):
    """The keys of the activations that Gaussian ones are fitted to; None for those of a model."""
    fitted = fitted_to(keys["variant"], int(keys["draw"]))
    if fitted is None:
        return None
    variant, draw = fitted
    return {**keys, "variant": variant, "draw": draw, "split": "sae_train"}


@known
def fitted_activations(wildcards):
    """The manifest of the activations that Gaussian ones are fitted to."""
    return paths.ACTIVATIONS_MANIFEST.format(**fitted_keys(dict(wildcards)))


@known
def how_to_ask(wildcards, input):
    """How endpoints are asked. It changes no answer and must make no job run again: Snakemake takes
    what is made from a job's inputs for no param of its own."""
    return STUDY.llm.model_dump_json()


@known
def base_explanations(wildcards):
    """The explanations that an explainer exchanges; none for one that writes its own."""
    base = STUDY.explainers[wildcards.explainer].exchanges
    if base is None:
        return []
    return paths.EXPLANATIONS.format(**{**dict(wildcards), "explainer": base})


@known
def judged_explanations(wildcards):
    """The explanations that a scorer judges; none for one that needs none."""
    if wildcards.explainer == NO_EXPLAINER:
        return []
    return paths.EXPLANATIONS.format(**wildcards)


@known
def judge_in_process(wildcards):
    """The model that a job runs itself; none for scorers that ask, and where shards ran it."""
    model = STUDY.scorers[wildcards.scorer].model_in_job
    if model is None or scored_shards(wildcards):
        return []
    return paths.JUDGE_MANIFEST.format(**wildcards)


@known
def judging_threads(wildcards):
    return STUDY.compute.threads if judge_in_process(wildcards) else 1


@known
def judging_gpus(wildcards):
    return GPUS if judge_in_process(wildcards) else 0


def asks_a_model(rule):
    """1 for a job that sends requests: `--resources llm=2` lets two of them run at once."""
    shards = explained_shards if rule == "explain_latents" else scored_shards
    return known(
        lambda wildcards: int(
            asks(STUDY, rule, dict(wildcards)) and not shards(wildcards)
        )
    )


def shard_tables(pattern, wildcards):
    """A table of each of the jobs that share an SAE's latents; none for such a job itself."""
    each = STUDY.autointerp.latents_per_job
    if each is None or "shard" in wildcards.keys():
        return []
    n_shards = -(-STUDY.latents.n_sampled // each)
    return [pattern.format(**wildcards, shard=shard) for shard in range(n_shards)]


@known
def explained_shards(wildcards):
    """The tables that an SAE's explanations are joined from, where they are shared out."""
    if not is_shared_out(STUDY, "explain_latents", dict(wildcards)):
        return []
    return shard_tables(paths.EXPLANATIONS_SHARD, wildcards)


@known
def scored_shards(wildcards):
    """The tables that an SAE's scores are joined from, where they are shared out."""
    if not is_shared_out(STUDY, "score_latents", dict(wildcards)):
        return []
    return shard_tables(paths.SCORES_SHARD, wildcards)


@known
def shard_options(wildcards, input):
    """`--shard` for each folder of tables that are joined."""
    return " ".join(option("shard", Path(table).parent) for table in input.shards)


@known
def ranks_of_shard(wildcards):
    """Which of an SAE's sampled latents a job is for: FIRST:END."""
    each = STUDY.autointerp.latents_per_job or STUDY.latents.n_sampled
    return f"{int(wildcards.shard) * each}:{(int(wildcards.shard) + 1) * each}"


def captured_at(sites, **keys):
    """The manifests of several sites' activations, each as `captured` explains, named once."""
    return list(dict.fromkeys(captured_by({**keys, "site": site}) for site in sites))


def shared_inputs(job):
    """What a job reads that trains several SAEs, by the names of its rule's inputs."""
    keys = {name: job.keys[name] for name in ("subject", "variant", "draw")}
    stream = STUDY.activations.mode == "stream"
    looked_up = any(sae.origin.reads_tokens for sae in job.recipes)
    corpus = STUDY.subjects[keys["subject"]].corpus
    tokens = {
        split: [paths.CORPUS_MANIFEST.format(corpus=corpus, split=split)]
        for split in ("sae_train", "eval")
    }
    fitted = fitted_keys(keys)
    return {
        "train": captured_at(job.sites, split="sae_train", **keys),
        "heldout": captured_at(job.sites, split="eval", **keys),
        "train_tokens": tokens["sae_train"] if stream or looked_up else [],
        "eval_tokens": tokens["eval"] if looked_up else [],
        "model": [paths.RECIPE.format(**keys)] if stream and not fitted else [],
        "fitted": captured_at(job.sites, **fitted) if stream and fitted else [],
    }


def cells_of(job):
    """The keys of each SAE that a job trains."""
    return [job.params.cell_keys(cell).model_dump() for cell in job.params.cells]


def shared_options(job):
    """The options for the inputs that only some of these jobs have."""
    files = shared_inputs(job)
    if files["fitted"]:
        # One site's own manifest may be what Snakemake looks at: `captured`.
        of_split = paths.ACTIVATIONS_MANIFEST.format(**fitted_keys(job.keys))
        files["fitted"] = [of_split]
    named = ("train_tokens", "eval_tokens", "model", "fitted")
    return " ".join(option(n.replace("_", "-"), *files[n]) for n in named if files[n])


def shared_folder(job):
    """The folder of each SAE of a job, with what they differ in left open."""
    left_open = {name: f"{{{name}}}" for name in ("site", "sae", "seed")}
    return paths.SAE.format(**{**left_open, **job.keys})


def hive(keys):
    """Keys as folders."""
    return str(Path(*(f"{name}={value}" for name, value in keys.items())))


def is_named(file):
    """Whether the command line names a file, which Snakemake then wants a rule for, or a plan asks
    for the jobs of all.
    """
    return file in sys.argv or NO_RESULTS in os.environ


def fixed(text):
    """A function of wildcards that gives a text as it is, braces and all."""
    return known(lambda wildcards: text)


def as_set_for(rule, **resources):
    """Resources, where a profile's `set-resources` for another rule does not say otherwise."""
    given = workflow.resource_settings.overwrite_resources.get(rule, {})
    return {**resources, **given}


def option(name, files):
    """`--name file` where there is a file, else nothing."""
    return f"--{name} {files}" if files else ""


def given(name):
    """A function of an input of this name: the option of the same name for it, if it is there."""
    return known(
        lambda wildcards, input: option(name.replace("_", "-"), getattr(input, name))
    )
