"""Subjects: the transformers under study, trained and randomized."""
