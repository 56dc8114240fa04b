"""Explanations of latents, and how well a judge predicts activation from them."""
