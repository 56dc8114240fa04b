"""Which other feeding makes an SAE fit: BOS, site, transformations of activations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from nullsae.config.saes import Expect
from nullsae.config.sites import KINDS, site_kind, site_layer
from nullsae.core.errors import UserError
from nullsae.metrics.feeding import (
    ANY_FACTOR,
    NORMALIZED,
    SCALED,
    Checked,
    Feeding,
    Sample,
    measure,
)
from nullsae.sae.autoencoder import Autoencoder

# Blocks before and after, for sites of the same kind; other kinds are tried in the same block.
NEAR = 2
# This many distant sites are read at once, and not kept.
SITES_AT_ONCE = 4


def check_feeding(sample: Sample, sae: Autoencoder, given: Feeding, expect: Expect) -> Checked:
    """Measure an SAE as it is fed, and look for a better way if the result is not good enough.

    If the expected explained variance is reached, nothing else is tried. Otherwise one thing is
    changed at a time: BOS, the site or the transformation of activations. If that does not help,
    BOS is changed together with another thing, and finally a constant factor and distant sites are
    tried. A feeding fits if it reaches the expected figures. If no explained variance is expected,
    it must exceed random directions while no other feeding is clearly better.

    Args:
        sample: what to run on.
        sae: on any device.
        given: how a study would feed it.
        expect: published figures.

    Raises:
        UserError: the SAE does not fit the width of a site.
    """
    read, written = given.site, sae.writes_at(given.site)
    for site, own in ((read, sae.d_model), (written, sae.w_dec.shape[1])):
        if (width := sample.subject.width(site)) != own:
            raise UserError(f"{site} has {width} dimensions, but the SAE has {own}")
    sae = sae.to(sample.subject.device)
    found = {given: measure(sample, sae, given)}
    checked = Checked(found[given], (found[given],), expect)
    if expect.explained_variance is not None and checked.fits:
        return checked
    starts = [given]
    if len(sample.bos):
        starts.append(replace(given, prepend_bos=not given.prepend_bos))
    for start in starts:
        for other in (*starts, *_changed(sample, sae, start)):
            if other not in found:
                found[other] = measure(sample, sae, other)
        checked = Checked(found[given], tuple(found.values()), expect)
        if checked.fits or checked.remedy is not None:
            return checked
    for start in starts:
        for other in _far_off(sample, sae, start):
            found[other] = measure(sample, sae, other)
        checked = Checked(found[given], tuple(found.values()), expect)
        if checked.remedy is not None:
            break
    return checked


def _changed(sample: Sample, sae: Autoencoder, feeding: Feeding) -> Iterator[Feeding]:
    """Yield feedings with another input or another site."""
    # Those of a transcoder would need factors of two sites.
    for name in () if sae.transcodes else (*SCALED, *NORMALIZED):
        if NORMALIZED.get(name) != sae.normalization:
            yield replace(feeding, input=name)
    near = [
        site
        for site in near_sites(feeding.site, len(sample.subject.blocks))
        if sample.width(site) == sae.d_model
    ]
    sample.capture(feeding.prepend_bos, *near)
    for site in near:
        yield replace(feeding, site=site)


def _far_off(sample: Sample, sae: Autoencoder, feeding: Feeding) -> Iterator[Feeding]:
    """Yield feedings that are rarely intended: any factor, or a distant site of the same kind."""
    if not sae.transcodes:
        yield replace(feeding, input=ANY_FACTOR)
    kind, layer = _at(feeding.site)
    blocks = [b for b in range(len(sample.subject.blocks)) if abs(b - layer) > NEAR]
    for start in range(0, len(blocks) if kind != "embed" else 0, SITES_AT_ONCE):
        sites = [f"{kind}.{block}" for block in blocks[start : start + SITES_AT_ONCE]]
        sites = [site for site in sites if sample.width(site) == sae.d_model]
        sample.capture(feeding.prepend_bos, *sites)
        for site in sites:
            yield replace(feeding, site=site)
            sample.forget(feeding.prepend_bos, site)


def near_sites(site: str, n_layers: int) -> list[str]:
    """List sites around one, nearest first, one name each: block L + 1 reads the output of L."""
    own, layer = _at(site)
    found: dict[tuple[str, int], None] = {}
    for kind in KINDS:
        reach = NEAR if kind == own else 0
        blocks = range(max(0, layer - reach), min(n_layers, layer + reach + 1))
        found |= dict.fromkeys(_at(f"{kind}.{block}") for block in blocks)
    found.pop((own, layer), None)
    return [f"{kind}.{at}" for kind, at in sorted(found, key=lambda one: abs(one[1] - layer))]


def _at(site: str) -> tuple[str, int]:
    """Return kind and block of a site; the input of a block is the output of the previous one."""
    kind, layer = site_kind(site), site_layer(site)
    return ("resid_post", layer - 1) if kind == "resid_pre" and layer else (kind, layer)
