"""The Python interface: what the verbs do, on objects in memory and on scores of any kind.

In: models, SAEs, texts and scores. Out: the same kinds of things; no files remain. Each function is
a thin layer over the stages, and is available as an attribute of `nullsae`.
"""
