"""Measure what collecting latents costs: `python benchmarks/latents.py`.

The work is that of one SAE on 131,072 tokens: 256 dimensions, 2,048 latents, TopK with k 32,
contexts of 256 tokens, activations cached in bfloat16. SAE and activations are synthetic (sparse
combinations of random directions whose frequencies follow a power law, the encoder their
transpose), token ids follow their own power law, and documents have 100 to 900 tokens.

Each round runs nullsae and a hand-written floor of the same work one after the other: encoding and
sorting (the floor: two-stage top-k, uint16 and float16 to one file, one stable sort in memory),
statistics of every latent (nullsae only), and, per latent, the windows for explaining and scoring.
With `--delphi`, eai-delphi's `LatentCache` and `LatentDataset` in `.venv-peers` take turns too,
with the same SAE on activations that already exist. CPU seconds count all threads; figures are
medians of the rounds. The last table is the memory of collecting 1 and 4 times as many tokens, each
in a separate process: the peak of what belongs to the process alone (Linux: RssAnon).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

# Read when torch loads: threads that spin while they wait would count as work.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file

from nullsae.activations.store import SiteReader, SiteWriter
from nullsae.config.compute import Compute
from nullsae.config.latents import Latents
from nullsae.core.files import checksum, write_json
from nullsae.core.randomness import numpy_generator, torch_generator
from nullsae.jobs.keys import CellKeys
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.latents.collect import collect_latents, draw_sample
from nullsae.latents.describe import describe
from nullsae.latents.skipped import Skipped
from nullsae.latents.sorting import Sorting
from nullsae.latents.split import Split
from nullsae.latents.windows import Grid, deal_documents, pools_of
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.exchange.export import export_sae
from nullsae.sae.files import load_sae, save_sae
from nullsae.sae.kernels import top_k

D_MODEL, N_LATENTS, K, CONTEXT_TOKENS, VOCAB = 256, 2048, 32, 256, 4096
SITE, SHARD_TOKENS, BATCH_TOKENS, WINDOW_TOKENS = "resid_post.3", 65_536, 4096, 32
KEYS = CellKeys(subject="s", variant="trained", draw=0, site=SITE, sae="a", seed=0)
# What delphi and the floor build per latent: 40 and 50 active windows, 50 silent ones.
SETTINGS = Latents(
    n_sampled=200,
    min_pool_windows=50,
    explain_silent_windows=1,
    score_active_windows=50,
    score_silent_windows=50,
    top_windows=0,
)
PEERS_PYTHON = Path(__file__).parents[1] / ".venv-peers" / "bin" / "python"
PEERS_SCRIPT = Path(__file__).with_name("peers_latents.py")


def make_inputs(folder: Path, n_tokens: int) -> None:
    """Make an SAE, a corpus and its activations."""
    rng = numpy_generator(0, "benchmark_tokens")
    ids = np.minimum(rng.zipf(1.2, n_tokens) - 1, VOCAB - 1).astype(np.int32)
    documents = np.repeat(np.arange(n_tokens, dtype=np.int32), rng.integers(100, 900, n_tokens))
    shape = (n_tokens // CONTEXT_TOKENS, CONTEXT_TOKENS)
    corpus = folder / "corpus"
    corpus.mkdir(parents=True)
    file = corpus / "tokens.safetensors"
    save_file(
        {
            "input_ids": ids.reshape(shape),
            "document_id": np.ascontiguousarray(documents[:n_tokens].reshape(shape)),
        },
        file,
    )
    write_json(corpus / "manifest.json", {"tokens_checksum": checksum(file)})

    generator = torch_generator(0, "benchmark_sae")
    directions = F.normalize(torch.randn(N_LATENTS, D_MODEL, generator=generator), dim=1)
    sae = Autoencoder(
        "topk",
        directions,
        0.05 * torch.randn(N_LATENTS, generator=generator),
        directions.clone(),
        0.1 * torch.randn(D_MODEL, generator=generator),
        k=K,
    )
    save_sae(
        sae,
        folder / "sae",
        dictionary="learned",
        keys=KEYS,
        seed=0,
        activations_key="",
        key="",
        input_norm=1.0,
        training={},
        n_steps=1,
    )
    export_sae(folder / "sae/cfg.json", "sparsify", folder / "sparsify")
    frequency = 1 / (torch.arange(N_LATENTS).double() + 30)
    writer = SiteWriter(folder / f"activations/site={SITE}", dtype="bfloat16", key="")
    for index, start in enumerate(range(0, n_tokens, SHARD_TOKENS)):
        n = min(SHARD_TOKENS, n_tokens - start)
        chosen = torch.multinomial(frequency, n * K, replacement=True, generator=generator)
        strength = 0.5 + torch.empty(n, K).exponential_(generator=generator)
        x = F.embedding_bag(chosen.view(n, K), directions, per_sample_weights=strength, mode="sum")
        x += sae.b_dec + 0.05 * torch.randn(n, D_MODEL, generator=generator)
        writer.write(index, x.bfloat16(), torch.arange(start, start + n))
    writer.finish(key="", site=SITE, split="eval", context_tokens=CONTEXT_TOKENS)
    write_json(folder / "activations/manifest.json", {"key": ""})


def params(threads: int) -> CollectLatentsParams:
    """Return the settings of all rounds."""
    return CollectLatentsParams(
        seed=0, keys=KEYS, latents=SETTINGS, compute=Compute(threads=threads, device="cpu")
    )


@contextmanager
def timed(row: dict[str, float], name: str) -> Iterator[None]:
    """Record the CPU seconds of a block in a row."""
    cpu = time.process_time()
    yield
    row[name] = time.process_time() - cpu


def ours(folder: Path, threads: int) -> dict[str, float]:
    """Run the stages of `collect_latents`, in order, and time each in CPU seconds."""
    row: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        with timed(row, "sort_s"):
            sae, _ = load_sae(folder / "sae/cfg.json")
            reader = SiteReader.open(folder / "activations/manifest.json", SITE)
            reader.check()
            split = Split.open(folder / "corpus/manifest.json")
            skipped = Skipped.of(split, SETTINGS, reader)
            sorting = Sorting(sae, skipped, Path(scratch))
            for x, at in reader.batches():
                sorting.add(x, at)
            found = sorting.sorted()
        with timed(row, "describe_s"):
            grid = Grid.cut(split.document.reshape(-1, CONTEXT_TOKENS), WINDOW_TOKENS)
            dealt = deal_documents(grid, numpy_generator(0, "pools"))
            pools = pools_of(grid.document, dealt)
            each = (grid, pools, dealt, SETTINGS, Path(scratch), reader.n_tokens)
            known = describe(found, split, *each)
        enough = (known.active >= 100).all(axis=0) & (known.silent >= 50).all(axis=0)
        latents = np.flatnonzero(enough)[: SETTINGS.n_sampled]
        with timed(row, "draw_s"):
            rows, _ = draw_sample(latents, found, known, skipped, pools, dealt, params(threads))
            n_rows = rows.table().num_rows
    return {**row, "n_latents": len(latents), "n_rows": n_rows, "n_firings": len(found.position)}


def floor(folder: Path) -> dict[str, float]:
    """Do the least that this work takes: all in memory, no checks, no statistics."""
    row: dict[str, float] = {}
    sae, _ = load_sae(folder / "sae/cfg.json")
    reader = SiteReader.open(folder / "activations/manifest.json", SITE)
    split = Split.open(folder / "corpus/manifest.json")
    n_tokens, rng = reader.n_tokens, numpy_generator(0, "floor")
    index = np.empty((n_tokens, K), np.uint16)
    value = np.empty((n_tokens, K), np.float16)
    with timed(row, "sort_s"):
        weight, bias = sae.w_enc.t().contiguous(), sae.b_enc - sae.w_enc @ sae.b_dec
        start = 0
        for x, _ in reader.batches(BATCH_TOKENS):
            values, indices = top_k(torch.addmm(bias, x, weight), K)
            index[start : start + len(x)] = indices.numpy()
            value[start : start + len(x)] = values.numpy()
            start += len(x)
        save_file({"index": index, "value": value}, folder / "floor.safetensors")
        flat = index.reshape(-1)
        order = np.argsort(flat, kind="stable")
        ends = np.cumsum(np.bincount(flat, minlength=N_LATENTS))
        where, strength = (order // K).astype(np.uint32), value.reshape(-1)[order]
    n_windows, ids, built = n_tokens // WINDOW_TOKENS, np.array(split.ids), []
    with timed(row, "draw_s"):
        for latent in range(N_LATENTS):
            if len(built) == SETTINGS.n_sampled:
                break
            part = slice(ends[latent - 1] if latent else 0, ends[latent])
            position, activation = where[part], strength[part].astype(np.float32)
            position, activation = position[activation > 0], activation[activation > 0]
            cell = position // WINDOW_TOKENS
            first = np.flatnonzero(np.diff(cell, prepend=-1))
            if not 200 <= len(first) <= n_windows - 50:
                continue
            rank = np.argsort(-np.maximum.reduceat(activation, first), kind="stable")
            decile = len(rank) // 10
            pick = np.concatenate(
                [rank[i * decile + rng.choice(decile, 9, replace=False)] for i in range(10)]
            )
            last = np.append(first[1:], len(position))
            silent = np.ones(n_windows, bool)
            silent[cell[first]] = False
            empty = rng.choice(np.flatnonzero(silent), 50)
            windows = np.concatenate([cell[first][pick], empty]).astype(np.int64)
            tokens = ids[windows[:, None] * WINDOW_TOKENS + np.arange(WINDOW_TOKENS)]
            dense = np.zeros((len(pick), WINDOW_TOKENS), np.float32)
            for i, j in enumerate(pick):
                own = slice(first[j], last[j])
                dense[i, position[own] % WINDOW_TOKENS] = activation[own]
            built.append((latent, tokens, dense))
    return {**row, "n_latents": len(built)}


def delphi(folder: Path, threads: int) -> dict[str, float]:
    """Run `peers_latents.py` in a separate process, which counts its own CPU seconds."""
    done = subprocess.run(
        [PEERS_PYTHON, PEERS_SCRIPT, folder, str(threads)], stdout=subprocess.PIPE, check=True
    )
    row: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return row


def own_memory_mib() -> float:
    """Return memory that belongs to this process alone, not to files that it maps."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 1024


def peak_memory(folder: Path, threads: int) -> None:
    """Collect once and print how far memory rose at its peak, in MiB."""
    highest, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, own_memory_mib())

    before = own_memory_mib()
    watcher = threading.Thread(target=watch)
    watcher.start()
    names = ("latents", "windows", "coverage", "firings")
    outputs: dict[str, Any] = {name: folder / f"out/{name}" for name in names}
    collect_latents(
        params(threads),
        sae=folder / "sae/cfg.json",
        activations=folder / "activations/manifest.json",
        tokens=folder / "corpus/manifest.json",
        **outputs,
    )
    done.set()
    watcher.join()
    print(json.dumps({"before_mib": before, "rise_mib": highest - before}))


def middle(rows: list[dict[str, float]], name: str) -> float:
    """Return the median of one figure over the rounds."""
    return median(row[name] for row in rows)


def report(name: str, rows: list[dict[str, float]], n_tokens: int) -> None:
    """Print one line of the first table."""
    rate = n_tokens / middle(rows, "sort_s")
    describe_s = f"{middle(rows, 'describe_s'):.2f}" if "describe_s" in rows[0] else ""
    each = middle(rows, "draw_s") / rows[0]["n_latents"] * 1e3
    print(f"| {name} | {rate:,.0f} | {describe_s} | {each:.2f} |")


def main() -> None:
    """Run the rounds, then print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=131_072)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--delphi", action="store_true", help="also eai-delphi, in .venv-peers")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        peak_memory(arguments.peak, arguments.threads)
        return
    pa.array([0])  # it imports pandas, once in every job
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "once"
        make_inputs(folder, arguments.tokens)
        rows: dict[str, list[dict[str, float]]] = {"nullsae": [], "floor": [], "delphi": []}
        for _ in range(arguments.rounds):
            rows["nullsae"].append(ours(folder, arguments.threads))
            rows["floor"].append(floor(folder))
            if arguments.delphi:
                rows["delphi"].append(delphi(folder, arguments.threads))
        print("| | tokens per CPU s, sorted on disk | statistics, CPU s | CPU ms a latent |")
        print("|---|---|---|---|")
        for name, found in rows.items():
            if found:
                report(name, found, arguments.tokens)
        if arguments.no_memory:
            return
        rises: dict[int, list[float]] = {1: [], 4: []}
        for times in rises:
            make_inputs(Path(scratch) / f"times{times}", times * arguments.tokens)
        for _ in range(arguments.rounds):
            for times, found_rises in rises.items():
                command = [sys.executable, __file__, "--peak", Path(scratch) / f"times{times}"]
                command += ["--threads", str(arguments.threads)]
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                found_rises.append(json.loads(done.stdout.splitlines()[-1])["rise_mib"])
        print("\n| tokens | peak memory above the start, MiB | lowest, highest |\n|---|---|---|")
        for times, found_rises in rises.items():
            ends = f"{min(found_rises):.0f}, {max(found_rises):.0f}"
            print(f"| {times * arguments.tokens:,} | {median(found_rises):.0f} | {ends} |")


if __name__ == "__main__":
    main()
