"""What the files of SAELens and EleutherAI's sparsify say: their `cfg.json` and their tensors."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from nullsae.config.section import Section
from nullsae.config.sites import site_kind, site_layer
from nullsae.sae.autoencoder import PARAMETERS, Autoencoder, shapes

Shapes = dict[str, tuple[int, ...]]
LEAST_NORM = 1e-8
PLAIN = "which is not supported: only plain SAEs are"


class SparsifyConfig(Section):
    """Content of sparsify's `cfg.json`; what its older versions did not write has a default."""

    d_in: PositiveInt
    k: PositiveInt
    expansion_factor: PositiveInt
    num_latents: NonNegativeInt = 0
    """0 stands for d_in * expansion_factor."""
    activation: Literal["topk"] = "topk"
    normalize_decoder: bool = True
    """Of training only, as is `multi_topk`."""
    multi_topk: bool = False
    signed: bool = False
    skip_connection: bool = False
    transcode: bool = False

    @model_validator(mode="after")
    def is_plain(self) -> Self:
        for key in ("signed", "skip_connection", "transcode"):
            if getattr(self, key):
                raise ValueError(f"{key} is true, {PLAIN}")
        if self.k > self.n_latents:
            raise ValueError(f"k {self.k} is larger than the number of latents, {self.n_latents}")
        return self

    @property
    def n_latents(self) -> int:
        return self.num_latents or self.d_in * self.expansion_factor

    def shapes(self) -> Shapes:
        """Names and shapes of the tensors in `sae.safetensors`."""
        return shapes(self.n_latents, self.d_in)

    def autoencoder(self, tensors: dict[str, Tensor]) -> Autoencoder:
        """The SAE that these tensors are."""
        return Autoencoder.of(tensors, "topk", self.k)


class SaeLensConfig(Section):
    """Content of SAELens' `cfg.json` as its version 6 saves SAEs for inference."""

    architecture: Literal["topk", "jumprelu", "standard"]
    """A BatchTopK SAE is saved as a `jumprelu` one."""
    d_in: PositiveInt
    d_sae: PositiveInt
    apply_b_dec_to_input: bool
    k: PositiveInt | None = None
    rescale_acts_by_decoder_norm: bool = False
    """Codes are what they would be with decoder rows of unit norm; `topk` only."""
    dtype: str = "float32"
    """What SAELens computes in. The tensors have their own."""
    device: str = "cpu"
    normalize_activations: str = "none"
    reshape_activations: str = "none"
    metadata: dict[str, Any]

    @model_validator(mode="after")
    def is_plain(self) -> Self:
        topk = self.architecture == "topk"
        if (self.k is None) == topk:
            raise ValueError("k: missing" if topk else f"k does not fit {self.architecture}")
        if self.rescale_acts_by_decoder_norm and not topk:
            raise ValueError(f"rescale_acts_by_decoder_norm does not fit {self.architecture}")
        if self.k is not None and self.k > self.d_sae:
            raise ValueError(f"k {self.k} is larger than d_sae {self.d_sae}")
        if self.normalize_activations != "none":
            raise ValueError(
                f"normalize_activations is {self.normalize_activations!r}, which is not supported; "
                f"where SAELens can fold it into the weights, let it, and save the SAE again"
            )
        if self.reshape_activations != "none":
            raise ValueError(f"reshape_activations is {self.reshape_activations!r}, {PLAIN}")
        if self.metadata.get("hook_head_index") is not None:
            raise ValueError(f"hook_head_index is {self.metadata['hook_head_index']!r}, {PLAIN}")
        return self

    @classmethod
    def upgrade(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The keys of version 6 from a file of an older one, which holds a whole training config.

        Defaults are those of SAELens' own `handle_pre_6_0_config`.
        """
        if "metadata" in config:
            return config
        hook = config.get("hook_name", config.get("hook_point")) or ""
        scaled = config.get("normalize_activations") or "none"
        reshaped = "hook_z" if "hook_z" in hook else "none"
        head = config.get("hook_head_index", config.get("hook_point_head_index"))
        found: dict[str, Any] = {
            "architecture": config.get("architecture", "standard"),
            "apply_b_dec_to_input": config.get("apply_b_dec_to_input", True),
            "normalize_activations": "expected_average_only_in" if scaled is True else scaled,
            "reshape_activations": config.get("reshape_activations", reshaped),
            "metadata": {"hook_name": hook, "hook_head_index": head},
            **{key: config[key] for key in ("d_in", "d_sae") if key in config},
        }
        if "topk" in (found["architecture"], cls.old_activation(config)):
            found["architecture"] = "topk"
            found["k"] = (config.get("activation_fn_kwargs") or config).get("k")
        return found

    @staticmethod
    def old_activation(config: dict[str, Any]) -> Any:
        """The activation function that a file from before version 6 names."""
        return config.get("activation_fn", config.get("activation_fn_str", "relu"))

    def shapes(self) -> Shapes:
        """Names and shapes of the tensors in `sae_weights.safetensors`."""
        n, d = self.d_sae, self.d_in
        found: Shapes = {"W_enc": (d, n), "b_enc": (n,), "W_dec": (n, d), "b_dec": (d,)}
        return {**found, "threshold": (n,)} if self.architecture == "jumprelu" else found

    def autoencoder(self, tensors: dict[str, Tensor]) -> Autoencoder:
        """The SAE that these tensors are, with what else the config says folded into them."""
        w_enc, b_enc = tensors["W_enc"].t().contiguous(), tensors["b_enc"]
        w_dec, b_dec = tensors["W_dec"], tensors["b_dec"]
        if self.rescale_acts_by_decoder_norm:
            norm = w_dec.norm(dim=1).clamp_min(LEAST_NORM)
            w_enc, b_enc, w_dec = w_enc * norm[:, None], b_enc * norm, w_dec / norm[:, None]
        if not self.apply_b_dec_to_input:
            # Here b_dec is always subtracted: W x + b = W (x - b_dec) + (b + W b_dec).
            b_enc = (b_enc.double() + w_enc.double() @ b_dec.double()).float()
        ours = dict(zip(PARAMETERS, (w_enc, b_enc, w_dec, b_dec), strict=True))
        return Autoencoder.of({**tensors, **ours}, self.architecture, self.k)


# The name of a layout's weights beside `cfg.json`.
WEIGHTS = {"saelens": "sae_weights.safetensors", "sparsify": "sae.safetensors"}


def hook_name(site: str) -> str:
    """TransformerLens' name of a site."""
    if site == "embed":
        return "hook_embed"
    kind = site_kind(site)
    inside = {"hook_z": "attn.hook_z", "mlp_in": "mlp.hook_in", "mlp_post": "mlp.hook_post"}
    return f"blocks.{site_layer(site)}.{inside.get(kind, f'hook_{kind}')}"
