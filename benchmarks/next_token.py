"""Time the next-token AUROC of all latents of an SAE: `python benchmarks/next_token.py`.

Decoder rows, the path to the logits, the text and the firings are drawn at random: tokens by Zipf's
law, and K firings per token at random latents. As in `collect_latents`, own, swapped and random
rows are measured, on one thread or one GPU. By default there are 32,768 latents and 50,304 tokens,
for which a GPU should take less than 10 s. `--json FILE` gets the figures.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from nullsae.latents.next_token import Aurocs, Rows, Successors, next_token_aurocs
from nullsae.latents.split import Split
from nullsae.latents.store import Firings, offsets_of

CONTEXT_TOKENS, K = 256, 32


def text(n_tokens: int, vocab: int, random: np.random.Generator) -> Split:
    """Draw tokens by Zipf's law, in one document."""
    share = 1 / np.arange(1, vocab + 1)
    ids = random.choice(vocab, n_tokens, p=share / share.sum()).astype(np.int32)
    return Split(ids, np.zeros(n_tokens, dtype=np.int32), CONTEXT_TOKENS, None, Path("drawn"))


def firings(n_tokens: int, n_latents: int, random: np.random.Generator) -> Firings:
    """Draw K firings per token, at random latents."""
    latent = random.integers(n_latents, size=K * n_tokens)
    order = np.argsort(latent, kind="stable")
    counts = np.bincount(latent, minlength=n_latents)
    position = np.repeat(np.arange(n_tokens, dtype=np.uint32), K)[order]
    return Firings(offsets_of(counts), position, np.ones(len(order), dtype=np.float32))


def measure(args: argparse.Namespace) -> dict[str, object]:
    """Measure the metric once, after a few latents that warm up the device."""
    random = np.random.default_rng(0)
    split = text(args.tokens, args.vocab, random)
    fired = firings(args.tokens, args.latents, random)
    device = torch.device(args.device)
    own, other = torch.randn(2, args.latents, args.width, device=device).unbind()
    path = torch.randn(args.vocab, args.width, device=device)
    latents, successors = np.arange(args.latents), Successors.of(split)

    def run(some: np.ndarray) -> list[Aurocs]:
        rows: list[torch.Tensor | Rows] = [
            own[: len(some)],
            Rows(own, np.roll(some, 1)),
            other[: len(some)],
        ]
        return next_token_aurocs(rows, path, fired, some, successors)

    run(latents[:64])
    start = time.perf_counter()
    found = run(latents)
    seconds = time.perf_counter() - start
    return {
        **{name: getattr(args, name) for name in ("latents", "vocab", "tokens", "width")},
        "seconds": seconds,
        "latents_per_second": args.latents / seconds,
        # Random rows predict nothing.
        "mean_auroc": float(np.nanmean([one.unigram for one in found])),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None,
    }


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--latents", type=int, default=32_768)
    parser.add_argument("--vocab", type=int, default=50_304)
    parser.add_argument("--tokens", type=int, default=2**18, help="of the text")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args)
    sizes = f"{args.latents:,} latents, vocabulary {args.vocab:,}, {args.tokens:,} tokens of text"
    print(
        f"{sizes}, on {args.device}: {found['seconds']:.1f} s, "
        f"{found['latents_per_second']:,.0f} latents per second; "
        f"mean AUROC {found['mean_auroc']:.4f}"
    )
    if args.json:
        args.json.write_text(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
