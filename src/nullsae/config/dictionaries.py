"""Where an SAE's dictionary comes from: trained, partly frozen, computed, or derived.

Each kind is a class in a file of its own in `sae/dictionaries/`.
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
    """One kind of dictionary. Its fields are the recipe's keys that only it reads."""

    caption: ClassVar[str]
    """One or two sentences for the report; the kind's keys are filled in."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Names of the parameters that stay as initialized."""
    held: ClassVar[bool] = False
    """Whether `hold` changes decoder rows after each step."""
    trained: ClassVar[bool] = True
    """Whether it is made by gradient steps, rather than by `fit` or `derive`."""
    derived: ClassVar[bool] = False
    """Whether it is made from another SAE of the config, by `derive`."""
    needs_encoder: ClassVar[bool] = False
    """Whether `derive` needs that SAE's encoder rows, which a Python object does not expose."""
    is_null: ClassVar[bool] = True
    """Whether it is a null of learned dictionaries."""
    takes_pretrained: ClassVar[bool] = False
    """Whether an SAE made elsewhere may take its place."""
    default_k: ClassVar[int] = 32
    product_share: ClassVar[float] = 1.0
    """Cost of encoding, as a share of the encoder's matrix product."""

    @property
    def sampled(self) -> int:
        """Tokens of `sae_train` that `derive` gets."""
        return 0

    @property
    def has_floor(self) -> bool:
        """Whether SAEs on Gaussian data, which has no token ids, are a floor for it."""
        return not self.reads_tokens

    @property
    def source(self) -> str | None:
        """Name of the config's SAE that it is made from, if it is `derived`."""
        return None

    def check(self, k: int | None) -> None:
        """Raise a ValueError that names the key if its keys or the recipe's k do not fit."""

    def source_keys(self, keys: Mapping[str, str]) -> dict[str, str]:
        """Return keys of the model whose `source` a cell is made from, by default its own."""
        return {name: keys[name] for name in ("subject", "variant", "draw")}

    def text(self) -> str:
        """Return the report's caption."""
        return self.caption.format(**self.model_dump())

    def hold(self, rows: Tensor, start: Tensor) -> Tensor:
        """Return decoder rows [n_latents, d_model] after a step, tied to those at the start."""
        raise NotImplementedError

    def most_active(self, d_model: int) -> int | None:
        """Return how many latents can be active at once; None if only the width limits them."""
        return None

    def width(self, d_model: int, vocab_size: int | None) -> int | None:
        """Return the number of latents of a fitted one; None if it depends on the corpus."""
        raise NotImplementedError

    def fit(self, k: int, reader: Any, batches: Pairs, corpus: Any, where: str) -> Any:
        """Compute the `Autoencoder` from the activations of `sae_train`.

        Args:
            k: latents kept per token.
            reader: the `SiteReader` of the activations.
            batches: all activations once: float32 [n, d_model], and their positions int64 [n].
            corpus: `Tokens` of `sae_train` for a kind that `reads_tokens`, else None.
            where: key of the recipe, for messages.

        Raises:
            UserError: k does not fit.
        """
        raise NotImplementedError

    def derive(self, sae: Any, sample: Tensor, generator: Generator) -> tuple[Any, list[Any]]:
        """Make the null `Autoencoder` of another one, if the kind is `derived`.

        Args:
            sae: the `Autoencoder` to start from.
            sample: activations of its site, float32 [tokens, d_model], on the device of `sae`.
            generator: a generator on the CPU.

        Returns:
            The dictionary, and gates (`nullsae.subjects.gates.Gate`) for what it must preserve.
        """
        raise NotImplementedError

    def fit_flops(self, d_model: int, n_tokens: int) -> float:
        """Return the floating-point operations of `fit`."""
        return 0.0

    def derive_flops(self, d_model: int, n_latents: int, n_tokens: int) -> float:
        """Return the floating-point operations of `derive` on a sample of `n_tokens`."""
        return 0.0

    def derive_bytes(self, n_latents: int, n_tokens: int) -> float:
        """Return the memory that `derive` takes besides the SAEs and the sample."""
        return 0.0


DICTIONARIES = Registry("dictionaries", Dictionary, "nullsae.sae.dictionaries")
