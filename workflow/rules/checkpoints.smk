# A checkpoint is not trained again: its files are copied out of the finished training.


rule take_checkpoint:
    input:
        paths.SAE_CONFIG,
    output:
        config=paths.TAKEN_CONFIG,
        weights=paths.TAKEN_WEIGHTS,
        history=paths.TAKEN_HISTORY,
    log:
        paths.LOG.format(rule="take_checkpoint", keys=paths.CHECKPOINT_KEYS),
    benchmark:
        paths.BENCHMARK.format(rule="take_checkpoint", keys=paths.CHECKPOINT_KEYS)
    wildcard_constraints:
        sae="[^/@]+",
        share="[^/@]+",
    localrule: True
    conda:
        "../../envs/nullsae.yaml"
    threads: 1
    resources:
        **needed("take_checkpoint"),
        gpu=0,
    params:
        code=job_code("take_checkpoint"),
        folder=paths.TAKEN,
    message:
        "SAE {wildcards.sae} at {wildcards.share} of its training: {wildcards.variant},"
        " {wildcards.site}"
    shell:
        "nullsae take_checkpoint --sae {input} --share {wildcards.share}"
        " --output {params.folder} > {log} 2>&1"
