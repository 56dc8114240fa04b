"""Overlap of two dictionaries, by optimal one-to-one matching of directions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nullsae import tables
from nullsae.core.errors import UserError
from nullsae.core.randomness import numpy_generator
from nullsae.jobs.metrics import MatchDictionariesParams, MatchedSae
from nullsae.metrics.geometry import random_directions, unit_rows
from nullsae.sae.files import load_sae

# Matched latents count as shared from this cosine on (Paulo and Belrose 2025).
SHARED_COSINE = 0.7
BLOCK_COLUMNS = 2048


def match_dictionaries(
    params: MatchDictionariesParams,
    *,
    sae: str,
    output: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write the table `overlap` of the SAEs of one subject, site and recipe: a row per pair.

    The decoder rows of a and b are matched one to one such that the sum of the cosines is maximal
    (linear_sum_assignment of SciPy, Crouse 2016). Paulo and Belrose (2025, arXiv 2501.16615) match
    both encoder and decoder rows, and call a latent shared if both matchings agree. Here only
    decoder rows count, since they are what a dictionary writes, and `token_lookup` has no others.
    mean_cosine and shared_share (cosine 0.7 or more) are over the matched pairs; *_random are the
    same for as many random directions, sampled and matched in the same way. Rows of norm 0 are left
    out.

    Of a dictionary with more latents than that, `matching_latents` m of a, drawn at random, are
    matched with all n of b. With fewer rows competing, cosines are somewhat larger than in a full
    matching, as they are in the floor. Memory: 8 m n bytes for cosines, besides the decoders of two
    SAEs. Time per pair: 2 m n d_model for cosines, and at worst m^2 n for the matching, in practice
    far less.

    Args:
        params: the rule's slice of the config.
        sae: path of each SAE's `cfg.json`; {variant}, {draw} and {seed} are filled in.
        output: the table.
        progress: called with (pairs done, pairs in total).

    Raises:
        UserError: an SAE is missing or damaged, or two of one recipe differ in the width of the
            site.
    """
    torch.set_num_threads(params.compute.threads)

    @lru_cache(maxsize=2)
    def of(cell: MatchedSae) -> tuple[Tensor, int]:
        """Return the decoder's unit rows and its number of latents."""
        coder, _ = load_sae(_file(sae, cell))
        return unit_rows(coder.w_dec), coder.n_latents

    @lru_cache(maxsize=1)
    def sampled(cell: MatchedSae) -> Tensor:
        """Return the rows that are matched with all rows of another SAE."""
        rows, m = of(cell)[0], params.matching_latents
        if len(rows) <= m:
            return rows
        key = (params.subject, params.site, params.sae, cell.variant, cell.draw, cell.seed)
        generator = numpy_generator(params.seed, "matching_latents", *key)
        return rows[torch.from_numpy(np.sort(generator.choice(len(rows), m, replace=False)))]

    @lru_cache
    def floor(n_a: int, n_b: int, d_model: int) -> NDArray[np.float64]:
        sides = (("matching_a", n_a), ("matching_b", n_b))
        drawn = (random_directions(n, d_model, params.seed, purpose) for purpose, n in sides)
        return matched_cosines(*drawn)

    rows: list[dict[str, Any]] = []
    found = pairs(params.cells)
    for kind, a, b in found:
        ours, (all_of_b, n_b) = sampled(a), of(b)
        if ours.shape[1] != all_of_b.shape[1]:
            raise UserError(
                f"{_file(sae, b)}: an SAE for {all_of_b.shape[1]} dimensions, but "
                f"{_file(sae, a)} is for {ours.shape[1]}; both must be of one site"
            )
        cosines = matched_cosines(ours, all_of_b)
        rows.append(
            {
                **{f"{name}_a": value for name, value in a.model_dump().items()},
                **{f"{name}_b": value for name, value in b.model_dump().items()},
                "kind": kind,
                **{"n_latents_a": of(a)[1], "n_latents_b": n_b, "n_matched": len(cosines)},
                **_shares(cosines, ""),
                **_shares(floor(len(ours), len(all_of_b), ours.shape[1]), "_random"),
            }
        )
        progress(len(rows), len(found))
    tables.write_table(output, rows, tables.cell_schema("overlap"))


def pairs(cells: Sequence[MatchedSae]) -> list[tuple[str, MatchedSae, MatchedSae]]:
    """List the comparisons of a study as (kind, a, b), ordered by their first SAE.

    `seeds`: two seeds of one variant and draw; `draws`: two draws of one variant and seed;
    `variants`: an SAE of another variant, and the trained one of the same seed (draw 0).
    """
    trained = {cell.seed: cell for cell in cells if cell.variant == "trained"}
    found = [
        ("seeds" if a.draw == b.draw else "draws", a, b)
        for a, b in combinations(cells, 2)
        if a.variant == b.variant and (a.draw == b.draw) != (a.seed == b.seed)
    ]
    found += [("variants", c, trained[c.seed]) for c in cells if c.variant != "trained"]
    order = {cell: index for index, cell in enumerate(cells)}
    # An SAE stays in memory as long as it comes first.
    return sorted(found, key=lambda pair: order[pair[1]])


def matched_cosines(a: Tensor, b: Tensor) -> NDArray[np.float64]:
    """Compute cosines of the optimal one-to-one matching, float64 [min(n_a, n_b)], by rows of a.

    a float32 [n_a, d] and b float32 [n_b, d] are unit rows.
    """
    from scipy.optimize import linear_sum_assignment

    # Negated and in float64, or SciPy would copy it.
    costs = np.empty((len(a), len(b)))
    for start in range(0, len(b), BLOCK_COLUMNS):
        columns = slice(start, start + BLOCK_COLUMNS)
        np.negative((a @ b[columns].t()).numpy(), out=costs[:, columns])
    cosines: NDArray[np.float64] = -costs[linear_sum_assignment(costs)]
    return cosines


def _shares(cosines: NDArray[np.float64], suffix: str) -> dict[str, float | None]:
    """Compute mean cosine and share of shared pairs; null if nothing is matched."""
    numbers = {"mean_cosine": cosines, "shared_share": cosines >= SHARED_COSINE}
    return {
        f"{name}{suffix}": float(values.mean()) if len(values) else None
        for name, values in numbers.items()
    }


def _file(pattern: str, cell: MatchedSae) -> Path:
    return Path(pattern.format(**cell.model_dump()))
