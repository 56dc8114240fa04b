"""Explanations and scores that were made elsewhere: one file per layout.

Foreign files are read with limits; each mistake is one line that names file and row.
"""
