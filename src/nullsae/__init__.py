"""nullsae: placebo-controlled interpretability of sparse autoencoders."""

__version__ = "0.1.0"
