"""Collected latents in the formats of delphi and Neuronpedia.

In: a cell's folder of latents and the tokens of the `eval` split. Out: files that those tools
read. This package computes no statistics of its own.
"""
