rule explain_latents:
    input:
        windows=paths.WINDOWS,
        tokenizer=corpus_file(paths.TOKENIZER_FILE),
        base=base_explanations,
    output:
        paths.EXPLANATIONS,
    log:
        paths.LOG.format(rule="explain_latents", keys=paths.EXPLAINER_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="explain_latents", keys=paths.EXPLAINER_KEYS)
    conda:
        "../../envs/nullsae.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=megabytes(1_000),
        runtime=minutes(30),
    params:
        config=job_params("explain_latents"),
        code=stages.code_hash("explain_latents"),
        base=lambda wildcards, input: option("base", input.base),
    message:
        "Explain by {wildcards.explainer}: {wildcards.variant}, {wildcards.site}"
    shell:
        "nullsae explain_latents --params {params.config:q} --windows {input.windows}"
        " --tokenizer {input.tokenizer} {params.base} --output {output} > {log} 2>&1"


rule score_latents:
    input:
        windows=paths.WINDOWS,
        explanations=paths.EXPLANATIONS,
    output:
        predictions=paths.PREDICTIONS,
        scores=paths.SCORES,
    log:
        paths.LOG.format(rule="score_latents", keys=paths.SCORER_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="score_latents", keys=paths.SCORER_KEYS)
    conda:
        "../../envs/nullsae.yaml"
    threads: 1
    resources:
        gpu=0,
        mem_mb=megabytes(1_000),
        runtime=minutes(30),
    params:
        config=job_params("score_latents"),
        code=stages.code_hash("score_latents"),
    message:
        "Score {wildcards.explainer} by {wildcards.scorer}: {wildcards.variant}, {wildcards.site}"
    shell:
        "nullsae score_latents --params {params.config:q} --windows {input.windows}"
        " --explanations {input.explanations} --predictions {output.predictions}"
        " --scores {output.scores} > {log} 2>&1"
