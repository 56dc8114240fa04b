"""Trains the SAEs of a job on one stream of blocks, each with its own batches and steps."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from nullsae.activations.blocks import Blocks, ahead, block_order, order_within
from nullsae.activations.live import bad_row
from nullsae.core.errors import UserError, first_line
from nullsae.core.stopping import Stop, StoppedError
from nullsae.sae.training_run import Cell, DivergedError, Run

logger = logging.getLogger(__name__)

Progress = Callable[[int, int, float | None], None]

# The most work lost to a kill without warning; more if saving itself takes long.
CHECKPOINT_SECONDS = 600.0
PAUSE_PER_SAVING = 20.0


@dataclass(frozen=True)
class Visit:
    """A block in an epoch, and the runs that need it."""

    epoch: int
    index: int
    start: int
    """Tokens of the epoch before this block."""
    runs: tuple[Run, ...]

    @property
    def sites(self) -> list[str]:
        return sorted({run.cell.keys.site for run in self.runs})


def plan(runs: Sequence[Run], sizes: Sequence[int], seed: int) -> list[Visit]:
    """List the remaining blocks in order, without those that no run needs."""
    visits = []
    for epoch in range(max(run.cell.recipe.epochs for run in runs)):
        start = 0
        left = [run for run in runs if epoch < run.cell.recipe.epochs]
        for index in block_order(seed, epoch, len(sizes)):
            stop = start + sizes[index]
            wanting = tuple(run for run in left if run.batches.want(epoch, start, stop))
            if wanting:
                visits.append(Visit(epoch, index, start, wanting))
            start = stop
    return visits


class Checkpoints:
    """Writes the checkpoints of all runs together, at intervals.

    A run writes its own only every `checkpoint_every_steps`, which may be hours apart. Resuming is
    exact, so the timing does not affect results.
    """

    def __init__(self, unfinished: Callable[[], list[Run]]) -> None:
        self.unfinished, self._saved, self._pause = unfinished, time.monotonic(), CHECKPOINT_SECONDS

    def save(self) -> list[Run]:
        """Write those of the runs that need them; return these runs."""
        start, runs = time.monotonic(), self.unfinished()
        for run in runs:
            run.save()
        self._saved = time.monotonic()
        self._pause = max(CHECKPOINT_SECONDS, PAUSE_PER_SAVING * (self._saved - start))
        return runs

    def now_and_then(self) -> None:
        """Write them if the last ones are old."""
        if time.monotonic() - self._saved > self._pause:
            self.save()


def train_together(
    runs: Sequence[Run],
    blocks: Blocks,
    seed: int,
    seconds_per_block: float,
    progress: Progress,
    stop: Stop,
) -> None:
    """Train all runs to their end, fetching each block once per epoch for all of them.

    They are SAEs of one variant. If one diverges, the others continue. `progress` is called with
    (step, steps, FVU of the batch), counted over all runs. If `stop` asks for an early end, each
    run gets a checkpoint of its last step, and a `StoppedError` is raised. Raises a `UserError` if
    activations are NaN or infinite, memory is short or, once all others are finished, a loss was
    not finite.
    """
    visits, n_steps = plan(runs, blocks.sizes, seed), sum(run.n_steps for run in runs)
    widths = {run.cell.keys.site: run.cell.train.d_model for run in runs}
    steps, weights = sum(r.n_steps - r.trainer.step for r in runs), sum(r.step_bytes for r in runs)
    work, hours = blocks.work([v.index for v in visits]), seconds_per_block * len(visits) / 3600
    logger.info(
        f"{len(runs)} SAEs at {len(widths)} sites: {steps:,} steps on {sum(blocks.sizes):,} "
        f"tokens, {work} ({hours:.2g} hours), at most {max(blocks.sizes):,} tokens of "
        f"{sum(widths.values())} dimensions each; weights, optimizers and codes take "
        f"{weights / 2**30:.2f} GiB"
    )
    diverged: dict[int, UserError] = {}
    device = runs[0].heldout.device
    started = time.perf_counter()
    checkpoints = Checkpoints(lambda: [r for r in runs if not r.done and id(r) not in diverged])

    def leave() -> None:
        # If nothing is unfinished, the rest takes no time.
        if unfinished := checkpoints.save():
            step = sum(run.trainer.step for run in runs)
            raise StoppedError(
                f"stopped by {stop.signal} at step {step} of {n_steps}; "
                f"run again to continue from there "
                f"({unfinished[0].cell.checkpoint.parent}: {len(unfinished)} SAEs unfinished)"
            )

    def done(fvu: float | None) -> None:
        progress(sum(run.trainer.step for run in runs), n_steps, fvu)
        stop.here(leave)
        checkpoints.now_and_then()

    def block(visit: Visit) -> dict[str, Tensor]:
        """Return its activations, permuted once for all runs; each site's are kept once."""
        found = blocks.block(visit.index, visit.sites)
        order = order_within(seed, visit.epoch, visit.index, blocks.sizes[visit.index])
        for site in visit.sites:
            found[site] = pinned(found[site][order], device)
        return found

    stream = ahead(block, visits, in_background=works_ahead(runs, blocks, device))
    for at, visit in enumerate(visits):
        with stop.anywhere(leave):
            found = next(stream)
        for site in visit.sites:
            x = found.pop(site)  # drops the last other reference
            for run in visit.runs:
                if run.cell.keys.site != site or id(run) in diverged:
                    continue
                try:
                    _train_on(run, x, blocks, visits[: at + 1], done)
                except DivergedError as error:
                    logger.warning("%s", error)
                    diverged[id(run)] = error
            del x
        if at == 0 and len(visits) > 1:
            hours = (time.perf_counter() - started) * len(visits) / 3600
            logger.info("about %.2g hours, from the time of the first block", hours)
    if diverged:
        raise next(iter(diverged.values()))


def works_ahead(runs: Sequence[Run], blocks: Blocks, device: torch.device) -> bool:
    """Return whether the next block is made while runs train on the last one.

    TensorFloat-32 is a setting of the whole process: passes of a model beside such training would
    round with it, or not, depending on the moment.
    """
    in_tensor_float = any(run.trainer.model.precision == "tf32" for run in runs)
    return device.type == "cuda" and not (in_tensor_float and blocks.computed)


def _train_on(
    run: Run,
    x: Tensor,
    blocks: Blocks,
    visits: Sequence[Visit],
    done: Callable[[float | None], None],
) -> None:
    """Take the steps that a block completes; `visits` are those up to it, `x` its activations."""
    # A loss that is read late may be that of any batch of the block or of the remainder before it.
    read = [x] if run.batches.held is None else [run.batches.held, x]
    try:
        for batch in sent(run.batches.cut(visits[-1].start, x), run.heldout.device):
            if not run.lags:
                read = [batch]
            done(run.step(batch))
        run.read_losses()
    except DivergedError:
        if all(bad_row(rows) is None for rows in read):
            raise
        # The last row so far that cannot be used for training.
        site = run.cell.keys.site
        for visit in reversed(visits):
            row = bad_row(blocks.block(visit.index, [site])[site])
            if row is not None:
                break
        raise UserError(
            f"{blocks.name(visit.index, site)}: row {row} is NaN or infinite; SAEs cannot be "
            f"trained on it"
        ) from None


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """Return a copy in memory that a GPU can read directly."""
    return x.pin_memory() if device.type == "cuda" and x.device.type == "cpu" else x


@cache
def copying(device: torch.device) -> torch.cuda.Stream:
    """Return a stream for copies to a GPU, separate from the one that computes."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def sent(batches: Iterator[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Yield batches on a GPU in their stored dtype, copying each while the previous is in use.

    Without a GPU they are unchanged.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream, computing = copying(device), torch.cuda.current_stream(device)
    coming: deque[tuple[Tensor, torch.cuda.Event]] = deque()

    def next_one() -> Tensor:
        x, copied = coming.popleft()
        computing.wait_event(copied)
        # Its memory may be reused once the computation on it is done.
        x.record_stream(computing)
        return x

    # Data computed on the device must be complete before it is copied.
    stream.wait_stream(computing)
    for batch in batches:
        with torch.cuda.stream(stream):
            coming.append((batch.to(device, non_blocking=True), stream.record_event()))
        if len(coming) > 1:
            yield next_one()
    if coming:
        yield next_one()


@contextmanager
def enough_memory(cells: Sequence[Cell], n_bytes: Callable[[], int]) -> Iterator[None]:
    """Raise a `UserError` that says what to lower if memory runs out.

    `n_bytes` returns what the cells, trained together, need as far as it is known by then.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        out = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not out and "can't allocate memory" not in str(error):
            raise
        names = ", ".join(dict.fromkeys(f"saes.{cell.keys.sae}" for cell in cells))
        raise UserError(
            f"config: {names}: out of memory ({first_line(error)}); training takes "
            f"{n_bytes() / 2**30:.2f} GiB for the {len(cells)} SAEs of this job, without the "
            f"activations: lower n_latents, batch_tokens or activations.shard_tokens; finished "
            f"SAEs and checkpoints are kept"
        ) from None
