# Activations without a model.
ruleorder: sample_gaussian > cache_activations


rule cache_activations:
    input:
        model=paths.RECIPE,
        tokens=corpus_file(paths.CORPUS_MANIFEST),
    output:
        paths.ACTIVATIONS_MANIFEST,
    log:
        paths.LOG.format(rule="cache_activations", keys=paths.SPLIT_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="cache_activations", keys=paths.SPLIT_KEYS)
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        gpu=GPUS,
        mem_mb=megabytes(8_000),
        runtime=minutes(240),
    params:
        config=job_params("cache_activations"),
        code=stages.code_hash("cache_activations"),
        folder=paths.ACTIVATIONS,
    message:
        "Subject {wildcards.subject}, {wildcards.variant}: capture {wildcards.split}"
    shell:
        "nullsae cache_activations --params {params.config:q} --split {wildcards.split}"
        " --model {input.model} --tokens {input.tokens} --output {params.folder} > {log} 2>&1"


rule sample_gaussian:
    input:
        fitted=paths.ACTIVATIONS_MANIFEST.format(
            subject="{subject}", variant="trained", draw=0, split="sae_train"
        ),
        tokens=corpus_file(paths.CORPUS_MANIFEST),
    output:
        paths.ACTIVATIONS_MANIFEST,
    log:
        paths.LOG.format(rule="sample_gaussian", keys=paths.SPLIT_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="sample_gaussian", keys=paths.SPLIT_KEYS)
    wildcard_constraints:
        variant="gaussian",
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        gpu=GPUS,
        mem_mb=megabytes(8_000),
        runtime=minutes(60),
    params:
        config=job_params("sample_gaussian"),
        code=stages.code_hash("sample_gaussian"),
        folder=paths.ACTIVATIONS,
    message:
        "Subject {wildcards.subject}, {wildcards.variant}: sample {wildcards.split}"
    shell:
        "nullsae sample_gaussian --params {params.config:q} --split {wildcards.split}"
        " --fitted {input.fitted} --tokens {input.tokens} --output {params.folder} > {log} 2>&1"
