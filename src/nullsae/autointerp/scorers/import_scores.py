"""Scores and judged windows of explanations, both made elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from nullsae.autointerp.imported.find import layout_at
from nullsae.autointerp.imported.layout import About, Scored
from nullsae.autointerp.imported.windows import GivenWindows, given_windows
from nullsae.autointerp.score import Judged, ScoreJob
from nullsae.autointerp.scorers.asking import judge_by_tokens
from nullsae.config.explainers import Explainer
from nullsae.config.imported import Imported, Keys
from nullsae.config.scorers import Scorer


class ImportScorer(Imported, Scorer):
    """Scores from files; in addition, a formula judges their windows by token statistics."""

    name: ClassVar[str] = "import"
    position: ClassVar[int] = 5
    shown_first: ClassVar[bool] = True

    kind: Literal["import"]
    of: str
    """The explainer of kind `import` whose explanations were judged."""
    scores: str | None = None
    """The kind of score to read: delphi's folder below `scores`, such as `detection`, or
    Neuronpedia's type, such as `eleuther_recall`."""
    judge: str | None = None
    """Read only scores by this language model, by its name in Neuronpedia's rows."""
    metric: Literal["auroc", "auprc", "f1", "balanced_accuracy"] | None = None
    """The metric of a score that is one number per latent, without windows."""
    negatives: Literal["given"] = "given"
    """The silent windows are those of the file."""

    @property
    def scores_of(self) -> str:
        return self.of

    @property
    def text(self) -> str:
        return (
            f"Judged elsewhere, read from {self.path}. Token statistics, and those of another "
            f"latent, are judged on the same windows if the file has them."
        )

    def judges(self, explainer: str, writer: Explainer) -> bool:
        # Explanations that were not judged elsewhere need a formula here.
        own = explainer == self.of or writer.has_statistics
        return own and super().judges(explainer, writer)

    def own_files(self, keys: Keys) -> tuple[str, ...]:
        path = self.found(keys)
        if path is None:
            return ()
        for name in ("scores", "explanations"):
            if (path / name).is_dir():
                inside = path / name / (self.scores or "")
                return (str(inside if inside.is_dir() else path / name),)
        return (str(path),)

    def predict(self, job: ScoreJob) -> Judged:
        """Return the file's judgements of its windows, or those of a formula.

        Explanations with token statistics are judged here; all others were judged elsewhere.
        """
        keys = {key: str(value) for key, value in job.params.keys.model_dump().items()}
        path = self.found(keys)
        found: Mapping[int, Scored] = {}
        is_formula = job.explained["base_probability"].null_count == 0
        if path is not None:
            asked = (self.model, self.scores, self.judge, self.metric)
            found = layout_at(path).scores(path, About(job.n_latents, self.source_of(keys), *asked))
        explained = set(job.explained["latent"].to_pylist())
        found = {latent: scored for latent, scored in found.items() if latent in explained}
        windows = given_windows(found, job.tokenizer if is_formula else None, self.path)
        if is_formula:
            return _by_formula(job, windows)
        return Judged(
            windows.probability,
            [
                None if np.isnan(p) else "label" if label else "logprobs"
                for p, label in zip(windows.probability, windows.is_label, strict=True)
            ],
            judge=next((scored.judge for scored in found.values() if scored.judge), None),
            examples=windows.examples,
            metrics={latent: scored.metrics for latent, scored in found.items()},
        )


def _by_formula(job: ScoreJob, windows: GivenWindows) -> Judged:
    """Judge windows by token statistics; leave out those without text."""
    rows = np.flatnonzero(windows.has_text)
    examples = windows.examples.take(rows)
    if not len(rows):
        return Judged(np.empty(0), [], examples=examples)
    shown = np.ones_like(examples.marked)
    probability = judge_by_tokens(examples, job.explained, shown)
    return Judged(probability, ["statistics"] * len(rows), examples=examples)
