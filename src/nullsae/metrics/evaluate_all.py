"""Evaluates all SAEs of a model in one job, like `evaluate_sae`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nullsae.activations.passes import group_of
from nullsae.config.variants import is_floor
from nullsae.core.kept import Kept, unmade
from nullsae.jobs.metrics import EvaluateSaeParams, EvaluateSaesParams
from nullsae.metrics.evaluate import OneSae, evaluate_together

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
    """Evaluate SAEs as `evaluate_together` does, each into its own tables.

    Args:
        params: the rule's slice of the config.
        sae: path of each `cfg.json`; {variant}, {site}, {sae} and {seed} are filled in.
        model: `recipe.json` of the variant; None for `gaussian`, which has none. Floors use none.
        train_activations: manifest of the `sae_train` activations; {variant} is filled in.
        eval_activations: manifest of the `eval` activations; {variant} is filled in.
        train_tokens: manifest of the corpus' `sae_train` split.
        eval_tokens: manifest of its `eval` split.
        output: folder of each SAE's tables, with the placeholders of `sae`.
        kept: where copies of tables are. An SAE with copies there for the same params, code and
            weights is not evaluated again.
        progress: called with (SAEs done, SAEs in total).

    Raises:
        UserError: as `evaluate_together`.
    """

    def group(one: EvaluateSaeParams) -> tuple[str, ...]:
        manifest = Path(eval_activations.format(**one.keys.model_dump()))
        key, together = one.eval_activations_key, params.sites_together
        return group_of(manifest, one.keys, key, sites_together=together)

    each = list(params.each())
    outputs = {name: f"{output}/{name}.parquet" for name in TABLES}
    groups = unmade(each, sae, outputs, kept, group)
    done = len(each) - sum(map(len, groups))
    progress(done, len(each))
    for members in groups:
        keys = members[0].params.keys
        own = keys.model_dump()
        evaluate_together(
            [OneSae(one.params, one.sae, **one.outputs) for one in members],
            model=None if is_floor(keys.variant) else model,
            train_activations=Path(train_activations.format(**own)),
            eval_activations=Path(eval_activations.format(**own)),
            train_tokens=train_tokens,
            eval_tokens=eval_tokens,
        )
        for one in members:
            one.keep()
        done += len(members)
        progress(done, len(each))
