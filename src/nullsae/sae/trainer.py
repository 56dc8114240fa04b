"""Making of one SAE: trained, computed, or made elsewhere."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from nullsae import tables
from nullsae.activations.store import SiteReader
from nullsae.config import FITTED_DICTIONARIES, Sae
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.errors import UserError
from nullsae.files import content_key
from nullsae.params import TrainSaeParams
from nullsae.randomness import torch_generator
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.dictionaries import fit_dictionary, token_ids
from nullsae.sae.files import save_sae
from nullsae.sae.interchange import read_pretrained
from nullsae.sae.steps import Trainer, evaluate, training_batches
from nullsae.sae.topk import initialize
from nullsae.subjects.loading import pick_device

logger = logging.getLogger(__name__)

INIT_TOKENS = 32_768
Report = Callable[[int, int, float | None], None]


def train_sae(
    params: TrainSaeParams,
    *,
    train_activations: Path,
    eval_activations: Path,
    output: Path,
    work: Path,
    train_tokens: Path | None = None,
    eval_tokens: Path | None = None,
    report: Report | None = None,
) -> int:
    """Make one SAE and write `sae.safetensors`, `cfg.json` and `history.parquet`.

    By gradient steps, or without any: a dictionary that is computed (`fit_dictionary`), or, where
    the recipe names a `pretrained` SAE and the variant is `trained`, that SAE as it is. Those have
    one row of history, at step 0.

    Args:
        params: the rule's slice of the config.
        train_activations: manifest of the variant's `sae_train` activations.
        eval_activations: manifest of its `eval` activations, for the held-out curve.
        output: the SAE's folder.
        work: folder for checkpoints; a run with the same params and activations resumes there.
        train_tokens: corpus manifest of `sae_train`, for `token_lookup`.
        eval_tokens: corpus manifest of `eval`, for `token_lookup`.
        report: called with (step, steps, FVU of the batch), or with (tokens, tokens in all, None)
            where there are no steps.

    Returns:
        The number of optimizer steps that this call ran (less than all after a resume).

    Raises:
        UserError: damaged or foreign activations, or fewer of them than one batch; a recipe or a
            pretrained SAE that does not fit them.
    """
    torch.set_num_threads(params.compute.threads)
    device, recipe, keys = pick_device(params.compute.device), params.sae, params.keys
    where = f"config: saes.{keys.sae}"
    reader = SiteReader.open(train_activations, keys.site, key=params.activations_key)
    heldout = SiteReader.open(eval_activations, keys.site, key=params.eval_activations_key)
    reader.check()
    heldout.check()

    identity = [params.model_dump(mode="json"), reader.manifest, heldout.manifest]
    checkpoint = work / f"train_sae-{content_key(identity)}.safetensors"

    given = _pretrained(recipe, reader, keys.site, where) if recipe.pretrained else None
    dictionary: str = recipe.dictionary
    n_steps = ran = 0
    if given is not None and keys.variant == "trained":
        sae, dictionary = given.to(device), "pretrained"
        history = [_only_row(sae, recipe, reader, heldout, tokens=0)]
    elif recipe.dictionary in FITTED_DICTIONARIES:
        corpora = _corpora(recipe, train_tokens, eval_tokens, where)
        fitted = fit_dictionary(recipe, reader, corpora[0], where=where, report=report)
        sae = fitted.to(device)
        history = [_only_row(sae, recipe, reader, heldout, corpora, tokens=reader.n_tokens)]
    else:
        trainer, ran = _train(params, reader, heldout, given, checkpoint, report)
        sae, history, n_steps = trainer.sae, trainer.history, trainer.n_steps

    tables.write_table(output / "history.parquet", history, tables.cell_schema("history"))
    save_sae(
        sae,
        output,
        dictionary=dictionary,
        keys=keys,
        seed=params.seed,
        activations_key=reader.manifest["key"],
        input_norm=float(reader.manifest["mean_norm"]),
        training=recipe.model_dump(mode="json"),
        n_steps=n_steps,
    )
    checkpoint.unlink(missing_ok=True)
    logger.info("ran %d of %d steps", ran, n_steps)
    return ran


def _train(
    params: TrainSaeParams,
    reader: SiteReader,
    heldout: SiteReader,
    given: Autoencoder | None,
    checkpoint: Path,
    report: Report | None,
) -> tuple[Trainer, int]:
    """Train by gradient steps, from a checkpoint if there is one.

    Returns:
        The finished trainer, its SAE scaled back to the activations as captured, and the number
        of steps that this call ran.
    """
    device, recipe, keys = pick_device(params.compute.device), params.sae, params.keys
    where = f"config: saes.{keys.sae}"
    n_latents, k = _shape(recipe, given, reader.d_model, where)
    per_epoch = reader.n_tokens // recipe.batch_tokens
    if per_epoch == 0:
        raise UserError(
            f"{where}.batch_tokens: {recipe.batch_tokens} is more than the {reader.n_tokens} "
            f"cached tokens (activations.sae_train_tokens)"
        )
    n_steps = per_epoch * recipe.epochs
    scale = math.sqrt(reader.d_model) / float(reader.manifest["mean_norm"])
    x_heldout, _ = next(heldout.batches(recipe.heldout_tokens))
    x_heldout = x_heldout.to(device) * scale

    sample, _ = reader.shard(0)
    generator = torch_generator(params.seed, "sae_init", *keys.parts())
    initial = initialize(
        sample[:INIT_TOKENS] * scale, n_latents=n_latents, k=k, generator=generator
    )
    trainer = Trainer(
        recipe=recipe,
        n_steps=n_steps,
        sae=initial.to(device),
        step=0,
        unfired_tokens=torch.zeros(n_latents, dtype=torch.int64, device=device),
        history=[],
    )
    if checkpoint.is_file():
        trainer.load(checkpoint)
        logger.info("resumed at step %d of %d", trainer.step, n_steps)
    start = trainer.step
    batches = training_batches(reader, recipe, params.seed, keys.parts(), start_step=start)
    for batch in batches:
        lr = trainer.lr()
        fvu, auxk = trainer.train_step(batch.to(device) * scale)
        if not math.isfinite(fvu):
            raise UserError(f"{where}: the loss is {fvu} at step {trainer.step}; lower lr")
        if report is not None:
            report(trainer.step, n_steps, fvu)
        if trainer.step % recipe.evaluate_every_steps == 0 or trainer.step == n_steps:
            row = {
                "step": trainer.step,
                "tokens": trainer.step * recipe.batch_tokens,
                "lr": lr,
                "fvu_loss": fvu,
                "auxk_loss": auxk,
                **evaluate(trainer.sae, x_heldout),
                "dead_share": float(trainer.dead.double().mean()),
            }
            trainer.history.append(row)
            logger.info(
                "step %d of %d: FVU %.4f, held-out explained variance %.4f",
                trainer.step,
                n_steps,
                fvu,
                row["heldout_explained_variance"],
            )
        if trainer.step % recipe.checkpoint_every_steps == 0 and trainer.step < n_steps:
            trainer.save(checkpoint)
    trainer.sae = trainer.sae.scaled(1.0 / scale)
    return trainer, trainer.step - start


def _shape(recipe: Sae, given: Autoencoder | None, d_model: int, where: str) -> tuple[int, int]:
    """(n_latents, k) of an SAE that is trained: the recipe's, or those of the SAE it matches."""
    if given is None:
        n_latents, k = recipe.width(d_model), recipe.kept
        assert n_latents is not None
    else:
        n_latents = given.n_latents
        chosen = given.k or recipe.k
        if chosen is None:
            raise UserError(
                f"{where}.k: missing; the pretrained SAE is of architecture "
                f"{given.architecture!r} and has none, but its nulls are trained as TopK SAEs: "
                f"give the number of latents that it keeps per token"
            )
        k = chosen
    if k > n_latents:
        raise UserError(
            f"{where}.k: {k} is larger than the number of latents, {n_latents}, at {d_model} "
            f"dimensions"
        )
    return n_latents, k


def _pretrained(recipe: Sae, reader: SiteReader, site: str, where: str) -> Autoencoder:
    """The recipe's SAE that was made elsewhere, if it fits the site."""
    assert recipe.pretrained is not None
    sae = read_pretrained(recipe.pretrained, site, where=f"{where}.pretrained")
    if sae.architecture == "token_lookup":
        raise UserError(
            f"{where}.pretrained: {recipe.pretrained} looks up tokens and reads no activations; "
            f"give dictionary 'token_lookup' instead"
        )
    if sae.d_model != reader.d_model:
        raise UserError(
            f"{where}.pretrained: {recipe.pretrained} is an SAE for {sae.d_model} dimensions, but "
            f"{site} has {reader.d_model}"
        )
    if None not in (sae.k, recipe.k) and sae.k != recipe.k:
        raise UserError(
            f"{where}.k: {recipe.k} is not the k of the pretrained SAE, {sae.k}: leave it out"
        )
    return sae


def _corpora(
    recipe: Sae, train_tokens: Path | None, eval_tokens: Path | None, where: str
) -> tuple[Tokens | None, Tokens | None]:
    """The tokens of `sae_train` and `eval`, where codes depend on them."""
    if recipe.dictionary != "token_lookup":
        return None, None
    if train_tokens is None or eval_tokens is None:
        raise UserError(
            f"{where}.dictionary: 'token_lookup' needs the tokens under the activations: give "
            f"--train-tokens and --eval-tokens"
        )
    return load_tokens(train_tokens), load_tokens(eval_tokens)


def _only_row(
    sae: Autoencoder,
    recipe: Sae,
    reader: SiteReader,
    heldout: SiteReader,
    corpora: tuple[Tokens | None, Tokens | None] = (None, None),
    *,
    tokens: int,
) -> dict[str, Any]:
    """The history of an SAE that took no steps. FVU is over one batch of `sae_train`, and latents
    count as dead that do not fire on the held-out tokens.
    """
    found = []
    sizes = (recipe.batch_tokens, recipe.heldout_tokens)
    for split, size, corpus in zip((reader, heldout), sizes, corpora, strict=True):
        x, position = next(split.batches(size))
        ids = None if corpus is None else token_ids(corpus, position)
        found.append(evaluate(sae, x.to(sae.w_dec.device), ids))
    return {
        "step": 0,
        "tokens": tokens,
        "lr": 0.0,
        "fvu_loss": 1.0 - found[0]["heldout_explained_variance"],
        "auxk_loss": 0.0,
        **found[1],
        "dead_share": 1.0 - found[1]["heldout_alive_share"],
    }
