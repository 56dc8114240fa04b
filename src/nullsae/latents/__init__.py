"""Latents: statistics of all, windows of a sample, from one pass over the `eval` split."""
