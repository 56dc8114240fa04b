"""SAELens: `cfg.json` with `sae_weights.safetensors`."""

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

# Changes that TransformerLens may make to weights that alter what an MLP reads or adds to the
# residual stream.
_MOVES_TRANSCODERS = ("center_writing_weights", "fold_ln")
# Keys of a training's config before version 6 that are metadata since.
_METADATA = (
    *("model_name", "context_size", "dataset_path", "model_from_pretrained_kwargs"),
    "training_tokens",
)


class SaeLens(Layout):
    """Content of its `cfg.json`, as version 6 saves SAEs for inference."""

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
    """BatchTopK and Matryoshka SAEs are saved as `jumprelu`."""
    d_in: PositiveInt
    d_out: PositiveInt | None = None
    """Width of the site that a transcoder writes."""
    d_sae: PositiveInt
    apply_b_dec_to_input: bool
    k: PositiveInt | None = None
    rescale_acts_by_decoder_norm: bool = False
    """Codes are those for decoder rows of unit norm; `topk` only."""
    dtype: str = "float32"
    """The dtype of SAELens' computations; the tensors have their own."""
    device: str = "cpu"
    normalize_activations: str = "none"
    reshape_activations: Literal["none", "hook_z"] = "none"
    """`hook_z`: the concatenated outputs of the heads, as at the site `hook_z`."""
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
        """Refuse one with more than W_enc, W_dec, W_skip, biases and thresholds."""
        if self.d_out is None:
            raise ValueError("d_out: missing")
        if self.apply_b_dec_to_input:
            raise ValueError("apply_b_dec_to_input is true, which does not fit transcoders")
        for key in ("normalize_activations", "reshape_activations"):
            if getattr(self, key) != "none":
                said = f"{key} is {getattr(self, key)!r}"
                raise ValueError(f"{said}, which is not supported for transcoders")
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
        """Convert an older file, which contains a whole training config, to the keys of version 6.

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
        """Whether it writes another site than it reads."""
        return self.architecture.endswith("transcoder")

    @property
    def _site_out(self) -> str | None:
        """The site that a transcoder writes."""
        hook = self._hook("hook_name_out")
        return None if hook is None else site_of_hook(hook)

    def _hook(self, key: str) -> str | None:
        """Return TransformerLens' name of a hook, or Transformers' if only that one is a site here.

        For Gemma Scope 2's transcoders, TransformerLens' name means the stream before the norm.
        """
        names = [self.metadata.get(f"{prefix}{key}") for prefix in ("", "hf_")]
        found = [name for name in names if isinstance(name, str) and name]
        return next((name for name in found if site_of_hook(name)), found[0] if found else None)

    def made_on(self, folder: Path) -> MadeOn:
        return self.metadata_made_on()

    def writes(self, folder: Path) -> str | None:
        return self._site_out if self.transcodes else None

    def metadata_made_on(self) -> MadeOn:
        """Return what the metadata say it was made on."""
        given = self.metadata

        def text(name: str) -> str | None:
            return given.get(name) or None if isinstance(given.get(name), str) else None

        context, bos = given.get("context_size"), given.get("prepend_bos")
        n_tokens = given.get("training_tokens")
        processing = given.get("model_from_pretrained_kwargs") or {}
        if not isinstance(processing, dict):
            raise ValueError(f"model_from_pretrained_kwargs: {processing!r} is not an object")
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
        """Return names and shapes of the tensors in `sae_weights.safetensors`."""
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
        """Make an SAE from these tensors, with the rest of the config folded into them."""
        # Before version 6 there was a factor per latent, all ones if unused.
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
            # A threshold below 0 has no effect, since codes are positive.
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
        """One of `nullsae.sae.normalization`; a layer norm already subtracts the mean."""
        if self.normalize_activations == "none" and self.metadata_made_on().centred:
            return "centre"
        return self.normalize_activations
