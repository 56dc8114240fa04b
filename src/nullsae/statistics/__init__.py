"""Means with their uncertainty, contrasts against the trained variant, and verdicts."""
