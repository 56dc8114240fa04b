"""Dictionaries that are fully trained, partly trained, or computed."""
