"""The list of pretrained SAEs that comes with SAELens, read without importing it."""

from __future__ import annotations

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml
from pydantic import ConfigDict, Field

from nullsae.config.hooks import site_of_hook
from nullsae.config.made_on import MadeOn
from nullsae.config.parse import suggested
from nullsae.config.pretrained import FromSaeLens, Pretrained
from nullsae.config.section import Section
from nullsae.core.errors import UserError

INSTALL = "pip install 'nullsae[saelens]'"
# Conversions of what is not an SAE of one site; their loaders say so only when run.
_NOT_HELD = {
    "gemma_2_transcoder": (
        "a transcoder that reads the MLP's input without the gain of its norm "
        "(ln2.hook_normalized), which is no site here"
    ),
    "mntss_clt_layer_transcoder": "one layer of a cross-layer transcoder, with decoders added up",
    "temporal": "a temporal SAE, whose codes depend on the tokens before",
}
# Conversions of MLP transcoders.
_TRANSCODERS = ("mwhanna_transcoder", "gemma_3")
_TRANSCODER = re.compile(r"transcoder|clt")
_HOOK = re.compile(r"blocks\.\d+\.[\w.]*hook_[a-z_]*[a-z]|hook_embed")
_LAYER = re.compile(r"(?<![a-z])layer_?(\d+)")


class Listed(Section):
    """One SAE of the list."""

    model_config = ConfigDict(extra="ignore", strict=False)
    model: str | None = None
    repo_id: str
    path: str
    """Folder or file in the repository."""
    conversion: str = "sae_lens"
    """SAELens' name of its loader."""
    overrides: dict[str, Any] = Field(default_factory=dict)
    """Values that replace those of its own config."""
    variance_explained: float | None = None
    l0: float | None = None
    layer: int | None = None
    """The block in its id, if the id has no hook."""
    hook: str | None = None
    writes: str | None = None
    """The kind of site that a transcoder writes, if it is known without the files."""

    @property
    def made_on(self) -> MadeOn:
        """What it was made on, as far as the list records it."""
        processing = self.overrides.get("model_from_pretrained_kwargs") or {}
        return MadeOn(
            model=self.model,
            revision=processing.get("revision"),
            hook=self.overrides.get("hook_name", self.hook),
            data_set=self.overrides.get("dataset_path"),
            weight_processing=processing,
        )


def listed(pretrained: FromSaeLens, where: str) -> Listed:
    """Return an SAE's entry in SAELens' list, or only its place for an unlisted repository.

    Raises:
        UserError: SAELens is not installed, has no such release or SAE, or its kind is not
            supported; names `where`.
    """
    release, sae_id = pretrained.saelens.release, pretrained.saelens.sae_id
    text = _text()
    if text is None:
        raise UserError(f"{where}.saelens: sae_lens is not installed here ({INSTALL})")
    entry = _release(release)
    key = f"{where}.saelens"
    if entry is None:
        names = re.findall(r"^(\S+):", text, re.MULTILINE)
        if "/" not in release:
            hint = suggested(release, names)
            raise UserError(f"{key}.release: {release!r} is not a release of SAELens{hint}")
        if owners := _releases_of(release):
            raise UserError(
                f"{key}.release: {release!r} is the repository of the release "
                f"{' or '.join(owners)}; give that name, which tells SAELens how to read it"
            )
        return Listed(repo_id=release, path=sae_id, hook=_hook(sae_id))
    saes = {str(sae["id"]): sae for sae in entry["saes"]}
    if sae_id not in saes:
        hint = suggested(sae_id, saes) or f"; did you mean {next(iter(saes))!r}?"
        raise UserError(
            f"{key}.sae_id: {sae_id!r} is not one of the {len(saes)} SAEs of {release}{hint}"
        )
    sae, conversion = saes[sae_id], entry.get("conversion_func") or "sae_lens"
    path = str(sae["path"])
    hook = _hook(sae_id) or _hook(path)
    layer = None if hook else next((int(m[1]) for m in [_LAYER.search(sae_id)] if m), None)
    if (kind := _NOT_HELD.get(conversion)) is not None:
        raise UserError(f"{key}: {pretrained} is {kind}; it is not supported")
    transcodes = conversion in _TRANSCODERS and _TRANSCODER.search(f"{conversion} {path}")
    return Listed(
        model=entry["model"],
        repo_id=entry["repo_id"],
        path=path,
        conversion=conversion,
        overrides=entry.get("config_overrides") or {},
        variance_explained=sae.get("variance_explained"),
        l0=sae.get("l0"),
        layer=layer,
        hook=hook,
        writes="mlp_out" if transcodes else None,
    )


def published(pretrained: Pretrained | None, where: str) -> dict[str, float]:
    """Return the figures in the list, by the keys of `saes.*.expect`; none without a release.

    Raises:
        UserError: as `listed`.
    """
    if not isinstance(pretrained, FromSaeLens):
        return {}
    entry = listed(pretrained, where)
    found = {"l0": entry.l0, "explained_variance": entry.variance_explained}
    return {name: value for name, value in found.items() if value}


def overridden(config: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the content of SAELens' `cfg.json`, with the list's overrides.

    Version 6 has keys in `metadata` that older versions had at the top level.
    """
    if "metadata" not in config:
        return {**config, **overrides}
    own = {name: value for name, value in overrides.items() if name in config}
    more = {name: value for name, value in overrides.items() if name not in config}
    return {**config, **own, "metadata": {**config["metadata"], **more}}


def _hook(text: str) -> str | None:
    found = _HOOK.search(text)
    return found[0] if found and site_of_hook(found[0]) else None


@cache
def _text() -> str | None:
    """Return the list's text; None if SAELens is not installed."""
    spec = find_spec("sae_lens")
    if spec is None or not spec.submodule_search_locations:
        return None
    file = Path(next(iter(spec.submodule_search_locations))) / "pretrained_saes.yaml"
    return file.read_text(encoding="utf-8") if file.is_file() else None


@cache
def _release(name: str) -> dict[str, Any] | None:
    """Return one release. Of the list's 44,000 lines, only those of the release are parsed."""
    found = re.search(rf"^{re.escape(name)}:\n(?:[ \-#].*\n|\n)*", f"{_text()}\n", re.MULTILINE)
    if found is None:
        return None
    entry: dict[str, Any] = yaml.safe_load(found[0])[name]
    return entry


def refuse_corrected(repo_id: str, where: str) -> None:
    """Refuse a hub id about which SAELens' list knows more than its files.

    This needs SAELens; without it nothing is refused.

    Raises:
        UserError: names the release; begins with `where`.
    """
    for name in _releases_of(repo_id):
        entry = _release(name) or {}
        corrects = (entry.get("config_overrides") or {}).keys() - {"dataset_path"}
        if corrects or any("norm_scaling_factor" in sae for sae in entry["saes"]):
            said = ", ".join(sorted(corrects)) or "norm_scaling_factor"
            raise UserError(
                f"{where}: {repo_id!r} is the repository of SAELens' release {name}, whose list "
                f"says more than the files ({said}); give {{saelens: {{release: {name}, "
                f"sae_id: ...}}}}"
            )


def _releases_of(repo_id: str) -> list[str]:
    """Return the releases in a repository."""
    found = []
    for line in (_text() or "").splitlines():
        if line and not line[0].isspace() and line.endswith(":"):
            release = line[:-1]
        elif line == f"  repo_id: {repo_id}":
            found.append(release)
    return found
