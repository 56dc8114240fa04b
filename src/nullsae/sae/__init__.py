"""Sparse autoencoders: architectures, exact sparse gradients, training, null dictionaries.

In: a stream of activations [n, d_model] and a recipe. Out: weights, config and training curve of
an SAE, in our format or another tool's. This package knows variants only by name, and nothing about
explanations.
"""
