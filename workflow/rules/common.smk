"""The checked config, and what all rules share. No rules here."""

import atexit
import re
import sys
from inspect import signature
from pathlib import Path

import yaml

from nullsae import paths, tables
from nullsae.jobs import rules as jobs
from nullsae.jobs.accepted import honour, read_accepted
from nullsae.jobs.activations import ACTIVATIONS
from nullsae.jobs.autointerp import asks, is_free, is_shared_out, paid_writer
from nullsae.jobs.code_changes import changed_code, changed_code_line
from nullsae.jobs.code_record import write_record
from nullsae.jobs.entry import check_start, take_absolute_targets, with_typed_entries
from nullsae.jobs.grid import cell_files, cross_cells, matched_cells, trained_here
from nullsae.core.errors import UserError
from nullsae.core.files import write_text
from nullsae.config.variants import FLOOR_PREFIX, VARIANTS, has_model, runs_on_trained
from nullsae.jobs.limits import default_limit, read_set_resources, set_as_for
from nullsae.jobs.of_models import evaluation_rules, free_rules
from nullsae.jobs.resources import Needs
from nullsae.jobs.sae_inputs import captured_by, fitted_keys, options_of
from nullsae.jobs.sae_inputs import sae_inputs, settled
from nullsae.jobs.shared_training import shared_jobs, whole_once
from nullsae.jobs.started import remember_options, study_options
from nullsae.report.names import figure_names
from nullsae.config.parse import resolve_subjects, parse_config

try:
    check_start(workflow, sys.argv)
    read_set_resources(workflow.resource_settings)
    STUDY = resolve_subjects(parse_config(with_typed_entries(workflow, config)))
    honour(read_accepted(Path()))
except UserError as error:
    # A traceback through Snakemake would bury the one line that matters.
    sys.exit(str(error))


remember_options(workflow, sys.argv)
take_absolute_targets(workflow)


def say_changed_code():
    """One line, where Snakemake is about to run jobs for their code."""
    changed, n_jobs = changed_code(workflow.dag)
    if changed:
        line = changed_code_line(changed, n_jobs, study_options(workflow))
        print(line, file=sys.stderr, flush=True)


# A dry run calls no hook: `onstart` is for runs.
if workflow.is_main_process:
    atexit.register(lambda: workflow.dryrun and workflow.dag and say_changed_code())
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


def job_params(rule, *keys, **more):
    """A function of wildcards: what a job uses of these keys of the config, as JSON.

    Without keys, of all. A builder of params that reads another key fails. `more` is given to it
    beside the wildcards.
    """
    config = jobs.only(STUDY, keys) if keys else STUDY
    return known(
        lambda wildcards: jobs.rule_params(config, rule, {**dict(wildcards), **more})
    )


def job_code(rule, **more):
    """A function of wildcards: the hash of the code that the job counts by.

    `more` is beside the wildcards. It says of itself what it is of: `code_of` asks.
    """
    found = known(
        lambda wildcards: jobs.job_code(STUDY, rule, {**dict(wildcards), **more})
    )
    found.of = (rule, more)
    return found


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


def needed(rule, cells=lambda wildcards: [dict(wildcards)]):
    """Memory, run time and disk of a rule's jobs; `cells` gives the keys of all that one makes."""
    first = lambda wildcards: NEEDS.asked(rule, cells(wildcards))
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
    """A function of wildcards: the manifest of a site's activations, as `captured_by` explains."""
    return known(
        lambda wildcards: captured_by(STUDY, {**dict(wildcards), "split": split})
    )


@known
def captured_of_all_variants(wildcards):
    """The `eval` activations that an SAE is cross-evaluated on."""
    return [
        captured_by(STUDY, {**cell, "split": "eval", "site": wildcards.site})
        for cell in cross_cells(STUDY, dict(wildcards))
    ]


@known
def saes_of_recipe(wildcards):
    """The SAEs that are compared with each other."""
    return [
        paths.SAE_CONFIG.format(**wildcards, **cell)
        for cell in matched_cells(STUDY, wildcards.sae)
    ]


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


@known
def borrowed_weights(wildcards):
    """The recipe of the trained weights where a variant has none of its own; none for others.

    No option of a verb: the variant's own recipe says where they are.
    """
    if not runs_on_trained(wildcards.variant):
        return []
    return paths.RECIPE.format(subject=wildcards.subject, variant="trained", draw=0)


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
    """What a language model wrote of all that a scorer judges; the job itself does the rest.

    So a file that several explainers share, and that is written anew with another one of them,
    asks no judge again.
    """
    writer = paid_writer(STUDY, wildcards.explainer)
    if writer is None:
        return []
    return paths.EXPLANATIONS.format(**{**dict(wildcards), "explainer": writer})


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


def shared_inputs(job):
    """What a job reads that trains several SAEs, by the names of its rule's inputs."""
    found = sae_inputs(STUDY, job.keys, job.sites, job.recipes)
    return settled(found) if job.whole else found


def shared_options(job):
    """The options for the inputs that only some of these jobs have."""
    return " ".join(options_of(job.keys, shared_inputs(job)))


def cells_of(job):
    """A function of wildcards: the keys of each SAE that a job trains."""
    found = [job.params.cell_keys(cell).model_dump() for cell in job.params.cells]
    return lambda wildcards: found


def files_of(job, *patterns):
    """A function of wildcards: patterns filled in for each SAE of a job of a `ModelRule`."""
    return known(
        lambda wildcards: list(
            dict.fromkeys(
                pattern.format(**cell)
                for pattern in patterns
                for cell in job.cells_of(wildcards)
            )
        )
    )


def captured_for(job, split):
    """A function of wildcards: what the SAEs of a job of a `ModelRule` are evaluated on."""
    names = ("subject", "variant", "draw", "site")

    @known
    def manifests(wildcards):
        cells = [{name: c[name] for name in names} for c in job.cells_of(wildcards)]
        sites = {tuple(cell.values()): cell for cell in cells}
        found = [
            captured_by(STUDY, {**cell, "split": split}) for cell in sites.values()
        ]
        return list(dict.fromkeys(found))

    return manifests


def written_explanations(job):
    """A function of wildcards: what a language model wrote that a job exchanges."""
    if job.writer is None:
        return []
    return files_of(job, paths.EXPLANATIONS.replace("{explainer}", job.writer))


def keys_of_free(job):
    """What tells a job that asks nobody from others of its rule, in the names of its logs."""
    return str(Path(paths.MODEL_KEYS, f"explainer={job.writer}" if job.writer else ""))


def left_open(pattern, *names):
    """A function of wildcards: a pattern in which only these keys are still to be filled in."""
    opened = {name: f"{{{name}}}" for name in names}
    return known(lambda wildcards: pattern.format(**{**dict(wildcards), **opened}))


def any_of(names):
    """A regular expression for these names."""
    return "|".join(map(re.escape, names)) or NOTHING


def shared_folder(job):
    """The folder of each SAE of a job, with what they differ in left open."""
    left_open = {name: f"{{{name}}}" for name in ("site", "sae", "seed")}
    return paths.SAE.format(**{**left_open, **job.keys})


def resources_as_set_for(rule, job):
    """Let `--set-resources` of a rule reach one of its jobs that has a name of its own."""
    names = map(workflow.modifier.modify_rulename, (rule, job.name))
    set_as_for(workflow.resource_settings, *names)


def hive(keys):
    """Keys as folders."""
    return str(Path(*(f"{name}={value}" for name, value in keys.items())))


def fixed(text):
    """A function of wildcards that gives a text as it is, braces and all."""
    return known(lambda wildcards: text)


def option(name, files):
    """`--name file` where there is a file, else nothing."""
    return f"--{name} {files}" if files else ""


def given(name):
    """A function of an input of this name: the option of the same name for it, if it is there."""
    return known(
        lambda wildcards, input: option(name.replace("_", "-"), getattr(input, name))
    )
