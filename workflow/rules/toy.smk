# Toy models of superposition, made only by `snakemake toy`.
from nullsae.config.toy import Toy, toy_cells, toy_figures

TOY = STUDY.toy or Toy()
TOY_SWEEPS = [paths.TOY_SWEEP.format(**cell) for cell in toy_cells(TOY)]
TOY_FIGURES = [
    paths.FIGURE.format(figure=figure, format=form)
    for figure in toy_figures(TOY)
    for form in STUDY.report.figure_formats
]


rule toy:
    input:
        paths.TOY_PAGE,
        paths.TOY_TABLE,
        TOY_FIGURES,


rule train_toy:
    output:
        paths.TOY_SWEEP,
    log:
        paths.LOG.format(rule="train_toy", keys=paths.TOY_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="train_toy", keys=paths.TOY_KEYS)
    wildcard_constraints:
        source="[^/]+",
        data="[^/]+",
        expansion=r"\d+",
    conda:
        "../../envs/nullsae.yaml"
    threads: STUDY.compute.threads
    resources:
        **needed("train_toy"),
        gpu=GPUS,
    params:
        config=job_params("train_toy", "seed", "compute", "toy"),
        code=job_code("train_toy"),
    message:
        "Toy SAEs on {wildcards.data} of {wildcards.source}, {wildcards.expansion} times as wide,"
        " seed {wildcards.seed}"
    shell:
        "nullsae train_toy --params {params.config:q} --output {output} > {log} 2>&1"


rule report_toy:
    input:
        TOY_SWEEPS,
    output:
        page=paths.TOY_PAGE,
        table=paths.TOY_TABLE,
        figures=TOY_FIGURES,
    log:
        paths.LOG.format(rule="report_toy", keys="all"),
    benchmark:
        paths.BENCHMARK.format(rule="report_toy", keys="all")
    conda:
        "../../envs/nullsae.yaml"
    threads: 1
    resources:
        **needed("report_toy"),
        gpu=0,
    params:
        config=job_params("report_toy", "toy", "report"),
        code=job_code("report_toy"),
    message:
        "Figures and page of the toy models"
    shell:
        "nullsae report_toy --params {params.config:q} > {log} 2>&1"
