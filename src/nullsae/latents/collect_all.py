"""Collects the latents of all SAEs of a `collect_latents` job."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nullsae.activations.passes import group_of
from nullsae.core.kept import Kept, unmade
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.latents.collect import OneSae, collect_together


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
    """Collect the latents of each SAE of the params as `collect_together` does.

    Args:
        params: the rule's slice of the config.
        sae: path of each `cfg.json`, in which {site}, {sae} and {seed} are filled in.
        activations: manifest of the model's `eval` activations. If they are not kept, all SAEs
            share the passes that compute them; otherwise SAEs are processed one by one.
        tokens: manifest of the corpus' `eval` split.
        model: the variant's `recipe.json`, if it has weights.
        latents: of each SAE, with the placeholders of `sae`.
        windows: the same.
        coverage: the same.
        firings: the same.
        kept: where copies of these four are. An SAE with copies there for the same params, code
            and weights is not read again.
        progress: called with (tokens done, tokens in total) of each pass.

    Raises:
        UserError: as `collect_together`.
    """

    def group(one: CollectLatentsParams) -> tuple[str, ...]:
        return group_of(activations, one.keys, one.eval_activations_key)

    outputs = {"latents": latents, "windows": windows, "coverage": coverage, "firings": firings}
    paths = {name: str(path) for name, path in outputs.items()}
    for members in unmade(params.each(), str(sae), paths, kept, group):
        collect_together(
            [OneSae(one.params, one.sae, **one.outputs, written=one.keep) for one in members],
            activations=activations,
            tokens=tokens,
            model=model,
            progress=progress,
        )
