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
from nullsae.jobs.autointerp import (
    asks,
    check_imported,
    is_free,
    is_shared_out,
    paid_writer,
)
from nullsae.jobs.code_changes import changed_code, changed_code_line
from nullsae.jobs.code_record import write_record
from nullsae.jobs.entry import check_places, check_start, image, megabytes_beside
from nullsae.jobs.entry import take_absolute_targets, with_typed_entries
from nullsae.jobs.grid import cell_files, cross_cells, derived_recipes, matched_cells
from nullsae.jobs.grid import source_cell, trained_here
from nullsae.core.errors import UserError
from nullsae.core.files import write_text
from nullsae.config.saes import recipe_name
from nullsae.config.variants import FLOOR_PREFIX, VARIANTS, has_model
from nullsae.config.variants import is_positive_control, runs_on_trained
from nullsae.jobs.limits import default_limit, read_set_resources, set_as_for
from nullsae.jobs.named_rules import forced, mean_all
from nullsae.jobs.of_models import collecting_rules, evaluation_rules, free_rules
from nullsae.jobs.resources import Needs, n_gpus
from nullsae.jobs.sae_inputs import (
    capture_again,
    captured_by,
    captured_for_sae,
    fitted_keys,
    options_of,
)
from nullsae.jobs.sae_inputs import given_saes, sae_inputs, settled
from nullsae.jobs.shared_training import shared_jobs, whole_once
from nullsae.jobs.started import remember_options, study_options
from nullsae.report.names import figure_names
from nullsae.watching.at_work import check_unlock
from nullsae.watching.events import record_events
from nullsae.config.check_pretrained import check_pretrained
from nullsae.config.parse import resolve_subjects, parse_config

try:
    check_start(workflow, sys.argv)
    if workflow.is_main_process:
        check_unlock(Path.cwd(), sys.argv)
    read_set_resources(workflow.resource_settings)
    STUDY = resolve_subjects(parse_config(with_typed_entries(workflow, config)))
    check_imported(STUDY)
    check_pretrained(STUDY)
    honour(read_accepted(Path()))
except UserError as error:
    # A traceback through Snakemake would bury the one line that matters.
    sys.exit(str(error))


remember_options(workflow, sys.argv)
if workflow.is_main_process:
    named = forced(sys.argv)
    own = (*jobs.rules(), "capture_portion")
    capture_again(
        named
        and {name for name in own if workflow.modifier.modify_rulename(name) in named}
    )
take_absolute_targets(workflow)


container: image()


def say_changed_code(root=Path.cwd()):
    """Print one line if Snakemake is about to run jobs because their code changed."""
    changed, n_jobs = changed_code(workflow.dag, root)
    if changed:
        line = changed_code_line(changed, n_jobs, study_options(workflow))
        print(line, file=sys.stderr, flush=True)


# A dry run does not call `onstart`.
if workflow.is_main_process:
    atexit.register(lambda: workflow.dryrun and workflow.dag and say_changed_code())
# Resources that each job requests, and Snakemake's own memory in a cluster's jobs.
NEEDS = Needs(STUDY)
BESIDE_MEGABYTES = megabytes_beside(sys.argv)
CELL_FILES = cell_files(STUDY)
TABLE_FILES = [paths.TABLE.format(table=table) for table in tables.AGGREGATED]
FIGURE_FILES = [
    paths.FIGURE.format(figure=figure, format=form)
    for figure in figure_names(STUDY)
    for form in STUDY.report.figure_formats
]
REPORT_FILES = [paths.REPORT, *FIGURE_FILES]
# GPUs of a job that can use one, unless its subject asks for more.
GPUS = 0 if STUDY.compute.device == "cpu" else 1
# Jobs that share the capture of a split.
N_PORTIONS = STUDY.activations.chunks
# Recipes whose SAEs are made from others.
DERIVED = derived_recipes(STUDY)
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
    """Cache a function's signature, so that Snakemake does not inspect it again for each job."""
    function.__signature__ = signature(function)
    return function


@known
def gpus(wildcards):
    """Return the GPUs of a job that computes with a subject."""
    return n_gpus(STUDY, wildcards.subject)


def job_params(rule, *keys, **more):
    """Return a function of wildcards: the slice of these config keys that a job uses, as JSON.

    Without keys all are allowed. A builder of params that reads another key fails. It gets `more`
    in addition to the wildcards.
    """
    config = jobs.only(STUDY, keys) if keys else STUDY
    return known(
        lambda wildcards: jobs.rule_params(config, rule, {**dict(wildcards), **more})
    )


def job_code(rule, **more):
    """Return a function of wildcards: the hash that the job's code counts as.

    `more` is added to the wildcards. The function's attribute `of` is for `code_of`.
    """
    found = known(
        lambda wildcards: jobs.job_code(STUDY, rule, {**dict(wildcards), **more})
    )
    found.of = (rule, more)
    return found


def most(resource, otherwise):
    """Return the most that a job may request: `max_<resource>` of `default-resources`."""
    defaults = workflow.resource_settings.default_resources
    try:
        return default_limit(defaults, resource, otherwise)
    except UserError as error:
        sys.exit(str(error))


def doubled(amount, cap):
    """Return a function of wildcards: a request that doubles with each attempt, up to a cap.

    `amount` is a function of a job's wildcards.
    """
    return known(
        lambda wildcards, attempt: min(amount(wildcards) * 2 ** (attempt - 1), cap)
    )


def needed(rule, cells=lambda wildcards: [dict(wildcards)]):
    """Return memory, run time, disk and GPU memory of a rule's jobs.

    `cells` is a function of wildcards: the keys of all that a job makes.
    """
    first = lambda wildcards: NEEDS.asked(rule, cells(wildcards))
    memory = lambda wildcards: first(wildcards).megabytes + BESIDE_MEGABYTES
    minutes = lambda wildcards: first(wildcards).minutes
    return {
        "mem_mb": doubled(memory, most("mem_mb", 256_000)),
        "runtime": doubled(minutes, most("runtime", 7 * 24 * 60)),
        "disk_mb": known(lambda wildcards: first(wildcards).disk_megabytes),
        "gpu_mem_mb": known(lambda wildcards: first(wildcards).gpu_megabytes),
    }


def left_open(pattern, *names):
    """Return a function of wildcards: a pattern with all but these keys filled in."""
    opened = {name: f"{{{name}}}" for name in names}
    return known(lambda wildcards: pattern.format(**{**dict(wildcards), **opened}))


def any_of(names):
    """Return a regular expression that matches these names."""
    return "|".join(map(re.escape, names)) or NOTHING


def shared_folder(job):
    """Return the folder pattern of a job's SAEs, without the keys in which they differ."""
    left_open = {name: f"{{{name}}}" for name in ("site", "sae", "seed")}
    return paths.SAE.format(**{**left_open, **job.keys})


# The rules made from each rule, all as the command line names them.
MADE_OF = {}


def made_of(rule, job):
    """Apply Snakemake options that name a rule to a job's rule with another name, too."""
    named, name = map(workflow.modifier.modify_rulename, (rule, job.name))
    set_as_for(workflow.resource_settings, named, name)
    MADE_OF.setdefault(named, []).append(name)


def hive(keys):
    """Return keys as folders."""
    return str(Path(*(f"{name}={value}" for name, value in keys.items())))


def fixed(text):
    """Return a function of wildcards that returns a text as it is, with its braces."""
    return known(lambda wildcards: text)


def option(name, files):
    """Return `--name file` if there is a file, else an empty text."""
    return f"--{name} {files}" if files else ""


def given(name):
    """Return a function that gives the option for the input of this name, if a job has it."""
    return known(
        lambda wildcards, input: option(name.replace("_", "-"), getattr(input, name))
    )
