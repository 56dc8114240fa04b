"""Explanations and scores that were made elsewhere: one file for each way in which they are kept.

What others wrote is read with limits, and what is wrong is one line that names file and row.
"""
