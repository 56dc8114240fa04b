"""The loss of the subject when an SAE replaces a site."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nullsae.config.metrics import Metric

if TYPE_CHECKING:
    from nullsae.config.metrics import Numbers


class CeScore(Metric):
    """The share of the loss that an SAE recovers."""

    name, position = "ce_score", 50
    title = "Cross-entropy score"
    table, section = "documents", "fidelity"
    has_value_on_samples = False
    columns = ("ce_clean", "ce_sae", "ce_zero", "fidelity_tokens")
    form = "ratio"
    denominator = "ce_zero - ce_clean"
    floor, floor_is = 0.0, "zeros"
    formula = "(ce_zero - ce_sae) / (ce_zero - ce_clean)"
    definition = (
        "(zero - with SAE) / (zero - clean) of the losses above: 1 is no harm, 0 as bad as zeros."
    )
    reading = (
        "No value if zeroing does no clear harm: a random network predicts no better with its "
        "activations than without them."
    )
    values = "(-∞, ∞)"
    is_usual = True

    def value(self, columns: Mapping[str, Numbers]) -> tuple[Numbers, ...]:
        """Return the harm of zeros that the SAE recovers, and that harm, in nats."""
        zero = columns["ce_zero"]
        return zero - columns["ce_sae"], zero - columns["ce_clean"]

    def undefined(self, columns: Mapping[str, Numbers]) -> str | None:
        """Return why there is no value; without clear harm the ratio is noise."""
        import numpy as np

        from nullsae.metrics.ce_score import is_clear

        _, harm = self.value(columns)
        clear = is_clear(harm, columns["fidelity_tokens"])
        unclear = len(harm) and np.isfinite(harm).all() and not clear
        return "zeroing the site does no clear harm" if unclear else None
