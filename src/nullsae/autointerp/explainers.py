"""Explanations of latents: by token statistics, by a language model, and their placebo."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nullsae.autointerp.lexical import lexical_explanations
from nullsae.autointerp.llm.session import Asked
from nullsae.autointerp.shards import Ranks
from nullsae.config.explainers import LexicalExplainer, OpenAIExplainer
from nullsae.core.errors import UserError
from nullsae.core.files import rebuild_command
from nullsae.core.randomness import numpy_generator
from nullsae.jobs.autointerp import ExplainLatentsParams
from nullsae.tables import cell_schema, read_table, write_table

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]


def explain_latents(
    params: ExplainLatentsParams,
    windows: Path,
    tokenizer: Path,
    output: Path,
    base: Path | None,
    asked: Asked | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Write one SAE's explanations, one row per latent, sorted by latent.

    Args:
        params: the rule's params.
        windows: the SAE's table `windows`.
        tokenizer: `tokenizer.json` of the corpus, for the text of tokens.
        output: where the table `explanations` goes.
        base: `swapped` only: the explanations that are exchanged.
        asked: how endpoints are asked, and what is reported of it.
        ranks: explain these of the sampled latents only; `join_shards` makes one table of all.

    Raises:
        UserError: a file is missing or damaged, or an endpoint cannot be used.
    """
    explainer = params.explainer
    if isinstance(explainer, LexicalExplainer):
        columns = ["latent", "window", "pool", "token_ids", "activations"]
        table = read_table(windows, cell_schema("windows"), columns=columns)
        table = ranks.take(table) if ranks else table
        rows = lexical_explanations(
            table, load_tokenizer(tokenizer), explainer.top_tokens, explainer.context
        )
    elif isinstance(explainer, OpenAIExplainer):
        # Lazy: the other kinds need no client.
        from nullsae.autointerp.written import written_explanations

        table = read_table(windows, cell_schema("windows"))
        table = ranks.take(table) if ranks else table
        rows = written_explanations(table, load_tokenizer(tokenizer), explainer, asked or Asked())
    else:
        if ranks is not None:
            raise UserError("--ranks: an explainer of kind swapped exchanges those of all latents")
        if base is None:
            raise UserError(
                f"{output}: an explainer of kind swapped needs the explanations of "
                f"{explainer.of!r}; give that explanations.parquet as the base"
            )
        explained = read_table(base, cell_schema("explanations"))
        # Keyed without the explainer's name: each swap of this SAE pairs the same latents.
        generator = numpy_generator(params.seed, "swap_explanations", *params.keys.parts())
        rows = swap_explanations(explained, generator)
        if not rows.num_rows:
            log.warning(
                "%s: nothing to swap, %s has %d latent(s)", output, base, explained.num_rows
            )
    write_table(output, rows, cell_schema("explanations"))


def swap_explanations(explanations: pa.Table, generator: np.random.Generator) -> pa.Table:
    """Give each latent the explanation of another latent of the same SAE.

    The placebo: as specific, as long and as well formed as the real explanations, about the
    wrong latent. Each explanation is used exactly once.

    Args:
        explanations: the table `explanations` of another explainer, in any row order.
        generator: draws who gets whose.

    Returns:
        The same columns, sorted by latent, without latents that have no explanation; zero rows
        for fewer than two.
    """
    explanations = explanations.filter(pc.is_valid(explanations["explanation"]))
    explanations = explanations.sort_by("latent")
    if explanations.num_rows < 2:
        return explanations.slice(0, 0)
    swapped = explanations.take(derangement(explanations.num_rows, generator))
    return swapped.set_column(0, explanations.schema.field("latent"), explanations["latent"])


def derangement(n: int, generator: np.random.Generator) -> Ints:
    """A permutation of n >= 2 items without a fixed point: one random cycle through all.

    Any other item is equally likely to be an item's image.
    """
    order = generator.permutation(n)
    image = np.empty(n, dtype=np.int64)
    image[order] = np.roll(order, 1)
    return image


def load_tokenizer(path: Path) -> Tokenizer:
    """Read `tokenizer.json`.

    Raises:
        UserError: the file is missing or is no tokenizer.
    """
    rebuild = rebuild_command(path)
    if not Path(path).is_file():
        raise UserError(f"{path}: the file is missing; rebuild it with: {rebuild}")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises nothing more specific
        raise UserError(f"{path}: not a tokenizer ({error}); rebuild it with: {rebuild}") from None
