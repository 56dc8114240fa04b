"""The variants of a subject, one file each; `nullsae.config.variants` finds them."""
