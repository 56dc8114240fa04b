"""The study as its config says it: one module per key of `config.yaml`.

In: YAML as plain values. Out: checked, frozen models in which nothing invalid can be built. Base
classes of variants, architectures, metrics, explainers and scorers stand here too, so that a
config can name them. Nothing here may load torch or transformers, or know of files in `results/`.
"""
