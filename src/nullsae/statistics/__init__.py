"""Means with their uncertainty, contrasts against the trained variant, and verdicts.

In: values of a metric by draw, seed and document or latent. Out: estimates, intervals, p-values
and verdicts. Nothing here may read files or know where a value came from.
"""
