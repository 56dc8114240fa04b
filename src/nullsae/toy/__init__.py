"""Toy models of superposition (section 4 of the paper).

In: the config's section `toy`. Out: sweeps of small SAEs on synthetic or word vectors and on their
controls, with their own table, figures and page. This package does not know the transformers under
study, or their tables.
"""
