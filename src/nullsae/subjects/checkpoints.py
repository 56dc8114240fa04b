"""Checks what the files of a model may name, before a library opens one of them.

A config names the class, the code, the weights and the kernels of a model; an index names files. A
hostile one names a pickle, a file of somebody else's, or a kernel that is downloaded and run. Here
weights are safetensors next to the config, the attention is PyTorch's own, and Python code is read
only if the study's config allows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nullsae.config.model_files import is_local
from nullsae.config.model_size import check_described, local_weight_bytes
from nullsae.config.plain import read_object
from nullsae.core.errors import UserError, first_line
from nullsae.core.folders import check_files

CONFIG, ADAPTER = "config.json", "adapter_config.json"
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
# The index of a model with 100,000 tensors has 10 MB, its config less than one.
MAX_BYTES = 64_000_000
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
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
        folder = Path(path).expanduser()
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
    downloaded and run. Raises a `UserError` if it describes more weights than its files contain.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(
        path, revision=revision, trust_remote_code=trust_remote_code
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
        waiting += vars(one).values()
    return config
