"""Null dictionaries that a study adds to its learned ones: `evaluation.null_dictionaries`."""

from __future__ import annotations

from typing import Any

from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.pretrained import FromObject
from nullsae.config.saes import Sae
from nullsae.config.study import Config


def with_null_dictionaries(config: Config) -> dict[str, Sae]:
    """Return the recipes of a study, followed by the null dictionaries that it asks for.

    These are made for `trained`, at the last site of each subject. One that is fitted to
    activations has no seed, and so a single SAE. An existing recipe of the same name is kept.

    Args:
        config: the checked config, sites resolved.
    """
    found = dict(config.saes)
    last = tuple(dict.fromkeys(subject.sites[-1] for subject in config.subjects.values()))
    for name, sae in config.saes.items():
        is_there = any(sae.is_made(site, "trained") for site in last)
        if not (sae.is_real and is_there) or sae.output_site is not None:
            continue
        for null in config.evaluation.null_dictionaries:
            kind = DICTIONARIES[null]
            own: dict[str, Any] = {"dictionary": null, "variants": ("trained",), "sites": last}
            if kind.derived:
                if kind.needs_encoder and isinstance(sae.pretrained, FromObject):
                    continue
                own |= {"from": name, "seeds": sae.seeds}
            elif not kind.reads_tokens:
                if sae.given_k is None:
                    continue
                own["k"] = sae.given_k
            found.setdefault(f"{name}.{null}", Sae.of(**own))
    return found
