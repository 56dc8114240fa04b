"""Dictionaries, trained in whole or in part, or computed."""
