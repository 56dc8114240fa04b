"""Collected latents in the formats of other tools."""
