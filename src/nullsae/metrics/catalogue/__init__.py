"""The metrics by which variants are compared, one file per family."""
