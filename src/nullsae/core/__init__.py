"""Tools that know nothing of the study.

In: paths, bytes, numbers. Out: atomic files with checksums, seeded random generators, exact
moments, training checkpoints, progress, provenance, errors for users, registries of classes found
by scanning. Nothing here may know what a subject, an SAE or a config is.
"""
