"""nullsae: the placebo-controlled SAE experiment, from text to verdicts."""


configfile: "config.yaml"


include: "workflow/rules/common.smk"


rule all:
    default_target: True
    input:
        REPORT_FILES,
        TABLE_FILES,


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
