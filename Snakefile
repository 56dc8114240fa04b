"""nullsae: the placebo-controlled SAE experiment, from text to verdicts."""

from nullsae.core.memory import collect_rarely

collect_rarely()  # before other imports, which make most of the objects

from nullsae.jobs.entry import config_files, guard_shells

for config_file in config_files(workflow):

    configfile: config_file


include: "workflow/rules/common.smk"
include: "workflow/rules/inputs.smk"


rule all:
    default_target: True
    input:
        REPORT_FILES,
        TABLE_FILES,


# For people and tools; no job reads it. It is written under Snakemake's lock and never in a dry
# run, so that it does not change under a running study.
onstart:
    try:
        check_places(workflow.dag)
    except UserError as error:
        sys.exit(str(error))
    write_text(
        paths.RUN_CONFIG,
        yaml.safe_dump(STUDY.model_dump(mode="json"), sort_keys=False),
        private=True,
    )
    # Hashes the code of all jobs that are about to run, which the record needs.
    say_changed_code()
    write_record(Path())
    # For `nullsae watch`, next to Snakemake's own log.
    record_events(
        workflow,
        NEEDS.seconds,
        replies=STUDY.llm.cache,
        max_cost_usd=STUDY.llm.max_cost_usd,
    )


include: "workflow/rules/corpus.smk"
include: "workflow/rules/subjects.smk"
include: "workflow/rules/activations.smk"
include: "workflow/rules/sae.smk"
include: "workflow/rules/checkpoints.smk"
include: "workflow/rules/metrics.smk"
include: "workflow/rules/latents.smk"
include: "workflow/rules/autointerp.smk"
include: "workflow/rules/tables.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/toy.smk"


guard_shells(workflow, shell)
mean_all(workflow, MADE_OF)
