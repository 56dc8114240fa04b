"""Checks what the files of a model may name, before a library opens one, and what was loaded.

A config names the class, the code, the weights and the kernels of a model; an index names files. A
hostile one names a pickle, a file of somebody else's, or a kernel that is downloaded and run. Here
weights are safetensors next to the config, the attention is PyTorch's own, and Python code is read
only if the study's config allows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nullsae.config.model_files import is_local
from nullsae.config.model_size import check_described, local_weight_bytes
from nullsae.config.plain import read_object
from nullsae.core.errors import UserError, first_line
from nullsae.core.folders import check_files, expanded

CONFIG, ADAPTER = "config.json", "adapter_config.json"
PICKLE = "pytorch_model.bin"
INDEXES = ("model.safetensors.index.json", f"{PICKLE}.index.json")
# Weights in one file or several; the first that exists is read.
WEIGHTS = ("model.safetensors", INDEXES[0], PICKLE, INDEXES[1])
# The index of a model with 100,000 tensors has 10 MB, its config less than one.
MAX_BYTES = 64_000_000
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
# The list and the number of the block that a weight belongs to.
_OF_BLOCK = re.compile(r"([A-Za-z_.]+)\.(\d+)\.")
# Keys of a config for weights in fewer bits than a randomization can work on.
QUANTIZED = ("quantization_config", "compression_config")


def check_checkpoint(path: str, revision: str | None, *, where: str) -> str | None:
    """Check a model's config and indexes, in a local folder or from the hub's cache.

    Weights are not read. Only files that loading the model needs anyway are downloaded.

    Args:
        path: hub id or local folder.
        revision: of the hub.
        where: prefix of messages.

    Returns:
        The commit of the hub that was checked, so that the same is loaded; else the given revision.

    Raises:
        UserError: a file names what it may not name, or is not a file of this kind.
    """
    if is_local(path):
        folder = expanded(path)
        if folder.is_dir():
            check_folder(folder, where=where)
        return revision
    config = _downloaded(path, CONFIG, revision, where)
    if config is None:
        return revision  # loading it reports what is missing
    commit = config.parent.name if _COMMIT.fullmatch(config.parent.name) else revision
    described = _read(config, where)
    names = [*INDEXES, *([ADAPTER] if find_spec("peft") else [])]
    if isinstance(given := described.get("transformers_weights"), str):
        names.append(_plain(given, (".safetensors", ".safetensors.index.json"), CONFIG, where))
    for name in names:
        if name.endswith(".json"):
            _downloaded(path, name, commit, where)
    check_named(config.parent, where=where)
    return commit


def check_folder(folder: Path, *, where: str) -> None:
    """Check the files of a local folder, and what its config and indexes name."""
    check_files(folder, where=where)
    check_named(folder, where=where)
    _check_complete(folder, where)


def check_named(folder: Path, *, where: str) -> None:
    """Check the config and the indexes in a folder, if they exist."""
    if (folder / ADAPTER).is_file() and find_spec("peft"):
        raise UserError(
            f"{where}: contains an adapter ({ADAPTER}) for a model elsewhere; merge the two, and "
            f"save them as one model"
        )
    for file in sorted(folder.glob("*.index.json")):
        _check_index(file, ".safetensors" if ".safetensors." in file.name else ".bin", where)
    if (folder / CONFIG).is_file():
        _check_config(_read(folder / CONFIG, where), where)


def _check_index(file: Path, suffix: str, where: str) -> None:
    weights = _read(file, where).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise UserError(f"{where}: {file.name} has no weight_map")
    for tensor, name in weights.items():
        if not isinstance(name, str):
            raise UserError(
                f"{where}: {file.name}: {tensor!r} is in {name!r}, which is not a file name"
            )
        _plain(name, (suffix,), file.name, where)


def _check_complete(folder: Path, where: str) -> None:
    """Check that the files of the index that Transformers would read are there."""
    first = next((name for name in WEIGHTS if (folder / name).is_file()), "")
    if not first.endswith(".json"):
        return
    names = sorted(set(_read(folder / first, where)["weight_map"].values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise UserError(
            f"{where}: {first} names {missing[0]}, which is not in the folder ({len(missing)} of "
            f"{len(names)} files are missing); fetch the rest of the model"
        )


def _read(file: Path, where: str) -> dict[str, Any]:
    try:
        return read_object(file, MAX_BYTES)
    except (OSError, ValueError) as error:
        said = first_line(error)
        raise UserError(f"{where}: {file.name}: not readable as JSON ({said})") from None


def _plain(name: str, suffixes: tuple[str, ...], inside: str, where: str) -> str:
    if not _PLAIN.fullmatch(name) or not name.endswith(suffixes):
        raise UserError(
            f"{where}: {inside} names {name!r}; it may only name *{suffixes[0]} files in its own "
            f"folder"
        )
    return name


def _check_config(described: dict[str, Any], where: str) -> None:
    if (given := described.get("transformers_weights")) is not None:
        _plain(str(given), (".safetensors", ".safetensors.index.json"), CONFIG, where)
    for section in _sections(described):
        if found := next((key for key in QUANTIZED if section.get(key)), None):
            raise UserError(
                f"{where}: {CONFIG} has a {found}; such weights cannot be randomized; use the "
                f"model that they were made from"
            )


def _sections(described: Any) -> Iterator[dict[str, Any]]:
    """Yield a config and those nested in it."""
    waiting = [described]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _downloaded(path: str, name: str, revision: str | None, where: str) -> Path | None:
    """Return a small file of the hub from its cache; None if the repository has none."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        return Path(huggingface_hub.hf_hub_download(path, name, revision=revision))
    except errors.LocalEntryNotFoundError as error:
        # Without a network, files that are not in the cache cannot be loaded either.
        if huggingface_hub.is_offline_mode():
            return None
        reason = first_line(error)
    except errors.EntryNotFoundError:
        return None
    except Exception as error:  # the HTTP client differs between versions of huggingface_hub
        reason = first_line(error)
    raise UserError(f"{where}: {name} could not be fetched from the hub: {reason}")


def own_config(
    path: str | Path, *, where: str, trust_remote_code: bool, revision: str = "main"
) -> Any:
    """Return a model's `PretrainedConfig` with the attention that Transformers would choose.

    A model's files can name another implementation of attention or experts, up to a kernel that is
    downloaded and run. Raises a `UserError` if it describes more weights than its files contain, or
    a model that reads text with an encoder.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        path, revision=revision, trust_remote_code=trust_remote_code
    )
    if getattr(config, "is_encoder_decoder", False):
        # Transformers would drop the encoder, and call the rest a language model.
        raise UserError(
            f"{where}: {CONFIG} describes an encoder and a decoder ({config.model_type}); only "
            f"models that continue a text are supported, such as GPT-2 or Llama"
        )
    # Keys that the file omits have the defaults of the family, which may be large.
    check_described(config.to_dict(), f"{where}: {CONFIG}", local_weight_bytes(str(path)))
    waiting, seen = [config], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen or not hasattr(one, "_attn_implementation"):
            continue
        seen.add(id(one))
        one._attn_implementation = None
        one._experts_implementation = None
        one.return_dict = True  # with tuples, many families fail
        waiting += vars(one).values()
    return config


def unlike_its_files(model: nn.Module, info: Mapping[str, Any]) -> str | None:
    """Say which weights a loaded model lacks, the files have beyond it, or are no numbers.

    Transformers would draw missing weights at random, and call the result pretrained. It would also
    leave out blocks that the config does not count.
    """
    if missing := sorted(info["missing_keys"]):
        return f"{len(missing)} weights are missing, such as {missing[0]}"
    if other := sorted(info.get("mismatched_keys", ())):
        name, stored, described = other[0]
        return (
            f"{name} is {tuple(stored)} in its files, but its config.json describes "
            f"{tuple(described)}; they belong to different models"
        )
    own = [found for name, _ in model.named_parameters() if (found := _OF_BLOCK.match(name))]
    for name in sorted(info["unexpected_keys"]):
        found = _OF_BLOCK.match(name)
        known = {one[2] for one in own if found and one[1] == found[1]}
        # Files of a known block may have more than weights, such as masks.
        if found and known and found[2] not in known:
            return (
                f"its files have {name}, but its config.json describes {len(known)} blocks; they "
                f"belong to different models"
            )
    for name, weights in model.named_parameters():
        # Attention skips rows of NaN, so that activations alone need not show them.
        if weights.numel() and not all(bool(end.isfinite()) for end in torch.aminmax(weights)):
            kind = str(weights.dtype).removeprefix("torch.")
            return (
                f"{name} has NaN or infinite values as {kind}; its files are damaged, or it needs "
                f"another source.dtype"
            )
    return None
