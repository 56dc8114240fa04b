"""How a finished SAE turns activations into codes: the `architecture` of its `cfg.json`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from nullsae.config.section import Section

if TYPE_CHECKING:
    from torch import Tensor


class Coding(Section):
    """Interface of the architectures and dictionaries that a finished SAE can have.

    Many architectures become another one when training ends: a BatchTopK SAE then has a threshold,
    and is `jumprelu` on disk.
    """

    name: ClassVar[str]
    """The name in the config and on disk; a class without one only shares code."""
    summary: ClassVar[str] = ""
    """Description that follows the name in the config's schema and in help texts."""
    position: ClassVar[int] = 1_000
    """Rank in display order."""
    coding: ClassVar[bool] = False
    """Whether a finished SAE can be of this kind."""
    own_tensors: ClassVar[tuple[str, ...]] = ()
    """Tensors [n_latents] besides encoder, decoder and biases; they scale with the inputs."""
    has_k: ClassVar[bool] = False
    """Whether `cfg.json` has the number of latents kept per token."""
    has_encoder: ClassVar[bool] = True
    """Whether it has encoder rows."""
    reads_tokens: ClassVar[bool] = False
    """Whether codes depend on token ids instead of activations."""

    @classmethod
    def select(cls, sae: Any, pre: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes from pre-activations, for a kind that reads activations.

        Args:
            sae: the `Autoencoder`.
            pre: [n, n_latents]; may be overwritten.

        Returns:
            Values and int64 indices, both [n, m].
        """
        raise NotImplementedError

    @classmethod
    def look_up(cls, sae: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return codes from token ids int64 [n], as `select`, for a kind that `reads_tokens`."""
        raise NotImplementedError
