"""The layouts of other packages and our own, a class each; parsing them loads no torch."""
