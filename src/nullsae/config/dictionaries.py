"""Where the dictionary of an SAE comes from: trained, kept in part as drawn, computed, derived.

Each kind stands in a file of `sae/dictionaries/` with all that the rest asks of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from nullsae.config.codes import Coding
from nullsae.core.registry import Registry

if TYPE_CHECKING:
    from torch import Generator, Tensor

    Pairs = Iterable[tuple[Tensor, Tensor]]


class Dictionary(Coding):
    """One kind of dictionary. Its fields are the keys of a recipe that only it reads."""

    caption: ClassVar[str]
    """One or two sentences for the report; its own keys are filled in."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that gradient steps leave as they were drawn."""
    held: ClassVar[bool] = False
    """Whether `hold` changes decoder rows after each step."""
    trained: ClassVar[bool] = True
    """Whether it is made by gradient steps; else by `fit`, or by `derive`."""
    derived: ClassVar[bool] = False
    """Whether it is made from another SAE of the config, by `derive`."""
    needs_encoder: ClassVar[bool] = False
    """Whether it is made of that one's encoder rows, which a Python object does not show."""
    is_null: ClassVar[bool] = True
    """Whether it stands beside learned dictionaries as a null of them."""
    takes_pretrained: ClassVar[bool] = False
    """Whether an SAE made elsewhere may stand for it."""
    default_k: ClassVar[int] = 32
    product_share: ClassVar[float] = 1.0
    """Share of the encoder's product that encoding takes."""

    @property
    def sampled(self) -> int:
        """Tokens of `sae_train` that `derive` is given."""
        return 0

    @property
    def has_floor(self) -> bool:
        """Whether SAEs on Gaussian data are a floor for it: those have no tokens to look up."""
        return not self.reads_tokens

    @property
    def source(self) -> str | None:
        """The SAE of the config that it is made from, by name, if it is `derived` from one."""
        return None

    def check(self, k: int | None) -> None:
        """Raise a ValueError that names the key if its keys, or a recipe's k, do not fit."""

    def source_keys(self, keys: Mapping[str, str]) -> dict[str, str]:
        """Keys of the model whose SAE of `source` a cell is made from: by default its own."""
        return {name: keys[name] for name in ("subject", "variant", "draw")}

    def text(self) -> str:
        """What the report says of it."""
        return self.caption.format(**self.model_dump())

    def hold(self, rows: Tensor, start: Tensor) -> Tensor:
        """Decoder rows [n_latents, d_model] after a step, held to those at the start."""
        raise NotImplementedError

    def most_active(self, d_model: int) -> int | None:
        """Latents that can be active at once; None where only the width limits them."""
        return None

    def width(self, d_model: int, vocab_size: int | None) -> int | None:
        """Latents of one that is fitted; None where only a corpus says."""
        raise NotImplementedError

    def fit(self, k: int, reader: Any, batches: Pairs, corpus: Any, where: str) -> Any:
        """The `Autoencoder` that is computed from the activations of `sae_train`.

        Args:
            k: latents kept per token.
            reader: the `SiteReader` of the activations.
            batches: all of them once: float32 [n, d_model], and their positions int64 [n].
            corpus: `Tokens` of `sae_train` for one that `reads_tokens`, else None.
            where: key of the recipe, for messages.

        Raises:
            UserError: k does not fit.
        """
        raise NotImplementedError

    def derive(self, sae: Any, sample: Tensor, generator: Generator) -> tuple[Any, list[Any]]:
        """The `Autoencoder` that stands beside another one, of one that is `derived`.

        Args:
            sae: the `Autoencoder` that it is made from.
            sample: activations of its site, float32 [tokens, d_model], on the device of `sae`.
            generator: draws on the CPU.

        Returns:
            The dictionary, and the gates (`nullsae.subjects.gates.Gate`) of what it must keep.
        """
        raise NotImplementedError

    def fit_flops(self, d_model: int, n_tokens: int) -> float:
        """Operations of `fit`."""
        return 0.0

    def derive_flops(self, d_model: int, n_latents: int, n_tokens: int) -> float:
        """Operations of `derive` on a sample of `n_tokens`."""
        return 0.0

    def derive_bytes(self, n_latents: int, n_tokens: int) -> float:
        """What `derive` holds beside the SAEs and the sample."""
        return 0.0


DICTIONARIES = Registry("dictionaries", Dictionary, "nullsae.sae.dictionaries")
