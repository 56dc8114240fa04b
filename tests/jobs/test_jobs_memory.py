"""Requested memory, against closed forms and real trainings in measured processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nullsae.config.model_size import neox_size
from nullsae.config.read import read_merged_config
from nullsae.jobs import resources
from nullsae.jobs.resources import Needs
from nullsae.jobs.work import job_work
from nullsae.jobs.work.amounts import CorpusSize, SizedStudy

REPOSITORY = Path(__file__).parents[2]
TESTS = REPOSITORY / "tests"
D_MODEL, TOKENS, BATCH, SITE = 256, 4_096, 1_024, "resid_post.1"
M, K, SUBJECT = 8_192, 16, neox_size(1, D_MODEL, 40_000, "float32")
# Two matrices and two vectors in float32.
ONE = 4 * (2 * M * D_MODEL + M + D_MODEL)
# Trains an SAE of each width in a fork of a process that has imported everything, and prints the
# peak resident memory of each, including libraries, in megabytes.
TRAINED = """
import json, os, re, sys
from pathlib import Path
sys.path.append(sys.argv[3])
import torch, torch._dynamo
from nullsae.config.compute import Compute
from nullsae.config.saes import Sae
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.saes import SaeCell, TrainSaeParams
from nullsae.sae.train_sae import train_sae
from small_chain import write_site

folder, d, tokens, batch, site, *widths = Path(sys.argv[1]), *json.loads(sys.argv[2])
for split in ("train", "eval"):
    x = torch.randn(tokens, d, generator=torch.Generator().manual_seed(len(split)))
    write_site(folder / split, x, [tokens // 2] * 2, site=site, dtype="bfloat16")
del x
for width in widths:
    read, write = os.pipe()
    if os.fork():
        os.close(write)
        print(int(os.read(read, 20)) * 1024 / 1e6, flush=True)
        os.wait()
        continue
    recipe = Sae.of(k=16, n_latents=width, batch_tokens=batch, heldout_tokens=batch,
                    dead_after_tokens=batch)
    train_sae(
        TrainSaeParams(
            seed=0, keys=ModelKeys(subject="made", variant="trained", draw=0),
            saes={"topk": recipe}, cells=(SaeCell(site=site, sae="topk", seed=0),),
            compute=Compute(threads=1, device="cpu"),
        ),
        train_activations=folder / "train/manifest.json",
        eval_activations=folder / "eval/manifest.json",
        output=folder / f"sae-{width}", work=folder / "work",
    )
    status = Path("/proc/self/status").read_text()
    os.write(write, re.search(r"VmHWM:\\s+(\\d+)", status)[1].encode())
    os._exit(0)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux counts memory")
def test_trainings_of_two_widths_hold_what_they_ask_for_and_three_quarters_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths = (4_096, 20_480)
    # A fork does not count what it has not read of libraries' files.
    monkeypatch.setattr(resources, "FOR_GPUS", {"optimizer": 160e6})

    def most(attempt: str) -> list[float]:
        given = [D_MODEL, TOKENS, BATCH, SITE, *widths]
        done = subprocess.run(
            [sys.executable, "-c", TRAINED, tmp_path / attempt, json.dumps(given), TESTS],
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert not done.returncode, done.stderr
        return [float(line) for line in done.stdout.splitlines() if line[0].isdigit()]

    source = {"kind": "train", "n_layers": 2, "d_model": D_MODEL, "n_heads": 4}
    wanted = []
    for width in widths:
        recipe = {"k": 16, "n_latents": width, "batch_tokens": BATCH, "heldout_tokens": BATCH}
        changes = {
            "corpora": {"sotu": {"sae_train_tokens": TOKENS, "eval_tokens": TOKENS}},
            "subjects": {"small": {"source": source, "sites": [SITE]}},
            "activations": {"sae_train_tokens": TOKENS, "shard_tokens": TOKENS // 2},
            "saes": {"topk": recipe},
        }
        config = read_merged_config([REPOSITORY / "config.yaml"], changes)
        cell = {"subject": "small", "variant": "trained", "draw": "0", "site": SITE}
        asked = Needs(config).asked("train_sae", [{**cell, "sae": "topk", "seed": "0"}])
        assert asked.known
        wanted.append(asked.megabytes)
    found = most("first")
    if max(np.divide(wanted, found)) > 1.3:  # malloc now and then gives more back
        found = list(map(max, found, most("second")))
    assert 1.0 <= min(np.divide(wanted, found)) <= max(np.divide(wanted, found)) <= 1.3


def held(
    rule: str,
    n_eval: int,
    variant: str = "trained",
    *,
    device: str = "cpu",
    chunk: int = TOKENS // 2,
    **recipe: Any,
) -> float:
    """Return the formula's memory for one SAE of a subject with one block."""
    given = {"k": K, "n_latents": M, "batch_tokens": BATCH, "heldout_tokens": BATCH, **recipe}
    changes = {
        "subjects": {"small": {"sites": [SITE]}},
        "activations": {"sae_train_tokens": TOKENS, "shard_tokens": chunk},
        "variants": ["trained", "gaussian"],
        "saes": {"topk": given},
        "compute": {"device": device},
    }
    config = read_merged_config([REPOSITORY / "config.yaml"], changes)
    corpora = {"sotu": CorpusSize(TOKENS, n_eval, TOKENS + n_eval, counted=True)}
    cell = {"subject": "small", "variant": variant, "draw": "0", "site": SITE, "sae": "topk"}
    study = SizedStudy(config, {"small": SUBJECT}, corpora)
    return job_work(study, rule, [{**cell, "seed": "0"}]).held_bytes


def test_a_training_counts_a_step_in_which_all_latents_are_dead() -> None:
    weights, chunk = 2 * M * D_MODEL + M + D_MODEL, TOKENS // 2
    step = 16 * weights + 4 * M * D_MODEL + 5 * 256 * M + BATCH * (20 * D_MODEL + 56 * K)
    data = 4 * D_MODEL * (chunk + BATCH) + 2 * 2 * D_MODEL * chunk
    kept = 2 * (ONE / 2)
    assert held("train_sae", TOKENS, auxk_coefficient=0.0) == step + data + kept
    # By default AuxK uses half as many latents as dimensions.
    auxk = 4 * M * D_MODEL + BATCH * 56 * D_MODEL / 2
    assert held("train_sae", TOKENS) == step + auxk + data + kept


def test_memory_that_a_gpu_reads_is_a_power_of_two() -> None:
    saved = ONE + 2 * (ONE / 2)
    for chunk, pinned in ((2048, 2**20), (1536, 2**20), (1024, 2**19)):
        start, block = 4 * D_MODEL * (chunk + BATCH), 2 * D_MODEL * chunk
        found = held("train_sae", TOKENS, device="cuda", chunk=chunk)
        assert found == saved + start + block + 2 * pinned


def test_collecting_latents_holds_one_thing_after_the_other_and_little_of_each_token() -> None:
    n = 2**18
    always = ONE + 350 * M + 66 * n / 32
    # Firings are described in pieces, however many there are; then tables, mostly windows, are
    # written.
    windows = 2 * 50 * (40 + 40 + 100 + 100) * (12 * 32 + 60)
    assert held("collect_latents", n, "gaussian") == always + max(150 * 2**19, 8e7 + windows)
    # Of what asks the subject, ranks take the most: those of 2^18 of 2^21 effects of three rows of
    # each latent, with the map to the logits and what follows each token.
    ranks = 4 * D_MODEL * 40_000 + ONE / 2 + 12 * 2**21 + 250 * 2**18
    asking = SUBJECT.weight_bytes + 40 * n + ranks
    assert held("collect_latents", n) == always + 8e7 + windows + asking
    assert held("collect_latents", 2 * n) - held("collect_latents", n) == n * (40 + 66 / 32)
