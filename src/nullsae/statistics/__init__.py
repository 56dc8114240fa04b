"""Means with their uncertainty, contrasts against the trained variant, and verdicts.

In: values of a metric by draw, seed and document or latent. Out: estimates, intervals, p-values
and verdicts. This package reads no files and does not know where values come from.
"""
