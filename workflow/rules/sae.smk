if not STUDY.activations.shared_pass and not STUDY.activations.streams:

    rule train_sae:
        input:
            train=captured("sae_train"),
            heldout=captured("eval"),
            train_tokens=looked_up_tokens("sae_train"),
            eval_tokens=looked_up_tokens("eval"),
            given=given_sae,
        output:
            config=paths.SAE_CONFIG,
            weights=paths.SAE_WEIGHTS,
            history=paths.HISTORY,
        log:
            paths.LOG.format(rule="train_sae", keys=paths.CELL_KEYS),
        benchmark:
            paths.BENCHMARK.format(rule="train_sae", keys=paths.CELL_KEYS)
        wildcard_constraints:
            # Checkpoints are made by `take_checkpoint`, SAEs from another SAE by `derive_sae`.
            sae=any_of(name for name in STUDY.saes if name not in DERIVED),
        conda:
            "../../envs/nullsae.yaml"
        threads: STUDY.compute.threads
        resources:
            **needed("train_sae"),
            gpu=gpus,
        params:
            config=job_params(
                "train_sae", *ACTIVATIONS, "variants", "draws", "saes", "evaluation"
            ),
            code=job_code("train_sae"),
            train=paths.ACTIVATIONS_MANIFEST.replace("{split}", "sae_train"),
            heldout=paths.ACTIVATIONS_MANIFEST.replace("{split}", "eval"),
            train_tokens=given("train_tokens"),
            eval_tokens=given("eval_tokens"),
            given=given("given"),
            folder=paths.SAE,
            # Undeclared, so that Snakemake does not delete the checkpoints of a killed run.
            work=paths.WORK,
        message:
            "SAE {wildcards.sae} on {wildcards.subject}, {wildcards.variant}, {wildcards.site}"
        shell:
            "nullsae train_sae --params {params.config:q} --train-activations {params.train}"
            " --eval-activations {params.heldout} {params.train_tokens} {params.eval_tokens}"
            " {params.given}"
            " --output {params.folder} --work {params.work} > {log} 2>&1"


# One rule per job: which SAEs it makes depends on which exist. Complete ones also have a job, which
# Snakemake has no reason to run but can be forced to.
for job in shared_jobs(STUDY, whole_once(STUDY, workflow.is_main_process)):
    made_of("train_sae", job)

    rule:
        name:
            job.name
        input:
            **shared_inputs(job),
        output:
            # `update` keeps complete SAEs, which are not made again.
            config=update(job.files(paths.SAE_CONFIG)),
            weights=update(job.files(paths.SAE_WEIGHTS)),
            history=update(job.files(paths.HISTORY)),
        log:
            paths.LOG.format(rule="train_sae", keys=hive(job.keys)),
        benchmark:
            paths.BENCHMARK.format(rule="train_sae", keys=hive(job.keys))
        conda:
            "../../envs/nullsae.yaml"
        threads: STUDY.compute.threads
        resources:
            **needed("train_sae", cells_of(job)),
            gpu=n_gpus(STUDY, job.keys["subject"]),
        params:
            config=fixed(job.text),
            code=fixed(job.code),
            train=fixed(
                paths.ACTIVATIONS_MANIFEST.format(split="sae_train", **job.keys)
            ),
            heldout=fixed(paths.ACTIVATIONS_MANIFEST.format(split="eval", **job.keys)),
            others=fixed(shared_options(job)),
            folder=fixed(shared_folder(job)),
            # Undeclared, so that Snakemake does not delete the checkpoints of a killed run.
            work=paths.WORK,
        message:
            f"{len(job.params.cells)} SAEs on {', '.join(job.keys.values())}"
        shell:
            "nullsae train_sae --params {params.config:q} --train-activations {params.train}"
            " --eval-activations {params.heldout} {params.others}"
            " --output {params.folder:q} --work {params.work} > {log} 2>&1"


# SAEs made from another one without training: null dictionaries, and that SAE on other variants.
rule derive_sae:
    input:
        sae=source_sae(paths.SAE_CONFIG),
        weights=source_sae(paths.SAE_WEIGHTS),
        train=captured("sae_train"),
        heldout=captured("eval"),
    output:
        config=paths.SAE_CONFIG,
        weights=paths.SAE_WEIGHTS,
        history=paths.HISTORY,
    log:
        paths.LOG.format(rule="derive_sae", keys=paths.CELL_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="derive_sae", keys=paths.CELL_KEYS)
    wildcard_constraints:
        sae=any_of(DERIVED),
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        **needed("derive_sae"),
        gpu=gpus,
    params:
        config=job_params("derive_sae", *ACTIVATIONS, "variants", "draws", "saes"),
        code=job_code("derive_sae"),
        train=paths.ACTIVATIONS_MANIFEST.replace("{split}", "sae_train"),
        heldout=paths.ACTIVATIONS_MANIFEST.replace("{split}", "eval"),
        folder=paths.SAE,
    message:
        "SAE {wildcards.sae} on {wildcards.subject}, {wildcards.variant}, {wildcards.site}"
    shell:
        "nullsae derive_sae --params {params.config:q} --sae {input.sae}"
        " --train-activations {params.train} --eval-activations {params.heldout}"
        " --output {params.folder} > {log} 2>&1"
