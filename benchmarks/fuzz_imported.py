"""Targets of `fuzz.py`: explanations and scores made elsewhere."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

N_LATENTS = 8
WORDS = ["the", "cups", "and", "mugs", "\u00e6r\u00f8"]


def judged(active: bool, prediction: Any, probability: Any) -> dict[str, Any]:
    """Return a window as delphi writes it."""
    values = [float(active), 0.0, 0.5 * active]
    window = {"str_tokens": ["the", "cups", "and"], "activations": values, "distance": 1}
    said = {"activating": active, "prediction": prediction, "probability": probability}
    return {**window, **said, "correct": prediction == active}


WINDOWS = [judged(True, True, 0.9), judged(False, False, 0.2), judged(False, None, None)]


def row(index: int, **more: Any) -> dict[str, Any]:
    """Return an explanation as Neuronpedia exports it."""
    named = {"id": f"c{index}", "modelId": "gpt2", "layer": "1-res", "index": str(index)}
    said = {"description": "cups and mugs", "explanationModelName": "gpt", "typeName": "oai"}
    return {**named, **said, **more}


def neuronpedia() -> tuple[bytes, ...]:
    """Return rows of explanations, with and without scores, and a feature with its explanations."""
    score = {"value": 0.8, "explanationScoreTypeName": "recall_alt"}
    score |= {"explanationScoreModelName": "judge", "jsonDetails": json.dumps(WINDOWS)}
    plain = {"value": 0.8, "explanationScoreTypeName": "simulator", "jsonDetails": ""}
    rows = [row(1, scores=[score]), row(2, scores=[plain])]
    feature = {"index": "3", "layer": "1-res", "explanations": [row(3)], "pos_str": ["cups"]}
    lines = ["".join(json.dumps(one) + "\n" for one in some) for some in (rows, [feature])]
    # A single row is valid JSON, so its values are changed one by one.
    return tuple(text.encode() for text in [*lines, *(json.dumps(one) for one in rows)])


def parquet(*rows: dict[str, Any]) -> bytes:
    """Encode rows as a Parquet table."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([*rows]), sink)
    return bytes(sink.getvalue().to_pybytes())


def windows_of(tokens: Any, values: Any) -> list[dict[str, Any]]:
    """Return two judged windows as rows of a table."""
    truth = [{"latent": 1, "active": True}, {"latent": 1, "active": False}]
    return [{**t, "probability": 0.5, "tokens": tokens, "activations": values} for t in truth]


CSV = (
    b'latent,explanation,model\n1,"cups, and\nmugs",gpt\n2,,\n',
    b"latent,auroc,f1\n1,0.5,0.25\n2,0.75,\n",
    b"latent,score\n1,0.5\n",
    b'latent,active,probability,tokens,activations\n1,true,0.5,"[""the""]","[1.5]"\n1,0,,,\n',
)


class Imported:
    """A file of explanations and scores, read by `explainers` and `scorers` of kind `import`."""

    def __init__(self, name: str, file: str, examples: Callable[[], tuple[bytes, ...]]) -> None:
        """`file` is its name in the folder that a config names, or the name of the only file."""
        self.name, self.file, self._examples = name, file, examples

    @cached_property
    def examples(self) -> tuple[bytes, ...]:
        """Files as the tools write them."""
        return self._examples()

    @cached_property
    def tokenizer(self) -> Any:
        """Return the tokenizer of a corpus with these words."""
        from tokenizers import Tokenizer, models

        return Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "the"))

    def read(self, data: bytes, folder: Path) -> None:
        """Read it with an explainer of kind `import`, and with a scorer."""
        from nullsae.core.errors import UserError

        file = folder / "run" / self.file
        file.parent.mkdir(parents=True)
        file.write_bytes(data)
        path = folder / "run" if "/" in self.file else file
        refused = []
        for look in (self.explanations, self.scores):
            try:
                look(path)
            except UserError as error:
                refused.append(error)
        # Hardly any file contains both.
        if len(refused) == 2:
            raise refused[0]

    def explanations(self, path: Path) -> None:
        """Read the explanations."""
        from nullsae.autointerp.explain import explained_in_words
        from nullsae.autointerp.imported.find import layout_at
        from nullsae.autointerp.imported.layout import About

        said = layout_at(path).explanations(path, About(N_LATENTS))
        explained_in_words({n: one.text for n, one in said.items()}, "none").to_pandas()

    def scores(self, path: Path) -> None:
        """Read their scores, and windows as a formula gets them."""
        from nullsae.autointerp.imported.find import layout_at
        from nullsae.autointerp.imported.layout import About
        from nullsae.autointerp.imported.windows import given_windows

        scores = layout_at(path).scores(path, About(N_LATENTS, metric="auroc"))
        for tokenizer in (None, self.tokenizer):
            found = given_windows(scores, tokenizer, self.file)
            assert len(found.probability) == len(found.examples.latent)


def targets() -> list[Any]:
    """Return the targets of this module."""
    text = "scores/detection/layers.1_latent3.txt", "explanations/layers.1_latent3.txt"
    packed = lambda: tuple(gzip.compress(one, mtime=0) for one in neuronpedia())  # noqa: E731
    tables = lambda: (  # noqa: E731
        parquet({"latent": 1, "explanation": "cups"}, {"latent": 2, "explanation": None}),
        parquet(*windows_of(["the", "cups"], [1.0, 0.0])),
    )
    return [
        Imported("delphi_scores", text[0], lambda: (json.dumps(WINDOWS).encode(),)),
        Imported("delphi_explanations", text[1], lambda: (b'"cups and mugs"', b"null")),
        Imported("neuronpedia", "rows.jsonl", neuronpedia),
        Imported("neuronpedia_json", "explanations/rows.json", neuronpedia),
        Imported("neuronpedia_gz", "rows.jsonl.gz", packed),
        Imported("imported_csv", "rows.csv", lambda: CSV),
        Imported("imported_parquet", "rows.parquet", tables),
    ]
