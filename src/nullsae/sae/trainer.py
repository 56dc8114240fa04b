"""Making of one SAE: trained, computed, or made elsewhere."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nullsae import stages, tables
from nullsae.activations.blocks import Batches, Blocks, CachedBlocks, block_order, order_within
from nullsae.activations.store import SiteReader
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.errors import UserError
from nullsae.files import content_key
from nullsae.params import CellKeys, TrainSaeParams
from nullsae.randomness import torch_generator
from nullsae.recipes import FITTED_DICTIONARIES, Sae
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.dictionaries import fit_dictionary, token_ids
from nullsae.sae.files import is_made, save_sae
from nullsae.sae.interchange import read_pretrained
from nullsae.sae.start import initialize
from nullsae.sae.steps import Trainer, evaluate
from nullsae.subjects.loading import pick_device

logger = logging.getLogger(__name__)

INIT_TOKENS = 32_768
Report = Callable[[int, int, float | None], None]


@dataclass
class Cell:
    """One SAE of the job, while it is made."""

    keys: CellKeys
    recipe: Sae
    output: Path
    train: SiteReader
    heldout: SiteReader
    key: str
    """Hash of all that determines the SAE."""
    checkpoint: Path

    @property
    def where(self) -> str:
        """Its key in the config, for messages."""
        return f"config: saes.{self.keys.sae}"


def train_sae(
    params: TrainSaeParams,
    *,
    train_activations: Path,
    eval_activations: Path,
    outputs: Sequence[Path],
    work: Path,
    train_tokens: Path | None = None,
    eval_tokens: Path | None = None,
    report: Report | None = None,
) -> int:
    """Make SAEs; each gets `sae.safetensors`, `history.parquet`, `cfg.json` in its folder.

    By gradient steps, all in one pass over the activations, or without any: a dictionary that is
    computed (`fit_dictionary`), or, where a recipe names a `pretrained` SAE and the variant is
    `trained`, that SAE as it is. Those have one row of history, at step 0. An SAE whose `cfg.json`
    says that it was made of just this is left as it is.

    Args:
        params: the rule's slice of the config.
        train_activations: manifest of the variant's `sae_train` activations.
        eval_activations: manifest of its `eval` activations, for the held-out curve.
        outputs: a folder for each of `params.cells`.
        work: folder for checkpoints; a run with the same params and activations resumes there.
        train_tokens: corpus manifest of `sae_train`, for `token_lookup`.
        eval_tokens: corpus manifest of `eval`, for `token_lookup`.
        report: called with (step, steps, FVU of the batch), counted over all SAEs, or with
            (tokens, tokens in all, None) where there are no steps.

    Returns:
        The number of optimizer steps that this call ran (less than all after a resume).

    Raises:
        UserError: damaged or foreign activations, or fewer of them than one batch; a recipe or a
            pretrained SAE that does not fit them.
    """
    torch.set_num_threads(params.compute.threads)
    device = pick_device(params.compute.device)
    cells = _open(params, train_activations, eval_activations, outputs, work)
    runs = []
    for cell in cells:
        given = _pretrained(cell) if cell.recipe.pretrained else None
        if given is not None and cell.keys.variant == "trained":
            sae = given.to(device)
            _finish(params, cell, sae, "pretrained", [_only_row(sae, cell, tokens=0)])
        elif cell.recipe.dictionary in FITTED_DICTIONARIES:
            corpora = _corpora(cell, train_tokens, eval_tokens)
            sae = fit_dictionary(
                cell.recipe, cell.train, corpora[0], where=cell.where, report=report
            ).to(device)
            row = _only_row(sae, cell, corpora, tokens=cell.train.n_tokens)
            _finish(params, cell, sae, cell.recipe.dictionary, [row])
        else:
            runs.append(Run.start(params, cell, given, device))
    before = sum(run.trainer.step for run in runs)
    if runs:
        blocks = CachedBlocks({run.cell.keys.site: run.cell.train for run in runs})
        _train(params, runs, blocks, report)
    for run in runs:
        sae = run.trainer.sae.scaled(1.0 / run.scale)
        _finish(params, run.cell, sae, run.cell.recipe.dictionary, run.trainer.history)
        run.cell.checkpoint.unlink(missing_ok=True)
    return sum(run.trainer.step for run in runs) - before


def _open(
    params: TrainSaeParams,
    train_activations: Path,
    eval_activations: Path,
    outputs: Sequence[Path],
    work: Path,
) -> list[Cell]:
    """The cells that are not made yet, each site's activations verified once."""
    readers = {}
    for site in dict.fromkeys(cell.keys.site for cell in params.cells):
        train = SiteReader.open(train_activations, site, key=params.activations_key)
        heldout = SiteReader.open(eval_activations, site, key=params.eval_activations_key)
        train.check()
        heldout.check()
        readers[site] = (train, heldout)
    cells = []
    for cell, output in zip(params.cells, outputs, strict=True):
        train, heldout = readers[cell.keys.site]
        shared = params.model_dump(mode="json", exclude={"cells"})
        made_of = [cell.model_dump(mode="json"), shared, train.manifest, heldout.manifest]
        key = content_key([*made_of, stages.code_hash("train_sae")])
        checkpoint = work / f"train_sae-{key}.safetensors"
        if is_made(output, key=key):
            logger.info("%s: already there", output)
        else:
            cells.append(Cell(cell.keys, cell.sae, output, train, heldout, key, checkpoint))
    return cells


@dataclass
class Run:
    """One SAE in training."""

    cell: Cell
    trainer: Trainer
    batches: Batches
    scale: float
    """Factor that brings activations to a mean norm of sqrt(d_model)."""
    heldout: Tensor
    """Scaled activations of `eval` for the curve along training."""

    @classmethod
    def start(
        cls, params: TrainSaeParams, cell: Cell, given: Autoencoder | None, device: torch.device
    ) -> Run:
        """At its first step, or at that of its checkpoint."""
        recipe, reader = cell.recipe, cell.train
        n_latents, k = _shape(cell, given)
        n_tokens = params.stream.max_tokens if params.stream else reader.n_tokens
        per_epoch = n_tokens // recipe.batch_tokens
        if per_epoch == 0:
            raise UserError(
                f"{cell.where}.batch_tokens: {recipe.batch_tokens} is more than the {n_tokens} "
                f"tokens to train on (activations.sae_train_tokens)"
            )
        # The first block alone: a stream has seen no more when training starts.
        sample = reader.shard(0)[0][:INIT_TOKENS]
        scale = math.sqrt(reader.d_model) / float(sample.norm(dim=1).mean())
        generator = torch_generator(params.seed, "sae_init", *cell.keys.parts())
        start = initialize(sample * scale, n_latents=n_latents, k=k, generator=generator)
        trainer = Trainer.of(recipe, per_epoch * recipe.epochs, start.to(device), k=k)
        if cell.checkpoint.is_file():
            trainer.load(cell.checkpoint)
            logger.info("resumed at step %d of %d", trainer.step, trainer.n_steps)
        heldout, _ = next(cell.heldout.batches(recipe.heldout_tokens))
        batches = Batches(n_tokens, recipe.batch_tokens, start_step=trainer.step)
        return cls(cell, trainer, batches, scale, heldout.to(device) * scale)

    def step(self, batch: Tensor) -> float:
        """One optimizer step, and what is due after it; returns the batch's FVU."""
        trainer, recipe = self.trainer, self.cell.recipe
        lr = trainer.lr()
        losses = trainer.train_step(batch.to(self.heldout.device, torch.float32) * self.scale)
        if not math.isfinite(losses.fvu):
            raise UserError(
                f"{self.cell.where}: the loss is {losses.fvu} at step {trainer.step}; lower lr"
            )
        at_end = trainer.step == trainer.n_steps
        if trainer.step % recipe.evaluate_every_steps == 0 or at_end:
            found = evaluate(trainer.sae, self.heldout)
            trainer.history.append(
                {
                    "step": trainer.step,
                    "tokens": trainer.step * recipe.batch_tokens,
                    "lr": lr,
                    "fvu_loss": losses.fvu,
                    "auxk_loss": losses.auxk,
                    "sparsity_loss": losses.sparsity,
                    **found,
                    "dead_share": float(trainer.dead.double().mean()),
                }
            )
            logger.info(
                "%s: step %d of %d: FVU %.4f, held-out explained variance %.4f",
                self.cell.keys.sae,
                trainer.step,
                trainer.n_steps,
                losses.fvu,
                found["heldout_explained_variance"],
            )
        if trainer.step % recipe.checkpoint_every_steps == 0 and not at_end:
            trainer.save(self.cell.checkpoint)
        return losses.fvu


def _train(
    params: TrainSaeParams, runs: Sequence[Run], blocks: Blocks, report: Report | None
) -> None:
    """Train all to their end, each block read once per epoch for all of them."""
    n_steps = sum(run.trainer.n_steps for run in runs)
    for epoch in range(max(run.cell.recipe.epochs for run in runs)):
        start = 0
        for index in block_order(params.seed, epoch, len(blocks.sizes)):
            stop = start + blocks.sizes[index]
            active = [
                run
                for run in runs
                if epoch < run.cell.recipe.epochs and run.batches.want(epoch, start, stop)
            ]
            if active:
                order = order_within(params.seed, epoch, index, stop - start)
                block = blocks.block(index, {run.cell.keys.site for run in active})
                for run in active:
                    for batch in run.batches.cut(epoch, start, block[run.cell.keys.site][order]):
                        fvu = run.step(batch)
                        if report is not None:
                            report(sum(r.trainer.step for r in runs), n_steps, fvu)
            start = stop


def _finish(
    params: TrainSaeParams,
    cell: Cell,
    sae: Autoencoder,
    dictionary: str,
    history: list[dict[str, Any]],
) -> None:
    """Write the SAE's folder, `cfg.json` last."""
    schema = tables.cell_schema("history")
    tables.write_table(cell.output / "history.parquet", history, schema)
    save_sae(
        sae,
        cell.output,
        dictionary=dictionary,
        keys=cell.keys,
        key=cell.key,
        seed=params.seed,
        activations_key=cell.train.manifest["key"],
        input_norm=float(cell.train.manifest["mean_norm"]),
        training=cell.recipe.model_dump(mode="json"),
        n_steps=history[-1]["step"],
    )


def _shape(cell: Cell, given: Autoencoder | None) -> tuple[int, int]:
    """(n_latents, k) of an SAE that is trained: the recipe's, or those of the SAE it matches."""
    recipe, d_model, where = cell.recipe, cell.train.d_model, cell.where
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


def _pretrained(cell: Cell) -> Autoencoder:
    """The recipe's SAE that was made elsewhere, if it fits the site."""
    recipe, reader, site, where = cell.recipe, cell.train, cell.keys.site, cell.where
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
    cell: Cell, train_tokens: Path | None, eval_tokens: Path | None
) -> tuple[Tokens | None, Tokens | None]:
    """The tokens of `sae_train` and `eval`, where codes depend on them."""
    if cell.recipe.dictionary != "token_lookup":
        return None, None
    if train_tokens is None or eval_tokens is None:
        raise UserError(
            f"{cell.where}.dictionary: 'token_lookup' needs the tokens under the activations: give "
            f"--train-tokens and --eval-tokens"
        )
    return load_tokens(train_tokens), load_tokens(eval_tokens)


def _only_row(
    sae: Autoencoder,
    cell: Cell,
    corpora: tuple[Tokens | None, Tokens | None] = (None, None),
    *,
    tokens: int,
) -> dict[str, Any]:
    """The history of an SAE that took no steps. FVU is over one batch of `sae_train`, and latents
    count as dead that do not fire on the held-out tokens.
    """
    found = []
    sizes = (cell.recipe.batch_tokens, cell.recipe.heldout_tokens)
    for split, size, corpus in zip((cell.train, cell.heldout), sizes, corpora, strict=True):
        x, position = next(split.batches(size))
        ids = None if corpus is None else token_ids(corpus, position)
        found.append(evaluate(sae, x.to(sae.w_dec.device), ids))
    return {
        "step": 0,
        "tokens": tokens,
        "lr": 0.0,
        "fvu_loss": 1.0 - found[0]["heldout_explained_variance"],
        "auxk_loss": 0.0,
        "sparsity_loss": 0.0,
        **found[1],
        "dead_share": 1.0 - found[1]["heldout_alive_share"],
    }
