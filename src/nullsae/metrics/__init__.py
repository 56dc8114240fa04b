"""Reconstruction, fidelity and their floors, from exact sums over the whole split."""
