"""The result of checking an SAE in words, and the workflow's gate."""

from __future__ import annotations

import logging

from nullsae.activations.store import SiteReader
from nullsae.config.activations import Exclude
from nullsae.config.saes import Expect
from nullsae.core.errors import UserError
from nullsae.corpus.store import Tokens
from nullsae.jobs.keys import CellKeys
from nullsae.metrics.feeding import Checked, Feeding, Measured, Sample
from nullsae.metrics.remedies import check_feeding
from nullsae.sae.autoencoder import Autoencoder
from nullsae.subjects.loading import Subject

log = logging.getLogger(__name__)

NOTHING_HELPS = (
    "no change of BOS, site, scaling or centring makes it fit: it belongs to another model or "
    "revision, or its figures were measured on very different texts"
)


def figures(found: Measured) -> str:
    """Describe what was measured."""
    ev = found.explained_variance
    return f"explained variance {'none' if ev is None else f'{ev:.3f}'}, L0 {found.l0:.1f}"


def changes(given: Feeding, other: Feeding) -> list[str]:
    """Describe how another feeding differs, one phrase each."""
    bos = f"with {other.bos}" if other.prepend_bos else "without BOS"
    words = {
        "site": f"at {other.site}",
        "prepend_bos": f"{bos} before each context",
        "input": f"on activations {other.input}",
    }
    return [words[name] for name in given.changes(other)]


def reason(checked: Checked) -> str:
    """Describe in one line why an SAE does not fit, and what does."""
    wrong = ", ".join(checked.wrong)
    if (remedy := checked.remedy) is None:
        return f"{wrong}; {NOTHING_HELPS}"
    return f"{wrong}; it fits {_how(checked.given, remedy)}"


def doubt(checked: Checked) -> str | None:
    """Describe in one line how a fitting SAE would explain a little more; None if it would not."""
    if (better := checked.slightly_better) is None:
        return None
    return (
        f"It would explain a little more {_how(checked.given, better)}: make sure that this is not "
        f"what it was trained on"
    )


def _how(given: Measured, other: Measured) -> str:
    """Describe another feeding with its figures."""
    factor = f", by a factor of {other.factor:.4g}" if other.factor != 1 else ""
    how = " and ".join(changes(given.feeding, other.feeding))
    return f"{how}{factor} ({figures(other)})"


def require_fit(
    keys: CellKeys,
    expect: Expect | None,
    subject: Subject,
    sae: Autoencoder,
    heldout: SiteReader,
    tokens: Tokens,
) -> None:
    """Stop if an SAE made elsewhere is not fed what it was trained on.

    Args:
        keys: of the cell.
        expect: published figures.
        subject: the trained one.
        sae: the SAE as the study uses it.
        heldout: activations of `eval`; their rule for excluded tokens applies here too.
        tokens: the `eval` split.

    Raises:
        UserError: it does not fit; the line names the key of the config to change.
    """
    if expect is None and heldout.is_constant:
        log.warning(
            "%s at %s: all tokens have the same activation, which fits any SAE", keys.sae, keys.site
        )
        return
    rule = {name: heldout.manifest["excluded"][name] for name in Exclude.model_fields}
    sample = Sample(subject, tokens, exclude=Exclude(**rule))
    given = Feeding(keys.site, bool(tokens.n_bos), bos=tokens.bos_name)
    checked = check_feeding(sample, sae, given, expect or Expect())
    log.info("%s at %s: %s", keys.sae, keys.site, figures(checked.given))
    if checked.fits:
        if (said := doubt(checked)) is not None:
            log.warning("%s at %s: %s", keys.sae, keys.site, said)
        return
    corpus, source = tokens.manifest.get("corpus", "*"), f"subjects.{keys.subject}.source"
    pretrained = f"saes.{keys.sae}.pretrained"
    named = {
        "site": f"subjects.{keys.subject}.sites, or the SAE in {pretrained}",
        "prepend_bos": f"corpora.{corpus}.prepend_bos",
        "input": f"{pretrained}: its own config does not say so",
    }
    remedy = checked.remedy
    change = [source] if remedy is None else [named[n] for n in given.changes(remedy.feeding)]
    line = f"config: saes.{keys.sae}: {reason(checked)}; change {' and '.join(change)}"
    if remedy is None:
        line += f", or the expected figures in saes.{keys.sae}.expect"
    raise UserError(line)
