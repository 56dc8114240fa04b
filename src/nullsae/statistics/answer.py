"""The answer of a study: which metrics distinguish trained from its nulls, in a few sentences.

The rules below derive all of it from `contrasts` and their verdicts; no text is written for a
particular study. Values come with the L0 and training tokens of each arm, which influence them.
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
    """About learned against null dictionaries within trained, in the same order."""

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> Answer:
        """Build an answer from what `as_json` returns."""
        findings = (
            tuple(
                Finding(**{**one, "against": tuple(Against(**each) for each in one["against"])})
                for one in data[stage]
            )
            for stage in ("findings", "dictionaries")
        )
        return cls(tuple(data["sentences"]), *findings)

    def tier(self, tier: Tier) -> list[Finding]:
        """List the findings of a tier, best first."""
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
        placebos: explainers that swap explanations; their rows are left out.
        saes: those whose contrasts between models count; None for all. Null dictionaries do not
            belong here even if they exist for every variant: the answer says which metrics
            distinguish the learned one from them.
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
