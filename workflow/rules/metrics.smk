rule evaluate_sae:
    input:
        sae=paths.SAE_CONFIG,
        model=model_recipe,
        weights=borrowed_weights,
        train=captured("sae_train"),
        heldout=captured("eval"),
        train_tokens=corpus_file(paths.CORPUS_MANIFEST, split="sae_train"),
        eval_tokens=corpus_file(paths.CORPUS_MANIFEST, split="eval"),
    output:
        reconstruction=paths.RECONSTRUCTION,
        documents=paths.DOCUMENTS,
        geometry=paths.GEOMETRY,
    log:
        paths.LOG.format(rule="evaluate_sae", keys=paths.CELL_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="evaluate_sae", keys=paths.CELL_KEYS)
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        **needed("evaluate_sae"),
        gpu=GPUS,
    params:
        config=job_params("evaluate_sae", *ACTIVATIONS, "evaluation"),
        code=job_code("evaluate_sae"),
        model=given("model"),
        train=paths.ACTIVATIONS_MANIFEST.replace("{split}", "sae_train"),
        heldout=paths.ACTIVATIONS_MANIFEST.replace("{split}", "eval"),
    message:
        "Evaluate {wildcards.sae} on {wildcards.subject}, {wildcards.variant}, {wildcards.site}"
    shell:
        "nullsae evaluate_sae --params {params.config:q} --sae {input.sae} {params.model}"
        " --train-activations {params.train} --eval-activations {params.heldout}"
        " --train-tokens {input.train_tokens} --eval-tokens {input.eval_tokens}"
        " --reconstruction {output.reconstruction} --documents {output.documents}"
        " --geometry {output.geometry} > {log} 2>&1"


rule cross_evaluate:
    input:
        sae=paths.SAE_CONFIG,
        activations=captured_of_all_variants,
        tokens=corpus_file(paths.CORPUS_MANIFEST, split="eval"),
    output:
        paths.CROSS_EVALUATION,
    log:
        paths.LOG.format(rule="cross_evaluate", keys=paths.CELL_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="cross_evaluate", keys=paths.CELL_KEYS)
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        **needed("cross_evaluate"),
        gpu=GPUS,
    params:
        config=job_params("cross_evaluate", *ACTIVATIONS, "variants", "evaluation"),
        code=job_code("cross_evaluate"),
        activations=lambda wildcards: " ".join(
            f"--activations {paths.ACTIVATIONS_MANIFEST.format(split='eval', **cell)}"
            for cell in cross_cells(STUDY, dict(wildcards))
        ),
    message:
        "Cross-evaluate {wildcards.sae} of {wildcards.variant}, {wildcards.site}"
    shell:
        "nullsae cross_evaluate --params {params.config:q} --sae {input.sae}"
        " {params.activations} --tokens {input.tokens} --output {output} > {log} 2>&1"


rule match_dictionaries:
    input:
        saes_of_recipe,
    output:
        paths.OVERLAP,
    log:
        paths.LOG.format(rule="match_dictionaries", keys=paths.RECIPE_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="match_dictionaries", keys=paths.RECIPE_KEYS)
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        **needed("match_dictionaries"),
        gpu=0,
    params:
        config=job_params(
            "match_dictionaries",
            "seed",
            "compute",
            "variants",
            "draws",
            "saes",
            "evaluation",
        ),
        code=job_code("match_dictionaries"),
        # One path for all of them: a shell line has no room for hundreds.
        sae=lambda wildcards: paths.SAE_CONFIG.format(
            **wildcards, variant="{variant}", draw="{draw}", seed="{seed}"
        ),
    message:
        "Match the SAEs {wildcards.sae} of {wildcards.subject}, {wildcards.site}"
    shell:
        "nullsae match_dictionaries --params {params.config:q} --sae {params.sae:q}"
        " --output {output} > {log} 2>&1"
