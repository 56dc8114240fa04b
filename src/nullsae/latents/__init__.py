"""Single latents: statistics of all, windows and firings of a random sample.

In: an SAE, activations and tokens of the `eval` split, read in one pass. Out: the tables `latents`,
`windows` and `coverage`, and all firings of the sampled latents. Windows for explaining and for
scoring never share a document. This package does not know who explains or judges.
"""
