"""How SAEs are trained, one class per architecture."""

from nullsae.sae.architectures.base import Losses, TrainedSae
from nullsae.sae.architectures.batch_topk import BatchTopK
from nullsae.sae.architectures.gated import Gated
from nullsae.sae.architectures.jumprelu import JumpReLU
from nullsae.sae.architectures.matryoshka import Matryoshka
from nullsae.sae.architectures.standard import Standard
from nullsae.sae.architectures.topk import TopK

ARCHITECTURES: dict[str, type[TrainedSae]] = {
    "topk": TopK,
    "batch_topk": BatchTopK,
    "matryoshka": Matryoshka,
    "jumprelu": JumpReLU,
    "gated": Gated,
    "standard": Standard,
}

__all__ = ["ARCHITECTURES", "Losses", "TrainedSae"]
