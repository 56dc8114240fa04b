"""What is measured of whole SAEs: reconstruction, fidelity, geometry, overlap.

In: an SAE, activations of the `eval` split, and the subject if its loss is needed. Out: tables
with one row per SAE, from exact sums over all tokens. This package does not read the windows of
single latents or explanations, and gives no verdicts.
"""
