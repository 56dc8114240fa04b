"""Checks disk space and estimates the time before a capture."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from nullsae.core.errors import UserError

log = logging.getLogger(__name__)

# The batch whose time is multiplied by the number of batches.
TIMED_BATCH = 2
# Headers, manifests and partly used blocks of the file system, in addition to the tensors.
DISK_OVERHEAD = 1.02


@dataclass
class CaptureClock:
    """Counts tokens; logs an estimate of the total time after the second (the first warm) batch."""

    what: str
    total: int
    todo: int
    device: torch.device
    progress: Callable[[int, int], None] | None
    batches: int = 0

    def __post_init__(self) -> None:
        self.done = self.total - self.todo

    def start(self, position: int) -> None:
        """Start a shard at this token."""
        self.position, self.since = position, time.perf_counter()

    def reach(self, position: int) -> None:
        """Finish a batch; the next one starts at this token."""
        tokens, self.position = position - self.position, position
        self.done += tokens
        self.batches += 1
        if self.batches <= TIMED_BATCH:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            seconds, self.since = time.perf_counter() - self.since, time.perf_counter()
            if self.batches == TIMED_BATCH or self.done == self.total:
                hours = seconds / tokens * self.todo / 3600
                taking = f"{hours:.1f} hours" if hours >= 0.1 else f"{hours * 60:.1f} minutes"
                log.info("%s, about %s", self.what, taking)
        if self.progress is not None:
            self.progress(self.done, self.total)


def check_disk(output: Path, n_bytes: int, *, freed: int = 0) -> None:
    """Stop before writing `n_bytes` of tensors to a disk that is too small.

    `freed` are bytes of files that will be deleted first.

    Raises:
        UserError: names the folder, the space needed and the space available.
    """
    folder = output
    while not folder.exists():
        folder = folder.parent
    needed, free = int(n_bytes * DISK_OVERHEAD), shutil.disk_usage(folder).free + freed
    if needed > free:
        raise UserError(
            f"{output}: the activations need {_gb(needed)} GB, the disk has {_gb(free)} "
            f"GB free; free some, or lower activations.sae_train_tokens or the number of sites"
        )


def _gb(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:,.2f}" if n_bytes >= 1e8 else f"{n_bytes / 1e9:.2g}"
