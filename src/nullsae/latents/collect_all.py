"""Collection of the latents of all SAEs of a job of `collect_latents`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from nullsae.core.kept import Kept
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.latents.collect import collect_latents

log = logging.getLogger(__name__)


def collect_all(
    params: CollectLatentsParams,
    *,
    sae: Path,
    activations: Path,
    tokens: Path,
    model: Path | None = None,
    latents: Path,
    windows: Path,
    coverage: Path,
    firings: Path,
    kept: Kept | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """`collect_latents` of each SAE of the params, one after the other.

    Args:
        params: the rule's slice of the config.
        sae: as for `collect_latents`, like all paths; {site}, {sae} and {seed} are filled in.
        activations: of the model, the same for all.
        tokens: the same.
        model: the same.
        latents: of each SAE.
        windows: the same.
        coverage: the same.
        firings: the same.
        kept: where copies of these four lie. An SAE whose copies are there, of the same params,
            code and weights, is not read again.
        progress: called with (tokens done, tokens in all) of each SAE.

    Raises:
        UserError: as `collect_latents`.
    """
    outputs = {"latents": latents, "windows": windows, "coverage": coverage, "firings": firings}
    for one in params.each():
        own = one.keys.model_dump()
        config = _filled(sae, own)
        files = {name: _filled(path, own) for name, path in outputs.items()}
        copies = kept.copies(one, config) if kept and config.is_file() else None
        if copies and copies.take(files):
            log.info("%s: collected before, its tables are copied", config.parent)
            continue
        collect_latents(
            one,
            sae=config,
            activations=activations,
            tokens=tokens,
            model=model,
            **files,
            progress=progress,
        )
        if copies:
            copies.keep(files)


def _filled(path: Path, keys: dict[str, str | int]) -> Path:
    return Path(str(path).format(**keys))
