# Activations without a model.
ruleorder: sample_gaussian > cache_activations


# One of `activations.chunks` jobs that share a capture.
rule capture_portion:
    input:
        model=paths.RECIPE,
        weights=borrowed_weights,
        tokens=corpus_file(paths.CORPUS_MANIFEST),
    output:
        paths.ACTIVATIONS_PORTION,
    log:
        paths.LOG.format(rule="capture_portion", keys=paths.PORTION_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="capture_portion", keys=paths.PORTION_KEYS)
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        **needed("capture_portion"),
        gpu=gpus,
    params:
        config=job_params("cache_activations", *ACTIVATIONS, "saes"),
        code=job_code("cache_activations"),
        folder=paths.ACTIVATIONS,
    message:
        "Subject {wildcards.subject}, {wildcards.variant}: capture {wildcards.split},"
        " portion {wildcards.portion} of {wildcards.portions}"
    shell:
        "nullsae cache_activations --params {params.config:q} --split {wildcards.split}"
        " --model {input.model} --tokens {input.tokens} --output {params.folder}"
        " --portion {wildcards.portion}/{wildcards.portions} > {log} 2>&1"


rule cache_activations:
    input:
        model=paths.RECIPE,
        weights=borrowed_weights,
        tokens=corpus_file(paths.CORPUS_MANIFEST),
        # Without portions this job captures; with them it only joins their shards.
        portions=[
            paths.ACTIVATIONS_PORTION.replace("{portion}", str(index)).replace(
                "{portions}", str(N_PORTIONS)
            )
            for index in range(N_PORTIONS if N_PORTIONS > 1 else 0)
        ],
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
        **needed("cache_activations"),
        gpu=gpus if N_PORTIONS == 1 else 0,
    params:
        config=job_params("cache_activations", *ACTIVATIONS, "saes"),
        code=job_code("cache_activations"),
        folder=paths.ACTIVATIONS,
    message:
        "Subject {wildcards.subject}, {wildcards.variant}: capture {wildcards.split}"
    shell:
        "nullsae cache_activations --params {params.config:q} --split {wildcards.split}"
        " --model {input.model} --tokens {input.tokens} --output {params.folder} > {log} 2>&1"


rule sample_gaussian:
    input:
        fitted=fitted_activations,
        tokens=corpus_file(paths.CORPUS_MANIFEST),
    output:
        paths.ACTIVATIONS_MANIFEST,
    log:
        paths.LOG.format(rule="sample_gaussian", keys=paths.SPLIT_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="sample_gaussian", keys=paths.SPLIT_KEYS)
    wildcard_constraints:
        variant=SAMPLED,
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        **needed("sample_gaussian"),
        gpu=gpus,
    params:
        config=job_params("sample_gaussian", *ACTIVATIONS, "saes"),
        code=job_code("sample_gaussian"),
        folder=paths.ACTIVATIONS,
    message:
        "Subject {wildcards.subject}, {wildcards.variant}: sample {wildcards.split}"
    shell:
        "nullsae sample_gaussian --params {params.config:q} --split {wildcards.split}"
        " --fitted {input.fitted} --tokens {input.tokens} --output {params.folder} > {log} 2>&1"
