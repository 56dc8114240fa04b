rule prepare_corpus:
    output:
        expand(
            [paths.CORPUS_MANIFEST, paths.CORPUS_TOKENS],
            split=["sae_train", "eval"],
            allow_missing=True,
        ),
        paths.TOKENIZER_FILE,
    log:
        paths.LOG.format(rule="prepare_corpus", keys="corpus={corpus}"),
    benchmark:
        paths.BENCHMARK.format(rule="prepare_corpus", keys="corpus={corpus}")
    conda:
        "../../envs/nullsae.yaml"
    threads: 2
    resources:
        **needed("prepare_corpus"),
    params:
        config=job_params("prepare_corpus", "corpora"),
        code=job_code("prepare_corpus"),
    message:
        "Corpus {wildcards.corpus}: split, tokenize, pack"
    shell:
        "nullsae prepare_corpus --name {wildcards.corpus:q} --params {params.config:q} > {log} 2>&1"
