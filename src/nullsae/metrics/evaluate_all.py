"""Evaluates all SAEs of a model, which is one job of `evaluate_sae`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from nullsae.activations.store import SiteReader
from nullsae.config.variants import is_floor
from nullsae.core.kept import Copies, Kept
from nullsae.jobs.metrics import EvaluateSaeParams, EvaluateSaesParams
from nullsae.metrics.evaluate import OneSae, evaluate_together

log = logging.getLogger(__name__)
TABLES = ("reconstruction", "documents", "geometry")


def evaluate_saes(
    params: EvaluateSaesParams,
    *,
    sae: str,
    model: Path | None,
    train_activations: str,
    eval_activations: str,
    train_tokens: Path,
    eval_tokens: Path,
    output: str,
    kept: Kept | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Evaluate SAEs as `evaluate_together` does, each into tables of its own.

    Args:
        params: the rule's slice of the config.
        sae: path of each `cfg.json`; {variant}, {site}, {sae} and {seed} are filled in.
        model: `recipe.json` of the variant; None for `gaussian`, which has none. Floors use none.
        train_activations: manifest of the `sae_train` activations; {variant} is filled in.
        eval_activations: manifest of the `eval` activations, the same.
        train_tokens: manifest of the corpus' `sae_train` split.
        eval_tokens: manifest of its `eval` split.
        output: folder of each SAE's tables, as `sae`.
        kept: where copies of tables lie. An SAE whose copies are there, of the same params, code
            and weights, is not evaluated again.
        progress: called with (SAEs done, SAEs in all).

    Raises:
        UserError: as `evaluate_together`.
    """
    each, done = list(params.each()), 0
    groups: dict[tuple[str, ...], list[tuple[OneSae, Copies | None]]] = {}
    for one in each:
        own = one.keys.model_dump()
        config = Path(sae.format(**own))
        outputs = {name: Path(output.format(**own)) / f"{name}.parquet" for name in TABLES}
        copies = kept.copies(one, config) if kept and config.is_file() else None
        if copies and copies.take(outputs):
            log.info("%s: evaluated before, its tables are copied", config.parent)
            done += 1
            progress(done, len(each))
            continue
        group = _group(params, one, Path(eval_activations.format(**own)))
        groups.setdefault(group, []).append((OneSae(one, config, **outputs), copies))
    for members in groups.values():
        keys = members[0][0].params.keys
        own = keys.model_dump()
        evaluate_together(
            [one for one, _ in members],
            model=None if is_floor(keys.variant) else model,
            train_activations=Path(train_activations.format(**own)),
            eval_activations=Path(eval_activations.format(**own)),
            train_tokens=train_tokens,
            eval_tokens=eval_tokens,
        )
        for member, copies in members:
            if copies:
                copies.keep({name: getattr(member, name) for name in TABLES})
        done += len(members)
        progress(done, len(each))


def _group(params: EvaluateSaesParams, one: EvaluateSaeParams, manifest: Path) -> tuple[str, ...]:
    """SAEs of one group share passes. Where activations are on disk, each reads them by itself."""
    keys = one.keys
    key = one.eval_activations_key
    if SiteReader.open(manifest, keys.site, key=key).manifest.get("made_from") is None:
        return (keys.variant, keys.site, keys.sae, str(keys.seed))
    return (keys.variant,) if params.sites_together else (keys.variant, keys.site)
