"""Toy models of superposition (section 4 of the paper): data, SAEs, measures, figures."""
