"""Figures of a subject that do not belong to a metric, one file each or per close pair."""
