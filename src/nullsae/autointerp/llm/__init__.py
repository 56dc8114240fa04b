"""Language models behind OpenAI-compatible endpoints.

In: chat messages. Out: replies, each asked once and kept in a cache, with counts of tokens and
money that stop at the study's limit. Nothing here may know what a latent is. Whatever an endpoint
sends is untrusted.
"""
