"""The layouts of other packages and our own, one class each; parsing them loads no torch."""
