"""The config of a study of one block, for tests that run nothing of it."""

from __future__ import annotations

from typing import Any

SMALL_CONFIG: dict[str, Any] = {
    "corpora": {
        "docs": {
            "source": {"kind": "builtin", "name": "stdlib"},
            "tokenizer": {"kind": "train", "vocab_size": 300},
            "context_tokens": 32,
            "sae_train_tokens": 16_384,
            "eval_tokens": 8_192,
        }
    },
    "subjects": {
        "small": {
            "corpus": "docs",
            "source": {"kind": "train", "n_layers": 1, "d_model": 16, "n_heads": 2},
            "sites": ["resid_post.0"],
        }
    },
    "variants": ["trained", "rerandomized"],
    "activations": {"sae_train_tokens": 16_384},
    "explainers": {"lexical": {"kind": "lexical"}},
    "scorers": {"detection": {"kind": "detection"}},
    "saes": {"topk": {"k": 4, "n_latents": 32, "seeds": [0, 1]}},
}
