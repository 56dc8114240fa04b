"""The share of the loss that an SAE recovers, and the rule that makes it null."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

# The cost of zeroing must exceed this many of its standard errors and this many nats per token.
# Otherwise the ratio is noise, however sure the sign of its denominator.
CLEAR_STANDARD_ERRORS = 3.0
CLEAR_NATS = 0.1


def is_clear(harm: NDArray[np.float64], tokens: NDArray[np.float64]) -> bool:
    """Return whether zeroing a site does clear harm; `ce_score` is null without it.

    The mean harm per token, r = sum(harm) / sum(tokens), must exceed 0.1 nats and 3 standard
    errors. The standard error of a ratio over n units (Cochran 1977, equation 6.13, without the
    finite-population correction) is sqrt(n / (n - 1) sum (harm - r tokens)^2) / sum(tokens), which
    for units of one length is the standard deviation over sqrt(n). It needs at least two units.

    Args:
        harm: [units], ce_zero - ce_clean in nats, summed over the tokens of each unit (contexts
            or documents).
        tokens: [units], predicted tokens of each unit.
    """
    n, total = len(harm), float(tokens.sum())
    if n < 2 or total == 0:
        return False
    ratio = float(harm.sum()) / total
    spread = float(np.square(harm - ratio * tokens).sum())
    standard_error = math.sqrt(n / (n - 1) * spread) / total
    return ratio > max(CLEAR_NATS, CLEAR_STANDARD_ERRORS * standard_error)


def ce_score(
    *,
    clean: NDArray[np.float64],
    sae: NDArray[np.float64],
    zero: NDArray[np.float64],
    tokens: NDArray[np.float64],
) -> float | None:
    """Compute (ce_zero - ce_sae) / (ce_zero - ce_clean); None if zeroing does no clear harm.

    Losses [units] are nats summed over each unit's tokens: clean, with the site replaced by its
    reconstruction, and by zeros. `tokens` [units] counts the predicted tokens.
    """
    if not is_clear(zero - clean, tokens):
        return None
    return float((zero - sae).sum() / (zero - clean).sum())
