"""Explainers: one class in one file each. `Explainer` says what a class can answer."""
