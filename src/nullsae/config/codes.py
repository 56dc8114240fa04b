"""How a finished SAE turns activations into codes: what `architecture` in its `cfg.json` names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from nullsae.config.section import Section

if TYPE_CHECKING:
    from torch import Tensor


class Coding(Section):
    """What is asked of those architectures and dictionaries that a finished SAE can be of.

    Many architectures turn into another one when they are finished: a BatchTopK SAE has a
    threshold then, and is `jumprelu` on disk.
    """

    name: ClassVar[str]
    """The name in the config and on disk; without one, a class only shares code."""
    summary: ClassVar[str] = ""
    """What it is, after its name, in the config's schema and in help texts."""
    position: ClassVar[int] = 1_000
    """Rank in display order."""
    coding: ClassVar[bool] = False
    """Whether a finished SAE can be of this kind."""
    own_tensors: ClassVar[tuple[str, ...]] = ()
    """Tensors [n_latents] beside encoder, decoder and biases; they grow as the inputs do."""
    has_k: ClassVar[bool] = False
    """Whether the number of latents kept per token stands in `cfg.json`."""
    has_encoder: ClassVar[bool] = True
    """Whether there are encoder rows."""
    reads_tokens: ClassVar[bool] = False
    """Whether codes depend on token ids, and not on activations."""

    @classmethod
    def select(cls, sae: Any, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Codes from pre-activations, of a kind that reads activations.

        Args:
            sae: the `Autoencoder`.
            pre: [n, n_latents]; may be overwritten.

        Returns:
            Values and int64 indices, both [n, m].
        """
        raise NotImplementedError

    @classmethod
    def look_up(cls, sae: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Codes from token ids int64 [n], of a kind that `reads_tokens`; returns as `select`."""
        raise NotImplementedError
