"""Corpora: from text sources to packed token contexts.

In: documents from files, packages or the hub. Out: a tokenizer and, for the splits `sae_train` and
`eval`, contexts of token ids with the document of each token. A document's split depends on its
text alone. Nothing here may know of models, activations or SAEs.
"""
