"""Text sources to packed token contexts, split by document."""
