"""SAEs that are Python objects of others: `encode` gives codes, `decode` takes them.

Later stages take a reconstruction apart by latents, so that `decode` has to be linear: its rows and
its bias are read off once, and stored as those of other SAEs are. What encodes stays the object.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib import import_module
from typing import Any

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


@dataclass
class ObjectSae(Autoencoder):
    """An SAE whose codes are those of an object.

    Attributes:
        path: `package.module:name` of the object.
        theirs: the object. It gets float32 [tokens, d_model] and gives codes [tokens, n_latents],
            none below 0. One without a method `to` gets them on the CPU.
        factor: what activations are multiplied by, beside those that it knows.
    """

    path: str = ""
    theirs: Any = None
    factor: float = 1.0

    def to(self, device: torch.device) -> ObjectSae:
        """On a device, and the object with it, which is moved in place if it has a method `to`."""
        if hasattr(self.theirs, "to"):
            self.theirs.to(device)
        w_enc, b_enc, w_dec, b_dec = (tensor.to(device) for tensor in self.weights)
        return replace(self, w_enc=w_enc, b_enc=b_enc, w_dec=w_dec, b_dec=b_dec)

    def pre_activations(self, rows: int) -> Callable[[Tensor], Tensor]:
        """The codes themselves."""
        return lambda x: self.run("encode", x / self.factor, self.n_latents) * self.factor

    def scaled(self, factor: float) -> ObjectSae:
        return replace(self, b_dec=self.b_dec * factor, factor=self.factor * factor)

    @torch.no_grad()
    def run(self, method: str, given: Tensor, width: int | None) -> Tensor:
        """Call a method of the object: returns float32 [tokens, width], on its device.

        Raises:
            UserError: it fails, or gives something else; begins with the object's path.
        """
        shape = list(given.shape)
        try:
            found = getattr(self.theirs, method)(
                given if hasattr(self.theirs, "to") else given.cpu()
            )
        except Exception as error:  # whatever foreign code raises
            raise UserError(
                f"{self.path}: {method} of {shape} fails: {first_line(error)}"
            ) from None
        wanted = f"should give floats [{shape[0]}, {'n_latents' if width is None else width}]"
        if not isinstance(found, Tensor):
            raise UserError(f"{self.path}: {method} gives a {type(found).__name__}, {wanted}")
        fits = found.dim() == 2 and len(found) == shape[0] and width in (None, found.shape[1])
        if not fits or not found.shape[1] or not found.is_floating_point():
            kind = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
            raise UserError(f"{self.path}: {method} of {shape} gives {kind}, {wanted}")
        if not bool(found.isfinite().all()):
            raise UserError(f"{self.path}: {method} gives numbers that are not finite")
        if method == "encode" and bool((found < 0).any()):
            raise UserError(
                f"{self.path}: encode gives codes below 0; a latent fires where they are above 0"
            )
        return found.detach().to(given.device, torch.float32)


def with_object(sae: Autoencoder, path: str, site: str) -> ObjectSae:
    """Return an SAE with these weights whose codes come from the object at an import path.

    Raises:
        UserError: it cannot be imported or made, or lacks a method; begins with the path.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(import_module(module), name)
        is_made = hasattr(found, "encode") and not isinstance(found, type)
        theirs = found if is_made else found(site)
    except (Exception, SystemExit) as error:  # whatever foreign code raises
        raise UserError(f"{path}: cannot be imported: {first_line(error)}") from None
    for method in ("encode", "decode"):
        if not callable(getattr(theirs, method, None)):
            raise UserError(f"{path}: {type(theirs).__name__} has no method {method}")
    own = {field.name: getattr(sae, field.name) for field in fields(Autoencoder)}
    return ObjectSae(**own, path=path, theirs=theirs)


def read_object(given: FromObject, site: str, where: str) -> ObjectSae:
    """Import an object, try it on random numbers, and read off its decoder.

    Raises:
        UserError: it is no SAE: a method fails or gives something else than floats of one width,
            codes depend on the other tokens, or `decode` is not linear; begins with `where`.
    """
    d_model = given.d_model
    nothing = torch.zeros(0, d_model), torch.zeros(0), torch.zeros(0, d_model), torch.zeros(d_model)
    try:
        sae = with_object(Autoencoder(ObjectCoding.name, *nothing), given.object, site)
        x = torch.randn(PROBES, d_model, generator=torch_generator(0, "object_probe"))
        codes = sae.run("encode", x, None)
        n_latents = codes.shape[1]
        if _differ(sae.run("encode", x[:1], n_latents), codes[:1]):
            raise UserError(
                f"{sae.path}: encode gives a token codes that depend on the other tokens"
            )
        bias = sae.run("decode", torch.zeros(1, n_latents), d_model)[0]
        ones = torch.eye(ROWS)
        rows = []
        for start in range(0, n_latents, ROWS):
            n = min(ROWS, n_latents - start)
            each = torch.zeros(n, n_latents)
            each[:, start : start + n] = ones[:n, :n]
            rows.append(sae.run("decode", each, d_model) - bias)
        w_dec = torch.cat(rows)
        if _differ(sae.run("decode", codes, d_model), codes @ w_dec + bias):
            raise UserError(f"{sae.path}: decode is not linear in the codes")
    except UserError as error:
        raise UserError(f"{where}.object: {error}") from None
    return replace(sae, b_enc=torch.zeros(n_latents), w_dec=w_dec, b_dec=bias)


def _differ(found: Tensor, expected: Tensor) -> bool:
    size = float(expected.abs().max().clamp_min(1e-30))
    return float((found - expected).abs().max()) > SLACK * size
