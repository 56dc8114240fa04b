"""Measure CPU time and memory of a training step: `python benchmarks/train_step.py`.

This compares nullsae (`Trainer.train_step` of a TopK SAE), the peers' own training loops, and the
counted limit, on the same rows in memory (`synthetic.bench_like`): float32, k 32, 4096 tokens per
step. CPU time counts all threads; unlike wall time, it hardly depends on what else the machine
does. The script prints medians over rounds, in which all take turns, of the median step, and
ratios.

The limit counts what any exact step does, at the rates of this machine, measured in the same
rounds: the encoder's product, 2 B d n operations, by the faster of two libraries; one read of its
result, 4 B n bytes; fused Adam, 28 bytes per weight of encoder and decoder; and five passes over
the rows of the B k hits, 4 B k d bytes each: decode, inner products, the two row gradients, and the
gradient of b_dec. Bytes move at the rate of copying the decoder, which is higher if it fits into a
cache.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from synthetic import PEERS_PYTHON, bench_like

from nullsae.config.saes import Sae
from nullsae.core.randomness import torch_generator
from nullsae.sae.initialization import initialize
from nullsae.sae.kernels import encoder
from nullsae.sae.trainer import Trainer

K, BATCH_TOKENS = 32, 4096
# Rows of a product whose result stays in a cache.
PRODUCT_ROWS = 256
SKIPPED_STEPS = 3  # of each training, which are not counted
LIMIT, OURS = "counted limit", "ours"
PEERS = ("sparsify", "saelens", "saelens-sparse")


@dataclass(frozen=True)
class Shape:
    """One size of SAE, and how many steps of it are timed."""

    d_model: int
    n_latents: int
    steps: int
    peers: tuple[str, ...]


SHAPES = {
    "small": Shape(256, 2048, 24, PEERS),
    "wide": Shape(256, 8192, 10, PEERS),
    # Pythia-70m's. A step of SAELens' dense loop takes a minute there and 10 GB.
    "70m": Shape(512, 32_768, 8, ("sparsify",)),
}


def step_ours(rows: Path, shape: Shape) -> dict[str, object]:
    """Time steps of nullsae's trainer."""
    x = torch.from_numpy(np.load(rows))
    recipe = Sae.of(n_latents=shape.n_latents, k=K, batch_tokens=BATCH_TOKENS)
    generator = torch_generator(0, "sae_init", "benchmark")
    start = initialize(x[:BATCH_TOKENS], n_latents=shape.n_latents, k=K, generator=generator)
    trainer = Trainer(recipe, shape.steps, start, k=K)
    stamps = [(time.process_time(), time.perf_counter())]
    for batch in x.split(BATCH_TOKENS):
        trainer.train_step(batch)
        stamps.append((time.process_time(), time.perf_counter()))
    cpu, wall = (np.diff(clock) * 1e3 for clock in zip(*stamps, strict=True))
    return {"cpu_ms": cpu.tolist(), "wall_ms": wall.tolist(), "peak_mib": peak_mib()}


def counted_limit(shape: Shape) -> dict[str, object]:
    """Return the CPU milliseconds of a step at the rates of this machine."""
    d, n, tokens = shape.d_model, shape.n_latents, BATCH_TOKENS
    x, w = torch.randn(tokens, d), torch.randn(n, d)
    pre = torch.empty(tokens, n)
    flops = 2 * tokens * d * n
    # Which of the two libraries is faster depends on the processor.
    packed = encoder(w, torch.zeros(n), PRODUCT_ROWS)
    product = min(
        least_cpu_seconds(lambda: torch.mm(x, w.t(), out=pre)),
        least_cpu_seconds(lambda: [packed(part) for part in x.split(PRODUCT_ROWS)]),
    )
    target = torch.empty_like(w)
    rate = 8 * d * n / least_cpu_seconds(lambda: target.copy_(w))
    moved = 4 * tokens * n + 28 * 2 * d * n + 5 * 4 * tokens * K * d
    return {
        "cpu_ms": [(product + moved / rate) * 1e3],
        "gflops": flops / product / 1e9,
        "gbytes": rate / 1e9,
    }


def least_cpu_seconds(run: Callable[[], object], times: int = 12) -> float:
    """Return the least CPU time of several runs."""
    found = []
    for _ in range(times):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def peak_mib() -> float:
    """Return the peak memory of this process (VmHWM; ru_maxrss is inherited from the parent)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def child(name: str, shape_name: str, rows: Path, threads: int) -> dict[str, object]:
    """Run one part in a separate process."""
    shape = SHAPES[shape_name]
    if name in PEERS:
        sizes = {"n-latents": shape.n_latents, "k": K, "batch-tokens": BATCH_TOKENS}
        options = [f"--{key}={value}" for key, value in {**sizes, "threads": threads}.items()]
        script = Path(__file__).with_name("peers_train_step.py")
        command = [str(PEERS_PYTHON), str(script), name, str(rows), *options]
    else:
        options = [f"--rows={rows}", f"--shape={shape_name}", f"--threads={threads}"]
        command = [sys.executable, __file__, f"--only={name}", *options]
    quiet = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **quiet}
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def parts(shape: Shape, *, peers: bool) -> Iterator[str]:
    """Return what is measured for a shape, in turn."""
    yield LIMIT
    yield OURS
    if peers:
        yield from shape.peers


def compare(shape_name: str, rounds: int, threads: int, *, peers: bool) -> None:
    """Measure one shape and print its table."""
    shape = SHAPES[shape_name]
    found: dict[str, list[dict[str, object]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.npy"
        data = bench_like(0, shape.d_model)
        np.save(rows, data.tokens(shape.steps * BATCH_TOKENS, "train").numpy())
        for _ in range(rounds):
            for name in parts(shape, peers=peers):
                found.setdefault(name, []).append(child(name, shape_name, rows, threads))
    counted = {LIMIT: 0}
    cpu = {
        name: median(median(run["cpu_ms"][counted.get(name, SKIPPED_STEPS) :]) for run in runs)
        for name, runs in found.items()
    }
    rates = [f"{median(run[key] for run in found[LIMIT]):.0f}" for key in ("gflops", "gbytes")]
    print(
        f"\nd {shape.d_model}, {shape.n_latents} latents, k {K}, {BATCH_TOKENS} tokens, "
        f"{threads} threads, {rounds} rounds; {rates[0]} GFLOP and {rates[1]} GB per CPU second"
    )
    print(f"{'':16}{'CPU ms':>10}{'/ ours':>10}{'/ limit':>10}{'wall ms':>10}{'peak MiB':>10}")
    for name, runs in found.items():
        ratios = f"{cpu[name]:10.1f}{cpu[name] / cpu[OURS]:10.2f}{cpu[name] / cpu[LIMIT]:10.2f}"
        rest = ""
        if name != LIMIT:
            wall = median(median(run["wall_ms"][SKIPPED_STEPS:]) for run in runs)
            rest = f"{wall:10.1f}{median(run['peak_mib'] for run in runs):10.0f}"
        print(f"{name:16}{ratios}{rest}", flush=True)


def main() -> None:
    """Print a table per shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shapes", nargs="*", choices=SHAPES, default=["small", "wide"])
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--only", choices=[LIMIT, OURS], help="measure in this process")
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--rows", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.only:
        shape = SHAPES[args.shape]
        done = counted_limit(shape) if args.only == LIMIT else step_ours(args.rows, shape)
        print(json.dumps(done))
        return
    peers = not args.no_peers and PEERS_PYTHON.is_file()
    if not peers:
        print("peers left out: not requested, or not installed (make .venv-peers/installed)")
    for shape_name in args.shapes:
        compare(shape_name, args.rounds, args.threads, peers=peers)


if __name__ == "__main__":
    main()
