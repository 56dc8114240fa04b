"""Language models behind OpenAI-compatible endpoints.

In: chat messages. Out: replies, each requested once and kept in a cache, with counts of tokens and
money, up to the study's limit. Nothing here may know what a latent is. Everything that an endpoint
sends is untrusted.
"""
