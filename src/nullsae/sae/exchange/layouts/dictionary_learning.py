"""dictionary_learning: `config.json` with `ae.safetensors` or `ae.pt`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import PositiveInt, model_validator

from nullsae.config.hooks import hook_name
from nullsae.config.layouts import Layout, Shapes
from nullsae.config.made_on import MadeOn
from nullsae.core.errors import UserError
from nullsae.core.registry import lazy
from nullsae.sae.later import Autoencoder, Tensor, autoencoder

if TYPE_CHECKING:
    from nullsae.sae.exchange import tensors
else:
    tensors = lazy("nullsae.sae.exchange.tensors")

_SUBMODULE = re.compile(r"(resid_pre|resid_post|mlp_out|attention_out)_layer_(\d+)")
# What its classes call the encoder and the decoder.
_MATRICES = (
    *("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "AutoEncoderTopK", "BatchTopKSAE"),
)


class DictionaryLearning(Layout):
    """Keys of its `config.json` that define an SAE, from the sections `trainer` and `buffer`."""

    name, position = "dictionary_learning", 2
    config_file = "config.json"
    weights = ("ae.safetensors", "ae.pt")

    dict_class: Literal[
        "AutoEncoder",
        "AutoEncoderNew",
        "GatedAutoEncoder",
        "AutoEncoderTopK",
        "BatchTopKSAE",
        "JumpReluAutoEncoder",
        "MatryoshkaBatchTopKSAE",
    ]
    activation_dim: PositiveInt
    dict_size: PositiveInt
    k: PositiveInt | None = None
    layer: int | None = None
    submodule_name: str | None = None
    lm_name: str | None = None
    ctx_len: PositiveInt | None = None
    io: str = "out"
    """Of the submodule: its output, its input (`in`), or one from the other (`in_and_out`)."""

    @model_validator(mode="after")
    def k_is_given(self) -> Self:
        if self.dict_class == "AutoEncoderTopK" and self.k is None:
            raise ValueError("trainer.k: missing")
        if self.k is not None and self.k > self.dict_size:
            raise ValueError(f"trainer.k: {self.k} is larger than dict_size {self.dict_size}")
        if self.io not in ("in", "out"):
            raise ValueError(f"buffer.io is {self.io!r}, but transcoders are not supported here")
        return self

    @classmethod
    def fits(cls, names: Any, config: Any) -> bool:
        return super().fits(names, config) and "trainer" in config

    @classmethod
    def content(cls, config: dict[str, Any]) -> dict[str, Any]:
        trainer, buffer = config["trainer"], config.get("buffer") or {}
        for name, section in (("trainer", trainer), ("buffer", buffer)):
            if not isinstance(section, dict):
                raise ValueError(f"{name}: {section!r} is not an object with keys")
        found = {name: trainer[name] for name in cls.model_fields if trainer.get(name) is not None}
        return found | {name: buffer[name] for name in ("ctx_len", "io") if buffer.get(name)}

    @property
    def input_width(self) -> int:
        return self.activation_dim

    def made_on(self, folder: Path) -> MadeOn:
        found = _SUBMODULE.search(self.submodule_name or "")
        kind, layer = (found[1], int(found[2])) if found else ("resid_post", self.layer)
        kind = kind.replace("attention_out", "attn_out")
        hook = None if layer is None else hook_name(f"{kind}.{layer}")
        if self.submodule_name and found is None:
            hook = self.submodule_name
        if self.io == "in":
            # Names such as resid_post_layer_3 do not tell what that module reads.
            hook = f"{self.submodule_name}.input" if self.submodule_name and not found else None
        return MadeOn(model=self.lm_name, hook=hook, context_tokens=self.ctx_len)

    def shapes(self) -> Shapes:
        """Return names and shapes of the tensors that its class saves."""
        n, d = self.dict_size, self.activation_dim
        if self.dict_class not in _MATRICES:
            found: Shapes = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
            own = (n,) if self.dict_class == "JumpReluAutoEncoder" else ()
            return {**found, "threshold": own}
        found = {"encoder.weight": (n, d), "decoder.weight": (d, n)}
        if self.dict_class == "GatedAutoEncoder":
            return {**found, **dict.fromkeys(("r_mag", "gate_bias", "mag_bias"), (n,)),
                    "decoder_bias": (d,)}  # fmt: skip
        bias = {"AutoEncoder": "bias", "AutoEncoderNew": "decoder.bias"}
        found |= {"encoder.bias": (n,), bias.get(self.dict_class, "b_dec"): (d,)}
        return {**found, "threshold": ()} if self.dict_class == "BatchTopKSAE" else found

    def autoencoder(self, weights: Path) -> Autoencoder:
        """Return an SAE with the codes of its class' `encode`, using `threshold` if there is one.

        An `AutoEncoder` gets decoder rows of unit norm, as from its own loader. Normalized
        activations need no change, because their factor is in the saved biases.
        """
        stored = tensors.stored_tensors(weights)
        unused = {"k", "active_groups", "group_sizes", "group_indices", "apply_b_dec_to_input"}
        if self.dict_class == "AutoEncoderTopK":
            unused.add("threshold")
            if "k" in stored and (own_k := int(stored["k"])) != self.k:
                raise UserError(f"{weights}: k is {own_k}, but trainer.k in its config is {self.k}")
        applied = bool(stored.get("apply_b_dec_to_input", False))
        t = tensors.fitting_tensors(stored, self.shapes(), weights, unused)
        w_enc, w_dec = _rows(t)
        of_decoder = next(t[name] for name in _DECODER_BIASES if name in t)
        b_enc, own = t.get("encoder.bias", t.get("b_enc")), {}
        if self.dict_class == "GatedAutoEncoder":
            gate = (t["gate_bias"], t["mag_bias"], t["r_mag"])
            w_enc, b_enc, own["threshold"] = tensors.folded_gate(w_enc, *gate)
        elif "threshold" in t:
            own["threshold"] = t["threshold"].relu().expand(self.dict_size).contiguous()
        assert b_enc is not None
        if self.dict_class == "AutoEncoderNew" or (
            self.dict_class == "JumpReluAutoEncoder" and not applied
        ):
            b_enc = tensors.uncentred_bias(w_enc, b_enc, of_decoder)
        if self.dict_class == "AutoEncoder":
            w_enc, b_enc, w_dec = tensors.with_unit_rows(w_enc, b_enc, w_dec)
        kind = "topk" if self.dict_class == "AutoEncoderTopK" else "jumprelu" if own else "standard"
        k = self.k if kind == "topk" else None
        return autoencoder.Autoencoder(kind, w_enc, b_enc, w_dec, of_decoder, k, own)


_DECODER_BIASES = ("bias", "decoder.bias", "b_dec", "decoder_bias")


def _rows(t: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return rows of the encoder and the decoder, [n_latents, d_model] both."""
    if "W_enc" in t:
        return t["W_enc"].t().contiguous(), t["W_dec"].contiguous()
    return t["encoder.weight"].contiguous(), t["decoder.weight"].t().contiguous()
