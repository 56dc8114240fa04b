"""Makes SAEs by training, by computing them, or from elsewhere."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nullsae.activations.blocks import Blocks, CachedBlocks
from nullsae.activations.live import live_blocks
from nullsae.activations.outputs import both, outputs_of
from nullsae.activations.passes import open_site
from nullsae.activations.store import SiteReader
from nullsae.config.check_pretrained import refuse_differences, refuse_output
from nullsae.config.compute import Precise, precision_on
from nullsae.config.saes import Sae
from nullsae.core.devices import device_of
from nullsae.core.errors import UserError
from nullsae.core.files import atomic_path, content_key, drop_partial, read_json, rebuild_command
from nullsae.core.locking import alone_at
from nullsae.core.randomness import torch_generator
from nullsae.core.stopping import stoppable
from nullsae.corpus.store import Tokens, load_tokens
from nullsae.jobs.saes import TrainSaeParams
from nullsae.sae.aim import l0_of
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.checkpoints import checkpoint_folder
from nullsae.sae.exchange.pretrained import read_with_origin
from nullsae.sae.files import load_sae
from nullsae.sae.initialization import initialize
from nullsae.sae.shared_pass import Progress, enough_memory, train_together
from nullsae.sae.token_means import token_ids
from nullsae.sae.trainer import evaluate
from nullsae.sae.training_run import Cell, Run, Sample

logger = logging.getLogger(__name__)


def train_sae(
    params: TrainSaeParams,
    *,
    train_activations: Path,
    eval_activations: Path,
    output: Path,
    work: Path,
    train_tokens: Path | None = None,
    eval_tokens: Path | None = None,
    model: Path | None = None,
    fitted: Path | None = None,
    given: Path | None = None,
    progress: Progress | None = None,
) -> int:
    """Make SAEs; each gets `sae.safetensors`, `history.parquet`, `cfg.json` in its folder.

    They are made by gradient steps, all in one pass over the activations, or without steps: a
    dictionary that is computed (`fit_dictionary`) or, if a recipe names a `pretrained` SAE and the
    variant is `trained`, that SAE as it is. Those have one row of history, at step 0. With
    `params.stream`, gradient steps run on live activations, and only computed dictionaries use
    cached ones; the trained SAE is bit-identical to one from a cache of as many tokens.

    An SAE whose `cfg.json` records exactly these inputs is left as it is. The others wait in `work`
    until all are made, so a job that fails or is killed finds them there when it runs again. An SAE
    at a point of its training is in `checkpoints/<share>/` of its folder.

    Train and eval files are those of the variant's `sae_train` and `eval`: manifests of
    activations, and of the corpora if codes depend on tokens. A stream needs `train_tokens`, the
    variant's `recipe.json` as `model`, and for the variant `gaussian` the manifest of the trained
    variant's `sae_train` activations as `fitted`. Nulls that are aimed at the L0 of a pretrained
    SAE need its `cfg.json` on `trained` as `given`. There and in `output`, the folder of each SAE,
    `{site}`, `{sae}` and `{seed}` are filled in. `work` is for checkpoints: a run with the same
    params and activations resumes there, and waits up to a minute for another run that uses it.
    `progress` is called with (step, steps, FVU of the batch), counted over all SAEs, or with
    (tokens, tokens in total, None) if there are no steps.

    Returns the number of optimizer steps that this call ran (less than all after a resume). After a
    `StoppedError`, for SIGTERM or Ctrl-C, the same call resumes. Raises a `UserError` if
    activations are damaged, foreign, not finite or fewer than one batch, a recipe or a pretrained
    SAE does not fit them, a loss is not finite, memory is short, or another process makes the same
    SAEs. SAEs that are finished by then stay in `work`.
    """
    torch.set_num_threads(params.compute.threads)
    device = device_of(params.compute.device)
    live = [file for file in (model, fitted) if file is not None]
    precision = precision_on(params.precision, device.type)
    manifests = train_activations, eval_activations
    cells = _open(params, manifests, output, work, live, precision)
    files = {"train_tokens": train_tokens, "eval_tokens": eval_tokens}
    with alone_at(cell.lock for cell in cells) as alone:
        # The process that held the lock may have made them.
        cells = [cell for cell in cells if not _is_whole(cell, cell.output)]
        for cell in cells if alone.certain else ():
            drop_partial(cell.work)
        for cell in cells:
            cell.l0 = None if cell.aim is None else l0_of(cell, cell.aim, given)
        return _make(params, cells, device, **files, model=model, fitted=fitted, progress=progress)


def _make(
    params: TrainSaeParams,
    cells: Sequence[Cell],
    device: torch.device,
    *,
    train_tokens: Path | None,
    eval_tokens: Path | None,
    model: Path | None,
    fitted: Path | None,
    progress: Progress | None,
) -> int:
    """Make these SAEs and publish them; arguments and result are those of `train_sae`."""
    stepwise: list[tuple[Cell, Autoencoder | None]] = []
    for cell in cells:
        if _is_whole(cell, cell.work):
            continue
        given = _pretrained(cell, train_tokens) if cell.recipe.pretrained else None
        if cell.l0 is not None and not (given is not None and given.k and cell.recipe.limited):
            cell.recipe = cell.recipe.with_l0(cell.l0)
        elsewhere = cell.recipe.made_elsewhere(cell.keys.variant)
        if cell.train.is_constant and cell.recipe.origin.trained and not elsewhere:
            logger.warning(
                "warning: %s: %s: all tokens have the same activation; there is nothing to train "
                "on, and no latent of the SAE will fire",
                *(cell.where, cell.keys.site),
            )
            finish_without_steps(cell, _silent(cell, given).to(device), tokens=0)
        elif given is not None and elsewhere:
            finish_without_steps(cell, given.to(device), tokens=0)
        elif not cell.recipe.origin.trained:
            corpora = _corpora(cell, train_tokens, eval_tokens)
            sae = fit_dictionary(cell.recipe, cell.train, corpora[0], cell.where, progress)
            finish_without_steps(cell, sae.to(device), corpora, tokens=cell.train.n_tokens)
        else:
            stepwise.append((cell, given))
    ran = 0
    if stepwise:
        readers = {cell.keys.site: cell.train for cell, _ in stepwise}
        blocks: Blocks = (
            live_blocks(params, sites=readers, tokens=train_tokens, model=model, fitted=fitted)
            if params.stream
            else CachedBlocks(params.seed, readers)
        )
        ran = _train(params, stepwise, blocks, device, progress)
    with stoppable():  # a partly published SAE would be made again
        for cell in cells:
            _publish(cell)
    return ran


def fit_dictionary(
    recipe: Sae,
    reader: SiteReader,
    corpus: Tokens | None,
    where: str,
    progress: Progress | None = None,
) -> Autoencoder:
    """Compute the dictionary of a recipe that is not trained, from the activations of `sae_train`.

    `corpus` has their tokens, if the dictionary reads them; `where` is for messages. Raises a
    `UserError` if k does not fit.
    """

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        done = 0
        for x, position in reader.batches():
            yield x, position
            done += len(x)
            if progress is not None:
                progress(done, reader.n_tokens, None)

    fitted: Autoencoder = recipe.origin.fit(recipe.kept, reader, batches(), corpus, where)
    return fitted


def _open(
    params: TrainSaeParams,
    activations: tuple[Path, Path],
    output: Path,
    work: Path,
    live: Sequence[Path],
    precision: Precise,
) -> list[Cell]:
    """Return the cells that are not made yet, verifying each site's activations once."""
    readers, device = {}, device_of(params.compute.device)
    expected = (params.activations_key, params.eval_activations_key)
    for site in dict.fromkeys(cell.site for cell in params.cells):
        train, heldout = (
            open_site(split, site, key=key, device=device)
            for split, key in zip(activations, expected, strict=True)
        )
        train.check()
        heldout.check()
        readers[site] = (train, heldout)
    sources = [read_json(file, rebuild=rebuild_command(file)) for file in live]
    cells = []
    for cell in params.cells:
        train, heldout = readers[cell.site]
        keys, recipe = params.cell_keys(cell), params.recipe(cell)
        key = params.cell_key(cell, params.code(cell))
        if not all(expected):
            # Run by hand: what is on disk counts only if it came from exactly these inputs.
            key = content_key([key, train.manifest, heldout.manifest, sources])
        folder = str(output)
        for name in ("site", "sae", "seed"):
            folder = folder.replace(f"{{{name}}}", str(getattr(keys, name)))
        to = work / f"train_sae-{key}"
        own = Path(folder), params.seed, train, heldout, key, to, precision
        new = Cell(keys, recipe, *own, cell.used_on, cell.aim)
        if _is_whole(new, new.output):
            logger.info("%s: already there", folder)
        else:
            cells.append(new)
    folders = [cell.output for cell in cells]
    if len(set(folders)) < len(folders):
        raise UserError(
            f"--output: {output} is one folder for several SAEs; put {{site}}, {{sae}} and "
            f"{{seed}} into it"
        )
    return cells


def _is_whole(cell: Cell, folder: Path) -> bool:
    """Whether the folder contains exactly this SAE, undamaged, and those along its training."""
    along = [checkpoint_folder(folder, share) for share in cell.recipe.checkpoints]
    try:
        return all(load_sae(sae / "cfg.json")[1].key == cell.key for sae in (folder, *along))
    except UserError:
        return False


def _train(
    params: TrainSaeParams,
    cells: Sequence[tuple[Cell, Autoencoder | None]],
    blocks: Blocks,
    device: torch.device,
    progress: Progress | None,
) -> int:
    """Take the gradient steps of these SAEs; return how many."""
    runs: list[Run] = []
    n_tokens = sum(blocks.sizes)
    with enough_memory([c for c, _ in cells], lambda: sum(run.step_bytes for run in runs)):
        start = time.perf_counter()
        first = blocks.block(0, {cell.keys.site for cell, _ in cells})
        samples = {site: Sample.of(first.pop(site), device) for site in list(first)}
        seconds = time.perf_counter() - start
        for cell, given in cells:
            n_latents, k = _shape(cell, given)
            sample = samples[cell.keys.site]
            runs.append(Run(cell, sample, n_tokens=n_tokens, n_latents=n_latents, k=k))
        n_steps, before = sum(r.n_steps for r in runs), sum(r.trainer.step for r in runs)
        if any(run.resumed for run in runs):
            logger.info("resumed at step %d of %d", before, n_steps)
        with stoppable() as stop:
            train_together(runs, blocks, params.seed, seconds, progress or (lambda *_: None), stop)
    ran = sum(run.trainer.step for run in runs) - before
    logger.info("ran %d of %d steps", ran, n_steps)
    return ran


def _publish(cell: Cell) -> None:
    """Move a finished SAE from `work` to its folder, the `cfg.json` of the whole last."""
    files = [file for file in cell.work.rglob("*") if file.is_file()]
    files.sort(key=lambda file: (file == cell.work / "cfg.json", file))
    shutil.rmtree(cell.output / "checkpoints", ignore_errors=True)
    for file in files:
        target = cell.output / file.relative_to(cell.work)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(file, target)
        except OSError:  # on another file system
            with atomic_path(target) as temporary:
                shutil.copyfile(file, temporary)
    shutil.rmtree(cell.work)


def _silent(cell: Cell, given: Autoencoder | None) -> Autoencoder:
    """Make the SAE of a site without variance: it returns the mean, and no latent fires."""
    n_latents, k = _shape(cell, given)
    generator = torch_generator(cell.seed, "sae_init", *cell.keys.parts())
    mean = cell.train.mean().float()
    start = initialize(mean[None], n_latents=n_latents, k=k, generator=generator)
    start = dataclasses.replace(start, w_enc=torch.zeros_like(start.w_enc), b_dec=mean)
    sae: Autoencoder = cell.recipe.training()(cell.recipe, k, start).autoencoder()
    return sae


def _shape(cell: Cell, given: Autoencoder | None) -> tuple[int, int]:
    """Return (n_latents, k) of a trained SAE: the recipe's, or those of the SAE it matches."""
    recipe, d_model, where = cell.recipe, cell.train.d_model, cell.where
    if given is None:
        n_latents, k = recipe.width(d_model), recipe.kept
        assert n_latents is not None
    else:
        n_latents = given.n_latents
        k = given.k or recipe.given_k or (0 if recipe.limited else min(recipe.kept, n_latents))
        if not k:
            raise UserError(
                f"{where}.k: missing; the pretrained SAE is of architecture "
                f"{given.architecture!r} and has none, but its nulls are {recipe.architecture} "
                f"SAEs: give the number of latents that they keep per token"
            )
    if k > n_latents:
        raise UserError(
            f"{where}.k: {k} is larger than the number of latents, {n_latents}, at {d_model} "
            f"dimensions"
        )
    return n_latents, k


def _pretrained(cell: Cell, train_tokens: Path | None) -> Autoencoder:
    """Read the recipe's SAE made elsewhere, if it fits the site, the model and the text."""
    recipe, reader, site, where = cell.recipe, cell.train, cell.keys.site, cell.where
    assert recipe.pretrained is not None
    written = "" if recipe.output_site is None else recipe.output_of(site)
    sae, made_on = read_with_origin(
        recipe.pretrained, site, where=f"{where}.pretrained", output_site=written
    )
    if (used := cell.used_on) is not None:
        if train_tokens is not None:
            manifest = read_json(train_tokens, rebuild=rebuild_command(train_tokens))
            used = used.model_copy(update={"prepend_bos": manifest.get("prepend_bos")})
        refuse_differences(made_on, used, site, recipe.accept_differences, where)
    if sae.coding.reads_tokens:
        raise UserError(
            f"{where}.pretrained: {recipe.pretrained} looks up tokens and reads no activations; "
            f"use dictionary {sae.architecture!r} instead"
        )
    refuse_output(sae.writes_at(site), recipe.output_of(site), site, recipe.pretrained, where)
    if sae.d_model != reader.d_model:
        raise UserError(
            f"{where}.pretrained: {recipe.pretrained} is an SAE for {sae.d_model} dimensions, but "
            f"{site} has {reader.d_model}"
        )
    if None not in (sae.k, recipe.given_k) and sae.k != recipe.given_k:
        raise UserError(
            f"{where}.k: {recipe.given_k} is not the k of the pretrained SAE, {sae.k}; leave it out"
        )
    return sae


def _corpora(
    cell: Cell, train_tokens: Path | None, eval_tokens: Path | None
) -> tuple[Tokens | None, Tokens | None]:
    """Return the tokens of `sae_train` and `eval` if codes depend on them."""
    if not cell.recipe.origin.reads_tokens:
        return None, None
    if train_tokens is None or eval_tokens is None:
        raise UserError(
            f"{cell.where}.dictionary: {cell.recipe.dictionary!r} needs the tokens of the "
            f"activations: give --train-tokens and --eval-tokens"
        )
    return load_tokens(train_tokens), load_tokens(eval_tokens)


def finish_without_steps(
    cell: Cell,
    sae: Autoencoder,
    corpora: tuple[Tokens | None, Tokens | None] = (None, None),
    *,
    tokens: int,
) -> None:
    """Write an SAE that took no steps, with one row of history.

    FVU is over one batch of `sae_train`. Latents that do not fire on the held-out tokens count as
    dead.
    """
    found = []
    sizes = (cell.recipe.batch_tokens, cell.recipe.heldout_tokens)
    for split, size, corpus in zip((cell.train, cell.heldout), sizes, corpora, strict=True):
        written = sae.writes_at(cell.keys.site)
        wanted = outputs_of(split, cell.keys.site, written)
        if wanted.d_model != sae.w_dec.shape[1]:
            raise UserError(
                f"{cell.where}.pretrained: it writes {sae.w_dec.shape[1]} dimensions, but "
                f"{written} has {wanted.d_model}"
            )
        x, y, position = next(both(split, wanted, batch_tokens=size))
        ids = None if corpus is None else token_ids(corpus, position)
        device = sae.w_dec.device
        found.append(evaluate(sae, x.to(device), ids, y.to(device)))
    explained = found[0]["heldout_explained_variance"]
    row = {
        **{"step": 0, "tokens": tokens, "lr": 0.0, "auxk_loss": 0.0, "sparsity_loss": 0.0},
        "fvu_loss": None if explained is None else 1.0 - explained,
        **found[1],
        "dead_share": 1.0 - found[1]["heldout_alive_share"],
        "dead_horizon_tokens": min(cell.recipe.heldout_tokens, cell.heldout.n_tokens),
        **{"precision": None, "differing_choice_share": None, "tokens_per_second": None},
    }
    cell.write(cell.work, cell.keys, sae, [row], 0)
