"""Figures of a subject that are no metric's, one file for each or for a close pair."""
