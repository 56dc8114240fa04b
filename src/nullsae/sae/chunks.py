"""How many tokens' pre-activations are kept at once."""

from __future__ import annotations

# Entries: 4 MiB in float32, which stay in the cache between product and selection. On a GPU, enough
# rows to use all of it.
CHUNK_ENTRIES = {"cpu": 2**20, "cuda": 2**28}
# With fewer rows the product slows down more than the selection gains.
MIN_CHUNK_ROWS = 256
# Entries that are sorted at once.
SORTED_ENTRIES = 2**24


def rows_at_once(n_latents: int, device: str) -> int:
    """Return how many tokens' pre-activations are kept at once on a kind of device."""
    return max(MIN_CHUNK_ROWS, CHUNK_ENTRIES.get(device, CHUNK_ENTRIES["cuda"]) // n_latents)
