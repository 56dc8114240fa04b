"""Toy models of superposition (section 4 of the paper).

In: the config's section `toy`. Out: sweeps of small SAEs on synthetic or word vectors and on their
controls, a table, figures and a page of their own. Nothing here may know of the transformers
under study, or of their tables.
"""
