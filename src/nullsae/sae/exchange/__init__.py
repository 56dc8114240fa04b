"""SAEs of other programs' formats, read and written."""
