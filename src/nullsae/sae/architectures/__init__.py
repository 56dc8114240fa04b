"""How SAEs are trained, one class per architecture."""

from nullsae.sae.architectures.base import Losses, TrainedSae
from nullsae.sae.architectures.topk import TopK

ARCHITECTURES: dict[str, type[TrainedSae]] = {
    "topk": TopK,
}

__all__ = ["ARCHITECTURES", "Losses", "TrainedSae"]
