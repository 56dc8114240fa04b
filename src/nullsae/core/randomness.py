"""Generators keyed by purpose and position: no result depends on order, batch or scheduling."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Key = str | int


def seed_of(seed: int, purpose: str, *key: Key) -> int:
    """Return a 63-bit seed for one purpose.

    Args:
        seed: the config's `seed`.
        purpose: what the numbers are for, e.g. "sae_init".
        key: the names and indices that identify this use (variant, draw, site, latent ...).
    """
    text = json.dumps([seed, purpose, *key], separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def numpy_generator(seed: int, purpose: str, *key: Key) -> np.random.Generator:
    """Return a NumPy generator keyed as in `seed_of`."""
    return np.random.Generator(np.random.PCG64(seed_of(seed, purpose, *key)))


def torch_generator(seed: int, purpose: str, *key: Key) -> torch.Generator:
    """Return a CPU torch generator keyed as in `seed_of`: the same numbers on every device."""
    import torch

    return torch.Generator(device="cpu").manual_seed(seed_of(seed, purpose, *key))
