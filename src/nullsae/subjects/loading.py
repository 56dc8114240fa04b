"""Subjects on disk and in memory: one folder per variant, one object to run it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nullsae.config.model_files import GGUF_PACKAGES, find_gguf, is_local
from nullsae.config.model_size import check_model
from nullsae.config.sites import PROJECTED, site_kind
from nullsae.config.subjects import GgufSource, PretrainedSource
from nullsae.config.variants import VARIANTS
from nullsae.core.devices import hold_others
from nullsae.core.errors import UserError, first_line
from nullsae.core.folders import expanded
from nullsae.subjects.checkpoints import (
    PICKLE,
    check_checkpoint,
    check_folder,
    own_config,
    unlike_its_files,
)
from nullsae.subjects.families import Point, attach, find_blocks, find_site, text_config
from nullsae.subjects.folders import read_recipe

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Length of the contexts for the sum of a block's parts.
PROBE_TOKENS = 8


def fetch(source: PretrainedSource | GgufSource, *, variant: str = "trained") -> nn.Module:
    """Load a causal language model from a hub id, a local folder or a GGUF file, onto the CPU.

    Checkpoints are safetensors, memory-mapped by Transformers: tensors that keep their dtype are
    not copied until they are written to. If a revision has no safetensors, torch's weights-only
    unpickler reads `pytorch_model.bin` without running code; the log and the model's attribute
    `read_from` report this.

    Args:
        source: where it comes from.
        variant: whose weights of the source to load.

    Raises:
        UserError: the model is unavailable or lacks weights; names the config value.
    """
    from nullsae.corpus.hub import check_cached, check_repository

    key = "config: subjects.*.source"
    if isinstance(source, GgufSource):
        model = _fetch_gguf(source, key)
    else:
        path, revision, path_key, revision_key = VARIANTS[variant].weights_of(source)
        what = f"subject {path!r}{f' at revision {revision}' if revision else ''}"
        keys = {"where": f"{key}.{path_key}", "revision_where": f"{key}.{revision_key}"}
        check_repository(path, kind="model", revision=revision, **keys)
        check_cached(path, "config.json", revision=revision, **keys)
        revision = check_checkpoint(path, revision, where=f"{what}: cannot be loaded")
        settings: dict[str, Any] = {
            **{"path": str(expanded(path)) if is_local(path) else path, "what": what},
            **{"revision": revision or "main", "dtype": DTYPES[source.dtype]},
            "trust_remote_code": source.trust_remote_code,
        }
        try:
            model = _from_pretrained(**settings, use_safetensors=True)
        except NoSafetensorsError:
            model = _from_pretrained(**settings, use_safetensors=False, weights_only=True)
            model.read_from = PICKLE  # type: ignore[assignment]
            log.warning("%s: no safetensors; weights read from %s, as data only", what, PICKLE)
    return model.eval().requires_grad_(False)


class NoSafetensorsError(UserError):
    """A checkpoint without safetensors."""


def _fetch_gguf(source: GgufSource, key: str) -> nn.Module:
    file = find_gguf(source, where=key)
    if missing := [name for name in ("gguf", "accelerate") if find_spec(name) is None]:
        raise UserError(
            f"{key}: reading a GGUF file needs {' and '.join(missing)} "
            f"(pip install {GGUF_PACKAGES})"
        )
    model: Any = _from_pretrained(
        file.parent,
        f"subject {file}",
        gguf_file=file.name,
        dtype=DTYPES[source.dtype],
        trust_remote_code=False,
    )
    # The weights are plain by now, but Transformers saves no model marked as quantized.
    model.hf_quantizer = None
    model.config.__dict__.pop("quantization_config", None)
    return model  # type: ignore[no-any-return]


def _from_pretrained(path: str | Path, what: str, **keys: Any) -> nn.Module:
    """Call `AutoModelForCausalLM.from_pretrained`; missing weights raise a `UserError`."""
    from huggingface_hub import is_offline_mode
    from transformers import AutoModelForCausalLM

    # Or Transformers would look for safetensors in another revision, which a robot may have
    # proposed.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    if "gguf_file" not in keys:
        check_model(str(path), what, keys.get("revision"))
    try:
        if "gguf_file" not in keys:
            own = {"revision": keys["revision"], "trust_remote_code": keys["trust_remote_code"]}
            keys["config"] = own_config(path, where=what, **own)
            keys["ignore_mismatched_sizes"] = True  # reported below, with their shapes
        model, info = AutoModelForCausalLM.from_pretrained(path, output_loading_info=True, **keys)
    except UserError:
        raise
    except Exception as error:  # anything that a foreign repository makes the loader raise
        reason = first_line(error)
        lacking = "safetensors" in reason and isinstance(error, OSError)
        if lacking and keys.get("use_safetensors"):
            raise NoSafetensorsError(f"{what}: cannot be loaded: no safetensors") from None
        if lacking:
            cached = is_offline_mode() and not is_local(str(path))
            where = " in the cache of the hub" if cached else ""
            reason = f"it has neither safetensors nor {PICKLE}{where}"
        elif "Weights only load failed" in str(error):
            reason = f"{PICKLE} contains more than weights and could run code, so it is not read"
        elif "trust_remote_code" in str(error):
            reason = "it needs its own Python code, which only source.trust_remote_code allows"
        elif keys.get("use_safetensors") is False and isinstance(error, OSError):
            reason = f"{PICKLE} is damaged or incomplete ({reason})"
        raise UserError(f"{what}: cannot be loaded: {reason}") from None
    if lacks := unlike_its_files(model, info):
        raise UserError(f"{what}: cannot be loaded: {lacks}")
    return model  # type: ignore[no-any-return]


class _StopForward(Exception):  # noqa: N818 - control flow, not an error
    """Ends a forward pass after the last site."""


@dataclass
class Subject:
    """A variant of a subject, ready to run."""

    model: Any
    recipe: dict[str, Any]
    device: torch.device

    def __post_init__(self) -> None:
        self.blocks = find_blocks(self.model)
        self.block_outputs = [f"resid_post.{layer}" for layer in range(len(self.blocks))]
        # Searched once; in each batch, a GPU would wait for it.
        self.point: Callable[[str], Point] = cache(partial(find_site, self.model))
        self.contexts: Sequence[int] = ()
        self.split = ""
        # Its hooks precede all others, so that sites show their effect.
        if name := self.recipe.get("variant"):
            VARIANTS[name].install(self)

    def width(self, site: str) -> int:
        """Return the width of a site.

        It is that of the residual stream, except for embeddings that are projected up and for the
        input of an output projection.
        """
        if site_kind(site) in PROJECTED:
            return self.point(site).reads or 0
        embedded = self.model.get_input_embeddings().weight.shape[1]
        return int(embedded if site == "embed" else text_config(self.model).hidden_size)

    def placed(self, input_ids: Tensor, split: str, contexts: Sequence[int]) -> Tensor:
        """Return integers [contexts, tokens] as the model reads them, before a pass over them.

        `split` and `contexts` key what is drawn per context; see `watch`.
        """
        if len(contexts) != len(input_ids):
            raise ValueError(f"{len(contexts)} context indices for {len(input_ids)} contexts")
        self.split, self.contexts = split, contexts
        return input_ids.to(self.model.get_input_embeddings().weight.device, torch.int64)

    @torch.inference_mode()
    def watch(
        self,
        input_ids: Tensor,
        *,
        split: str,
        contexts: Sequence[int],
        sites: Sequence[str],
        see: Callable[[str, Tensor], None],
    ) -> None:
        """Run up to the last site and show what passes at each, without copying it.

        Args:
            input_ids: [batch, tokens] integers.
            split: the split of the contexts; keys what is drawn per context.
            contexts: index of each row in the split.
            sites: names of sites.
            see: called with a site's name and [batch, tokens, width of the site] in the subject's
                dtype, on the site's device. It must copy what it keeps, because some families later
                add to the tensor in place.

        Raises:
            UserError: the model's forward pass did not reach a site, or what passes there is not
                one row per token.
        """
        waiting = set(sites)
        shape = tuple(input_ids.shape)

        def passes(site: str, x: Tensor) -> None:
            # Some families (OPT) flatten it.
            layouts = (*shape, self.width(site)), (shape[0] * shape[1], self.width(site))
            if not isinstance(x, Tensor) or tuple(x.shape) not in layouts:
                found = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
                raise UserError(
                    f"site {site}: not supported for model_type "
                    f"{text_config(self.model).model_type!r}: a block passes on {found}, not "
                    f"[contexts, tokens, d_model] = {list(layouts[0])}"
                )
            see(site, x.reshape(*shape, -1))
            waiting.discard(site)
            if not waiting:
                raise _StopForward

        input_ids = self.placed(input_ids, split, contexts)
        with ExitStack() as stack:
            for site in sites:
                stack.enter_context(attach(self.point(site), partial(passes, site)))
            with suppress(_StopForward):
                self.model(input_ids=input_ids, use_cache=False)
        if waiting:
            raise UserError(f"site {min(waiting)}: nothing passes there in a forward pass")

    def activations(
        self, input_ids: Tensor, *, split: str, contexts: Sequence[int], sites: Sequence[str]
    ) -> dict[str, Tensor]:
        """Run up to the last site and return copies of what passes at each; arguments as `watch`.

        Returns:
            Per site [batch, tokens, width of the site] in the subject's dtype, on its device.
        """
        found: dict[str, Tensor] = {}

        def keep(site: str, x: Tensor) -> None:
            found[site] = x.to(self.device, copy=True)

        self.watch(input_ids, split=split, contexts=contexts, sites=sites, see=keep)
        return found

    @torch.inference_mode()
    def logits(
        self,
        input_ids: Tensor,
        *,
        split: str,
        contexts: Sequence[int],
        site: str | None = None,
        replace: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return next-token logits [batch, tokens, vocab], optionally replacing a site's
        activations.

        Args:
            input_ids: as in `watch`, like `split` and `contexts`.
            split: see there.
            contexts: see there.
            site: where to splice.
            replace: maps that site's [batch, tokens, width], on the subject's device, to its
                replacement.
        """
        input_ids = self.placed(input_ids, split, contexts)
        with ExitStack() as stack:
            if site is not None and replace is not None:

                def splice(x: Tensor) -> Tensor:
                    seen = x.to(self.device).reshape(*input_ids.shape, -1)
                    return replace(seen).to(x.device).reshape(x.shape)

                stack.enter_context(attach(self.point(site), splice))
            logits: Tensor = self.model(input_ids=input_ids, use_cache=False).logits
            return logits.to(self.device)


def place(model: Any, recipe: Mapping[str, Any], device: torch.device) -> Any:
    """Move a subject to its device, or spread it over the GPUs as its `device_map` says.

    Raises a `UserError` if the GPUs are too small for it together, or fewer than it asks for.
    """
    device_map = recipe.get("source", {}).get("device_map")
    if device_map is None or device.type != "cuda":
        if device_map is not None:
            log.info("device_map %s is for GPUs; the subject is on the %s", device_map, device)
        return model.to(device)
    if find_spec("accelerate") is None:
        raise UserError(
            "config: subjects.*.source.device_map: spreading a subject over GPUs needs accelerate "
            "(pip install accelerate==1.15.0)"
        )
    import accelerate

    # A block's parts stay together, because what they add to must be on their device.
    whole = {"no_split_module_classes": list(model._no_split_modules or ())}
    held = hold_others(device, recipe["source"].get("gpus"))
    # Memory that PyTorch keeps after an earlier model counts as used.
    torch.cuda.empty_cache()
    memory = {at: n for at, n in accelerate.utils.get_max_memory().items() if at in held}
    if device_map != "sequential":
        memory = accelerate.utils.get_balanced_memory(model, max_memory=memory, **whole)
    spread = accelerate.infer_auto_device_map(model, max_memory=memory, **whole)
    if {"cpu", "disk"} & {str(at) for at in spread.values()}:
        raise UserError(
            f"config: subjects.*.source.device_map: the subject does not fit into the "
            f"{len(memory)} GPUs here; take more or larger ones, a smaller dtype, or device: cpu"
        )
    return accelerate.dispatch_model(
        model, device_map=spread, skip_keys=model._skip_keys_device_placement
    )


def take_off(model: Any) -> None:
    """Move a subject that was placed to the CPU, so that its devices have room for another."""
    if hasattr(model, "hf_device_map"):
        from accelerate.hooks import remove_hook_from_submodules

        remove_hook_from_submodules(model)
        del model.hf_device_map
    model.to("cpu")


def load_subject(recipe_file: Path, device: torch.device) -> Subject:
    """Load a variant from its folder after verifying every file against the recipe.

    A variant without its own weights runs on those that its recipe names. The file stays
    memory-mapped; on the CPU, nothing is copied.

    Raises:
        UserError: a file is missing or damaged (names it and the command that rebuilds it), or the
            variant is not known here.
    """
    from transformers import AutoModelForCausalLM

    recipe, folder = read_recipe(recipe_file)
    if (variant := recipe.get("variant", "trained")) not in VARIANTS:
        raise UserError(
            f"{recipe_file}: variant {variant!r} is not one of {', '.join(VARIANTS)}; "
            f"install the package that it comes from"
        )
    trusted = recipe.get("trust_remote_code", False)
    check_folder(folder, where=str(recipe_file))
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        config=own_config(folder, where=str(recipe_file), trust_remote_code=trusted),
        dtype=DTYPES[recipe["dtype"]],
        trust_remote_code=trusted,
        use_safetensors=True,
    )
    model = place(model.eval().requires_grad_(False), recipe, device)
    return Subject(model, recipe, device)


_SHARED: dict[tuple[Path, int, torch.device], Subject] = {}


def shared_subject(recipe_file: Path, device: torch.device) -> Subject:
    """Call `load_subject`, keeping the last variant loaded for the rest of the process.

    Only one model is on the device at a time: the last one is dropped before another is loaded.
    """
    changed = recipe_file.stat().st_mtime_ns if recipe_file.is_file() else 0
    key = (recipe_file.absolute(), changed, device)
    if key not in _SHARED:
        _SHARED.clear()
        _SHARED[key] = load_subject(recipe_file, device)
    return _SHARED[key]
