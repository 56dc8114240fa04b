COLLECTING = collecting_rules(STUDY)

# If the config says so, or activations are not kept, one job collects for all SAEs of a model or
# site.
for job in COLLECTING:
    made_of("collect_latents", job)
    of_site = {"site": job.site} if job.site else {}
    keys = str(Path(paths.MODEL_KEYS, hive(of_site)))

    rule:
        name:
            job.name
        input:
            saes=files_of(job, paths.SAE_CONFIG),
            model=model_recipe,
            weights=borrowed_weights,
            activations=captured_for(job, "eval"),
            tokens=corpus_file(paths.CORPUS_MANIFEST, split="eval"),
        output:
            job.files(paths.LATENTS, paths.WINDOWS, paths.COVERAGE, paths.FIRINGS),
        log:
            paths.LOG.format(rule="collect_latents", keys=keys),
        benchmark:
            paths.BENCHMARK.format(rule="collect_latents", keys=keys)
        wildcard_constraints:
            subject=any_of(job.subjects),
            variant=any_of(job.variants),
        conda:
            "../../envs/nullsae.yaml"
        threads: STUDY.compute.threads
        resources:
            **needed("collect_latents", job.cells_of),
            gpu=gpus,
        params:
            config=job_params(
                *("collect_latents", *ACTIVATIONS, "variants", "draws", "saes"),
                "latents",
                **of_site,
            ),
            code=job_code("collect_latents"),
            activations=left_open(paths.ACTIVATIONS_MANIFEST.replace("{split}", "eval")),
            model=given("model"),
            sae=left_open(paths.SAE_CONFIG, "site", "sae", "seed"),
            latents=left_open(paths.LATENTS, "site", "sae", "seed"),
            windows=left_open(paths.WINDOWS, "site", "sae", "seed"),
            coverage=left_open(paths.COVERAGE, "site", "sae", "seed"),
            firings=left_open(paths.FIRINGS, "site", "sae", "seed"),
            # Undeclared copies, so that adding an SAE collects the latents of no other again.
            kept=paths.COLLECTED,
        message:
            "Latents of all SAEs of {wildcards.subject}, {wildcards.variant},"
            " draw {wildcards.draw}"
            + "".join(f", {site}" for site in of_site.values())
        shell:
            "nullsae collect_latents --params {params.config:q} --sae {params.sae:q}"
            " --activations {params.activations} --tokens {input.tokens} {params.model}"
            " --latents {params.latents:q} --windows {params.windows:q}"
            " --coverage {params.coverage:q} --firings {params.firings:q}"
            " --kept {params.kept} --code {params.code} > {log} 2>&1"


if not COLLECTING:

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
