"""A TopK training step on a GPU: `python benchmarks/gpu_train_step.py`.

For the widths of Pythia-70m, 1b and 6.9b and 4,096 to 16,384 tokens per step, in one process and
interleaved rounds: ours, and EleutherAI's sparsify with its own kernels where that package can be
imported, in float32 and as it ships (the forward pass in bfloat16). Printed are

    tokens/s    median of the rounds, the optimizer's step included
    product     the time of the encoder's matrix product, measured alone at the same precision, as a
                share of the step's: at 100% nothing but this one product would cost anything
    GiB         peak memory, and what the formula of `nullsae.sae.triton_kernels` says
    ratio       our tokens/s over theirs

and then, for each sparse product, the time of our kernel, of PyTorch's `embedding_bag` for the
same, and of the bytes that must be read and written at the measured rate of a copy.

Without a GPU it says so and ends.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import statistics
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from nullsae.config.saes import Sae
from nullsae.core.randomness import torch_generator
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.chunks import rows_at_once
from nullsae.sae.initialization import initialize
from nullsae.sae.kernels import Hits, HitsByLatent, encode_top_k
from nullsae.sae.trainer import Trainer

SHAPES = {"pythia-70m": (512, 2**15), "pythia-1b": (2048, 2**17), "pythia-6.9b": (4096, 2**18)}
TOKENS = (4096, 8192, 16_384)
K = 32
SAMPLE_TOKENS = 1024
DIRECTIONS_PER_TOKEN = 24
Step = Callable[[Tensor], object]


def activations(n_tokens: int, d: int) -> Tensor:
    """Sums of 24 of 4 d random directions with frequencies as 1 / rank, and 5% noise."""
    generator = torch_generator(0, "gpu_train_step", "activations", d)
    n = 4 * d
    directions = F.normalize(torch.randn(n, d, generator=generator), dim=1).cuda()
    frequency = 1.0 / torch.arange(1, n + 1)
    shape = (n_tokens, DIRECTIONS_PER_TOKEN)
    drawn = torch.multinomial(
        frequency, n_tokens * DIRECTIONS_PER_TOKEN, replacement=True, generator=generator
    )
    size = torch.empty(shape).exponential_(generator=generator)
    x = F.embedding_bag(
        drawn.view(shape).cuda(), directions, per_sample_weights=size.cuda(), mode="sum"
    )
    noise = torch.randn(n_tokens, d, generator=generator).cuda()
    x += 0.05 * x.norm(dim=1).mean() * noise / d**0.5
    return x * (d**0.5 / x.norm(dim=1).mean())


def start(x: Tensor, n_latents: int) -> Autoencoder:
    """An SAE to start from, on the GPU."""
    generator = torch_generator(0, "gpu_train_step", "start", n_latents)
    return initialize(x[:SAMPLE_TOKENS], n_latents=n_latents, k=K, generator=generator)


def ours(x: Tensor, n_latents: int) -> Step:
    """Our training step."""
    recipe = Sae.of(n_latents=n_latents, k=K)
    return Trainer(recipe, 10**6, start(x, n_latents), k=K).train_step


def sparsify(x: Tensor, n_latents: int, *, as_shipped: bool) -> Step:
    """Theirs: what `Trainer.fit` does with a batch, with PyTorch's fused Adam."""
    os.environ["SPARSIFY_DISABLE_TRITON"] = "0"  # which .venv-peers sets to 1
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=n_latents, k=K), device="cuda")
    adam = torch.optim.Adam(coder.parameters(), lr=1e-4, fused=True)
    # Under the decorator that makes it bfloat16.
    forward = SparseCoder.forward if as_shipped else SparseCoder.forward.__wrapped__

    def step(batch: Tensor) -> None:
        coder.set_decoder_norm_to_unit_norm()
        forward(coder, batch).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        adam.step()
        adam.zero_grad()

    return step


def milliseconds(run: Callable[[], object], repeats: int) -> float:
    """Time of one run on the GPU, the mean of some after three that do not count."""
    for _ in range(3):
        run()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / repeats


def product(x: Tensor, sae: Autoencoder, repeats: int) -> float:
    """Milliseconds of the encoder's matrix product alone, in chunks of tokens."""
    chunk = min(len(x), rows_at_once(sae.n_latents, x.device.type))
    pre = x.new_empty(chunk, sae.n_latents)

    def run() -> None:
        for part in x.split(chunk):
            torch.addmm(sae.b_enc, part, sae.w_enc.t(), out=pre[: len(part)])

    return milliseconds(run, repeats)


def formula_bytes(n_latents: int, d: int, n_tokens: int) -> int:
    """What a step must hold: see the first lines of `nullsae.sae.triton_kernels`."""
    from nullsae.sae.triton_kernels import windows

    chunk = min(n_tokens, rows_at_once(n_latents, "cuda"))
    _, n_windows = windows(n_tokens * K)
    matrices = (24 + 8) * n_latents * d
    return matrices + 4 * chunk * n_latents + 8 * n_windows * d + (24 * d + 60 * K) * n_tokens


def free() -> None:
    """Give back what the last contender held."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def measured(build: Callable[[], Step], x: Tensor, repeats: int) -> tuple[float, int]:
    """Milliseconds of a step, and the most bytes that were held while it ran."""
    step = build()
    # Building may take more than a step does.
    torch.cuda.reset_peak_memory_stats()
    return milliseconds(lambda: step(x), repeats), torch.cuda.max_memory_allocated()


def steps(name: str, n_tokens: int, args: argparse.Namespace) -> None:
    """Print one line per contender for one shape and batch."""
    d, n_latents = SHAPES[name]
    x = activations(n_tokens, d)
    contenders: dict[str, Callable[[], Step]] = {"nullsae": lambda: ours(x, n_latents)}
    if importlib.util.find_spec("sparsify"):
        contenders["sparsify, float32"] = lambda: sparsify(x, n_latents, as_shipped=False)
        contenders["sparsify, as shipped"] = lambda: sparsify(x, n_latents, as_shipped=True)
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    peaks = dict.fromkeys(contenders, 0)
    for _ in range(args.rounds):
        for contender, build in contenders.items():
            free()
            try:
                time, peaks[contender] = measured(build, x, args.steps)
            except torch.OutOfMemoryError:
                continue
            times[contender].append(time)
    free()
    alone = product(x, start(x, n_latents), args.steps)
    formula = formula_bytes(n_latents, d, n_tokens)
    rate = 2 * n_tokens * n_latents * d / alone * 1e-9
    print(
        f"\n{name}: d {d:,}, {n_latents:,} latents, {n_tokens:,} tokens a step; the product alone "
        f"takes {alone:.2f} ms ({rate:.0f} TFLOP/s); formula {formula / 2**30:.1f} GiB"
    )
    reference = statistics.median(times["nullsae"]) if times["nullsae"] else None
    for contender, found in times.items():
        if not found:
            print(f"  {contender:22} out of memory: lower --tokens")
            continue
        median = statistics.median(found)
        ratio = f"{median / reference:6.2f}" if reference else "     -"
        print(
            f"  {contender:22}{median:9.2f} ms{n_tokens / median * 1e3:12,.0f} tokens/s"
            f"{alone / median:8.0%} product{peaks[contender] / 2**30:8.1f} GiB   ratio {ratio}"
        )


def kernels(name: str, n_tokens: int, args: argparse.Namespace) -> None:
    """Print one line per sparse product for one shape and batch."""
    from nullsae.sae import triton_kernels

    free()
    d, n_latents = SHAPES[name]
    x = activations(n_tokens, d)
    sae = start(x, n_latents)
    values, indices = encode_top_k(x - sae.b_dec, sae.w_enc, sae.b_enc, K)
    hits = Hits.of(values, indices)
    by = HitsByLatent(hits, n_latents)
    sorted_hits = (by.order, by.tokens, by.offsets)
    sorted_values = hits.values[by.order]
    weights = hits.values.clone().requires_grad_()

    def bag(indices: Tensor, rows: Tensor, offsets: Tensor, per_sample: Tensor) -> Tensor:
        return F.embedding_bag(indices, rows, offsets, per_sample_weights=per_sample, mode="sum")

    def inner_products() -> Tensor:
        out = bag(hits.latents, sae.w_dec, hits.offsets, weights)
        return torch.autograd.grad(out, weights, x)[0]

    gathered, dense = 4 * values.numel() * d, 4 * n_tokens * d
    # A block of columns of all tokens stays in the cache: they are read from memory once.
    measured: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor], int]] = {
        "decode": (
            lambda: triton_kernels.decode(hits.values, hits.latents, hits.offsets, sae.w_dec),
            lambda: bag(hits.latents, sae.w_dec, hits.offsets, hits.values),
            gathered + dense,
        ),
        "dot_rows": (
            lambda: triton_kernels.dot_rows(x, hits.latents, hits.offsets, sae.w_dec),
            inner_products,
            gathered + dense,
        ),
        "row_gradient": (
            lambda: triton_kernels.row_gradient(hits.values, *sorted_hits, x),
            lambda: bag(by.tokens, x, by.offsets, sorted_values),
            dense + 4 * n_latents * d,
        ),
    }
    source = torch.empty(2**28, device="cuda")
    target = torch.empty_like(source)
    copied = milliseconds(lambda: target.copy_(source), args.steps)
    rate = 8 * source.numel() / copied
    most = int(torch.bincount(hits.latents).max())
    print(f"\n{name}, {n_tokens:,} tokens: sparse products; the busiest latent has {most:,} hits")
    for product_name, (kernel, plain, n_bytes) in measured.items():
        torch.testing.assert_close(kernel(), plain(), rtol=1e-3, atol=1e-3)
        ours_ms, plain_ms = (milliseconds(run, args.steps) for run in (kernel, plain))
        print(
            f"  {product_name:22}{ours_ms:9.3f} ms   PyTorch {plain_ms:9.3f} ms"
            f"   bytes {n_bytes / rate:9.3f} ms   ratio {plain_ms / ours_ms:6.2f}"
        )


def main() -> None:
    """Measure what the arguments name."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tokens", nargs="+", type=int, default=TOKENS, help="per step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="timed steps per round")
    parser.add_argument(
        "--precision",
        choices=("highest", "high"),
        default="high",
        help="of float32 products: high is TensorFloat-32, which sparsify sets",
    )
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("nothing measured: PyTorch sees no CUDA device here")
        sys.exit(0)
    if importlib.util.find_spec("triton") is None:
        print("nothing measured: Triton is not installed, which the kernels are written in")
        sys.exit(0)
    torch.set_float32_matmul_precision(args.precision)
    card = torch.cuda.get_device_properties(0)
    print(
        f"{card.name}, {card.total_memory / 2**30:.0f} GiB, PyTorch {torch.__version__}, float32 "
        f"products at precision {args.precision!r}, k {K}"
    )
    for name in args.shapes:
        for n_tokens in args.tokens:
            steps(name, n_tokens, args)
        try:
            kernels(name, max(args.tokens), args)
        except torch.OutOfMemoryError:
            print(f"\n{name}: the sparse products alone do not fit: lower --tokens")


if __name__ == "__main__":
    main()
