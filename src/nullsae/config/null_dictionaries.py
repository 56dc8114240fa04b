"""Null dictionaries that a study gets beside its learned ones: `evaluation.null_dictionaries`."""

from __future__ import annotations

from typing import Any

from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.pretrained import FromObject
from nullsae.config.saes import Sae
from nullsae.config.study import Config


def with_null_dictionaries(config: Config) -> dict[str, Sae]:
    """The recipes of a study, and after them the null dictionaries that it asks for.

    They are of `trained`, at the last site of each subject. What is fitted to activations has no
    seed to vary, and so one SAE. A recipe that has its name already is left as it is.

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
