rule aggregate:
    input:
        # Not named in the shell line, which has no room for thousands of paths: the verb finds
        # the same files by the merged config.
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
        config=job_params("aggregate", "seed", "statistics"),
        code=job_code("aggregate"),
        run_config=paths.RUN_CONFIG,
    message:
        "Tables, contrasts, verdicts"
    shell:
        "nullsae aggregate --params {params.config:q} --run-config {params.run_config}"
        " > {log} 2>&1"
