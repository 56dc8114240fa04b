"""Which tokens a latent makes more or less likely by the direct path to the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from nullsae.latents.next_token import PIECE, RANKED, spread_of

COLUMNS = ("promoted_tokens", "promoted_effects", "suppressed_tokens", "suppressed_effects")

Lists = list[list[float] | None]


def promoted_tokens(rows: Tensor, path: Tensor, n_tokens: int) -> dict[str, Lists]:
    """Find the tokens whose logits decoder rows raise most, and those that they lower most.

    An effect is the change of a token's logit minus its mean over the vocabulary, since a change
    common to all logits does not affect probabilities. It is divided by the standard deviation over
    the vocabulary, since the path is known only up to a factor, and the final norm divides by a
    different number at each token. Ties go to the smaller id. No token is at both ends: each has at
    most half of a small vocabulary. Memory: 8 bytes x `PIECE`, and about 30 bytes per item ranked
    together.

    Args:
        rows: [n, d_model].
        path: float32 [vocab, d_model], `subjects.unembedding.direct_path`, for existing tokens
            only, without padding rows of the head.
        n_tokens: at each end.

    Returns:
        `COLUMNS`, a list for each row, strongest first; None for a row without effects.
    """
    found: dict[str, Lists] = {name: [] for name in COLUMNS}
    k = min(n_tokens, len(path) // 2)
    step = max(1, PIECE // len(path))
    for start in range(0, len(rows), step):
        some = rows[start : start + step].to(path)
        effects = some @ path.T
        effects -= effects.mean(dim=1, keepdim=True)
        spread = spread_of(effects, some, path)
        has_some = (spread > 0).tolist()
        effects /= spread[:, None]
        together = max(1, RANKED.get(path.device.type, PIECE) // len(path))
        for end, descending in (("promoted", True), ("suppressed", False)):
            lists: dict[str, list[list[float]]] = {"tokens": [], "effects": []}
            for few in torch.split(effects, together):
                values, order = few.sort(dim=1, descending=descending, stable=True)
                lists["tokens"] += order[:, :k].tolist()
                lists["effects"] += values[:, :k].tolist()
            for name, each in lists.items():
                found[f"{end}_{name}"] += [
                    own if has else None for own, has in zip(each, has_some, strict=True)
                ]
    return found
