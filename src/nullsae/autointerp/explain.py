"""Explanations of the latents of one SAE: a job of `explain_latents`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from nullsae.autointerp.llm.session import Session
from nullsae.autointerp.shards import Ranks
from nullsae.corpus.token_text import read_tokenizer
from nullsae.jobs.autointerp import ExplainLatentsParams
from nullsae.tables import cell_schema, read_table, write_table

if TYPE_CHECKING:
    from tokenizers import Tokenizer

log = logging.getLogger(__name__)

# Per explanation. Ordinary ones have about a hundred.
MOST_CHARACTERS = 4000


@dataclass(frozen=True)
class ExplainJob:
    """What an explainer explains, and what it may use."""

    params: ExplainLatentsParams
    windows_file: Path
    """The SAE's table `windows`."""
    tokenizer_file: Path
    """`tokenizer.json` of the corpus."""
    output: Path
    """Where the table `explanations` is written, for messages."""
    base: Path | None
    """The explanations to exchange, for an explainer that does so."""
    session: Session
    ranks: Ranks | None
    """Explain only these of the sampled latents."""

    def windows(self, *columns: str) -> pa.Table:
        """Read the rows of the table `windows` about these latents; by default all columns."""
        schema = cell_schema("windows")
        table = read_table(self.windows_file, schema, columns=list(columns) or None)
        return self.ranks.take(table) if self.ranks else table

    def beside(self, table: str, *columns: str) -> pa.Table:
        """Read a table of all latents from the folder of `windows`.

        Raises:
            UserError: the file is missing or damaged.
        """
        file = self.windows_file.with_name(f"{table}.parquet")
        return read_table(file, cell_schema(table), columns=list(columns))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The corpus' tokenizer; a `UserError` if the file is missing or damaged."""
        return read_tokenizer(self.tokenizer_file)


def explain_latents(
    params: ExplainLatentsParams,
    windows: Path,
    tokenizer: Path,
    output: Path,
    base: Path | None,
    session: Session | None = None,
    ranks: Ranks | None = None,
) -> None:
    """Write one SAE's explanations, one row per latent, sorted by latent.

    The arguments are the fields of `ExplainJob`; `join_shards` joins the tables of several `ranks`.
    A `UserError` names a missing or damaged file, or says why an endpoint cannot be used.
    """
    job = ExplainJob(params, windows, tokenizer, output, base, session or Session(), ranks)
    table = params.explainer.explain(job)
    if n_cut := sum(bool(n) for n in table["n_characters_cut"].to_pylist()):
        log.warning("%d explanations were cut at %d characters", n_cut, MOST_CHARACTERS)
    write_table(output, table, cell_schema("explanations"))


def explained_in_words(
    texts: Mapping[int, str | None],
    reason: str | Mapping[int, str],
    model: str | None = None,
    prompt_hash: str | None = None,
    n_repeats: Mapping[int, int] | None = None,
) -> pa.Table:
    """Return the table `explanations` of an explainer that writes texts, without statistics.

    Texts are given by latent, ascending; None or "" if there is none, for the given `reason`, one
    for all or by latent. `model` is the language model that wrote them, `n_repeats` how many of its
    answers repeated an example of the prompt, by latent. A text is cut at `MOST_CHARACTERS`,
    because it is part of every question to a judge.
    """
    schema = cell_schema("explanations")
    rows: list[dict[str, Any]] = [
        {field.name: [] for field in schema if pa.types.is_list(field.type)}
        | {"latent": latent, "explanation": text and text[:MOST_CHARACTERS]}
        | {"n_characters_cut": max(len(text or "") - MOST_CHARACTERS, 0)}
        | {"reason": None if text else reason if isinstance(reason, str) else reason[latent]}
        | {"source_latent": latent, "model": model, "prompt_hash": prompt_hash}
        | {"n_example_repeats": (n_repeats or {}).get(latent, 0)}
        for latent, text in texts.items()
    ]
    return pa.Table.from_pylist(rows, schema=schema)
