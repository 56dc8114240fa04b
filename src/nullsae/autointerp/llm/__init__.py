"""Language models behind OpenAI-compatible endpoints: asked once, kept, paid for within a limit."""
