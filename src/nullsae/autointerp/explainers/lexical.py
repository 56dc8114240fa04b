"""Explanations without a language model: on which tokens a latent fires, and how often."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import PositiveInt

from nullsae.autointerp.examples import Floats, Ints
from nullsae.autointerp.explain import ExplainJob
from nullsae.config.explainers import Explainer
from nullsae.corpus.token_text import token_text
from nullsae.tables import cell_schema, of_pool

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Context = Literal["token", "bigram"]

# In place of the token before a window's first.
NO_TOKEN = -1


class LexicalExplainer(Explainer):
    """Token statistics, without a language model."""

    name: ClassVar[str] = "lexical"
    position: ClassVar[int] = 0
    has_statistics: ClassVar[bool] = True

    kind: Literal["lexical"]
    context: Context = "token"
    """What the judge sees: each token, or each token with its predecessor."""
    top_tokens: PositiveInt = 10
    """Tokens named in the text of an explanation; the judge uses the statistics of all."""

    judged_by: Literal["statistics", "text"] = "statistics"
    """Who judges: a formula, from the statistics of all tokens, or the scorer's language model,
    from the text, as for other explanations. The former is a ceiling for the latter."""

    @property
    def judged_by_formula(self) -> bool:
        return self.judged_by == "statistics"

    @property
    def is_baseline(self) -> bool:
        return self.context == "token"

    @property
    def text(self) -> str:
        what = "only how often the latent fires on each token"
        if self.context == "bigram":
            what = "how often the latent fires on each token after its predecessor"
        if self.judged_by == "text":
            return f"No language model writes; one judges from the named tokens: {what}."
        return f"No language model: the judge knows {what}."

    def explain(self, job: ExplainJob) -> pa.Table:
        windows = job.windows("latent", "window", "pool", "token_ids", "activations")
        return lexical_explanations(windows, job.tokenizer, self.top_tokens, self.context)


@dataclass(frozen=True)
class Counts:
    """Counts of positions by a key; all but `place` are [n_keys]."""

    key: Ints
    """Ascending."""
    place: Ints
    """Index of each position's key in `key`, [n_positions]."""
    n: Ints
    active: Ints
    """Positions that fire."""
    mass: Floats
    """Sum of activations."""

    @classmethod
    def of(cls, keys: Ints, activations: Floats) -> Counts:
        """Count positions, both arguments [n_positions]."""
        key, place = np.unique(keys, return_inverse=True)
        fires = activations > 0
        n, active = (np.bincount(p, minlength=len(key)) for p in (place, place[fires]))
        mass = np.bincount(place[fires], weights=activations[fires], minlength=len(key))
        return cls(key, place, n, active, mass.astype(np.float64))


def lexical_explanations(
    windows: pa.Table, tokenizer: Tokenizer, top_tokens: int, context: Context = "token"
) -> pa.Table:
    """Explain each latent by the tokens on which it fires in its explaining windows.

    For a token id that occurs n times there, of which a are active,

        P(active | token) = (a + r) / (n + 1),

    with r the latent's share of active positions over all those windows. The added occurrence is
    active at the rate r, so the estimate starts from what is known without the token, and an unseen
    token keeps r. Laplace's (a + 1) / (n + 2) would start from 1/2: for a sparse latent, every rare
    token would look likelier to fire than common tokens that sometimes do.

    Likewise, a token after another one starts from what is known about the token alone:

        P(active | previous, token) = (a + P(active | token)) / (n + 1),

    with n and a those of the pair. A window's first token is shown without its predecessor, which
    may belong to another window or pool: it counts for its token but for no pair.

    Of the table `windows`, the columns latent, window, pool, token_ids and activations are used;
    the text names `top_tokens` tokens or, in the context `bigram`, pairs. Returns the table
    `explanations`; `token_ids` ascend, pairs ascend by (token, previous), `base_probability` is r.
    """
    windows = of_pool(windows, "explain")
    # Sorted, so that sums of floats do not depend on the order of the rows.
    windows = windows.sort_by([("latent", "ascending"), ("window", "ascending")])
    latents, of_window = np.unique(windows["latent"].to_numpy(), return_inverse=True)
    found = TokenStatistics.of(windows, of_window, context)
    rows_from = np.searchsorted(found.row, np.arange(len(latents) + 1))
    units_from = np.searchsorted(found.of_token, rows_from)
    texts = [
        found.described(tokenizer, slice(start, stop), float(rate), top_tokens, context)
        for rate, start, stop in zip(found.base, units_from[:-1], units_from[1:], strict=True)
    ]
    is_pair = found.previous != NO_TOKEN
    pairs_from = np.concatenate([[0], np.cumsum(is_pair)])[units_from]
    columns = {
        "latent": latents,
        "explanation": pa.array(texts, pa.string()),
        "source_latent": latents,
        **dict.fromkeys(("reason", "model", "prompt_hash"), pa.nulls(len(texts), pa.string())),
        "n_example_repeats": np.zeros(len(texts), np.int64),
        "n_characters_cut": np.zeros(len(texts), np.int64),
        "base_probability": found.base,
        "token_ids": lists_of(rows_from, found.token, pa.int32()),
        "token_probabilities": lists_of(rows_from, found.p_token, pa.float32()),
        "pair_previous_ids": lists_of(pairs_from, found.previous[is_pair], pa.int32()),
        "pair_token_ids": lists_of(pairs_from, found.token[found.of_token[is_pair]], pa.int32()),
        "pair_probabilities": lists_of(pairs_from, found.p_unit[is_pair], pa.float32()),
    }
    return pa.table(columns, schema=cell_schema("explanations"))


@dataclass(frozen=True)
class TokenStatistics:
    """The statistics of all latents of an SAE."""

    base: Floats
    """r of each latent, [n_latents]."""
    row: Ints
    """Each token's latent, as an index into `base`, ascending, [n_tokens]."""
    token: Ints
    """Its id."""
    p_token: Floats
    """P(active | token)."""
    units: Counts
    """What the judge distinguishes: pairs, and tokens that are shown without a predecessor."""
    of_token: Ints
    """Each unit's token, as an index into `token`, ascending, [n_units]."""
    previous: Ints
    """The id before it, or `NO_TOKEN`."""
    p_unit: Floats
    """P(active | unit)."""

    @classmethod
    def of(cls, windows: pa.Table, of_window: Ints, context: Context) -> TokenStatistics:
        """Count the tokens of windows; `of_window`, int64 [n_windows], is the latent of each."""
        lists = windows["token_ids"].combine_chunks()
        n_tokens = lists.value_lengths().to_numpy()
        token_ids = lists.flatten().to_numpy().astype(np.int64)
        values = windows["activations"].combine_chunks().flatten().to_numpy().astype(np.float64)
        previous_ids = np.full_like(token_ids, NO_TOKEN)
        if context == "bigram":
            previous_ids[1:] = token_ids[:-1]
            previous_ids[np.cumsum(n_tokens) - n_tokens] = NO_TOKEN

        # A key combines a rank and one id, never two ids: int64 is enough for any vocabulary.
        stride = int(token_ids.max(initial=0)) + 2
        tokens = Counts.of(np.repeat(of_window, n_tokens) * stride + token_ids, values)
        row, token = np.divmod(tokens.key, stride)
        base = np.bincount(row, weights=tokens.active) / np.bincount(row, weights=tokens.n)
        p_token = (tokens.active + base[row]) / (tokens.n + 1)
        units = Counts.of(tokens.place * stride + (previous_ids - NO_TOKEN), values)
        of_token, previous = np.divmod(units.key, stride)
        previous += NO_TOKEN
        prior = p_token[of_token]
        p_pair = (units.active + prior) / (units.n + 1)
        p_unit = np.where(previous != NO_TOKEN, p_pair, prior)
        return cls(base, row, token, p_token, units, of_token, previous, p_unit)

    def described(
        self, tokenizer: Tokenizer, mine: slice, rate: float, top_tokens: int, context: Context
    ) -> str:
        """Return the text about one latent, with units `mine` and r `rate`."""
        n, a, mass = (x[mine] for x in (self.units.n, self.units.active, self.units.mass))
        # Ranked by mass, not P: tokens with most of the latent's activity come first, and a token
        # that was seen once and fired then does not displace them.
        order = np.argsort(-mass, kind="stable")
        named = order[a[order] > 0][:top_tokens]
        if not len(named):
            return "did not fire in its explaining windows"
        other = np.setdiff1d(order, named)
        rest = float((a[other].sum() + rate) / (n[other].sum() + 1))
        parts: list[str] = []
        for i, share in zip(mine.start + named, mass[named] / mass.sum(), strict=True):
            text = quote_token(tokenizer, int(self.token[self.of_token[i]]))
            if context == "bigram" and self.previous[i] == NO_TOKEN:
                text += " first in a window"
            elif context == "bigram":
                text += f" after {quote_token(tokenizer, int(self.previous[i]))}"
            whose = "" if parts else " of its activation"
            parts.append(f"{text} (P {self.p_unit[i]:.2f}, {share:.0%}{whose})")
        others = "other tokens" if context == "token" else "other pairs"
        return f"fires on {', '.join(parts)}; {others} P {rest:.2f}"


def lists_of(bounds: Ints, values: Ints | Floats, kind: pa.DataType) -> pa.ListArray:
    """Return one list per row: row i is values[bounds[i]] to values[bounds[i + 1]]."""
    return pa.ListArray.from_arrays(pa.array(bounds, pa.int32()), pa.array(values).cast(kind))


def quote_token(tokenizer: Tokenizer, token_id: int) -> str:
    r"""Return the text of one token in double quotes, with JSON's escapes: `" the"`, `"\n"`.

    A token that is only part of a character is given by its name in the vocabulary, an id that the
    tokenizer does not know by its number.
    """
    name = tokenizer.id_to_token(token_id)
    if name is None:
        return f"token {token_id}"
    text = token_text(tokenizer, token_id) or name
    text = name if "\ufffd" in text else text
    return json.dumps(text, ensure_ascii=not text.isprintable())
