"""Explainers, one class per file. `Explainer` documents what a class may define."""
