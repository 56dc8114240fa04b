"""Figures and the page of a study.

In: the tables of a study, the windows of the cells in the browser, the tokenizer. Out: figures as
files, and one HTML page that needs no network, and a script for its browser of latents alone.
Nothing here may decide anything: estimates, intervals and verdicts stand in tables.
"""
