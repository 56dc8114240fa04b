"""Activations of a subject at its sites, and the stream that SAEs are trained on.

In: a variant and token contexts, or the moments of another variant. Out: shards of activations
[n, d_model] for each site, verified and with a manifest, or the same tokens in the same order
without using the disk. Nothing here may know what an SAE is.
"""
