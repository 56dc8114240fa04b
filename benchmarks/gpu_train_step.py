"""Time a TopK training step on a GPU: `python benchmarks/gpu_train_step.py`.

For the widths of Pythia-70m, 1b and 6.9b and several numbers of tokens per step, in one process and
interleaved rounds, this compares nullsae at each precision with EleutherAI's sparsify and its own
kernels, if that package can be imported, in float32 and as shipped (the forward pass in bfloat16).
It prints

    tokens/s    median of the rounds, with the optimizer's step
    product     the time of the encoder's matrix product, measured alone at the same precision, as a
                share of the step's: at 100% nothing but this product would cost anything
    GiB         peak memory, and the formula of `nullsae.sae.triton_kernels` (for ours)
    ratio       our tokens/s at the precision of `compute.precision: auto` over theirs

and then, for each sparse product, the time of our kernel, of PyTorch's `embedding_bag` for the same
product, and of the bytes that must be read and written at the measured rate of a copy.

`--json FILE` writes the same as one list of rows. With `--device cpu` and `--shapes tiny`
everything runs without a GPU, only to show that it works: the figures then mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.config.compute import Precise
from nullsae.config.saes import Sae
from nullsae.core.randomness import torch_generator
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.chunks import rows_at_once
from nullsae.sae.kernels import Hits, HitsByLatent, encode_top_k, encoder, tensor_float
from nullsae.sae.trainer import Trainer

SHAPES = {
    "tiny": (64, 2**10),
    "pythia-70m": (512, 2**15),
    "pythia-1b": (2048, 2**17),
    "pythia-6.9b": (4096, 2**18),
}
TOKENS = (4096, 8192, 16_384)
K = 32
DIRECTIONS_PER_TOKEN = 24
PRECISIONS: tuple[Precise, ...] = ("float32", "tf32", "bfloat16")
OURS = "nullsae, bfloat16"  # what `compute.precision: auto` is on CUDA
Step = Callable[[Tensor], object]
Row = dict[str, Any]


def activations(n_tokens: int, d: int, device: torch.device) -> Tensor:
    """Draw sums of 24 of 4 d random directions with frequencies as 1 / rank, and 5% noise."""
    generator = torch_generator(0, "gpu_train_step", "activations", d)
    n = 4 * d
    directions = F.normalize(torch.randn(n, d, generator=generator), dim=1).to(device)
    frequency = 1.0 / torch.arange(1, n + 1)
    shape = (n_tokens, DIRECTIONS_PER_TOKEN)
    drawn = torch.multinomial(
        frequency, n_tokens * DIRECTIONS_PER_TOKEN, replacement=True, generator=generator
    )
    size = torch.empty(shape).exponential_(generator=generator)
    x = F.embedding_bag(
        drawn.view(shape).to(device), directions, per_sample_weights=size.to(device), mode="sum"
    )
    noise = torch.randn(n_tokens, d, generator=generator).to(device)
    x += 0.05 * x.norm(dim=1).mean() * noise / d**0.5
    return x * (d**0.5 / x.norm(dim=1).mean())


def start(x: Tensor, n_latents: int) -> Autoencoder:
    """Make an initial SAE on the device of x; on the CPU, the widest would take half a minute."""
    generator = torch.Generator(x.device).manual_seed(0)
    rows = torch.randn(n_latents, x.shape[1], generator=generator, device=x.device)
    rows = F.normalize(rows, dim=1)
    mean = x.mean(dim=0)
    return Autoencoder("topk", rows.clone(), x.new_zeros(n_latents), rows, mean, K)


def ours(x: Tensor, n_latents: int, precision: Precise) -> Step:
    """Return nullsae's training step."""
    recipe = Sae.of(n_latents=n_latents, k=K)
    return Trainer(recipe, 10**6, start(x, n_latents), k=K, precision=precision).train_step


def sparsify(x: Tensor, n_latents: int, *, as_shipped: bool) -> Step:
    """Return sparsify's step: what `Trainer.fit` does with a batch, with PyTorch's fused Adam.

    It sets float32 products to TensorFloat-32.
    """
    # .venv-peers sets it to 1.
    os.environ["SPARSIFY_DISABLE_TRITON"] = "0" if x.is_cuda else "1"
    from sparsify import SparseCoder, SparseCoderConfig

    config = SparseCoderConfig(num_latents=n_latents, k=K)
    coder = SparseCoder(x.shape[1], config, device=x.device)
    adam = torch.optim.Adam(coder.parameters(), lr=1e-4, fused=True)
    # Under the decorator that makes it bfloat16.
    forward = SparseCoder.forward if as_shipped else SparseCoder.forward.__wrapped__

    def step(batch: Tensor) -> None:
        with tensor_float():
            coder.set_decoder_norm_to_unit_norm()
            forward(coder, batch).fvu.backward()
            coder.remove_gradient_parallel_to_decoder_directions()
            adam.step()
            adam.zero_grad()

    return step


def milliseconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Time one run: the mean of several after three warm-up runs."""
    for _ in range(3):
        run()
    if device.type != "cuda":
        before = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - before) * 1e3 / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / repeats


def product(x: Tensor, sae: Autoencoder, repeats: int, precision: Precise) -> float:
    """Time the encoder's matrix product alone, in chunks of tokens, in milliseconds."""
    chunk = min(len(x), rows_at_once(sae.n_latents, x.device.type))
    encode = encoder(sae.w_enc, sae.b_enc, chunk, precision)

    def run() -> None:
        for part in x.split(chunk):
            encode(part)

    return milliseconds(run, repeats, x.device)


def formula_bytes(n_latents: int, d: int, n_tokens: int, precision: Precise) -> int:
    """Return what a step must hold on a GPU: see the top of `nullsae.sae.triton_kernels`."""
    # A window of `row_gradient`: at least 256 hits, at most 4,096 windows.
    n_windows = min(4096, -(-n_tokens * K // 256))
    chunk = min(n_tokens, rows_at_once(n_latents, "cuda"))
    total = 32 * n_latents * d + 8 * n_windows * d + (24 * d + 60 * K) * n_tokens
    total += 20 * chunk * math.isqrt(K * n_latents)
    if precision == "bfloat16":
        return total + 2 * chunk * n_latents + 2 * (n_latents + chunk) * d
    return total + 4 * chunk * n_latents


def free(device: torch.device) -> None:
    """Release what the last contender held."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measured(build: Callable[[], Step], x: Tensor, repeats: int) -> tuple[float, int]:
    """Return the milliseconds of a step, and the peak GPU memory in bytes while it ran."""
    step = build()
    if not x.is_cuda:
        return milliseconds(lambda: step(x), repeats, x.device), 0
    # Building may take more than a step.
    torch.cuda.reset_peak_memory_stats()
    return milliseconds(lambda: step(x), repeats, x.device), torch.cuda.max_memory_allocated()


def steps(name: str, n_tokens: int, args: argparse.Namespace) -> list[Row]:
    """Print one line per contender for one shape and batch; return these rows."""
    d, n_latents = SHAPES[name]
    x = activations(n_tokens, d, args.device)
    contenders: dict[str, Callable[[], Step]] = {
        f"nullsae, {precision}": partial(ours, x, n_latents, precision) for precision in PRECISIONS
    }
    if importlib.util.find_spec("sparsify"):
        contenders["sparsify, tf32"] = partial(sparsify, x, n_latents, as_shipped=False)
        contenders["sparsify, as shipped"] = partial(sparsify, x, n_latents, as_shipped=True)
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    peaks = dict.fromkeys(contenders, 0)
    for _ in range(args.rounds):
        for contender, build in contenders.items():
            free(args.device)
            try:
                took, peaks[contender] = measured(build, x, args.steps)
            except torch.OutOfMemoryError:
                continue
            times[contender].append(took)
    free(args.device)
    sae = start(x, n_latents)
    alone = {p: product(x, sae, args.steps, p) for p in PRECISIONS}
    del sae
    operations = 2 * n_tokens * n_latents * d
    rates = ", ".join(
        f"{p} {ms:.2f} ms ({operations / ms * 1e-9:.0f} TFLOP/s)" for p, ms in alone.items()
    )
    print(f"\n{name}: d {d:,}, {n_latents:,} latents, {n_tokens:,} tokens a step; product: {rates}")
    rows: list[Row] = []
    reference = statistics.median(times[OURS]) if times[OURS] else None
    for contender, found in times.items():
        row: Row = {"kind": "step", "shape": name, "d_model": d, "n_latents": n_latents}
        row |= {"tokens": n_tokens, "what": contender, "ms": None}
        rows.append(row)
        if not found:
            print(f"  {contender:22} out of memory: lower --tokens")
            continue
        median = statistics.median(found)
        row["ms"], row["tokens_per_second"] = median, n_tokens / median * 1e3
        # As shipped, it multiplies in bfloat16.
        precision = next((p for p in PRECISIONS if contender.endswith(p)), "bfloat16")
        row["product_share"] = alone[precision] / median
        row["peak_gib"] = peaks[contender] / 2**30
        if contender.startswith("nullsae"):
            row["formula_gib"] = formula_bytes(n_latents, d, n_tokens, precision) / 2**30
        row["ratio"] = median / reference if reference else None
        ratio = f"{row['ratio']:6.2f}" if reference else "     -"
        print(
            f"  {contender:22}{median:9.2f} ms{row['tokens_per_second']:12,.0f} tokens/s"
            f"{row['product_share']:8.0%} product{row['peak_gib']:8.1f} GiB "
            f"(formula {row.get('formula_gib', 0):.1f})   ratio {ratio}"
        )
    return rows


def kernels(name: str, n_tokens: int, args: argparse.Namespace) -> list[Row]:
    """Print one line per sparse product for one shape and batch; return these rows."""
    device: torch.device = args.device
    free(device)
    d, n_latents = SHAPES[name]
    x = activations(n_tokens, d, device)
    sae = start(x, n_latents)
    values, indices = encode_top_k(x - sae.b_dec, sae.w_enc, sae.b_enc, K)
    hits = Hits.of(values, indices)
    by = HitsByLatent(hits, n_latents)
    sorted_values = hits.values[by.order]
    weights = hits.values.clone().requires_grad_()

    def bag(indices: Tensor, rows: Tensor, offsets: Tensor, per_sample: Tensor) -> Tensor:
        return F.embedding_bag(indices, rows, offsets, per_sample_weights=per_sample, mode="sum")

    def inner_products() -> Tensor:
        out = bag(hits.latents, sae.w_dec, hits.offsets, weights)
        return torch.autograd.grad(out, weights, x)[0]

    gathered, dense = 4 * values.numel() * d, 4 * n_tokens * d
    # A block of columns of all tokens stays in the cache: it is read from memory once.
    measured: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor], int]] = {
        "decode": (
            lambda: hits.decode(sae.w_dec),
            lambda: bag(hits.latents, sae.w_dec, hits.offsets, hits.values),
            gathered + dense,
        ),
        "dot_rows": (lambda: hits.dot_rows(x, sae.w_dec), inner_products, gathered + dense),
        "row_gradient": (
            lambda: by.row_gradient(hits.values, x),
            lambda: bag(by.tokens, x, by.offsets, sorted_values),
            dense + 4 * n_latents * d,
        ),
    }
    source = torch.empty(2**28 if device.type == "cuda" else 2**20, device=device)
    target = torch.empty_like(source)
    copied = milliseconds(lambda: target.copy_(source), args.steps, device)
    rate = 8 * source.numel() / copied
    most = int(torch.bincount(hits.latents).max())
    print(f"\n{name}, {n_tokens:,} tokens: sparse products; the busiest latent has {most:,} hits")
    found: list[Row] = []
    for product_name, (kernel, plain, n_bytes) in measured.items():
        torch.testing.assert_close(kernel(), plain(), rtol=1e-3, atol=1e-3)
        ours_ms, plain_ms = (milliseconds(run, args.steps, device) for run in (kernel, plain))
        row: Row = {"kind": "product", "shape": name, "tokens": n_tokens, "what": product_name}
        row |= {"ms": ours_ms, "pytorch_ms": plain_ms, "bytes_ms": n_bytes / rate}
        found.append(row)
        print(
            f"  {product_name:22}{ours_ms:9.3f} ms   PyTorch {plain_ms:9.3f} ms"
            f"   bytes {n_bytes / rate:9.3f} ms   ratio {plain_ms / ours_ms:6.2f}"
        )
    return found


def main() -> None:
    """Measure what the arguments name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES)[1:])
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS, help="per step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps per round")
    parser.add_argument("--json", type=Path, help="file for the rows")
    args = parser.parse_args()
    if args.device.type == "cuda" and not torch.cuda.is_available():
        print("nothing measured: PyTorch sees no CUDA device here")
        sys.exit(0)
    if args.device.type == "cuda" and importlib.util.find_spec("triton") is None:
        print("nothing measured: Triton is not installed, which the kernels are written in")
        sys.exit(0)
    name = "CPU"
    if args.device.type == "cuda":
        import triton  # .venv-peers has its own, which need not be that of PyTorch

        card = torch.cuda.get_device_properties(0)
        name = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, Triton {triton.__version__}"
    print(f"{name}, PyTorch {torch.__version__}, k {K}")
    rows: list[Row] = []
    for name in args.shapes:
        for n_tokens in args.tokens:
            rows += steps(name, n_tokens, args)
            # After each case, so that a time limit loses no row that is done.
            if args.json:
                args.json.write_text(json.dumps(rows, indent=1) + "\n")
        try:
            rows += kernels(name, max(args.tokens), args)
        except torch.OutOfMemoryError:
            print(f"\n{name}: the sparse products alone do not fit: lower --tokens")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
