"""Scorers, one class per file. `Scorer` documents what a class may define."""
