"""Subjects: the transformers under study, and their null variants.

In: a model from the hub, a GGUF file or our own training, and token contexts. Out: a folder of
weights for each variant and draw, with the recipe that made it and the gates that it passed; hooks
that return a block's activations. This package knows nothing about SAEs or later measurements.
"""
