"""Checks whether an SAE is fed what it was trained on and, if not, which change makes it fit.

An SAE belongs to one site of one model, with or without BOS, at one scale. It gives numbers for any
other input too. Comparing them with published figures, and with those of other inputs, reveals the
mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nullsae.activations.exclusion import Kept, row_norms
from nullsae.activations.passes import capture_contexts
from nullsae.config.activations import Exclude
from nullsae.config.saes import Expect
from nullsae.core.devices import exact
from nullsae.core.errors import UserError
from nullsae.core.randomness import torch_generator
from nullsae.corpus.store import Tokens
from nullsae.metrics.fidelity import Fidelity, fidelity, spread
from nullsae.metrics.reconstruction import ReconstructionSums
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.initialization import initialize
from nullsae.subjects.loading import Subject
from nullsae.subjects.site_gates import verify_sites

SAMPLE_TOKENS = 8192
BATCH_CONTEXTS, BATCH_TOKENS, FIDELITY_CONTEXTS = 8, 2048, 32
# Random directions are the placebo: how many tokens they are fitted to, and their maximal number.
PLACEBO_TOKENS, PLACEBO_LATENTS = 2048, 8192
# Published figures are for other texts: L0 may differ by this factor, and explained variance may
# be lower by this much, or by this share of the unexplained part.
L0_FACTOR, LOWER_BY, LOWER_BY_SHARE = 1.5, 0.05, 0.25
# One feeding is clearly better than another if it leaves less than this share of the variance that
# the other leaves, each relative to its placebo.
CLEARLY = 0.8
# A difference below this share is mentioned.
SLIGHTLY = 0.95
AS_THEY_ARE = "as they are"
# The last resort: factors from 1 / 2 ** OCTAVES on, on this many tokens.
ANY_FACTOR = "scaled by a constant that its files do not name"
OCTAVES, FACTOR_TOKENS = 12, 512


# What training may have done to activations [tokens, d_model], or to the weights that wrote them,
# without the SAE's files recording it, in words. Scaling all tokens by one factor:
SCALED: dict[str, Callable[[Tensor], Tensor]] = {
    "scaled to a mean norm of sqrt(d_model) (expected_average_only_in)": lambda x: (
        x.norm(dim=1).mean() / x.shape[1] ** 0.5
    ),
    "scaled to a mean squared norm of 1 (dictionary_learning)": lambda x: (
        x.square().sum(dim=1).mean().sqrt()
    ),
}
# What `Autoencoder.normalization` names:
NORMALIZED = {
    "scaled to a norm of sqrt(d_model) each (constant_norm_rescale)": "constant_norm_rescale",
    "normalized one by one (layer_norm)": "layer_norm",
    "of a model with centred weights (center_writing_weights)": "centre",
    "without normalization": "none",
}


@dataclass(frozen=True)
class Feeding:
    """The input of an SAE."""

    site: str
    prepend_bos: bool
    """Whether BOS precedes each context."""
    input: str = AS_THEY_ARE
    """What was done to activations: nothing, or one of `SCALED` or `NORMALIZED`."""
    bos: str = field(default="BOS", compare=False)
    """The token used as BOS, in words: `Tokens.bos_name`."""

    def changes(self, other: Feeding) -> list[str]:
        """Return the names of the fields in which another one differs."""
        names = ("site", "prepend_bos", "input")
        return [name for name in names if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True)
class Measured:
    """The figures of an SAE on a sample with one feeding; BOS itself is left out."""

    feeding: Feeding
    explained_variance: float | None
    """None if the site has no variance."""
    l0: float
    placebo: float
    """Explained variance of random directions, as many active per token."""
    n_tokens: int
    factor: float = 1.0
    """What activations are multiplied by."""

    @property
    def left(self) -> float:
        """Unexplained variance relative to that of the placebo: 1 if weights are no better than
        noise.

        This way a feeding does not look better only because more latents fire.
        """
        if self.explained_variance is None:
            return math.inf
        return (1.0 - self.explained_variance) / max(1.0 - self.placebo, 1e-9)

    def shortcomings(self, expect: Expect) -> list[str]:
        """List how it falls short of the expected figures, one phrase each."""
        found, wanted = self.explained_variance, expect.explained_variance
        if found is None:
            return ["the site has no variance"]
        wrong = []
        if wanted is not None and found < lowest(wanted):
            wrong.append(f"explained variance {found:.3f} is not the expected {wanted:g}")
        if wanted is None and self.left >= 1.0:
            wrong.append(
                f"explained variance {found:.3f} is no more than that of random directions, "
                f"{self.placebo:.3f}"
            )
        if expect.l0 is not None and not 1 / L0_FACTOR <= self.l0 / expect.l0 <= L0_FACTOR:
            wrong.append(f"L0 {self.l0:.1f} is not the expected {expect.l0:g}")
        return wrong


def lowest(explained_variance: float) -> float:
    """Return the least explained variance that passes for an expected value."""
    return explained_variance - max(LOWER_BY, LOWER_BY_SHARE * (1.0 - explained_variance))


@dataclass(frozen=True)
class Checked:
    """The result of a check."""

    given: Measured
    tried: tuple[Measured, ...]
    """All feedings measured, the given one first."""
    expect: Expect

    @property
    def remedy(self) -> Measured | None:
        """The feeding that fits if the given one does not, and leaves less variance."""
        fitting = [one for one in self.tried if not one.shortcomings(self.expect)]
        best = min(fitting, key=lambda one: one.left, default=self.given)
        at_most = 1.0 if self.given.shortcomings(self.expect) else CLEARLY
        return best if best.left < at_most * self.given.left else None

    @property
    def slightly_better(self) -> Measured | None:
        """The feeding that leaves slightly less variance, if the given one fits.

        This is the only sign that an SAE was trained one block away; a poor SAE shows it as well.
        """
        fitting = [one for one in self.tried if not one.shortcomings(self.expect)]
        best = min(fitting, key=lambda one: one.left, default=self.given)
        return best if self.fits and best.left < SLIGHTLY * self.given.left else None

    @property
    def wrong(self) -> list[str]:
        """List why the given feeding does not fit, one phrase each."""
        found, ev = self.given.shortcomings(self.expect), self.given.explained_variance
        if not found and self.remedy is not None:
            found = [f"explained variance {ev:.3f} is clearly lower than it could be"]
        return found

    @property
    def fits(self) -> bool:
        """Whether the figures indicate that it is fed what it was trained on."""
        return not self.wrong


class Sample:
    """Contexts on which a subject is run, with or without BOS before each."""

    def __init__(
        self,
        subject: Subject,
        tokens: Tokens,
        *,
        n_tokens: int = SAMPLE_TOKENS,
        exclude: Exclude | None = None,
    ) -> None:
        """Take contexts spread evenly over a split.

        Args:
            subject: the trained one.
            tokens: with or without BOS; its `before_text` is prepended.
            n_tokens: how many to take, in whole contexts.
            exclude: which tokens count; BOS itself never does.
        """
        self.subject, self.exclude = subject, exclude or Exclude()
        self.bos = torch.tensor(tokens.before_text, dtype=torch.int32)
        ids = tokens.input_ids
        rows = ids[spread(len(ids), n_tokens, ids.shape[1])]
        # The same text both ways, in contexts no longer than those of the split.
        self.text = torch.from_numpy(rows[:, tokens.n_bos :])[:, : ids.shape[1] - len(self.bos)]
        if not self.text.shape[1]:
            raise UserError(
                f"context_tokens: {ids.shape[1]} tokens contain only BOS; use longer contexts"
            )
        self._found: dict[tuple[bool, str], tuple[Tensor, Tensor]] = {}
        self._widths: dict[str, int | None] = {}
        self._placebos: dict[tuple[bool, str, int, int], float] = {}

    def width(self, site: str) -> int | None:
        """Return the width of a site, which is verified once; None if the subject has none."""
        if site not in self._widths:
            try:
                verify_sites(self.subject, [site], where="")
                self._widths[site] = self.subject.width(site)
            except UserError:
                self._widths[site] = None
        return self._widths[site]

    @torch.inference_mode()
    def placebo(self, feeding: Feeding, n_latents: int, k: int) -> float:
        """Return what random directions at the feeding's site explain, k of them per token."""
        n = max(k, min(n_latents, PLACEBO_LATENTS))
        at = feeding.prepend_bos, feeding.site, n, k
        if at not in self._placebos:
            x = self.activations(feeding)
            some = x[:PLACEBO_TOKENS].to(self.subject.device)
            generator = torch_generator(0, "feeding_placebo")
            random = initialize(some, n_latents=n, k=k, generator=generator)
            self._placebos[at] = _totals(random, x, x)["explained_variance"] or 0.0
        return self._placebos[at]

    def ids(self, prepend_bos: bool) -> Tensor:
        """Return token ids int32 [contexts, tokens]."""
        before = self.bos.expand(len(self.text), -1)
        return torch.cat([before, self.text], dim=1) if prepend_bos else self.text

    def capture(self, prepend_bos: bool, *sites: str) -> None:
        """Run the subject once for those of these sites that were not read yet."""
        lacking = [site for site in sites if (prepend_bos, site) not in self._found]
        if not lacking:
            return
        ids = self.ids(prepend_bos)
        captured = capture_contexts(
            self.subject,
            ids,
            split="eval",
            contexts=range(len(ids)),
            batch_contexts=BATCH_CONTEXTS,
            sites=lacking,
            dtype=torch.float32,
        )
        for site, x in captured.items():
            self._found[prepend_bos, site] = x, self._kept(x, prepend_bos)

    def forget(self, prepend_bos: bool, site: str) -> None:
        """Free a site's activations; they are read again on demand."""
        self._found.pop((prepend_bos, site), None)

    def _kept(self, x: Tensor, prepend_bos: bool) -> Tensor:
        """Return which rows count, bool [tokens]."""
        position, norm = torch.arange(len(x)), row_norms(x)
        length, n_bos = self.ids(prepend_bos).shape[1], len(self.bos) * prepend_bos
        is_text = position % length >= n_bos
        rows = norm[is_text], position[is_text]
        rule, _ = Kept.fitted(self.exclude, lambda: [rows], length)
        kept = rule.mask(norm, position) & is_text
        if not bool(kept.any()):
            raise UserError("activations.exclude leaves no token; lower start_tokens")
        return kept

    def activations(self, feeding: Feeding) -> Tensor:
        """Return the activations of tokens that count, float32 [tokens, width]."""
        self.capture(feeding.prepend_bos, feeding.site)
        x, kept = self._found[feeding.prepend_bos, feeding.site]
        return x[kept]

    def outputs(self, feeding: Feeding, sae: Autoencoder) -> Tensor:
        """Return what the SAE should reconstruct; for a transcoder, another site."""
        site = sae.writes_at(feeding.site)
        self.capture(feeding.prepend_bos, feeding.site, site)
        return self._found[feeding.prepend_bos, site][0][
            self._found[feeding.prepend_bos, feeding.site][1]
        ]

    def fidelity(self, sae: Autoencoder, feeding: Feeding) -> Fidelity:
        """Measure losses with the SAE spliced in, on some of the contexts."""
        ids = self.ids(feeding.prepend_bos)[:FIDELITY_CONTEXTS]
        mean = exact(self.outputs(feeding, sae)).mean(dim=0)
        kept = self._found[feeding.prepend_bos, feeding.site][1].view(-1, ids.shape[1])[: len(ids)]
        documents = np.zeros(ids.shape, dtype=np.int32)
        return fidelity(
            *(self.subject, sae, feeding.site, ids, documents, mean),
            contexts=range(len(ids)),
            kept=kept,
        )


@torch.inference_mode()
def measure(sample: Sample, sae: Autoencoder, feeding: Feeding) -> Measured:
    """Measure explained variance and L0 of an SAE and its placebo, on the subject's device."""
    x, y = sample.activations(feeding), sample.outputs(feeding, sae)
    factor, placebo, reader = 1.0, 0.0, sae
    if feeding.input == ANY_FACTOR:
        factor = _best_factor(sae, x)
    elif feeding.input in SCALED:
        size = float(SCALED[feeding.input](x))
        factor = 1 / size if 0 < size < math.inf else 1.0
    if feeding.input in (*SCALED, ANY_FACTOR):
        reader = replace(sae, normalization="none").scaled(1 / factor)
    elif feeding.input in NORMALIZED:
        reader = replace(sae, normalization=NORMALIZED[feeding.input])
    own = _totals(reader, x, y)
    # Directions at one site are unrelated to another: a transcoder's placebo is the mean.
    if not sae.transcodes:
        placebo = sample.placebo(feeding, sae.n_latents, max(1, round(own["l0"])))
    return Measured(feeding, own["explained_variance"], own["l0"], placebo, len(x), factor)


def _best_factor(sae: Autoencoder, x: Tensor) -> float:
    """Find the factor on x [tokens, d_model] at which an SAE explains most: octaves, then finer."""
    some = x[:: max(1, len(x) // FACTOR_TOKENS)][:FACTOR_TOKENS]
    plain, best = replace(sae, normalization="none"), 0.0

    def explained(octaves: float) -> float:
        found = _totals(plain.scaled(2.0**-octaves), some, some)["explained_variance"]
        return -math.inf if found is None else float(found)

    for step, reach in ((1.0, OCTAVES), (0.25, 4), (0.0625, 4)):
        best = max((best + step * i for i in range(-reach, reach + 1)), key=explained)
    return float(2.0**best)


def _totals(sae: Autoencoder, x: Tensor, y: Tensor) -> dict[str, Any]:
    """Compute metrics of y [tokens, width] reconstructed from x [tokens, d_model]."""
    mean = exact(y).mean(dim=0)
    sums = ReconstructionSums(mean=mean, n_documents=1, n_latents=sae.n_latents)
    for start in range(0, len(x), BATCH_TOKENS):
        part = slice(start, start + BATCH_TOKENS)
        given, wanted = x[part].to(sae.b_dec.device), y[part]
        values, indices = sae.encode(given)
        output = sae.decode(values, indices, given)
        sums.add(wanted, output, values, indices, np.zeros(len(wanted), dtype=np.int64))
    return sums.totals()
