"""Random directions that fire as often as the latents of a given SAE."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nullsae.core.registry import lazy
from nullsae.sae.chunks import SORTED_ENTRIES
from nullsae.sae.dictionaries.derived import Derived
from nullsae.sae.later import Autoencoder, F, Tensor, autoencoder, torch

if TYPE_CHECKING:
    from nullsae.sae import derivation
else:
    derivation = lazy("nullsae.sae.derivation")


class RateMatchedRandom(Derived):
    """Latent i fires where the activation goes furthest along a random direction.

    With a unit direction g and the mean activation m, its code is a g (x - m) above a threshold,
    and 0 below. As many tokens of the sample exceed the threshold as latent i of the given SAE
    fires on. a is the one factor with which the codes reconstruct the sample best.
    """

    name, position = "rate_matched_random", 10
    summary = "has random directions with the firing rates of another SAE"
    caption = (
        "Random directions, each with a threshold at which it fires as often as a latent of "
        "{made_from}; nothing is trained."
    )

    def derive(
        self, sae: Autoencoder, sample: Tensor, generator: Any
    ) -> tuple[Autoencoder, list[Any]]:
        rows = torch.randn(sae.n_latents, sae.d_model, generator=generator, dtype=torch.float32)
        rows = F.normalize(rows, dim=1).to(sample.device)
        mean = sample.double().mean(dim=0).float()
        wanted = derivation.firing_counts(sae, sample)
        threshold, equal = derivation.thresholds(sample - mean, rows, wanted)
        # Codes are positive, so a threshold below the mean is raised to it and the code by as much.
        raised, own = (-threshold).clamp_min(0), {"threshold": threshold.clamp_min(0)}
        made = autoencoder.Autoencoder("jumprelu", rows, raised, rows.clone(), mean, own=own)
        factor = derivation.best_factor(made, sample)
        made.w_enc, made.b_enc = rows * factor, raised * factor
        made.own = {"threshold": own["threshold"] * factor}
        found = derivation.firing_counts(made, sample)
        return made, [derivation.rates_gate(wanted, found, equal, len(sample))]

    def derive_flops(self, d_model: int, n_latents: int, n_tokens: int) -> float:
        """Count products with all directions (both rates, thresholds, factor) and sorting."""
        sorting = 30.0 * n_latents * n_tokens
        return 8.0 * n_tokens * n_latents * d_model + sorting

    def derive_bytes(self, n_latents: int, n_tokens: int) -> float:
        """Count bytes of a sorted block of pre-activations, three times, and of marks."""
        return 14.0 * min(n_latents * n_tokens, SORTED_ENTRIES)
