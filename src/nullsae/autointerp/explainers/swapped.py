"""The placebo: each latent gets the explanation of another one."""

from __future__ import annotations

import logging
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from nullsae.autointerp.explain import ExplainJob
from nullsae.config.explainers import Explainer
from nullsae.core.errors import UserError
from nullsae.core.randomness import numpy_generator
from nullsae.tables import cell_schema, read_table

log = logging.getLogger(__name__)


class SwappedExplainer(Explainer):
    """The placebo: another latent's explanation."""

    name: ClassVar[str] = "swapped"
    position: ClassVar[int] = 2

    kind: Literal["swapped"]
    of: str
    """The explainer whose explanations are exchanged among the latents of an SAE."""

    @property
    def exchanges(self) -> str:
        return self.of

    @property
    def text(self) -> str:
        return (
            f"The floor: each latent is judged by the explanation that {self.of} wrote for "
            f"another latent of the same SAE."
        )

    def explain(self, job: ExplainJob) -> pa.Table:
        if job.ranks is not None:
            raise UserError("--ranks: an explainer of kind swapped needs all latents at once")
        if job.base is None:
            raise UserError(
                f"{job.output}: an explainer of kind swapped needs the explanations of "
                f"{self.of!r}; give that explanations.parquet as the base"
            )
        explained = read_table(job.base, cell_schema("explanations"))
        # The key excludes the explainer's name, so that all swaps of an SAE pair the same latents.
        parts = job.params.keys.parts()
        generator = numpy_generator(job.params.seed, "swap_explanations", *parts)
        rows = swap_explanations(explained, generator)
        if not rows.num_rows:
            log.warning(
                "%s: nothing to swap, %s has %d latent(s)", job.output, job.base, explained.num_rows
            )
        return rows


def swap_explanations(explanations: pa.Table, generator: np.random.Generator) -> pa.Table:
    """Give each latent the explanation of another one, using each exactly once.

    They are as specific, long and well formed as the real explanations, but about the wrong latent.
    Sorted by latent, without unexplained latents; zero rows for fewer than two.
    """
    explanations = explanations.filter(explanations["explanation"].is_valid())
    explanations = explanations.sort_by("latent")
    if explanations.num_rows < 2:
        return explanations.slice(0, 0)
    swapped = explanations.take(derangement(explanations.num_rows, generator))
    return swapped.set_column(0, explanations.schema.field("latent"), explanations["latent"])


def derangement(n: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Return a permutation of n >= 2 items without a fixed point: one random cycle through all.

    Any other item is equally likely to be an item's image.
    """
    order = generator.permutation(n)
    image = np.empty(n, dtype=np.int64)
    image[order] = np.roll(order, 1)
    return image
