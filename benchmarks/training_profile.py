"""Show where the time of a training goes: `python benchmarks/training_profile.py [--device cuda]`.

Runs one job of `nullsae train_sae`, from shards on disk to the SAE's files, under PyTorch's
profiler: TopK, k 32, 4096 tokens per step, as in `train_step.py`. Prints each operator's own share
of the job's time (on a GPU also of the device's time), and the rest that no operator accounts for:
NumPy, which picks the largest on a CPU, Python, reading and checking files, waiting. A profiler
slows down small operators, so their shares are somewhat too high.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from synthetic import bench_like
from torch.profiler import ProfilerActivity, profile
from train_step import BATCH_TOKENS, SHAPES, K, Shape

from nullsae.activations.store import SiteWriter
from nullsae.config.compute import Compute
from nullsae.config.saes import Sae
from nullsae.core.files import write_json
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.saes import SaeCell, TrainSaeParams
from nullsae.sae.train_sae import train_sae

SITE, SHARD_TOKENS, CONTEXT_TOKENS = "resid_post.0", 32_768, 128
# Operators with smaller shares are summed up.
LEAST_SHARE = 0.02


def write_shards(folder: Path, shape: Shape, n_tokens: int) -> Path:
    """Write activations with known directions, in bfloat16; return their manifest."""
    rows = bench_like(0, shape.d_model).tokens(n_tokens, folder.name).bfloat16()
    writer = SiteWriter(folder / f"site={SITE}", dtype="bfloat16", key="")
    for index, start in enumerate(range(0, n_tokens, SHARD_TOKENS)):
        shard = rows[start : start + SHARD_TOKENS]
        writer.write(index, shard, torch.arange(start, start + len(shard)))
    writer.finish(key="", site=SITE, split=folder.name, context_tokens=CONTEXT_TOKENS)
    write_json(folder / "manifest.json", {"key": ""})
    return folder / "manifest.json"


def profiled(folder: Path, shape: Shape, compute: Compute, n_tokens: int) -> tuple[profile, float]:
    """Profile a training; return its operators and its seconds."""
    recipe = Sae.of(n_latents=shape.n_latents, k=K, batch_tokens=BATCH_TOKENS, epochs=1)
    train = write_shards(folder / "sae_train", shape, n_tokens)
    heldout = write_shards(folder / "eval", shape, recipe.heldout_tokens)
    params = TrainSaeParams(
        seed=0,
        keys=ModelKeys(subject="made", variant="trained", draw=0),
        saes={"topk": recipe},
        cells=(SaeCell(site=SITE, sae="topk", seed=0),),
        compute=compute,
    )
    activities = [ProfilerActivity.CPU]
    if compute.device != "cpu":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as found:
        start = time.perf_counter()
        train_sae(
            params,
            train_activations=train,
            eval_activations=heldout,
            output=folder / "sae",
            work=folder / "work",
        )
        seconds = time.perf_counter() - start
    return found, seconds


def print_shares(found: profile, seconds: float, *, device: str) -> None:
    """Print the operators that take most, as a table."""
    rows = found.key_averages()
    clocks = {"self_cpu_time_total": "of the job"}
    if device != "cpu":
        clocks["self_device_time_total"] = "of the device's time"
    for clock, of in clocks.items():
        spent = {row.key: 1e-6 * getattr(row, clock) for row in rows}
        whole = seconds if clock == "self_cpu_time_total" else sum(spent.values())
        print(f"\n| operator | calls | share {of} |\n|---|---|---|")
        calls = {row.key: row.count for row in rows}
        large = [name for name in spent if spent[name] >= LEAST_SHARE * whole]
        for name in sorted(large, key=lambda name: -spent[name]):
            print(f"| `{name}` | {calls[name]:,} | {spent[name] / whole:.0%} |")
        others = sum(spent.values()) - sum(spent[name] for name in large)
        print(f"| other operators | | {others / whole:.0%} |")
        if clock == "self_cpu_time_total":
            print(f"| no operator | | {1 - sum(spent.values()) / whole:.0%} |")


def main() -> None:
    """Profile one training."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--shape", default="small", choices=SHAPES)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    shape, n_tokens = SHAPES[given.shape], given.steps * BATCH_TOKENS
    compute = Compute(threads=given.threads, device=given.device)
    with tempfile.TemporaryDirectory() as folder:
        found, seconds = profiled(Path(folder), shape, compute, n_tokens)
    print(
        f"d {shape.d_model}, {shape.n_latents:,} latents, {given.steps} steps on {given.device}: "
        f"{seconds:.1f} s, {n_tokens / seconds:,.0f} tokens/s"
    )
    print_shares(found, seconds, device=given.device)


if __name__ == "__main__":
    main()
