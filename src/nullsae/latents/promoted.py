"""Which tokens a latent makes likelier or less likely by the direct path to the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from nullsae.latents.next_token import PIECE, RANKED, spread_of

COLUMNS = ("promoted_tokens", "promoted_effects", "suppressed_tokens", "suppressed_effects")

Lists = list[list[float] | None]


def promoted_tokens(rows: Tensor, path: Tensor, n_tokens: int) -> dict[str, Lists]:
    """The tokens whose logits rows of a decoder raise most, and those that they lower most.

    An effect is that on the logit of a token, less the mean over the vocabulary (what all logits
    share changes no probability), over their standard deviation (the path is known up to a factor,
    and the final norm divides by another number at each token). Ties go to the smaller id. No token
    is at both ends: each has half of a small vocabulary at most. Memory: 8 bytes x `PIECE`, and
    about 30 bytes x what is ranked together.

    Args:
        rows: [n, d_model].
        path: float32 [vocab, d_model], `subjects.unembedding.direct_path`, of the tokens that there
            are: rows of the head beyond those of the tokenizer are none.
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
