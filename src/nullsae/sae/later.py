"""Modules that architectures and dictionaries compute with, imported on first use.

Their files also contain config models, and parsing a config must not load torch. The types are
`Any` at run time, where only annotations use them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nullsae.core.registry import lazy

if TYPE_CHECKING:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    from nullsae.config.dictionaries import Pairs
    from nullsae.core import moments
    from nullsae.sae import autoencoder, kernels, token_means
    from nullsae.sae.autoencoder import Autoencoder
    from nullsae.sae.kernels import Hits
else:
    torch, F, moments = map(lazy, ("torch", "torch.nn.functional", "nullsae.core.moments"))
    autoencoder, kernels, token_means = (
        lazy(f"nullsae.sae.{name}") for name in ("autoencoder", "kernels", "token_means")
    )
    Autoencoder = Hits = Pairs = Tensor = Any

__all__ = ["Autoencoder", "F", "Hits", "Pairs", "Tensor"]
__all__ += ["autoencoder", "kernels", "moments", "token_means", "torch"]
