"""The answer of a study: which metrics tell trained from its nulls, in a few sentences.

Everything here follows from `contrasts` and their verdicts by the rules below; nothing is written
by hand for a study. L0 and training tokens of each arm stand beside its values: both move them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nullsae.config.metrics import is_of_model
from nullsae.statistics.findings import Against, Finding, Tier, findings_of
from nullsae.statistics.sentences import sentences_of


@dataclass(frozen=True)
class Answer:
    """The content of `results/tables/answer.json`."""

    sentences: tuple[str, ...]
    findings: tuple[Finding, ...]
    """About models. Best first: by tier, then by the share of nulls and sites told apart."""
    dictionaries: tuple[Finding, ...] = ()
    """About the learned dictionary and null ones within trained, in the same order."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Answer:
        """From what `as_json` gives."""
        findings = (
            tuple(
                Finding(**{**one, "against": tuple(Against(**each) for each in one["against"])})
                for one in data[stage]
            )
            for stage in ("findings", "dictionaries")
        )
        return cls(tuple(data["sentences"]), *findings)

    def tier(self, tier: Tier) -> list[Finding]:
        """The findings of a tier, best first."""
        return [one for one in self.findings if one.tier == tier]


def answer(
    contrasts: Sequence[Mapping[str, Any]],
    words: Sequence[str],
    *,
    controls: Collection[str] = (),
    placebos: Collection[str] = (),
    saes: Collection[str] | None = None,
) -> Answer:
    """Derive the answer of a study.

    Args:
        contrasts: rows of `contrasts`.
        words: the verdict of each.
        controls: variants that are positive controls.
        placebos: explainers that exchange explanations; their rows are left out.
        saes: those that it speaks of models by; None for all. Null dictionaries are none of them,
            even if they stand on every variant: it says which metrics tell the learned one from
            them.
    """
    pairs = [
        (row, word)
        for row, word in zip(contrasts, words, strict=True)
        if row["explainer"] not in placebos
    ]
    of_models = [
        (row, word)
        for row, word in pairs
        if is_of_model(row) and (saes is None or row["sae"] in saes)
    ]
    findings = findings_of(of_models, "variant", controls)
    of_dictionaries = [pair for pair in pairs if pair[0]["stage"] == "dictionary"]
    dictionaries = findings_of(of_dictionaries, "null", ())
    sites = list(dict.fromkeys(row["site"] for row, _ in of_dictionaries))
    sentences = sentences_of(findings, dictionaries, [row for row, _ in of_models], controls, sites)
    return Answer(tuple(sentences), tuple(findings), tuple(dictionaries))
