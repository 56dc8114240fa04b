"""Tiny random checkpoints of many families, every tensor drawn, without global generators."""

from __future__ import annotations

from typing import Any

import torch
import transformers

from nullsae.core.randomness import torch_generator

VOCAB, D_MODEL, N_LAYERS, MAX_TOKENS = 96, 16, 3, 32
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": D_MODEL,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": MAX_TOKENS,
    **ENDS,
}
GROUPED = {"num_key_value_heads": 1, "head_dim": 8}
GPT2 = {"n_layer": N_LAYERS, "n_embd": D_MODEL, "n_head": 2, "n_positions": MAX_TOKENS}
OPT = {"ffn_dim": 32, "word_embed_proj_dim": D_MODEL, "dropout": 0.0}

# For each family, the class of its config and what sets it apart. Tests have a reference by hand
# for the first part; for the rest, the names of their parts matter.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt_neox": ("GPTNeoXConfig", {"use_parallel_residual": True}),
    "gpt_neox_sequential": (
        "GPTNeoXConfig",
        {"use_parallel_residual": False, "tie_word_embeddings": True},
    ),
    "gpt2": ("GPT2Config", GPT2),
    "gpt2_untied": ("GPT2Config", {**GPT2, "tie_word_embeddings": False}),
    "llama": ("LlamaConfig", GROUPED),
    "llama_tied": ("LlamaConfig", {**GROUPED, "tie_word_embeddings": True}),
    "gemma3": ("Gemma3TextConfig", {**GROUPED, "sliding_window": 4}),
    "qwen3": ("Qwen3Config", GROUPED),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 4}),
    "opt": ("OPTConfig", OPT),
    "opt_projected": ("OPTConfig", {**OPT, "word_embed_proj_dim": 8}),
}
FURTHER: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3": ("Phi3Config", GROUPED),
    "olmo2": ("Olmo2Config", {}),
    "glm4": ("Glm4Config", GROUPED),
    "gptj": ("GPTJConfig", {**GPT2, "rotary_dim": 4}),
    "falcon": ("FalconConfig", {"parallel_attn": True}),
    "bloom": ("BloomConfig", {"hidden_size": D_MODEL, "n_layer": N_LAYERS, "n_head": 2}),
    "mpt": ("MptConfig", {"d_model": D_MODEL, "n_layers": N_LAYERS, "n_heads": 2}),
}
REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "granite": ("GraniteConfig", {**GROUPED, "residual_multiplier": 0.5}),
    "opt_post_norm": ("OPTConfig", {**OPT, "do_layer_norm_before": False}),
    "mamba": ("MambaConfig", {"state_size": 4}),
}


def family_model(name: str) -> Any:
    """Return a random model of a family."""
    kind, keys = {**FAMILIES, **FURTHER, **REFUSED}[name]
    plain = {**ENDS, "vocab_size": VOCAB} if "n_layer" in keys or "n_layers" in keys else SHAPE
    config = getattr(transformers, kind)(**{**plain, **keys})
    return random_model(config, name)


def random_model(config: Any, *key: str | int) -> Any:
    """Return a model of a config, float32, with weights from a generator keyed by `key`."""
    with torch.random.fork_rng(devices=[]):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=torch_generator(0, "test", *key, name))
            gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(drawn * 0.2 + (1.0 if gain else 0.0))
    return model.eval().requires_grad_(False)
