"""What is measured of whole SAEs: reconstruction, fidelity, geometry, overlap.

In: an SAE, activations of the `eval` split, and the subject where its loss is needed. Out: tables
with one row per SAE, from exact sums over all tokens. Nothing here may look at single latents'
windows or at explanations, or give a verdict.
"""
