"""Latents of one SAE divided among several jobs, and their tables joined again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from nullsae.core.errors import UserError
from nullsae.core.files import rebuild_command
from nullsae.tables import cell_schema, read_table, write_table


@dataclass(frozen=True)
class Ranks:
    """A range of an SAE's sampled latents, in ascending order."""

    start: int
    stop: int

    @classmethod
    def parse(cls, text: str) -> Ranks:
        """Parse `20:40`, the 21st to the 40th; raise a `UserError` for anything else."""
        found = re.fullmatch(r"(\d+):(\d+)", text)
        if found is None or not int(found[1]) < int(found[2]):
            raise UserError(f"--ranks: {text!r} is not FIRST:END of sampled latents, such as 0:25")
        return cls(int(found[1]), int(found[2]))

    def take(self, table: pa.Table) -> pa.Table:
        """Return the rows of these latents in the table `windows`; may be empty."""
        return of_latents(table, np.unique(table["latent"].to_numpy())[self.start : self.stop])


def of_latents(table: pa.Table, latents: np.ndarray) -> pa.Table:
    """Return the rows of a table about these latents, int64 [n]."""
    return table.filter(pa.array(np.isin(table["latent"].to_numpy(), latents)))


def join_shards(files: Sequence[Path], table: str, output: Path) -> None:
    """Join one table, such as `scores`, from several jobs, sorted by latent.

    A `UserError` names a file that is missing or damaged, or shares a latent with another one.
    """
    schema = cell_schema(table)
    parts = [read_table(file, schema) for file in files]
    seen: set[int] = set()
    for file, part in zip(files, parts, strict=True):
        own = set(part["latent"].to_pylist())
        if twice := own & seen:
            raise UserError(
                f"{file}: latent {min(twice)} is in another shard too; rebuild it with: "
                f"{rebuild_command(file)}"
            )
        seen |= own
    parts.sort(key=lambda part: part["latent"][0].as_py() if part.num_rows else -1)
    write_table(output, pa.concat_tables([schema.empty_table(), *parts]), schema)
