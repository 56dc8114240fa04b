"""Figures and the one-page report of a study."""
