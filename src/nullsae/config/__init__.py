"""The study as its config says it: one module per key of `config.yaml`."""
