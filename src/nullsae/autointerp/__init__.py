"""Explanations of latents, and how well a judge predicts activation from them.

In: windows of sampled latents. Out: the tables `explanations`, `predictions` and `scores`. A judge
never learns which windows are active. Nothing here may compare variants.
"""
