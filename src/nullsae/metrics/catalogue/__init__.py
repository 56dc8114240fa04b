"""The metrics that variants are compared by, one file for each close family."""
