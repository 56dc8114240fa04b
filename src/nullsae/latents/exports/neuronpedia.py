"""JSON lines for Neuronpedia's bulk import.

   OUTPUT/<model>/<source>/release.jsonl  model.jsonl  sourceset.jsonl  source.jsonl
                           features/batch-0.jsonl.gz  activations/batch-0.jsonl.gz
                           explanations/batch-0.jsonl.gz, with an explainer

One object per line, with the field names of its database (https://www.neuronpedia.org; written as
by SAEDashboard's `neuronpedia_export.py`). The features are the sampled latents. Their activations
are the strongest windows, whose `binContains` is null, and the scoring windows, whose bins are
quantiles. Fields that nullsae does not compute, such as logits, are empty.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from nullsae import tables
from nullsae.config.sites import site_kind, site_layer
from nullsae.corpus.token_text import token_text
from nullsae.latents.exports.cell import LatentFolder, whole_folder
from nullsae.latents.exports.explained import Explained
from nullsae.latents.split import Split

HISTOGRAM_BARS = 50
# Features per file, as in Neuronpedia's own exporter.
BATCH_FEATURES = 128
Row = dict[str, Any]


def export_neuronpedia(
    cells: Sequence[LatentFolder],
    split: Split,
    text: Tokenizer,
    creator: str,
    output: Path,
    explained: Sequence[Explained] = (),
) -> None:
    """Write the sampled latents of each cell, one source each, into a new folder `output`.

    `text` is the tokenizer of the corpus, `split` the split on which the cells were collected,
    `creator` the id of the Neuronpedia account that will own the rows, `explained` the explanations
    of each cell, none by default. Raises a `UserError` if a table is missing or damaged, the
    latents are not of these tokens, or the output cannot be written.
    """
    with whole_folder(output, cells, split) as folder:
        for number, cell in enumerate(cells):
            source = Source(cell, creator)
            place = folder / source.model / source.id
            place.mkdir(parents=True)
            for name, row in source.about(split).items():
                _write_lines(place / f"{name}.jsonl", [row])
            latents = cell.latents.filter(cell.latents["sampled"]).to_pylist()
            for batch, start in enumerate(range(0, len(latents), BATCH_FEATURES)):
                some = latents[start : start + BATCH_FEATURES]
                file = f"batch-{batch}.jsonl.gz"
                _write_lines(place / "features" / file, (source.feature(row, text) for row in some))
                _write_lines(place / "activations" / file, source.activations(some, text))
            if explained:
                rows = source.explanations(explained[number])
                _write_lines(place / "explanations/batch-0.jsonl.gz", rows)


class Source:
    """The rows of one cell, which Neuronpedia calls a source."""

    def __init__(self, cell: LatentFolder, creator: str) -> None:
        keys = cell.keys
        self._cell, self._creator = cell, creator
        # The embedding is the first block's input.
        kind, layer = "resid_pre", 0
        if keys["site"] != "embed":
            kind, layer = site_kind(keys["site"]), site_layer(keys["site"])
        self._hook = f"blocks.{layer}.hook_{kind}"
        self.model = keys["subject"]
        own = (keys["variant"], keys["draw"], keys["sae"], keys["seed"], keys["site"])
        self.set = "-".join(part.replace(".", "_") for part in own)
        self.id = f"{layer}-{self.set}"
        # The same rows whenever they are written.
        written = datetime.fromtimestamp(
            int((cell.folder / "latents.parquet").stat().st_mtime), UTC
        )
        self._made = {"creatorId": creator, "createdAt": written.strftime("%Y-%m-%dT%H:%M:%S")}

    def about(self, split: Split) -> dict[str, Row]:
        """Return the single row of each of the four files that describe the source."""
        made, release = self._made, f"nullsae-{self.model}"
        described = ", ".join(f"{key} {value}" for key, value in self._cell.keys.items())
        return {
            "release": {
                **{"name": release, "description": release, "descriptionShort": release},
                **{"creatorName": self._creator, "creatorNameShort": self._creator, **made},
                **{"visibility": "PUBLIC", "isNewUi": False, "featured": False, "urls": []},
                **{"creatorEmail": None, "defaultSourceSetName": None, "defaultSourceId": None},
                "defaultUmapSourceIds": [],
            },
            "model": {
                **{"id": self.model, "displayName": self.model, "displayNameShort": self.model},
                **{"instruct": False, "tlensId": None, "dimension": None, "layers": 0, **made},
                **{"neuronsPerLayer": 0, "inferenceEnabled": False, "visibility": "PUBLIC"},
                **{"defaultSourceSetName": None, "defaultSourceId": None, "owner": ""},
                **{"updatedAt": made["createdAt"], "website": None},
            },
            "sourceset": {
                **{"modelId": self.model, "name": self.set, "releaseName": release, **made},
                **{"creatorName": self._creator, "creatorEmail": None, "visibility": "PUBLIC"},
                **{"description": described, "type": "", "urls": []},
                **{"hasDashboards": True, "defaultOfModelId": None, "defaultRange": 1},
                **{"defaultShowBreaks": True, "showDfa": False, "showCorrelated": False},
                **{"showHeadAttribution": False, "showUmap": False},
            },
            "source": {
                **{"id": self.id, "modelId": self.model, "setName": self.set, **made},
                **{"hasDashboards": True, "inferenceEnabled": False, "inferenceHosts": []},
                **{"saelensConfig": None, "saelensRelease": None, "saelensSaeId": None},
                **{"hfRepoId": None, "hfFolderId": None, "visibility": "PUBLIC"},
                **{"defaultOfModelId": None, "hasUmap": False, "hasUmapLogSparsity": False},
                **{"hasUmapClusters": False, "dataset": None, "notes": described},
                "num_prompts": split.n_tokens // split.context_tokens,
                "num_tokens_in_prompt": split.context_tokens,
            },
        }

    def feature(self, row: Row, text: Tokenizer) -> Row:
        """Convert a row of the table `latents`."""
        _, value = self._cell.firings.of(row["latent"])
        logits: Row = {}
        for name, end in (("pos", "promoted"), ("neg", "suppressed")):
            tokens = row[f"{end}_tokens"] or []
            logits[f"{name}_str"] = [token_text(text, token) for token in tokens]
            logits[f"{name}_values"] = row[f"{end}_effects"] or []
        heights, edges = np.histogram(value, bins=HISTOGRAM_BARS)
        found: Row = {
            **{"modelId": self.model, "layer": self.id, "index": str(row["latent"]), **self._made},
            **{"sourceSetName": self.set, "hookName": self._hook},
            **{"maxActApprox": row["max_activation"], "frac_nonzero": row["firing_share"]},
            **{"hasVector": False, "vector": [], "vectorLabel": None},
            **{"vectorDefaultSteerStrength": None, "decoder_weights_dist": []},
            **{"topkCosSimIndices": [], "topkCosSimValues": []},
            **logits,
            "freq_hist_data_bar_heights": heights.tolist(),
            "freq_hist_data_bar_values": ((edges[1:] + edges[:-1]) / 2).tolist(),
            **{"logits_hist_data_bar_heights": [], "logits_hist_data_bar_values": []},
        }
        for other in ("neuron_alignment", "correlated_neurons", "correlated_features"):
            second = "values" if other == "neuron_alignment" else "pearson"
            found |= {f"{other}_{name}": [] for name in ("indices", second, "l1")}
        return found

    def explanations(self, said: Explained) -> Iterable[Row]:
        """Yield rows of explanations, each with its scores, as a feature's answer has them."""
        for latent, text in said.texts.items():
            yield {
                **{"id": f"{self.id}-{latent}", "modelId": self.model, "layer": self.id},
                **{"index": str(latent), "authorId": self._creator, "description": text},
                **{"typeName": said.explainer, "explanationModelName": said.model[latent]},
                "scores": [
                    {
                        **{"value": one.balanced_accuracy, "explanationScoreTypeName": scorer},
                        "explanationScoreModelName": one.judge,
                        "jsonDetails": json.dumps(one.windows, allow_nan=False),
                    }
                    for scorer, judged in said.judged.items()
                    if (one := judged.get(latent)) is not None
                ],
            }

    def activations(self, latents: Sequence[Row], text: Tokenizer) -> Iterable[Row]:
        """Yield rows of some latents' windows: the strongest, then the scoring ones by quantile."""
        file = self._cell.folder / "windows.parquet"
        table = tables.read_table(file, tables.cell_schema("windows"))
        wanted = pa.array([row["latent"] for row in latents], pa.int64())
        chosen = pc.and_(pc.is_in(table["latent"], wanted), table["active"])
        windows = table.filter(pc.and_(chosen, pc.not_equal(table["pool"], "explain"))).to_pylist()
        peaks: dict[tuple[int, int], list[float]] = {}
        for window in windows:
            key = window["latent"], window["quantile"]
            peaks.setdefault(key, []).append(max(window["activations"]))
        n_quantiles = 1 + max((w["quantile"] or 0 for w in windows), default=0)
        for window in sorted(windows, key=lambda w: (w["latent"], w["pool"] != "top")):
            values, top = window["activations"], window["pool"] == "top"
            bin_peaks = peaks[window["latent"], window["quantile"]]
            digest = hashlib.blake2b(f"{self.model}/{self.id}/{window}".encode(), digest_size=12)
            yield {
                "id": f"c{digest.hexdigest()}",
                **{"modelId": self.model, "layer": self.id, "index": str(window["latent"])},
                **self._made,
                "tokens": [token_text(text, token) for token in window["token_ids"]],
                "values": values,
                **{"maxValue": max(values), "maxValueTokenIndex": int(np.argmax(values))},
                "minValue": min(values),
                "binMin": None if top else min(bin_peaks),
                "binMax": None if top else max(bin_peaks),
                "binContains": None if top else 1 / n_quantiles,
                **{"dataIndex": str(window["start"]), "dataSource": None},
                **{"dfaValues": [], "dfaTargetIndex": None, "dfaMaxValue": None},
                **{"lossValues": [], "logitContributions": None, "qualifyingTokenIndex": None},
                **{"zIndices": None, "zValues": None},
            }


def _write_lines(path: Path, rows: Iterable[Row]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    text = "".join(lines).encode()
    # Without the time, which would make each file different.
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
