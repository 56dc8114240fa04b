"""The variants of a subject, each in a file of its own; `nullsae.config.variants` finds them."""
