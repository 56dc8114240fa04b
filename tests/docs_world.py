"""A folder in which the names that pages use are a small model, an SAE and texts."""

from __future__ import annotations

from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from nullsae.config.corpora import TrainedTokenizer
from nullsae.core.files import write_json
from nullsae.core.randomness import torch_generator
from nullsae.corpus.tokenizer import train_tokenizer
from nullsae.sae.exchange.export import LAYOUTS
from nullsae.sae.initialization import initialize
from small_chain import tiny_model

N_LATENTS = 48


def make_world(folder: Path) -> None:
    """Make `EleutherAI/pythia-70m`, `EleutherAI/sae-pythia-70m-32k::layers.3` and `texts.txt`."""
    texts = [text.replace("\n\n", "\n") for text in topics.values()][:16]
    encoder = train_tokenizer(texts, TrainedTokenizer(kind="train", vocab_size=300))
    model = tiny_model("gpt_neox", num_hidden_layers=4, vocab_size=300, max_position_embeddings=128)
    at = folder / "EleutherAI/pythia-70m"
    model.save_pretrained(at)
    encoder.tokenizer.save_pretrained(at)
    (folder / "texts.txt").write_text("\n\n".join(texts))

    ids = torch.from_numpy(np.concatenate(encoder.encode(texts))[:2048]).long()
    with torch.no_grad():
        states = model(ids.reshape(-1, 128), output_hidden_states=True).hidden_states[4]
    sae = initialize(
        states.flatten(0, 1), n_latents=N_LATENTS, k=4, generator=torch_generator(0, "docs")
    )
    config, tensors = LAYOUTS["sparsify"](sae)
    at = folder / "EleutherAI/sae-pythia-70m-32k/layers.3"
    at.mkdir(parents=True)
    save_file(tensors, at / "sae.safetensors")
    write_json(at / "cfg.json", config)


def score_latents(model: Any) -> np.ndarray:
    """Return, for each dimension, the share of tokens above its mean: somebody's pipeline."""
    ids = torch.randint(300, (8, 64), generator=torch_generator(0, "somebody"))
    with torch.no_grad():
        x = model(ids, output_hidden_states=True).hidden_states[4].flatten(0, 1)
    return (x > x.mean(0)).double().mean(0).numpy()
