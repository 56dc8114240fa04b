"""Figures and the page of a study.

In: the tables of a study, the windows of the cells in the browser, the tokenizer. Out: figures as
files, and one HTML page that needs no network; only its browser of latents needs a script. This
package decides nothing: estimates, intervals and verdicts come from tables.
"""
