"""SAEs that are Python objects of others: `encode` returns codes, `decode` takes them.

Later stages split a reconstruction by latents, so `decode` must be linear. Its rows and bias are
read off once, and stored like those of other SAEs. The object remains the encoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from nullsae.config.pretrained import FromObject
from nullsae.core.errors import UserError, first_line
from nullsae.core.randomness import torch_generator
from nullsae.sae.autoencoder import Autoencoder, ObjectCoding

PROBES = 64
# Decoder rows that are read off at once.
ROWS = 256
# Share of the largest entry by which products in another order may differ.
SLACK = 1e-4


class EncodesAndDecodes(Protocol):
    """What an object must have, on float32 tensors [tokens, width]."""

    def encode(self, x: Tensor, /) -> Tensor:
        """Encode activations to codes [tokens, n_latents], none below 0."""

    def decode(self, codes: Tensor, /) -> Tensor:
        """Decode codes to reconstructions, linearly."""


@dataclass
class ObjectSae(Autoencoder):
    """An SAE or a transcoder whose codes come from an object.

    Attributes:
        path: `package.module:name` of the object.
        theirs: the object. It gets float32 [tokens, d_model] and returns codes [tokens, n_latents],
            none below 0. An object without a method `to` gets them on the CPU.
        factor: a factor on activations, in addition to the object's own.
        output_site: of a transcoder, the site that `decode` replaces.
    """

    path: str = ""
    theirs: Any = None
    factor: float = 1.0
    output_site: str = ""

    @property
    def transcodes(self) -> bool:
        return bool(self.output_site)

    @property
    def d_model(self) -> int:
        return self.w_enc.shape[1]

    def writes_at(self, site: str) -> str:
        return self.output_site or site

    def to(self, device: torch.device) -> ObjectSae:
        """Move to a device, with the object, which is moved in place if it has a method `to`."""
        if hasattr(self.theirs, "to"):
            self.theirs.to(device)
        w_enc, b_enc, w_dec, b_dec = (tensor.to(device) for tensor in self.weights)
        return replace(self, w_enc=w_enc, b_enc=b_enc, w_dec=w_dec, b_dec=b_dec)

    def pre_activations(self, rows: int) -> Callable[[Tensor], Tensor]:
        """Return a function that computes the codes themselves."""
        return lambda x: self.run("encode", x / self.factor, self.n_latents) * self.factor

    def scaled(self, factor: float) -> ObjectSae:
        return replace(self, b_dec=self.b_dec * factor, factor=self.factor * factor)

    @torch.no_grad()
    def run(self, method: str, given: Tensor, width: int | str) -> Tensor:
        """Call a method of the object: returns float32 [tokens, width], on its device.

        A width that is not known yet is given by its name.

        Raises:
            UserError: it fails, or returns something else; the message begins with the object's
                path.
        """
        shape = list(given.shape)
        try:
            found = getattr(self.theirs, method)(
                given if hasattr(self.theirs, "to") else given.cpu()
            )
        except Exception as error:  # anything that foreign code raises
            raise UserError(
                f"{self.path}: {method} of {shape} fails: {first_line(error)}"
            ) from None
        wanted = f"should return a tensor of floats [{shape[0]}, {width}]"
        if not isinstance(found, Tensor):
            theirs = type(found)
            name = f"{theirs.__module__}.{theirs.__qualname__}".removeprefix("builtins.")
            raise UserError(f"{self.path}: {method} returns {name}, {wanted}")
        fits = found.dim() == 2 and len(found) == shape[0]
        fits = fits and (isinstance(width, str) or width == found.shape[1])
        if not fits or not found.shape[1] or not found.is_floating_point():
            kind = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
            raise UserError(f"{self.path}: {method} of {shape} returns {kind}, {wanted}")
        if not bool(found.isfinite().all()):
            raise UserError(f"{self.path}: {method} returns numbers that are not finite")
        if method == "encode" and bool((found < 0).any()):
            raise UserError(
                f"{self.path}: encode returns codes below 0; a latent fires where they are above 0"
            )
        return found.detach().to(given.device, torch.float32)


def imported(path: str, site: str) -> Any:
    """Import an object, or call the class or function at its path with the site's name.

    Raises:
        UserError: it cannot be imported or made; the message begins with the path.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
        is_made = hasattr(found, "encode") and not isinstance(found, type)
        return found if is_made else found(site)
    except (Exception, SystemExit) as error:  # anything that foreign code raises
        raise UserError(f"{path}: cannot be imported: {first_line(error)}") from None


def with_object(sae: Autoencoder, path: str, theirs: Any, output_site: str = "") -> ObjectSae:
    """Return an SAE with these weights whose codes come from an object.

    Raises:
        UserError: it lacks a method; the message begins with the path.
    """
    for method in ("encode", "decode"):
        if not callable(getattr(theirs, method, None)):
            raise UserError(f"{path}: {type(theirs).__name__} has no method {method}")
    own = {field.name: getattr(sae, field.name) for field in fields(Autoencoder)}
    return ObjectSae(**own, path=path, theirs=theirs, output_site=output_site)


def read_object(given: FromObject, site: str, where: str, output_site: str = "") -> ObjectSae:
    """Import an object, and make an SAE of it by `sae_of`.

    Raises:
        UserError: it cannot be imported, or is not an SAE; the message begins with `where`.
    """
    try:
        theirs = imported(given.object, site)
        return sae_of(theirs, given.object, given.d_model, output_site)
    except UserError as error:
        raise UserError(f"{where}.object: {error}") from None


def sae_of(theirs: Any, path: str, d_model: int, output_site: str = "") -> ObjectSae:
    """Try an object on random numbers, and read off its decoder.

    Args:
        theirs: the object; it is moved to the CPU if it has a method `to`.
        path: its name in messages.
        d_model: dimensions that it reads.
        output_site: of a transcoder, the site that it writes, of any width.

    Raises:
        UserError: it is not an SAE: a method fails or returns something else than floats of one
            width, codes depend on other tokens, or `decode` is not linear; the message begins with
            the path.
    """
    nothing = torch.zeros(0, d_model), torch.zeros(0), torch.zeros(0, d_model), torch.zeros(d_model)
    sae = with_object(Autoencoder(ObjectCoding.name, *nothing), path, theirs, output_site)
    sae = sae.to(torch.device("cpu"))
    x = torch.randn(PROBES, d_model, generator=torch_generator(0, "object_probe"))
    codes = sae.run("encode", x, "n_latents")
    n_latents = codes.shape[1]
    if _differ(sae.run("encode", x[:1], n_latents), codes[:1]):
        raise UserError(f"{sae.path}: encode returns codes that depend on the other tokens")
    d_out: int | str = "d_out" if output_site else d_model
    bias = sae.run("decode", torch.zeros(1, n_latents), d_out)[0]
    d_out = len(bias)
    ones = torch.eye(ROWS)
    rows = []
    for start in range(0, n_latents, ROWS):
        n = min(ROWS, n_latents - start)
        each = torch.zeros(n, n_latents)
        each[:, start : start + n] = ones[:n, :n]
        rows.append(sae.run("decode", each, d_out) - bias)
    w_dec = torch.cat(rows)
    if _differ(sae.run("decode", codes, d_out), codes @ w_dec + bias):
        raise UserError(f"{sae.path}: decode is not linear in the codes")
    return replace(sae, b_enc=torch.zeros(n_latents), w_dec=w_dec, b_dec=bias)


def _differ(found: Tensor, expected: Tensor) -> bool:
    size = float(expected.abs().max().clamp_min(1e-30))
    return float((found - expected).abs().max()) > SLACK * size
