"""SAEs in use, whatever their origin: activations to sparse codes and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.config.codes import Coding
from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.saes import ARCHITECTURES
from nullsae.sae.chunks import rows_at_once
from nullsae.sae.kernels import decode, encoder, packs, positive
from nullsae.sae.normalization import normalize

PARAMETERS = ("encoder.weight", "encoder.bias", "W_dec", "b_dec")


@dataclass
class Autoencoder:
    """An SAE: weights, and how they encode and decode activations.

    The pre-activations are W_enc (x - b_dec) + b_enc; the architecture determines which of them are
    codes. An architecture that reads tokens ignores x. With a normalization, x is the normalized
    activation, and codes are in its units: see `nullsae.sae.normalization`.

    Attributes:
        architecture: one of `codings()`.
        w_enc: encoder rows, [n_latents, d_model]; [0, d_model] without an encoder.
        b_enc: [n_latents].
        w_dec: decoder rows, [n_latents, d_model].
        b_dec: [d_model], subtracted from the input once and added to the output once.
        k: latents kept per token, of an architecture that `has_k`.
        own: the architecture's `own_tensors` by their names, [n_latents] each.
        normalization: of each activation, one of `NORMALIZATIONS`.
    """

    architecture: str
    w_enc: Tensor
    b_enc: Tensor
    w_dec: Tensor
    b_dec: Tensor
    k: int | None = None
    own: dict[str, Tensor] = field(default_factory=dict)
    normalization: str = "none"

    @property
    def coding(self) -> type[Coding]:
        """The class that computes codes."""
        return codings()[self.architecture]

    @property
    def transcodes(self) -> bool:
        """Whether it writes another site than it reads: see `sae.transcoder`."""
        return False

    @property
    def n_latents(self) -> int:
        return len(self.b_enc)

    @property
    def d_model(self) -> int:
        return len(self.b_dec)

    @property
    def weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tensors of every SAE, in the order of `PARAMETERS`."""
        return self.w_enc, self.b_enc, self.w_dec, self.b_dec

    def parameters(self) -> dict[str, Tensor]:
        """Return the tensors by their names on disk."""
        return {**dict(zip(PARAMETERS, self.weights, strict=True)), **self.own}

    def writes_at(self, site: str) -> str:
        """Return the site of its output, given the site that it reads."""
        return site

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], architecture: str, k: int | None) -> Autoencoder:
        """Make an SAE from tensors by their names on disk; ignores those of other architectures."""
        w_enc, b_enc, w_dec, b_dec = (tensors[name] for name in PARAMETERS)
        own = {name: tensors[name] for name in codings()[architecture].own_tensors}
        return cls(architecture, w_enc, b_enc, w_dec, b_dec, k, own)

    def to(self, device: torch.device) -> Autoencoder:
        moved = {name: t.to(device) for name, t in self.parameters().items()}
        sae = self.of(moved, self.architecture, self.k)
        return replace(sae, normalization=self.normalization)

    def encode(self, x: Tensor, token_ids: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode activations x [tokens, d_model], of any number of tokens.

        Returns values and int64 indices of latents, both [tokens, m]. A value of 0 means that the
        latent did not fire. m is k or, without one, the most active latents on a token. A token's
        code does not depend on other tokens; on a CPU, whose float32 products come from oneDNN,
        this holds to the bit. An architecture that `reads_tokens` needs ids int64 [tokens] and
        raises a `ValueError` without them.
        """
        if self.coding.reads_tokens:
            if token_ids is None:
                raise ValueError(f"a {self.architecture} dictionary needs the tokens' ids")
            return self.coding.look_up(self, token_ids.to(x.device, torch.int64))
        if self.normalization != "none":
            x = normalize(self.normalization, x).y
        select = self.coding.select
        rows = rows_at_once(self.n_latents, x.device.type)
        if not packs(self.w_enc):
            rows = max(1, min(rows, len(x)))
        product = self.pre_activations(rows)
        # At least one piece, even of no tokens; the next product overwrites the previous one.
        starts = range(0, max(1, len(x)), rows)
        parts = [select(self, product(x[start : start + rows])) for start in starts]
        # Room for the token with the most codes; padding has the value 0.
        width = max(values.shape[1] for values, _ in parts)
        padded = [[F.pad(t, (0, width - t.shape[1])) for t in part] for part in parts]
        values, indices = map(torch.cat, zip(*padded, strict=True))
        return values, indices

    def pre_activations(self, rows: int) -> Callable[[Tensor], Tensor]:
        """Return a function from at most `rows` activations to pre-activations."""
        # Always packed for this many rows, because the packing determines how products are rounded.
        product = encoder(self.w_enc, self.b_enc, rows)
        return lambda x: product(x - self.b_dec)

    def decode(self, values: Tensor, indices: Tensor, x: Tensor | None = None) -> Tensor:
        """Decode codes to reconstructions [tokens, d_model].

        An SAE with a normalization needs x, the activations that were encoded, for their units, and
        raises a `ValueError` without them.
        """
        decoded = decode(values, indices, self.w_dec) + self.b_dec
        if self.normalization == "none":
            return decoded
        if x is None:
            said = f"an SAE with normalization {self.normalization!r} needs the encoded activations"
            raise ValueError(f"{said}: decode(values, indices, x)")
        return normalize(self.normalization, x).back(decoded)

    def contribution(self, x: Tensor) -> Tensor:
        """Return the factor on a decoder row that a code of 1 adds at each activation: [tokens].

        It is 1 unless a normalization divides.
        """
        if self.normalization == "none":
            return torch.ones_like(x[:, 0])
        return normalize(self.normalization, x).scale[:, 0]

    def scaled(self, factor: float) -> Autoencoder:
        """Return the SAE for inputs that are `factor` times as large, with codes to match.

        Encoder and decoder rows are homogeneous; only biases and `own` tensors are scaled.
        """
        own = {name: tensor * factor for name, tensor in self.own.items()}
        return replace(self, b_enc=self.b_enc * factor, b_dec=self.b_dec * factor, own=own)


def shapes(n_latents: int, d_model: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that each SAE has, by their names on disk."""
    wide = (n_latents, d_model)
    return dict(zip(PARAMETERS, (wide, wide[:1], wide, wide[1:]), strict=True))


class GroupMaxCoding(Coding):
    """The largest of each of k equal groups of latents, rectified: sparsify's `groupmax`."""

    name, coding, has_k = "groupmax", True, True

    @classmethod
    def select(cls, sae: Autoencoder, pre: Tensor) -> tuple[Tensor, Tensor]:
        assert sae.k is not None
        values, places = pre.view(len(pre), sae.k, -1).max(dim=2)
        starts = torch.arange(0, sae.n_latents, sae.n_latents // sae.k, device=pre.device)
        return values.relu(), places + starts


class ObjectCoding(Coding):
    """Codes come from the `encode` of a Python object: `nullsae.sae.python_object`."""

    name, coding, has_encoder = "object", True, False

    @classmethod
    def select(cls, sae: Autoencoder, pre: Tensor) -> tuple[Tensor, Tensor]:
        return positive(pre)


def codings() -> dict[str, type[Coding]]:
    """Return the architectures of finished SAEs by name, then the dictionaries."""
    kinds: list[type[Coding]] = [*ARCHITECTURES.values(), *DICTIONARIES.values()]
    kinds += [GroupMaxCoding, ObjectCoding]
    return {kind.name: kind for kind in kinds if kind.coding}
