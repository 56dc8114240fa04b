"""An SAE in training: its start, its steps, and what it writes along the way."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nullsae import tables
from nullsae.activations.blocks import Batches
from nullsae.activations.store import SiteReader
from nullsae.config.compute import Precise
from nullsae.config.made_on import UsedOn
from nullsae.config.saes import Sae, checkpoint_name
from nullsae.core import provenance
from nullsae.core.checkpoint import DAMAGED
from nullsae.core.errors import UserError, first_line
from nullsae.core.memory import give_back
from nullsae.core.randomness import torch_generator
from nullsae.jobs.keys import CellKeys
from nullsae.jobs.saes import Aim
from nullsae.sae.architectures.base import Losses
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.checkpoints import checkpoint_folder
from nullsae.sae.files import PRETRAINED, load_sae, save_sae
from nullsae.sae.initialization import initialize
from nullsae.sae.trainer import Trainer, evaluate
from nullsae.subjects.loading import DTYPES

logger = logging.getLogger(__name__)

INIT_TOKENS = 32_768
L0_TOLERANCE = 0.05
"""How far an SAE's L0 may be from the one it is aimed at before a warning."""
# Tokens of a batch on which choices in low precision are compared with float32.
COMPARED_TOKENS = 1024
# Steps between two readings of the loss on a GPU; each reading waits for all pending work.
STEPS_PER_READING = 16


class DivergedError(UserError):
    """A loss that is not finite."""


@dataclass
class Cell:
    """One SAE of the job while it is made."""

    keys: CellKeys
    recipe: Sae
    output: Path
    """Its final folder."""
    seed: int
    """The config's seed."""
    train: SiteReader
    heldout: SiteReader
    key: str
    """Hash of everything that determines the SAE."""
    work: Path
    """Folder to which it is written; it moves to `output` once all SAEs of the job are made."""
    precision: Precise
    """`compute.precision` on the job's device."""
    used_on: UsedOn | None = None
    """What an SAE made elsewhere is given here."""
    aim: Aim | None = None
    """The SAE whose L0 it is aimed at."""
    l0: float | None = None
    """That L0."""

    @property
    def where(self) -> str:
        """Its key in the config, for messages."""
        return f"config: saes.{self.keys.sae}"

    @property
    def checkpoint(self) -> Path:
        """The file from which a killed training resumes."""
        return self.work.with_name(f"{self.work.name}.safetensors")

    @property
    def lock(self) -> Path:
        """The file locked by the process that makes it."""
        return self.work.with_name(f"{self.work.name}.lock")

    @property
    def makers(self) -> Path:
        """The file that records who trained so far; resumed trainings have several makers."""
        return self.work.with_name(f"{self.work.name}.{provenance.FILE}")

    def write(
        self,
        folder: Path,
        keys: CellKeys,
        sae: Autoencoder,
        history: list[dict[str, Any]],
        n_steps: int,
    ) -> None:
        """Write the folder of an SAE for activations as captured, `cfg.json` last."""
        schema = tables.cell_schema("history")
        tables.write_table(folder / "history.parquet", history, schema)
        given = self.recipe.made_elsewhere(keys.variant)
        provenance.record(
            folder,
            key=self.key,
            parts=[self.makers],
            tokens_seen=None if given else history[-1]["tokens"],
        )
        save_sae(
            sae,
            folder,
            dtype=DTYPES[self.recipe.stored_dtype],
            dictionary=PRETRAINED if given else self.recipe.dictionary,
            keys=keys,
            key=self.key,
            seed=self.seed,
            activations_key=self.train.manifest["key"],
            input_norm=float(self.train.manifest["mean_norm"]),
            training=self.recipe.model_dump(mode="json"),
            n_steps=n_steps,
        )


@dataclass
class Sample:
    """What the SAEs of a site share: where they start, and what they are measured on."""

    x: Tensor
    """Scaled activations of the first block, float32 [INIT_TOKENS or fewer, d_model]."""
    scale: float
    """Factor that scales activations to a mean norm of sqrt(d_model)."""
    heldout: dict[int, Tensor] = field(default_factory=dict)
    """Scaled activations of `eval`, by their number."""

    @classmethod
    def of(cls, block: Tensor, device: torch.device) -> Sample:
        """Make it from the first block [n, d_model]: a stream has no more when training starts."""
        x = block[:INIT_TOKENS].to("cpu", torch.float32)
        norm = float(x.norm(dim=1).mean())
        if not 0 < norm < math.inf:  # squares may exceed float32
            norm = float(x.double().norm(dim=1).mean())
        scale = math.sqrt(x.shape[1]) / norm if norm else 1.0
        return cls((x * scale).to(device), scale)

    def heldout_of(self, reader: SiteReader, n_tokens: int) -> Tensor:
        """Return activations of `eval` for the training curve, float32 [n_tokens, d_model]."""
        if n_tokens not in self.heldout:
            x, _ = next(reader.batches(n_tokens))
            self.heldout[n_tokens] = x.to(self.x.device) * self.scale
        return self.heldout[n_tokens]


class Run:
    """One SAE in training."""

    def __init__(
        self, cell: Cell, sample: Sample, *, n_tokens: int, n_latents: int, k: int
    ) -> None:
        """Start at the first step, or at that of the checkpoint, on a stream of `n_tokens`.

        Raises a `UserError` if there are fewer tokens than one batch.
        """
        recipe = cell.recipe
        if n_tokens < recipe.batch_tokens:
            raise UserError(
                f"{cell.where}.batch_tokens: {recipe.batch_tokens} is more than the {n_tokens} "
                f"tokens to train on (activations.sae_train_tokens)"
            )
        self.cell, self.sample = cell, sample
        self.n_steps = n_tokens // recipe.batch_tokens * recipe.epochs
        self.heldout = sample.heldout_of(cell.heldout, recipe.heldout_tokens)
        # In a short training several shares may fall on one step.
        self.due: dict[int, list[float]] = {}
        for share in recipe.checkpoints:
            self.due.setdefault(math.ceil(share * self.n_steps), []).append(share)

        def fresh() -> Trainer:
            generator = torch_generator(cell.seed, "sae_init", *cell.keys.parts())
            start = initialize(sample.x, n_latents=n_latents, k=k, generator=generator)
            return Trainer(recipe, self.n_steps, start, k=k, precision=cell.precision)

        self.trainer = fresh()
        self.resumed = cell.checkpoint.is_file() and self._resume()
        if cell.checkpoint.is_file() and not self.resumed:
            del self.trainer  # there may not be room for two
            self.trainer = fresh()
        makers = cell.makers
        provenance.record(makers.parent, key=cell.key, resumes=self.resumed, name=makers.name)
        self.batches = Batches(n_tokens, recipe.batch_tokens, start_step=self.trainer.step)
        self.timed_tokens, self.timed_seconds = 0, 0.0
        self._unread: list[Losses] = []  # of the last steps
        self._fvu: float | None = None

    def _resume(self) -> bool:
        """Continue at the checkpoint; return False, with a warning, if that is impossible."""
        try:
            self.trainer.load(self.cell.checkpoint)
            for step, shares in self.due.items():
                for share in shares if step <= self.trainer.step else ():
                    load_sae(checkpoint_folder(self.cell.work, share) / "cfg.json")
        except (UserError, *DAMAGED) as error:
            text = "warning: %s: damaged (%s); training restarts"
            logger.warning(text, self.cell.checkpoint, first_line(error))
            return False
        return True

    @property
    def done(self) -> bool:
        return self.trainer.step == self.n_steps

    @property
    def lags(self) -> bool:
        """Whether losses are read some steps late."""
        return self.heldout.device.type == "cuda"

    @property
    def step_bytes(self) -> int:
        model = self.trainer.model
        shape = {"d_model": model.d_model, "n_latents": model.n_latents, "k": model.k}
        return model.step_bytes(self.cell.recipe, **shape, device=self.heldout.device.type)

    def read_losses(self) -> None:
        """Check that all losses so far are finite; the first other one raises `DivergedError`."""
        unread, self._unread = self._unread, []
        start, first = time.perf_counter(), self.trainer.step - len(unread) + 1
        for step, losses in enumerate(unread, first):
            self._fvu = losses.fvu
            if not math.isfinite(self._fvu):
                raise DivergedError(
                    f"{self.cell.where}: the loss is {self._fvu} at step {step}; lower lr"
                )
        self.timed_seconds += time.perf_counter() - start

    def save(self) -> None:
        """Write the checkpoint, or raise a `DivergedError` if the training has diverged."""
        self.read_losses()
        self.trainer.save(self.cell.checkpoint)

    def step(self, batch: Tensor) -> float | None:
        """Take an optimizer step on activations as captured, [batch_tokens, d_model].

        Also does what is due after the step. Returns the FVU of the last batch whose loss was read:
        on a CPU, this one. A loss that is not finite raises a `DivergedError` once it is read.
        """
        trainer, recipe, keys = self.trainer, self.cell.recipe, self.cell.keys
        lr, start = trainer.lr(), time.perf_counter()
        x = batch.to(self.heldout.device, torch.float32) * self.sample.scale
        losses = trainer.train_step(x)
        self._unread.append(losses)
        self.timed_seconds += time.perf_counter() - start
        self.timed_tokens += recipe.batch_tokens
        look = trainer.step % recipe.evaluate_every_steps == 0
        look = look or self.done or trainer.step in self.due
        if look or not self.lags or len(self._unread) == STEPS_PER_READING:
            self.read_losses()
        if look:
            give_back()  # tensors of a step differ in size from what follows
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
                    **trainer.silent(),
                    "precision": trainer.model.precision,
                    "differing_choice_share": trainer.differing_choices(x[:COMPARED_TOKENS]),
                    "tokens_per_second": self.timed_tokens / self.timed_seconds,
                }
            )
            self.timed_tokens, self.timed_seconds = 0, 0.0
            explained = found["heldout_explained_variance"]
            logger.info(
                "%s, seed %d, %s: step %d of %d: FVU %.4f, held-out explained variance %s",
                *(keys.sae, keys.seed, keys.site, trainer.step, self.n_steps, losses.fvu),
                "undefined" if explained is None else f"{explained:.4f}",
            )
        for share in self.due.get(trainer.step, ()):
            along = keys.model_copy(update={"sae": checkpoint_name(keys.sae, share)})
            self._write(checkpoint_folder(self.cell.work, share), along)
        if self.done:
            self._say_missed(trainer.history[-1]["heldout_l0"])
            self._write(self.cell.work, keys)
            self.cell.checkpoint.unlink(missing_ok=True)
            self.cell.makers.unlink(missing_ok=True)
        elif trainer.step % recipe.checkpoint_every_steps == 0:
            self.save()
        return self._fvu

    def _say_missed(self, l0: float) -> None:
        """Warn if a finished SAE misses the L0 that it is aimed at."""
        aimed_at = self.cell.l0
        if aimed_at is not None and abs(l0 - aimed_at) > L0_TOLERANCE * aimed_at:
            logger.warning(
                "warning: %s: %s: L0 is %.3g, not within %.0f%% of the %.3g that it is aimed at",
                *(self.cell.where, self.cell.keys.site, l0, 100 * L0_TOLERANCE, aimed_at),
            )

    def _write(self, folder: Path, keys: CellKeys) -> None:
        """Write the SAE at its current step, for activations as captured."""
        sae = self.trainer.sae.scaled(1.0 / self.sample.scale)
        self.cell.write(folder, keys, sae, self.trainer.history, self.trainer.step)
