"""An explainer: nothing but the token that a latent fires on most."""

from __future__ import annotations

from typing import ClassVar, Literal

import pyarrow as pa

from nullsae.autointerp.explain import ExplainJob
from nullsae.autointerp.explainers.lexical import lexical_explanations
from nullsae.config.explainers import Explainer
from nullsae.tables import cell_schema


class OneTokenExplainer(Explainer):
    """`lexical` that forgets all tokens but one."""

    name: ClassVar[str] = "one_token"
    has_statistics: ClassVar[bool] = True

    kind: Literal["one_token"]

    @property
    def text(self) -> str:
        return "The judge knows the likeliest token of the latent alone."

    def explain(self, job: ExplainJob) -> pa.Table:
        windows = job.windows("latent", "window", "pool", "token_ids", "activations")
        rows = lexical_explanations(windows, job.tokenizer, top_tokens=1).to_pylist()
        for row in rows:
            known = sorted(zip(row["token_probabilities"], row["token_ids"], strict=True))[-1:]
            row["token_probabilities"] = [probability for probability, _ in known]
            row["token_ids"] = [token for _, token in known]
        return pa.Table.from_pylist(rows, schema=cell_schema("explanations"))
