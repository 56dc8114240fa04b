"""Figures and the page of a study.

In: the tables of a study, the windows of example cells, the tokenizer. Out: figures as files, and
one HTML page that needs neither network nor scripts. Nothing here may decide anything:
estimates, intervals and verdicts stand in tables.
"""
