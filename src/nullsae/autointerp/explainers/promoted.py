"""Explanations of the output side: the tokens that a latent makes likelier or less likely next."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from pydantic import PositiveInt

from nullsae.autointerp.explain import ExplainJob
from nullsae.autointerp.explainers.lexical import quote_token
from nullsae.config.explainers import Explainer, Side
from nullsae.tables import cell_schema, of_pool

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# The verb for each end in the text.
ENDS = {"promoted": "promotes", "suppressed": "suppresses"}
NO_EFFECTS = "the decoder row has no effect on the logits"


class PromotedExplainer(Explainer):
    """Names tokens by the direct effect of the decoder row on their logits; needs no language
    model.
    """

    name: ClassVar[str] = "promoted"
    position: ClassVar[int] = 3
    side: ClassVar[Side] = "output"
    has_statistics: ClassVar[bool] = True

    kind: Literal["promoted"]
    top_tokens: PositiveInt = 10
    """Promoted and suppressed tokens named in the text of an explanation; the judge knows all that
    `latents.promoted_tokens` keeps."""

    @property
    def text(self) -> str:
        return (
            "No language model: the judge knows only which tokens the latent's decoder row "
            "promotes and suppresses most."
        )

    def explain(self, job: ExplainJob) -> pa.Table:
        columns = [f"{end}_{what}" for end in ENDS for what in ("tokens", "effects")]
        latents = job.beside("latents", "latent", "sampled", *columns)
        latents = latents.filter(latents["sampled"]).sort_by("latent")
        if job.ranks is not None:
            latents = job.ranks.take(latents)
        windows = job.windows("pool", "token_ids")
        (reason,) = job.beside("coverage", "no_effects")["no_effects"].to_pylist()
        return promoted_explanations(
            latents, windows, job.tokenizer, self.top_tokens, reason or NO_EFFECTS
        )


def promoted_explanations(
    latents: pa.Table, windows: pa.Table, tokenizer: Tokenizer, top_tokens: int, reason: str
) -> pa.Table:
    """Explain latents by the tokens whose logits they change most.

    A firing is assumed to multiply the probability of a named token v by w(v) = exp(effect), with
    the effect in standard deviations over the vocabulary; other tokens have w = 1. With q the
    distribution of tokens in all explaining windows and even odds, Bayes' rule gives

        P(active | next token v) = w(v) / (w(v) + Z), Z = sum over v of q(v) w(v).

    The true factor of a firing is unknown, so these probabilities only rank windows.

    Args:
        latents: rows of the table `latents`, ascending: `latent` and the columns of both ends, null
            if there are no effects.
        windows: the columns `pool` and `token_ids` of the table `windows`.
        tokenizer: of the corpus.
        top_tokens: how many a text names at each end.
        reason: why a latent without effects has no explanation.

    Returns:
        The table `explanations`; `token_ids` ascend, `base_probability` is that of other tokens.
    """
    shown = of_pool(windows, "explain")["token_ids"]
    ids, counts = np.unique(shown.combine_chunks().flatten().to_numpy(), return_counts=True)
    share = dict(zip(ids.tolist(), (counts / max(1, counts.sum())).tolist(), strict=True))
    rows = []
    for latent in latents.to_pylist():
        found: dict[str, Any] = dict.fromkeys(cell_schema("explanations").names)
        found |= {"latent": latent["latent"], "source_latent": latent["latent"]}
        found |= {"n_example_repeats": 0, "n_characters_cut": 0}
        found |= {f"pair_{name}": [] for name in ("previous_ids", "token_ids", "probabilities")}
        if latent["promoted_tokens"] is None:
            found |= {"reason": reason, "token_ids": [], "token_probabilities": []}
        else:
            effects = {
                token: effect
                for end in ENDS
                for token, effect in zip(
                    latent[f"{end}_tokens"], latent[f"{end}_effects"], strict=True
                )
            }
            weight = {token: math.exp(effects[token]) for token in sorted(effects)}
            z = 1 + sum(share.get(token, 0.0) * (w - 1) for token, w in weight.items())
            found |= {
                "explanation": _described(latent, tokenizer, top_tokens),
                "base_probability": 1 / (1 + z),
                "token_ids": list(weight),
                "token_probabilities": [w / (w + z) for w in weight.values()],
            }
        rows.append(found)
    return pa.Table.from_pylist(rows, schema=cell_schema("explanations"))


def _described(latent: dict[str, Any], tokenizer: Tokenizer, top_tokens: int) -> str:
    """Return the text about one latent."""
    parts = []
    for end, verb in ENDS.items():
        pairs = zip(latent[f"{end}_tokens"], latent[f"{end}_effects"], strict=True)
        named = [
            f"{quote_token(tokenizer, token)} ({effect:+.1f} sd)"
            for token, effect in list(pairs)[:top_tokens]
        ]
        parts.append(f"{verb} {', '.join(named)}")
    return "; ".join(parts)
