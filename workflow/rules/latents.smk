rule collect_latents:
    input:
        sae=paths.SAE_CONFIG,
        model=model_recipe,
        weights=borrowed_weights,
        activations=captured("eval"),
        tokens=corpus_file(paths.CORPUS_MANIFEST, split="eval"),
    output:
        latents=paths.LATENTS,
        windows=paths.WINDOWS,
        coverage=paths.COVERAGE,
        firings=paths.FIRINGS,
    log:
        paths.LOG.format(rule="collect_latents", keys=paths.CELL_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="collect_latents", keys=paths.CELL_KEYS)
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        **needed("collect_latents"),
        gpu=gpus,
    params:
        config=job_params("collect_latents", *ACTIVATIONS, "latents"),
        code=job_code("collect_latents"),
        activations=paths.ACTIVATIONS_MANIFEST.replace("{split}", "eval"),
        model=given("model"),
    message:
        "Latents of {wildcards.sae} on {wildcards.subject}, {wildcards.variant}, {wildcards.site}"
    shell:
        "nullsae collect_latents --params {params.config:q} --sae {input.sae}"
        " --activations {params.activations} --tokens {input.tokens} {params.model}"
        " --latents {output.latents} --windows {output.windows} --coverage {output.coverage}"
        " --firings {output.firings} > {log} 2>&1"
