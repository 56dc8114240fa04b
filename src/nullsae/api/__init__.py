"""The Python interface: what the verbs do, on objects in memory and on scores of any kind.

In: models, SAEs, texts and scores. Out: the same kinds of things; no file is left behind. Each
function is a few lines over the stages, and is reached as an attribute of `nullsae`.
"""
