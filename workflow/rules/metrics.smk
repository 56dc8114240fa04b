# All SAEs of a model, and its floors: evaluating an SAE takes hardly longer than starting a job.
for job in evaluation_rules(STUDY):
    made_of("evaluate_sae", job)

    rule:
        name:
            job.name
        input:
            saes=files_of(job, paths.SAE_CONFIG),
            model=model_recipe,
            weights=borrowed_weights,
            train=captured_for(job, "sae_train"),
            heldout=captured_for(job, "eval"),
            train_tokens=corpus_file(paths.CORPUS_MANIFEST, split="sae_train"),
            eval_tokens=corpus_file(paths.CORPUS_MANIFEST, split="eval"),
        output:
            job.files(paths.RECONSTRUCTION, paths.DOCUMENTS, paths.GEOMETRY),
        log:
            paths.LOG.format(rule="evaluate_sae", keys=paths.MODEL_KEYS),
        benchmark:
            paths.BENCHMARK.format(rule="evaluate_sae", keys=paths.MODEL_KEYS)
        wildcard_constraints:
            subject=any_of(job.subjects),
            variant=any_of(job.variants),
        conda:
            "../../envs/nullsae.yaml"
        threads: STUDY.compute.threads
        resources:
            **needed("evaluate_sae", job.cells_of),
            gpu=gpus,
        params:
            config=job_params(
                *("evaluate_sae", *ACTIVATIONS, "variants", "draws", "saes"),
                "evaluation",
            ),
            code=job_code("evaluate_sae"),
            model=given("model"),
            sae=left_open(paths.SAE_CONFIG, "variant", "site", "sae", "seed"),
            train=left_open(
                paths.ACTIVATIONS_MANIFEST.replace("{split}", "sae_train"), "variant"
            ),
            heldout=left_open(
                paths.ACTIVATIONS_MANIFEST.replace("{split}", "eval"), "variant"
            ),
            metrics=left_open(paths.METRICS, "variant", "site", "sae", "seed"),
            # Undeclared copies, so that adding an SAE evaluates no other again.
            kept=paths.EVALUATED,
        message:
            "Evaluate SAEs of {wildcards.subject}, {wildcards.variant}, draw {wildcards.draw}"
        shell:
            "nullsae evaluate_sae --params {params.config:q} --sae {params.sae:q} {params.model}"
            " --train-activations {params.train:q} --eval-activations {params.heldout:q}"
            " --train-tokens {input.train_tokens} --eval-tokens {input.eval_tokens}"
            " --output {params.metrics:q} --kept {params.kept} --code {params.code}"
            " > {log} 2>&1"


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
        gpu=gpus,
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
            "subjects",
            "variants",
            "draws",
            "saes",
            "evaluation",
        ),
        code=job_code("match_dictionaries"),
        # One pattern for all: a shell line has no room for hundreds of paths.
        sae=left_open(paths.SAE_CONFIG, "variant", "draw", "seed"),
    message:
        "Match the SAEs {wildcards.sae} of {wildcards.subject}, {wildcards.site}"
    shell:
        "nullsae match_dictionaries --params {params.config:q} --sae {params.sae:q}"
        " --output {output} > {log} 2>&1"
