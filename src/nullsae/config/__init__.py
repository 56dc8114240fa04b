"""The study as its config describes it: one module per key of `config.yaml`.

In: YAML as plain values. Out: checked, frozen models that cannot hold an invalid study. Base
classes of variants, architectures, metrics, explainers and scorers are here too, so that a config
can name them. Nothing here may load torch or transformers, or know of files in `results/`.
"""
