"""Tools that know nothing of the study.

In: paths, bytes, numbers. Out: atomic files with checksums, seeded random generators, exact
moments, training checkpoints, progress, who made a file, errors for people, registries of things
found by scanning. Nothing here may know what a subject, an SAE or a config is.
"""
