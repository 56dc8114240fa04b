"""Subjects: the transformers under study, and their null variants.

In: a model from the hub, a GGUF file or our own training, and token contexts. Out: a folder of
weights for each variant and draw, with the recipe that made it and the gates that it passed; hooks
that hand out a block's activations. Nothing here may know of SAEs or of what is measured later.
"""
