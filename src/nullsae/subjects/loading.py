"""Subjects on disk and in memory: one folder per variant, one object to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nullsae.errors import UserError
from nullsae.files import checksum, read_json, rebuild_command, verify, write_json
from nullsae.inputs import PretrainedSource, is_local
from nullsae.randomness import torch_generator
from nullsae.sites import site_layer

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def pick_device(device: str) -> torch.device:
    """The device that `compute.device` means on this machine.

    Raises:
        UserError: CUDA is asked for where there is none.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"config: compute.device: {device!r}, but no CUDA device is here; use auto")
    return torch.device(device)


def fetch(source: PretrainedSource, *, step0: bool) -> nn.Module:
    """Load a causal language model from a hub id or a local folder, safetensors only.

    Raises:
        UserError: the model cannot be had or has no safetensors; names the config value.
    """
    from transformers import AutoModelForCausalLM

    from nullsae.corpus.hub import check_repository

    revision = source.step0_revision if step0 else source.revision
    check_repository(source.path, kind="model", revision=revision, where="subjects.*.source.path")
    path = str(Path(source.path).expanduser()) if is_local(source.path) else source.path
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            revision=revision or "main",
            dtype=DTYPES[source.dtype],
            trust_remote_code=source.trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        at = f" at revision {revision}" if revision else ""
        raise UserError(f"subject {source.path!r}{at}: cannot be loaded: {reason}") from None
    return model.eval().requires_grad_(False)  # type: ignore[no-any-return]


def save_subject(model: Any, folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write a Hugging Face checkpoint folder, then `recipe.json` with a checksum per file.

    The recipe comes last: a folder without one is unfinished.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for old in [*folder.glob("*.safetensors*"), *folder.glob("*.json")]:
        old.unlink()
    model.save_pretrained(folder)
    files = sorted(p.name for p in folder.iterdir() if p.suffix in {".safetensors", ".json"})
    config = model.config
    described = {
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "vocab_size": config.vocab_size,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "files": {name: checksum(folder / name) for name in files},
    }
    write_json(folder / "recipe.json", {**recipe, **described})


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
        self._contexts: Sequence[int] = ()
        self._split = ""
        if self.recipe.get("embedding_noise_std") is not None:
            self.model.get_input_embeddings().register_forward_hook(self._noise)

    def _noise(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        """Replace embeddings [batch, tokens, d] by noise keyed by (draw, split, context)."""
        recipe = self.recipe
        rows = [
            torch.randn(
                output.shape[1:],
                generator=torch_generator(
                    recipe["seed"], "embedding_noise", recipe["draw"], self._split, context
                ),
            )
            for context in self._contexts
        ]
        noise = torch.stack(rows) * recipe["embedding_noise_std"]
        placed: Tensor = noise.to(device=output.device, dtype=output.dtype)
        return placed

    def _place(self, input_ids: Tensor, split: str, contexts: Sequence[int]) -> Tensor:
        if len(contexts) != len(input_ids):
            raise ValueError(f"{len(contexts)} context indices for {len(input_ids)} contexts")
        self._split, self._contexts = split, contexts
        return input_ids.to(self.device, torch.int64)

    @torch.inference_mode()
    def activations(
        self, input_ids: Tensor, *, split: str, contexts: Sequence[int], sites: Sequence[str]
    ) -> dict[str, Tensor]:
        """Run up to the last site and return what passes at each.

        Args:
            input_ids: [batch, tokens] integers.
            split: the split that the contexts belong to; keys the noise of `noise_embeddings`.
            contexts: index of each row in the split.
            sites: names of sites.

        Returns:
            Per site a tensor [batch, tokens, d_model] in the subject's dtype, on its device.
        """
        found: dict[str, Tensor] = {}
        last = max(sites, key=site_layer)

        def keep(site: str) -> Callable[..., None]:
            def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
                found[site] = output[0] if isinstance(output, tuple) else output
                if site == last:
                    raise _StopForward

            return hook

        input_ids = self._place(input_ids, split, contexts)
        with ExitStack() as stack:
            for site in sites:
                handle = self.blocks[site_layer(site)].register_forward_hook(keep(site))
                stack.callback(handle.remove)
            with suppress(_StopForward):
                self.model(input_ids=input_ids, use_cache=False)
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
        """Next-token logits [batch, tokens, vocab], with one site's activations replaced or not.

        Args:
            input_ids: [batch, tokens] integers.
            split: as in `activations`.
            contexts: as in `activations`.
            site: where to splice.
            replace: maps that site's [batch, tokens, d_model] to what goes on in its place.
        """
        input_ids = self._place(input_ids, split, contexts)
        with ExitStack() as stack:
            if site is not None and replace is not None:

                def splice(_module: nn.Module, _inputs: Any, output: Any) -> Any:
                    if isinstance(output, tuple):
                        return (replace(output[0]), *output[1:])
                    return replace(output)

                handle = self.blocks[site_layer(site)].register_forward_hook(splice)
                stack.callback(handle.remove)
            return self.model(input_ids=input_ids, use_cache=False).logits  # type: ignore[no-any-return]


def find_blocks(model: Any) -> nn.ModuleList:
    """The list of transformer blocks: the outermost `ModuleList` with one entry per layer.

    Raises:
        UserError: the model has no such list; says what was looked for.
    """
    n_layers = getattr(model.config, "num_hidden_layers", None)
    lists = [
        (name.count("."), name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise UserError(
            f"subject of class {type(model).__name__}: not supported; looked for a list of "
            f"{n_layers} blocks (config.num_hidden_layers) and found none"
        )
    return min(lists, key=lambda entry: entry[:2])[2]


def load_subject(recipe_file: Path, device: torch.device) -> Subject:
    """Load a variant from its folder after verifying every file against the recipe.

    Raises:
        UserError: a file is missing or damaged; names it and the command that rebuilds it.
    """
    from transformers import AutoModelForCausalLM

    rebuild = rebuild_command(recipe_file)
    recipe = read_json(recipe_file, rebuild=rebuild)
    for name, expected in recipe["files"].items():
        verify(recipe_file.parent / name, expected, rebuild=rebuild)
    model = AutoModelForCausalLM.from_pretrained(
        recipe_file.parent,
        dtype=DTYPES[recipe["dtype"]],
        trust_remote_code=recipe.get("trust_remote_code", False),
        use_safetensors=True,
    )
    model = model.eval().requires_grad_(False).to(device)
    return Subject(model=model, recipe=recipe, device=device)
