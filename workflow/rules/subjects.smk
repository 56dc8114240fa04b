# Training a subject here makes both of its reference variants; positive controls are trained, too.
ruleorder: train_subject > retrain_subject > randomize_model


rule train_subject:
    input:
        train_tokens=corpus_file(paths.CORPUS_MANIFEST, split="sae_train"),
        eval_tokens=corpus_file(paths.CORPUS_MANIFEST, split="eval"),
    output:
        trained=expand(
            [paths.RECIPE, paths.GATES, paths.MODEL_TABLE],
            variant="trained",
            draw=0,
            allow_missing=True,
        ),
        step0=expand(
            [paths.RECIPE, paths.GATES, paths.MODEL_TABLE],
            variant="step0",
            draw=0,
            allow_missing=True,
        ),
    log:
        paths.LOG.format(rule="train_subject", keys="subject={subject}"),
    benchmark:
        paths.BENCHMARK.format(rule="train_subject", keys="subject={subject}")
    wildcard_constraints:
        subject="|".join(trained_here(STUDY)) or NOTHING,
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        **needed("train_subject"),
        gpu=gpus,
    params:
        config=job_params("train_subject", "seed", "compute", "subjects"),
        code=job_code("train_subject"),
        trained=expand(paths.MODEL, variant="trained", draw=0, allow_missing=True),
        step0=expand(paths.MODEL, variant="step0", draw=0, allow_missing=True),
        # Undeclared, so that Snakemake does not delete the checkpoint of a killed run.
        work=paths.WORK,
    message:
        "Subject {wildcards.subject}: train, keep step 0"
    shell:
        "nullsae train_subject --params {params.config:q}"
        " --train-tokens {input.train_tokens} --eval-tokens {input.eval_tokens}"
        " --trained {params.trained} --step0 {params.step0} --work {params.work} > {log} 2>&1"


# A separate job, so that on two cores it runs concurrently with `train_subject`.
rule retrain_subject:
    input:
        train_tokens=read_in_training,
        trained=compared_recipe,
        eval_tokens=corpus_file(paths.CORPUS_MANIFEST, split="eval"),
    output:
        recipe=paths.RECIPE,
        gates=paths.GATES,
        table=paths.MODEL_TABLE,
    log:
        paths.LOG.format(rule="retrain_subject", keys=paths.MODEL_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="retrain_subject", keys=paths.MODEL_KEYS)
    wildcard_constraints:
        variant=any_of(filter(is_positive_control, VARIANTS)),
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        **needed("retrain_subject"),
        gpu=gpus,
    params:
        config=job_params("retrain_subject", "seed", "compute", "subjects"),
        code=job_code("retrain_subject"),
        train_tokens=given("train_tokens"),
        trained=given("trained"),
        folder=paths.MODEL,
        # Undeclared, as in `train_subject`.
        work=paths.WORK,
    message:
        "Subject {wildcards.subject}: another training, {wildcards.variant}, draw {wildcards.draw}"
    shell:
        "nullsae retrain_subject --params {params.config:q}"
        " {params.train_tokens} {params.trained} --eval-tokens {input.eval_tokens}"
        " --output {params.folder} --work {params.work} > {log} 2>&1"


rule randomize_model:
    input:
        trained=trained_recipe,
        eval_tokens=corpus_file(paths.CORPUS_MANIFEST, split="eval"),
    output:
        recipe=paths.RECIPE,
        gates=paths.GATES,
        table=paths.MODEL_TABLE,
    log:
        paths.LOG.format(rule="randomize_model", keys=paths.MODEL_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="randomize_model", keys=paths.MODEL_KEYS)
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        **needed("randomize_model"),
        gpu=gpus,
    params:
        config=job_params(
            "randomize_model", "seed", "compute", "subjects", "randomization"
        ),
        code=job_code("randomize_model"),
        trained=given("trained"),
        folder=paths.MODEL,
    message:
        "Subject {wildcards.subject}: make {wildcards.variant}, draw {wildcards.draw}, run gates"
    shell:
        "nullsae randomize_model --params {params.config:q} {params.trained}"
        " --eval-tokens {input.eval_tokens} --output {params.folder} > {log} 2>&1"
