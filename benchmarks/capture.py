"""Measure what capturing costs on top of the forward pass: `python benchmarks/capture.py`.

A GPT-NeoX of Pythia-70m's shape with random weights, all six `resid_post` sites in one pass, stored
as bfloat16 with checksums. Each round runs the bare forward pass up to the same last site (no head,
nothing kept), then `cache_activations` on a checkpoint folder over the same tokens in the same
batches; each figure is the median of the rounds, with their range. CPU seconds count all threads
and are more reliable than wall time on a shared machine. The second table times reading shards back
as training does; the reference is a fifth of a training step of as many tokens (130 CPU ms at 256
dimensions, TopK). The third is the peak memory of capturing 1 and 4 times as many tokens, each in a
separate process (Linux only).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

# Read when torch loads: threads that spin while they wait would count as work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import numpy as np
import torch
from safetensors.numpy import save_file

from nullsae.activations.capture import cache_activations
from nullsae.activations.store import SiteReader, SiteWriter
from nullsae.config.compute import Compute
from nullsae.core.files import checksum, write_json
from nullsae.core.randomness import numpy_generator, torch_generator
from nullsae.jobs.activations import CacheActivationsParams
from nullsae.subjects.folders import save_subject
from nullsae.subjects.loading import load_subject

CONTEXT_TOKENS = 256
VOCAB, D_MODEL, N_LAYERS, N_HEADS = 50_304, 512, 6, 8
SITES = tuple(f"resid_post.{layer}" for layer in range(N_LAYERS))
CPU = torch.device("cpu")
GOAL = 0.95
# Reading.
STEP_TOKENS, STEP_D_MODEL, STEP_MS = 4096, 256, 130.0
READ_SHARDS, READ_SHARD_TOKENS = 4, 65_536
MEMORY_SHARDS = 4


def params(arguments: argparse.Namespace, shard_tokens: int) -> CacheActivationsParams:
    """Return the parameters of a capture of all tokens of a corpus."""
    return CacheActivationsParams(
        sites=SITES,
        seed=0,
        dtype="bfloat16",
        shard_tokens=shard_tokens,
        batch_contexts=arguments.batch_contexts,
        compute=Compute(threads=arguments.threads, device="cpu"),
    )


def make_subject(folder: Path) -> Path:
    """Write a checkpoint folder with random weights; return its recipe."""
    from transformers import AutoModelForCausalLM, GPTNeoXConfig

    config = GPTNeoXConfig(
        vocab_size=VOCAB,
        hidden_size=D_MODEL,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        intermediate_size=4 * D_MODEL,
        max_position_embeddings=2048,
    )
    with torch.random.fork_rng(devices=[]):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            drawn = torch.randn(parameter.shape, generator=torch_generator(0, "benchmark", name))
            parameter.data.copy_(drawn * 0.02)
    save_subject(model, folder, {"seed": 0, "draw": 0, "source": {}})
    return folder / "recipe.json"


def make_corpus(folder: Path, n_tokens: int) -> Path:
    """Draw random token ids; return the split's manifest."""
    folder.mkdir(parents=True)
    shape = (n_tokens // CONTEXT_TOKENS, CONTEXT_TOKENS)
    ids = numpy_generator(0, "benchmark_tokens").integers(0, VOCAB, shape, dtype=np.int32)
    file = folder / "tokens.safetensors"
    save_file({"input_ids": ids, "document_id": np.zeros_like(ids)}, file)
    manifest = {"tokens_checksum": checksum(file), "vocab_size": VOCAB}
    write_json(folder / "manifest.json", manifest)
    return folder / "manifest.json"


def cpu_seconds(work: Callable[[], object]) -> float:
    """Return the CPU seconds of all threads."""
    start = time.process_time()
    work()
    return time.process_time() - start


def line(what: str, figures: list[float], unit: str) -> None:
    """Print a median and its range."""
    middle = f"{median(figures):12,.3f}" if unit == "" else f"{median(figures):12,.1f}"
    spread = f"{min(figures):,.3g} to {max(figures):,.3g}"
    print(f"{what:58}{middle} {unit:18}{spread}", flush=True)


def capture(arguments: argparse.Namespace, folder: Path) -> None:
    """Print tokens per CPU second of the bare pass and of nullsae, and bytes on disk."""
    recipe = make_subject(folder / "model")
    tokens = make_corpus(folder / "corpus", arguments.tokens)
    torch.set_num_threads(arguments.threads)
    subject = load_subject(recipe, CPU)
    ids = numpy_generator(0, "benchmark_tokens").integers(
        0, VOCAB, (arguments.tokens // CONTEXT_TOKENS, CONTEXT_TOKENS), dtype=np.int32
    )
    batches = torch.from_numpy(ids).long().split(arguments.batch_contexts)
    settings, output = params(arguments, arguments.shard_tokens), folder / "activations"

    @torch.inference_mode()
    def bare() -> None:
        for batch in batches:
            subject.model.base_model(input_ids=batch, use_cache=False)

    def ours() -> None:
        cache_activations(settings, split="sae_train", model=recipe, tokens=tokens, output=output)

    subject.model.base_model(input_ids=batches[0], use_cache=False)
    rates: dict[str, list[float]] = {"bare": [], "ours": [], "ratio": []}
    for _ in range(arguments.rounds):
        shutil.rmtree(output, ignore_errors=True)
        rates["bare"].append(arguments.tokens / cpu_seconds(bare))
        rates["ours"].append(arguments.tokens / cpu_seconds(ours))
        rates["ratio"].append(rates["ours"][-1] / rates["bare"][-1])
    loading = cpu_seconds(lambda: load_subject(recipe, CPU))
    line("forward pass up to the last site", rates["bare"], "tokens/CPU s")
    line(f"cache_activations, {len(SITES)} sites", rates["ours"], "tokens/CPU s")
    line(f"ratio (goal {GOAL})", rates["ratio"], "")
    print(f"{'  of which loading the subject':58}{loading:12.2f} CPU s once")
    size = sum(file.stat().st_size for file in output.rglob("*.safetensors"))
    print(f"{'on disk':58}{size / arguments.tokens / len(SITES):12.1f} bytes per token and site")


def reading(arguments: argparse.Namespace, folder: Path) -> None:
    """Print CPU ms to read the tokens of a training step: verified and in batches, or by shard."""
    writer = SiteWriter(folder / f"site={SITES[0]}", dtype="bfloat16")
    for index in range(READ_SHARDS):
        generator = torch_generator(0, "benchmark_shard", index)
        x = torch.randn(READ_SHARD_TOKENS, STEP_D_MODEL, generator=generator)
        writer.write(index, x.bfloat16(), torch.arange(READ_SHARD_TOKENS))
    writer.finish(key="key")
    steps = READ_SHARDS * READ_SHARD_TOKENS / STEP_TOKENS

    def opened() -> SiteReader:
        return SiteReader.open(folder / "manifest.json", SITES[0])

    def by_batch() -> None:
        for _ in opened().batches(STEP_TOKENS):
            pass

    def by_shard() -> None:
        reader = opened()
        for index in range(READ_SHARDS):
            x, _ = reader.stored(index)
            order = torch.randperm(len(x), generator=torch_generator(0, "benchmark_order", index))
            for rows in order.split(STEP_TOKENS):
                x[rows].float()

    found: dict[str, list[float]] = {"verify": [], "batches": [], "shards, permuted": []}
    for _ in range(max(3, arguments.rounds)):
        works = (lambda: opened().check(), by_batch, by_shard)
        for name, work in zip(found, works, strict=True):
            found[name].append(1000 * cpu_seconds(work) / steps)
    print(f"\nCPU ms per {STEP_TOKENS} tokens at {STEP_D_MODEL} dimensions")
    for name, figures in found.items():
        line(name, figures, "CPU ms")
    for name in ("batches", "shards, permuted"):
        both = [a + b for a, b in zip(found["verify"], found[name], strict=True)]
        rates = [STEP_MS / ms for ms in both]
        line(f"{name} and verification, of a step's need (goal 5)", rates, "times")


def memory(arguments: argparse.Namespace, folder: Path) -> None:
    """Print the peak memory of capturing 1 and 4 times as many tokens."""
    small = MEMORY_SHARDS * arguments.memory_shard_tokens
    print(f"\npeak memory, shards of {arguments.memory_shard_tokens:,} tokens")
    peaks = []
    for n_tokens in (small, 4 * small):
        make_corpus(folder / str(n_tokens), n_tokens)
        command = [sys.executable, __file__, *sys.argv[1:], "--measure", str(n_tokens)]
        done = subprocess.run([*command, str(folder)], check=True, capture_output=True, text=True)
        peaks.append(float(done.stdout.split()[-1]))
        print(f"{f'{n_tokens:,} tokens':58}{peaks[-1]:12.1f} MiB", flush=True)
    print(f"{'ratio (goal 1.05)':58}{peaks[1] / peaks[0]:12.3f}")


def measure(arguments: argparse.Namespace) -> None:
    """Capture in this process and print its peak memory."""
    n_tokens, folder = arguments.measure
    cache_activations(
        params(arguments, arguments.memory_shard_tokens),
        split="sae_train",
        model=Path(folder) / "model/recipe.json",
        tokens=Path(folder) / n_tokens / "manifest.json",
        output=Path(folder) / f"activations-{n_tokens}",
    )
    # Not ru_maxrss: a process inherits that of its parent.
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def main() -> None:
    """Print three tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--shard-tokens", type=int, default=16_384)
    parser.add_argument("--memory-shard-tokens", type=int, default=8_192)
    parser.add_argument("--batch-contexts", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        measure(arguments)
        return
    print(
        f"{arguments.tokens:,} tokens, contexts of {CONTEXT_TOKENS}, {arguments.threads} threads, "
        f"median of {arguments.rounds} rounds, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        capture(arguments, folder)
        reading(arguments, folder / "read")
        memory(arguments, folder)


if __name__ == "__main__":
    main()
