rule aggregate:
    input:
        # The shell line has no room for thousands of paths: the verb finds the same files from the
        # config in its params.
        [files for table, files in CELL_FILES.items() if table in tables.AGGREGATED],
    output:
        [
            report(
                file,
                caption="../report/table.rst",
                category="Tables",
                labels={"table": Path(file).stem},
            )
            for file in TABLE_FILES
        ],
        answer=paths.ANSWER,
        # Not in results/tables: it says which machines made them.
        provenance=paths.PROVENANCE,
    log:
        paths.LOG.format(rule="aggregate", keys="all"),
    benchmark:
        paths.BENCHMARK.format(rule="aggregate", keys="all")
    conda:
        "../../envs/nullsae.yaml"
    threads: 1
    resources:
        **needed("aggregate"),
        gpu=0,
    params:
        config=job_params("aggregate"),
        code=job_code("aggregate"),
    message:
        "Tables, contrasts, verdicts"
    shell:
        "nullsae aggregate --params {params.config:q} > {log} 2>&1"
