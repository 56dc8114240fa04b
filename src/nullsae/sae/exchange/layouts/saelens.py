"""SAELens: `cfg.json` beside `sae_weights.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import PositiveInt, model_validator

from nullsae.config.hooks import site_of_hook
from nullsae.config.layouts import Layout, Shapes
from nullsae.config.made_on import MadeOn
from nullsae.core.registry import lazy
from nullsae.sae.later import Autoencoder, Tensor, autoencoder

if TYPE_CHECKING:
    from nullsae.sae import transcoder
    from nullsae.sae.exchange import tensors
else:
    tensors, transcoder = map(lazy, ("nullsae.sae.exchange.tensors", "nullsae.sae.transcoder"))

# What TransformerLens may do to weights that alters what an MLP reads, or what is added to the
# residual stream.
_MOVES_TRANSCODERS = ("center_writing_weights", "fold_ln")
# Which of the keys of a training's config, before version 6, are metadata since.
_METADATA = (
    *("model_name", "context_size", "dataset_path", "model_from_pretrained_kwargs"),
    "training_tokens",
)


class SaeLens(Layout):
    """Content of its `cfg.json` as version 6 saves SAEs for inference."""

    name, position = "saelens", 1
    weights = ("sae_weights.safetensors",)

    architecture: Literal[
        "topk",
        "jumprelu",
        "standard",
        "gated",
        "transcoder",
        "skip_transcoder",
        "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    ]
    """A BatchTopK or Matryoshka SAE is saved as a `jumprelu` one."""
    d_in: PositiveInt
    d_out: PositiveInt | None = None
    """Width of the site that a transcoder writes."""
    d_sae: PositiveInt
    apply_b_dec_to_input: bool
    k: PositiveInt | None = None
    rescale_acts_by_decoder_norm: bool = False
    """Codes are what they would be with decoder rows of unit norm; `topk` only."""
    dtype: str = "float32"
    """What SAELens computes in. The tensors have their own."""
    device: str = "cpu"
    normalize_activations: str = "none"
    reshape_activations: Literal["none", "hook_z"] = "none"
    """`hook_z`: the heads' outputs side by side, as the site `hook_z` has them."""
    metadata: dict[str, Any]

    @model_validator(mode="after")
    def can_be_had(self) -> Self:
        topk = self.architecture == "topk"
        if (self.k is None) == topk:
            raise ValueError("k: missing" if topk else f"k does not fit {self.architecture}")
        if self.rescale_acts_by_decoder_norm and not topk:
            raise ValueError(f"rescale_acts_by_decoder_norm does not fit {self.architecture}")
        if self.k is not None and self.k > self.d_sae:
            raise ValueError(f"k {self.k} is larger than d_sae {self.d_sae}")
        if self.normalize_activations not in ("none", "layer_norm", "constant_norm_rescale"):
            raise ValueError(
                f"normalize_activations is {self.normalize_activations!r}, whose numbers are not "
                f"in the files; have SAELens fold them into the weights, and save the SAE again"
            )
        if self.metadata.get("hook_head_index") is not None:
            raise ValueError(
                f"hook_head_index is {self.metadata['hook_head_index']!r}, but SAEs of one head "
                f"are not supported"
            )
        made_on = self.metadata_made_on()
        made_on.check_processing()
        if self.transcodes:
            self._check_transcoder()
        elif self.d_out is not None:
            raise ValueError(f"d_out does not fit {self.architecture}")
        if made_on.centred and self.normalize_activations == "constant_norm_rescale":
            raise ValueError(
                "normalize_activations is 'constant_norm_rescale' on a model with "
                "center_writing_weights, which is not supported"
            )
        return self

    def _check_transcoder(self) -> None:
        """Refuse one that does more than W_enc, W_dec, W_skip, biases and thresholds do."""
        if self.d_out is None:
            raise ValueError("d_out: missing")
        if self.apply_b_dec_to_input:
            raise ValueError("apply_b_dec_to_input is true, which does not fit transcoders")
        for key in ("normalize_activations", "reshape_activations"):
            if getattr(self, key) != "none":
                said = f"{key} is {getattr(self, key)!r}"
                raise ValueError(f"{said}, which is not supported of transcoders")
        if self._site_out is None:
            hook = self.metadata.get("hook_name_out")
            raise ValueError(f"metadata.hook_name_out is {hook!r}, which is not a site")
        if (head := self.metadata.get("hook_head_index_out")) is not None:
            raise ValueError(f"metadata.hook_head_index_out is {head!r}, which is not supported")
        for key in _MOVES_TRANSCODERS:
            if self.metadata_made_on().weight_processing.get(key):
                raise ValueError(
                    f"model_from_pretrained_kwargs.{key} is true; transcoders of models whose "
                    f"weights were changed in this way are not supported"
                )

    @classmethod
    def content(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The keys of version 6 from a file of an older one, which holds a whole training config.

        Defaults are those of SAELens' own `handle_pre_6_0_config`.
        """
        if "metadata" in config and "decoder_init_norm" in config:
            raise ValueError(
                "decoder_init_norm is a key of training checkpoints; save the SAE with SAELens' "
                "save_inference_model"
            )
        activation = config.get("activation_fn", config.get("activation_fn_str", "relu"))
        if activation not in ("relu", "topk"):
            raise ValueError(f"activation_fn: {activation!r} is not one of relu, topk")
        if "metadata" in config:
            return config
        hook = config.get("hook_name", config.get("hook_point")) or ""
        scaled = config.get("normalize_activations") or "none"
        reshaped = "hook_z" if "hook_z" in hook else "none"
        head = config.get("hook_head_index", config.get("hook_point_head_index"))
        metadata = {"hook_name": hook, "hook_head_index": head}
        metadata |= {name: config[name] for name in _METADATA if name in config}
        metadata["prepend_bos"] = config.get("prepend_bos", True)
        found: dict[str, Any] = {
            "architecture": config.get("architecture", "standard"),
            "apply_b_dec_to_input": config.get("apply_b_dec_to_input", True),
            "normalize_activations": "expected_average_only_in" if scaled is True else scaled,
            "reshape_activations": config.get("reshape_activations", reshaped),
            "metadata": metadata,
            **{key: config[key] for key in ("d_in", "d_sae") if key in config},
        }
        if "topk" in (found["architecture"], activation):
            found["architecture"] = "topk"
            found["k"] = (config.get("activation_fn_kwargs") or config).get("k")
        return found

    @property
    def input_width(self) -> int:
        return self.d_in

    @property
    def transcodes(self) -> bool:
        """Whether it writes at another site than it reads."""
        return self.architecture.endswith("transcoder")

    @property
    def _site_out(self) -> str | None:
        """The site that a transcoder writes."""
        hook = self._hook("hook_name_out")
        return None if hook is None else site_of_hook(hook)

    def _hook(self, key: str) -> str | None:
        """A hook by TransformerLens' name, or by that in Transformers if it alone is a site here.

        Of Gemma Scope 2's transcoders TransformerLens has the stream before the norm by that name.
        """
        names = [self.metadata.get(f"{prefix}{key}") for prefix in ("", "hf_")]
        found = [name for name in names if isinstance(name, str) and name]
        return next((name for name in found if site_of_hook(name)), found[0] if found else None)

    def made_on(self, folder: Path) -> MadeOn:
        return self.metadata_made_on()

    def writes(self, folder: Path) -> str | None:
        return self._site_out if self.transcodes else None

    def metadata_made_on(self) -> MadeOn:
        """What the metadata say."""
        given = self.metadata

        def text(name: str) -> str | None:
            return given.get(name) or None if isinstance(given.get(name), str) else None

        context, bos = given.get("context_size"), given.get("prepend_bos")
        n_tokens = given.get("training_tokens")
        processing = given.get("model_from_pretrained_kwargs") or {}
        if not isinstance(processing, dict):
            raise ValueError(f"model_from_pretrained_kwargs: {processing!r} is no object")
        return MadeOn(
            model=text("model_name"),
            revision=processing.get("revision"),
            hook=self._hook("hook_name"),
            context_tokens=context if isinstance(context, int) else None,
            prepend_bos=bos if isinstance(bos, bool) else None,
            data_set=text("dataset_path"),
            training_tokens=n_tokens if isinstance(n_tokens, int) else None,
            weight_processing=processing,
        )

    def shapes(self) -> Shapes:
        """Names and shapes of the tensors in `sae_weights.safetensors`."""
        n, d, out = self.d_sae, self.d_in, self.d_out or self.d_in
        found: Shapes = {"W_enc": (d, n), "W_dec": (n, out), "b_dec": (out,)}
        if self.architecture == "gated":
            return {**found, **dict.fromkeys(("b_gate", "b_mag", "r_mag"), (n,))}
        found["b_enc"] = (n,)
        if "skip" in self.architecture:
            found["W_skip"] = (out, d)
        return {**found, "threshold": (n,)} if "jumprelu" in self.architecture else found

    def autoencoder(self, weights: Path) -> Autoencoder:
        return self.from_tensors(tensors.stored_tensors(weights), str(weights))

    def from_tensors(self, stored: dict[str, Tensor], weights: str) -> Autoencoder:
        """The SAE that these tensors are, with what else the config says folded into them."""
        # Before version 6 there was a factor per latent, all ones if it was not used.
        ones = [n for n in ("scaling_factor",) if n in stored and bool((stored[n] == 1).all())]
        t = tensors.fitting_tensors(stored, self.shapes(), weights, ones)
        w_enc, w_dec, b_dec = t["W_enc"].t().contiguous(), t["W_dec"], t["b_dec"]
        kind, own = self.architecture, {}
        if self.architecture == "gated":
            kind, gate = "jumprelu", (t["b_gate"], t["b_mag"], t["r_mag"])
            w_enc, b_enc, own["threshold"] = tensors.folded_gate(w_enc, *gate)
        else:
            b_enc = t["b_enc"]
        if "jumprelu" in self.architecture:
            # Below 0 it says nothing: codes are positive.
            own["threshold"] = t["threshold"].relu()
        if self.transcodes:
            made: Autoencoder = transcoder.Transcoder(
                *("jumprelu" if own else "standard", w_enc, b_enc, w_dec, b_dec, None, own),
                output_site=self._site_out or "",
                w_skip=t.get("W_skip"),
            )
            return made
        if self.rescale_acts_by_decoder_norm:
            w_enc, b_enc, w_dec = tensors.with_unit_rows(w_enc, b_enc, w_dec)
        if not self.apply_b_dec_to_input:
            b_enc = tensors.uncentred_bias(w_enc, b_enc, b_dec)
        return autoencoder.Autoencoder(
            *(kind, w_enc, b_enc, w_dec, b_dec, self.k, own), self.normalization
        )

    @property
    def normalization(self) -> str:
        """Of `nullsae.sae.normalization`; a layer norm takes the mean away already."""
        if self.normalize_activations == "none" and self.metadata_made_on().centred:
            return "centre"
        return self.normalize_activations
