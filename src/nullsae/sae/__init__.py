"""Sparse autoencoders: architecture, exact sparse gradients, training."""
