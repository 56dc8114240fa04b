"""Activations without a model."""

from __future__ import annotations

from nullsae.config.variants import Look, Variant


class Gaussian(Variant):
    """Sampled by `nullsae.activations.gaussian`."""

    name = "gaussian"
    position = 12
    group = "activations"
    text = (
        "No model at all: activations drawn from a normal distribution with the mean and "
        "covariance of trained's at the site."
    )
    look = Look("#542424", "#906c18", "M-1,-0.35L1,-0.35L1,0.35L-1,0.35Z", (14, 4))
    sampled_from = "trained"
    changes_weights = False
