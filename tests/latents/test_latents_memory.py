"""Collection in a separate process, whose memory must not grow with the number of tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nullsae.sae.autoencoder import Autoencoder
from small_chain import write_corpus, write_sae, write_site

D, N_LATENTS, K, CONTEXT, SITE = 16, 128, 16, 128, "resid_post.1"
TOKENS = 65_536

COLLECT = """
import json, sys, threading, tracemalloc
from pathlib import Path

import nullsae.latents.collect as collect
import nullsae.latents.describe, nullsae.latents.sample, nullsae.latents.silent
from nullsae.latents import split, store, windows
from nullsae.config.compute import Compute
from nullsae.config.latents import Latents
from nullsae.jobs.keys import CellKeys
from nullsae.jobs.latents import CollectLatentsParams

# Small enough that they are all filled by the smaller amount.
store.RUN_FIRINGS, store.PIECE_FIRINGS = 2**16, 2**15
nullsae.latents.sample.PIECE_FIRINGS = nullsae.latents.silent.PIECE_FIRINGS = 2**15
split.PIECE_TOKENS, windows.PIECE_CONTEXTS = 2**13, 64
folder = Path(sys.argv[1])

def own_bytes():
    text = Path("/proc/self/status").read_text()
    return int(text.split("RssAnon:")[1].split()[0]) * 1024

def run(name):
    keys = CellKeys(subject="tiny", variant="trained", draw=0, site="resid_post.1", sae="a", seed=0)
    collect.collect_latents(
        CollectLatentsParams(
            seed=0, keys=keys, compute=Compute(device="cpu"),
            latents=Latents(n_sampled=5, silent_windows=("random", "co_occurring")),
        ),
        sae=folder / "sae/cfg.json",
        activations=folder / name / "activations/manifest.json",
        tokens=folder / name / "corpus/manifest.json",
        **{key: folder / name / key for key in ("latents", "windows", "coverage", "firings")},
    )

run("warm")  # libraries and thread pools
before, highest, done = own_bytes(), 0, threading.Event()

def watch():
    global highest
    while not done.wait(0.002):
        highest = max(highest, own_bytes())

thread = threading.Thread(target=watch)
thread.start()
run(sys.argv[2])
done.set()
thread.join()
tracemalloc.start()
run(sys.argv[2])
print(json.dumps([highest - before, tracemalloc.get_traced_memory()[1]]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an SAE, and activations of 1/16, 1 and 4 times `TOKENS` tokens."""
    folder = tmp_path_factory.mktemp("memory")
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(N_LATENTS, D, generator=generator)
    sae = Autoencoder("topk", weights, torch.zeros(N_LATENTS), weights.clone(), torch.zeros(D), K)
    write_sae(sae, folder / "sae")
    rng = np.random.default_rng(0)
    for name, n in (("warm", TOKENS // 16), ("once", TOKENS), ("four", 4 * TOKENS)):
        ids = rng.integers(0, 500, (n // CONTEXT, CONTEXT)).astype(np.int32)
        documents = np.repeat(np.arange(n), 300)[:n].astype(np.int32).reshape(ids.shape)
        write_corpus(folder / name / "corpus", ids, documents)
        x = torch.randn(n, D, generator=generator)
        write_site(folder / name / "activations", x, [TOKENS // 16] * (16 * n // TOKENS))
    return folder


@pytest.mark.slow
def test_four_times_the_tokens_take_no_more_memory(folder: Path) -> None:
    """In memory, the firings alone would take 8 MiB, and 32 MiB with four times the tokens.

    Allocations of Python and NumPy are counted exactly. The memory of the process, including
    torch, also varies with the allocator.
    """
    status = Path("/proc/self/status")
    if not status.exists() or "RssAnon" not in status.read_text():
        pytest.skip("needs RssAnon in /proc")
    held, allocated = {}, {}
    for name in ("once", "four"):
        done = subprocess.run(
            [sys.executable, "-c", COLLECT, folder, name],
            capture_output=True,
            text=True,
            check=True,
        )
        held[name], allocated[name] = json.loads(done.stdout.splitlines()[-1])
    firings = 8 * K * TOKENS
    assert allocated["four"] < allocated["once"] + firings / 4
    assert allocated["four"] < firings
    assert held["four"] < held["once"] + 2 * firings
