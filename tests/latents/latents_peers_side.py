"""The other packages' half of test_latents_exports.py, run by the Python of `.venv-peers`.

    python latents_peers_side.py FOLDER

reads FOLDER/delphi by delphi's `TensorBuffer` and `LatentDataset`, and FOLDER/neuronpedia by the
classes of Neuronpedia's Python client; writes what they saw to FOLDER/seen.json. Nothing of nullsae
is imported.
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import torch
from delphi.config import ConstructorConfig, SamplerConfig
from delphi.latents.loader import LatentDataset, TensorBuffer
from neuronpedia.np_feature import Feature
from neuronpedia.requests.feature_request import FeatureRequest
from transformers import PreTrainedTokenizerFast

LENGTH, MIN_EXAMPLES = 4, 20


def delphi_run(run: Path, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Return raw firings of each file, and the examples that the data set makes of them."""
    raw = run / "latents"
    seen: dict[str, Any] = {"firings": {}, "records": {}}
    modules = sorted(folder.name for folder in raw.iterdir())
    for module in modules:
        for file in (raw / module).glob("*.safetensors"):
            buffer = TensorBuffer(str(file), module)
            seen["tokens"] = buffer.tokens.tolist()
            for data in buffer:
                found = data.activation_data
                seen["firings"][f"{module}/{data.latent.latent_index}"] = [
                    found.locations.tolist(),
                    found.activations.tolist(),
                ]
    latents = {
        module: torch.tensor(
            sorted(int(key.split("/")[1]) for key in seen["firings"] if key.startswith(module))
        )
        for module in modules
    }
    for selected in (None, latents):
        data_set = LatentDataset(
            raw_dir=str(raw),
            sampler_cfg=SamplerConfig(n_examples_train=6, n_examples_test=6, n_quantiles=3),
            constructor_cfg=ConstructorConfig(
                example_ctx_len=LENGTH, min_examples=MIN_EXAMPLES, n_non_activating=3
            ),
            tokenizer=tokenizer,
            modules=modules,
            latents=selected,
        )
        records = {}
        for record in data_set:
            name = f"{record.latent.module_name}/{record.latent.latent_index}"
            examples = [[e.tokens.tolist(), e.activations.tolist()] for e in record.examples]
            records[name] = [record.per_token_frequency, examples]
        seen["records"]["all" if selected is None else "selected"] = records
    return seen


class Offline(FeatureRequest):
    """The client's request for a feature, answered from exported rows."""

    def __init__(self, answers: dict[str, dict[str, Any]]) -> None:
        self.answers = answers

    def send_request(self, method: str, uri: str) -> dict[str, Any]:
        return self.answers[uri]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]


def neuronpedia_features(source: Path) -> list[Feature]:
    """Return all features of an exported source, as the client returns them."""
    answers = {}
    for file in (source / "features").iterdir():
        for row in lines(file):
            uri = f"{row['modelId']}/{row['layer']}/{row['index']}"
            answers[uri] = {**row, "explanations": [], "activations": []}
    for file in (source / "activations").iterdir():
        for row in lines(file):
            answer = answers[f"{row['modelId']}/{row['layer']}/{row['index']}"]
            # The site's answers name its database column `layer` `source` here.
            answer["activations"].append({**row, "source": row["layer"]})
    client = Offline(answers)
    return [client.get(row["modelId"], row["layer"], int(row["index"])) for row in answers.values()]


def main() -> None:
    folder = Path(sys.argv[1])
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    seen: dict[str, Any] = {
        "delphi": {run.name: delphi_run(run, tokenizer) for run in (folder / "delphi").iterdir()},
        "neuronpedia": {},
    }
    for source in (folder / "neuronpedia").glob("*/*"):
        seen["neuronpedia"]["/".join(source.parts[-2:])] = [
            {
                "index": feature.index,
                "density": feature.density,
                "activations": [vars(activation) for activation in feature.activations],
            }
            for feature in neuronpedia_features(source)
        ]
    (folder / "seen.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
