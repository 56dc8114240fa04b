"""Explanations of latents that need no language model: token statistics, and their placebo."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import Tokenizer

from nullsae.config import LexicalExplainer
from nullsae.errors import UserError
from nullsae.files import rebuild_command
from nullsae.params import ExplainLatentsParams
from nullsae.randomness import numpy_generator
from nullsae.tables import cell_schema, read_table, write_table

log = logging.getLogger(__name__)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def explain_latents(
    params: ExplainLatentsParams, windows: Path, tokenizer: Path, output: Path, base: Path | None
) -> None:
    """Write one SAE's explanations, one row per latent, sorted by latent.

    Args:
        params: the rule's params.
        windows: the SAE's table `windows`.
        tokenizer: `tokenizer.json` of the corpus; `lexical` quotes tokens with it.
        output: where the table `explanations` goes.
        base: `swapped` only: the explanations that are exchanged.

    Raises:
        UserError: a file is missing or damaged.
    """
    if isinstance(params.explainer, LexicalExplainer):
        columns = ["latent", "window", "pool", "token_ids", "activations"]
        table = read_table(windows, cell_schema("windows"), columns=columns)
        rows = lexical_explanations(table, load_tokenizer(tokenizer), params.explainer.top_tokens)
    else:
        if base is None:
            raise UserError(
                f"{output}: an explainer of kind swapped needs the explanations of "
                f"{params.explainer.of!r}; give that explanations.parquet as the base"
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


def lexical_explanations(windows: pa.Table, tokenizer: Tokenizer, top_tokens: int) -> pa.Table:
    """Explain each latent by the tokens that it fires on in its explaining windows.

    For a token id that occurs n times there, active a times of them,

        P(active | token) = (a + r) / (n + 1),

    r the latent's share of active positions over all those windows. The one added occurrence is
    active at the rate r, so the estimate starts from what is known without the token and a token
    never seen keeps r. Laplace's (a + 1) / (n + 2) would start from 1/2: every rare token would
    look likelier to fire a sparse latent than common tokens that now and then do.

    Args:
        windows: latent, window, pool, token_ids, activations of the table `windows`.
        tokenizer: the corpus' tokenizer.
        top_tokens: how many tokens the text names.

    Returns:
        The columns of the table `explanations`; `token_ids` ascend, `base_probability` is r.
    """
    windows = windows.filter(pc.equal(windows["pool"], "explain"))
    # Sums of floats then do not depend on the order of the rows.
    windows = windows.sort_by([("latent", "ascending"), ("window", "ascending")])
    lists = windows["token_ids"].combine_chunks()
    n_tokens = lists.value_lengths().to_numpy()
    tokens = lists.flatten().to_numpy().astype(np.int64)
    activations = windows["activations"].combine_chunks().flatten().to_numpy().astype(np.float64)
    latents, of_window = np.unique(windows["latent"].to_numpy(), return_inverse=True)
    of_position = np.repeat(of_window, n_tokens)

    # One group per (latent, token id) that occurs, in that order.
    stride = int(tokens.max(initial=0)) + 1
    pairs, group = np.unique(of_position * stride + tokens, return_inverse=True)
    fires = activations > 0
    n_occurrences = np.bincount(group, minlength=len(pairs))
    n_active = np.bincount(group[fires], minlength=len(pairs))
    mass = np.bincount(group[fires], weights=activations[fires], minlength=len(pairs))
    bounds = np.searchsorted(pairs // stride, np.arange(len(latents) + 1))

    rows = []
    for latent, start, stop in zip(latents.tolist(), bounds[:-1], bounds[1:], strict=True):
        ids, n, a = pairs[start:stop] % stride, n_occurrences[start:stop], n_active[start:stop]
        base_rate = float(a.sum() / n.sum())
        probability = (a + base_rate) / (n + 1)
        order = np.lexsort((ids, -mass[start:stop]))
        named = order[a[order] > 0][:top_tokens]
        other = np.setdiff1d(order, named)
        rest = (a[other].sum() + base_rate) / (n[other].sum() + 1)
        quoted = [quote_token(tokenizer, token_id) for token_id in ids[named].tolist()]
        share = mass[start:stop][named] / mass[start:stop].sum()
        rows.append(
            {
                "latent": latent,
                "explanation": describe(quoted, probability[named], share, float(rest)),
                "source_latent": latent,
                "base_probability": base_rate,
                "token_ids": ids.tolist(),
                "token_probabilities": probability.tolist(),
            }
        )
    return pa.Table.from_pylist(rows, schema=cell_schema("explanations"))


def describe(quoted: list[str], probability: Floats, share: Floats, rest: float) -> str:
    """Put token statistics into words.

    Args:
        quoted: the tokens with the largest share of the latent's activation mass, largest first.
            Mass ranks, not P: what makes up most of the latent's activity comes first, and a
            token that was seen once and fired that once does not push it out.
        probability: P(active | token) of each.
        share: each one's share of the sum of the latent's activations.
        rest: P(active | any other token), pooled over those seen.
    """
    if not quoted:
        return "did not fire in its explaining windows"
    parts = [
        f"{text} (P {p:.2f}, {s:.0%}{' of its activation' if i == 0 else ''})"
        for i, (text, p, s) in enumerate(zip(quoted, probability, share, strict=True))
    ]
    return f"fires on {', '.join(parts)}; other tokens P {rest:.2f}"


def quote_token(tokenizer: Tokenizer, token_id: int) -> str:
    r"""The text of one token in double quotes, with JSON's escapes: `" the"`, `"\n"`.

    A token that is only part of a character has no text; its name in the vocabulary stands
    instead, and an id that the tokenizer does not know is named by its number.
    """
    name = tokenizer.id_to_token(token_id)
    if name is None:
        return f"token {token_id}"
    text = tokenizer.decode([token_id], skip_special_tokens=False)
    if name.startswith("▁"):  # SentencePiece: a decoder drops the space of a text's first token
        text = name.replace("▁", " ")
    elif not text or "�" in text:
        text = name
    return json.dumps(text, ensure_ascii=not text.isprintable())


def swap_explanations(explanations: pa.Table, generator: np.random.Generator) -> pa.Table:
    """Give each latent the explanation of another latent of the same SAE.

    The placebo: as specific, as long and as well formed as the real explanations, about the
    wrong latent. Each explanation is used exactly once.

    Args:
        explanations: the table `explanations` of another explainer, in any row order.
        generator: draws who gets whose.

    Returns:
        The same columns, sorted by latent; zero rows for fewer than two latents.
    """
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
