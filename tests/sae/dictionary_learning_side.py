"""The package's half of test_dictionary_learning.py, run by the Python of `.venv-peers`.

   python dictionary_learning_side.py FOLDER

saves an SAE of each trainer of dictionary_learning in FOLDER/TRAINER, as its `trainSAE` does, and
loads it by its class' own `from_pretrained`. Writes `results.safetensors`: for each trainer the
codes and the reconstructions of `x.safetensors`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file, save_file

# The package that runs models is not installed, but the buffer of activations imports it.
sys.modules["nnsight"] = SimpleNamespace(LanguageModel=None)  # type: ignore[assignment]
from dictionary_learning import trainers  # noqa: E402
from dictionary_learning.trainers.matryoshka_batch_top_k import (  # noqa: E402
    MatryoshkaBatchTopKTrainer,
)
from dictionary_learning.trainers.standard import StandardTrainerAprilUpdate  # noqa: E402

D, WIDTH, K = 12, 40, 5
OF_ALL: dict[str, Any] = {
    **{"steps": 20_000, "activation_dim": D, "dict_size": WIDTH, "layer": 3, "device": "cpu"},
    "lm_name": "someone/model",
}
NAMED = {"submodule_name": "resid_post_layer_3"}
MADE: dict[type, dict[str, Any]] = {
    trainers.StandardTrainer: NAMED,
    StandardTrainerAprilUpdate: NAMED,
    trainers.PAnnealTrainer: NAMED,
    trainers.GatedSAETrainer: NAMED,
    trainers.GatedAnnealTrainer: {},
    trainers.JumpReluTrainer: NAMED,
    trainers.TopKTrainer: {**NAMED, "k": K},
    trainers.BatchTopKTrainer: {**NAMED, "k": K},
    MatryoshkaBatchTopKTrainer: {**NAMED, "k": K, "group_fractions": [0.25, 0.75]},
}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    x = load_file(folder / "x.safetensors")["x"]
    g = torch.Generator().manual_seed(1)
    found = {}
    for kind, keys in MADE.items():
        trainer: Any = kind(**OF_ALL, **keys)
        sae, own = trainer.ae, folder / kind.__name__
        with torch.no_grad():
            for name, tensor in sae.named_parameters():
                drawn = torch.randn(tensor.shape, generator=g) * 0.4
                tensor.copy_(drawn.abs() * 0.5 if name == "threshold" else drawn)
            if "k" in keys:
                sae.threshold.fill_(0.3)
        own.mkdir()
        buffer = {"d_submodule": D, "io": "out", "ctx_len": 128, "device": "cpu"}
        config = {"trainer": trainer.config, "buffer": buffer}
        (own / "config.json").write_text(json.dumps(config, indent=4))
        torch.save(sae.state_dict(), own / "ae.pt")
        again = type(sae).from_pretrained(own / "ae.pt", device="cpu")
        with torch.no_grad():
            codes = again.encode(x)
            found[f"{kind.__name__}/codes"] = codes
            found[f"{kind.__name__}/reconstruction"] = again.decode(codes)
    save_file(found, folder / "results.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
