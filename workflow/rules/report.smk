report: "../report/workflow.rst"


rule report:
    input:
        TABLE_FILES,
        paths.ANSWER,
        paths.PROVENANCE,
        CELL_FILES["windows"],
        [
            paths.TOKENIZER_FILE.format(corpus=corpus)
            for corpus in sorted(
                {subject.corpus for subject in STUDY.subjects.values()}
            )
        ],
    output:
        report(
            paths.REPORT,
            caption="../report/index.rst",
            category="Report",
            labels={"page": "the whole study"},
        ),
        [
            report(
                file,
                caption="../report/figure.rst",
                category="Figures",
                labels={
                    "figure": Path(file).stem,
                    "format": Path(file).suffix.removeprefix("."),
                },
            )
            for file in FIGURE_FILES
        ],
    log:
        paths.LOG.format(rule="report", keys="all"),
    benchmark:
        paths.BENCHMARK.format(rule="report", keys="all")
    conda:
        "../../envs/nullsae.yaml"
    threads: 1
    resources:
        **needed("report"),
        gpu=0,
    params:
        config=job_params("report"),
        code=job_code("report"),
    message:
        "Figures and report"
    shell:
        "nullsae report --params {params.config:q} > {log} 2>&1"
