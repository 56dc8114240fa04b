"""Scorers: one class in one file each. `Scorer` says what a class can answer."""
