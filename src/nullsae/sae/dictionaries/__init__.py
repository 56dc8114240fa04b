"""Dictionaries that training makes, in whole or in part, and those that are computed."""
