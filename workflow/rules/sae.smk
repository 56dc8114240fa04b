rule train_sae:
    input:
        train=captured("sae_train"),
        heldout=captured("eval"),
        train_tokens=looked_up_tokens("sae_train"),
        eval_tokens=looked_up_tokens("eval"),
    output:
        config=paths.SAE_CONFIG,
        weights=paths.SAE_WEIGHTS,
        history=paths.HISTORY,
    log:
        paths.LOG.format(rule="train_sae", keys=paths.CELL_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="train_sae", keys=paths.CELL_KEYS)
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        gpu=GPUS,
        mem_mb=megabytes(8_000),
        runtime=minutes(240),
    params:
        config=job_params("train_sae"),
        code=stages.code_hash("train_sae"),
        train=paths.ACTIVATIONS_MANIFEST.replace("{split}", "sae_train"),
        heldout=paths.ACTIVATIONS_MANIFEST.replace("{split}", "eval"),
        train_tokens=lambda wildcards, input: option("train-tokens", input.train_tokens),
        eval_tokens=lambda wildcards, input: option("eval-tokens", input.eval_tokens),
        folder=paths.SAE,
        # Undeclared, so that Snakemake does not delete the checkpoints of a killed run.
        work=paths.WORK,
    message:
        "SAE {wildcards.sae} on {wildcards.subject}, {wildcards.variant}, {wildcards.site}"
    shell:
        "nullsae train_sae --params {params.config:q} --train-activations {params.train}"
        " --eval-activations {params.heldout} {params.train_tokens} {params.eval_tokens}"
        " --output {params.folder} --work {params.work} > {log} 2>&1"
