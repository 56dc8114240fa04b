# Explainers and scorers that use a language model have separate jobs, so that no answer is lost
# with another's failure. All others take seconds: one job runs them for all SAEs of a model.
PAID_PAIRS = [pair for pair in STUDY.scored_pairs() if not is_free(STUDY, *pair)]
FREE = free_rules(STUDY)
if FREE:
    # A scorer may judge some explanations by a formula, and others by a language model.
    workflow.ruleorder(*(job.name for job in FREE), "score_latents")


for job in FREE:
    made_of("explain_and_score", job)

    rule:
        name:
            job.name
        input:
            latents=files_of(job, paths.WINDOWS, paths.LATENTS, paths.COVERAGE),
            tokenizer=corpus_file(paths.TOKENIZER_FILE),
            written=written_explanations(job),
        output:
            job.files(paths.EXPLANATIONS, paths.PREDICTIONS, paths.SCORES),
        log:
            paths.LOG.format(rule="explain_and_score", keys=keys_of_free(job)),
        benchmark:
            paths.BENCHMARK.format(rule="explain_and_score", keys=keys_of_free(job))
        wildcard_constraints:
            subject=any_of(job.subjects),
            variant=any_of(job.variants),
        conda:
            "../../envs/nullsae.yaml"
        threads: 1
        resources:
            **needed("explain_and_score", job.cells_of),
            gpu=0,
        params:
            config=job_params(
                *(
                    "explain_and_score",
                    "seed",
                    "subjects",
                    "variants",
                    "draws",
                    "saes",
                ),
                *("explainers", "scorers"),
                writer=job.writer,
            ),
            code=job_code("explain_and_score", writer=job.writer),
            windows=left_open(paths.WINDOWS, "site", "sae", "seed"),
            explanations=left_open(
                paths.EXPLANATIONS, "site", "sae", "seed", "explainer"
            ),
            scores=left_open(
                paths.SCORES_FOLDER, "site", "sae", "seed", "explainer", "scorer"
            ),
        message:
            "Explain and score without endpoints: {wildcards.subject}, {wildcards.variant},"
            " draw {wildcards.draw}"
        shell:
            "nullsae explain_and_score --params {params.config:q} --windows {params.windows:q}"
            " --tokenizer {input.tokenizer} --explanations {params.explanations:q}"
            " --scores {params.scores:q} > {log} 2>&1"


# Some latents of an SAE, if `autointerp.latents_per_job` splits them into jobs.
rule explain_shard:
    input:
        windows=paths.WINDOWS,
        tokenizer=corpus_file(paths.TOKENIZER_FILE),
    output:
        paths.EXPLANATIONS_SHARD,
    log:
        paths.LOG.format(rule="explain_shard", keys=paths.SHARD_OF_EXPLAINER),
    benchmark:
        paths.BENCHMARK.format(rule="explain_shard", keys=paths.SHARD_OF_EXPLAINER)
    conda:
        "../../envs/nullsae.yaml"
    threads: 1
    resources:
        **needed("explain_shard"),
        gpu=0,
        llm=1,
    params:
        config=job_params("explain_latents", "seed", "explainers"),
        code=job_code("explain_latents"),
        ranks=ranks_of_shard,
        llm=how_to_ask,
        costs=paths.ASKED.format(rule="explain_shard", keys=paths.SHARD_OF_EXPLAINER),
    message:
        "Explain by {wildcards.explainer}, latents {params.ranks}: {wildcards.variant},"
        " {wildcards.site}"
    shell:
        "nullsae explain_latents --params {params.config:q} --windows {input.windows}"
        " --tokenizer {input.tokenizer} --ranks {params.ranks} --output {output}"
        " --llm {params.llm:q} --costs {params.costs} > {log} 2>&1"


rule explain_latents:
    input:
        windows=paths.WINDOWS,
        tokenizer=corpus_file(paths.TOKENIZER_FILE),
        base=base_explanations,
        shards=explained_shards,
    output:
        paths.EXPLANATIONS,
    log:
        paths.LOG.format(rule="explain_latents", keys=paths.EXPLAINER_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="explain_latents", keys=paths.EXPLAINER_KEYS)
    wildcard_constraints:
        explainer=any_of(
            name for name in STUDY.explainers if STUDY.explainers[name].endpoint
        ),
    conda:
        "../../envs/nullsae.yaml"
    threads: 1
    resources:
        **needed("explain_latents"),
        gpu=0,
        llm=asks_a_model("explain_latents"),
    params:
        config=job_params("explain_latents", "seed", "explainers"),
        code=job_code("explain_latents"),
        base=given("base"),
        shards=shard_options,
        llm=how_to_ask,
        costs=paths.ASKED.format(rule="explain_latents", keys=paths.EXPLAINER_KEYS),
    message:
        "Explain by {wildcards.explainer}: {wildcards.variant}, {wildcards.site}"
    shell:
        "nullsae explain_latents --params {params.config:q} --windows {input.windows}"
        " --tokenizer {input.tokenizer} {params.base} {params.shards} --output {output}"
        " --llm {params.llm:q} --costs {params.costs} > {log} 2>&1"


rule prepare_judge:
    output:
        paths.JUDGE_MANIFEST,
    log:
        paths.LOG.format(rule="prepare_judge", keys="scorer={scorer}"),
    benchmark:
        paths.BENCHMARK.format(rule="prepare_judge", keys="scorer={scorer}")
    conda:
        "../../envs/nullsae.yaml"
    threads: 1
    resources:
        **needed("prepare_judge"),
        gpu=0,
    params:
        config=job_params("prepare_judge", "scorers"),
        code=job_code("prepare_judge"),
    message:
        "Prepare the model of scorer {wildcards.scorer}"
    shell:
        "nullsae prepare_judge --params {params.config:q} --output {output} > {log} 2>&1"


rule score_shard:
    input:
        windows=paths.WINDOWS,
        tokenizer=corpus_file(paths.TOKENIZER_FILE),
        explanations=judged_explanations,
        judge=judge_in_process,
    output:
        predictions=paths.PREDICTIONS_SHARD,
        scores=paths.SCORES_SHARD,
    log:
        paths.LOG.format(rule="score_shard", keys=paths.SHARD_OF_SCORER),
    benchmark:
        paths.BENCHMARK.format(rule="score_shard", keys=paths.SHARD_OF_SCORER)
    conda:
        "../../envs/nullsae.yaml"
    threads: judging_threads
    resources:
        **needed("score_shard"),
        gpu=judging_gpus,
        llm=asks_a_model("score_latents"),
    params:
        config=job_params("score_latents", "seed", "compute", "explainers", "scorers"),
        code=job_code("score_latents"),
        explanations=given("explanations"),
        judge=given("judge"),
        ranks=ranks_of_shard,
        llm=how_to_ask,
        costs=paths.ASKED.format(rule="score_shard", keys=paths.SHARD_OF_SCORER),
    message:
        "Score {wildcards.explainer} by {wildcards.scorer}, latents {params.ranks}:"
        " {wildcards.variant}, {wildcards.site}"
    shell:
        "nullsae score_latents --params {params.config:q} --windows {input.windows}"
        " --tokenizer {input.tokenizer} {params.explanations} {params.judge}"
        " --ranks {params.ranks}"
        " --predictions {output.predictions} --scores {output.scores}"
        " --llm {params.llm:q} --costs {params.costs} > {log} 2>&1"


rule score_latents:
    input:
        windows=paths.WINDOWS,
        tokenizer=corpus_file(paths.TOKENIZER_FILE),
        explanations=judged_explanations,
        judge=judge_in_process,
        shards=scored_shards,
    output:
        predictions=paths.PREDICTIONS,
        scores=paths.SCORES,
    log:
        paths.LOG.format(rule="score_latents", keys=paths.SCORER_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="score_latents", keys=paths.SCORER_KEYS)
    wildcard_constraints:
        explainer=any_of(dict.fromkeys(explainer for explainer, _ in PAID_PAIRS)),
        scorer=any_of(dict.fromkeys(scorer for _, scorer in PAID_PAIRS)),
    conda:
        "../../envs/nullsae.yaml"
    threads: judging_threads
    resources:
        **needed("score_latents"),
        gpu=judging_gpus,
        llm=asks_a_model("score_latents"),
    params:
        config=job_params("score_latents", "seed", "compute", "explainers", "scorers"),
        code=job_code("score_latents"),
        explanations=given("explanations"),
        judge=given("judge"),
        shards=shard_options,
        llm=how_to_ask,
        costs=paths.ASKED.format(rule="score_latents", keys=paths.SCORER_KEYS),
    message:
        "Score {wildcards.explainer} by {wildcards.scorer}: {wildcards.variant}, {wildcards.site}"
    shell:
        "nullsae score_latents --params {params.config:q} --windows {input.windows}"
        " --tokenizer {input.tokenizer} {params.explanations} {params.judge}"
        " {params.shards}"
        " --predictions {output.predictions} --scores {output.scores}"
        " --llm {params.llm:q} --costs {params.costs} > {log} 2>&1"
