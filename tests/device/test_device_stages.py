"""Capture, training, resuming, latents, metrics and likelihood on the device, against the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from without_float64 import without_float64

from nullsae import tables
from nullsae.activations.capture import cache_activations
from nullsae.activations.sampling import sample_gaussian
from nullsae.autointerp.local_model import LocalJudge
from nullsae.autointerp.log_odds import Likelihood, load_likelihood_prompt
from nullsae.config.compute import Compute
from nullsae.config.latents import Latents
from nullsae.config.saes import Sae
from nullsae.jobs.activations import SampleGaussianParams
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.jobs.metrics import EvaluateSaeParams
from nullsae.jobs.saes import StreamParams
from nullsae.latents.collect import collect_latents
from nullsae.metrics.evaluate import evaluate_sae
from nullsae.sae.files import load_sae
from nullsae.sae.shared_pass import pinned, sent
from nullsae.sae.train_sae import train_sae
from nullsae.sae.trainer import evaluate
from nullsae.subjects.publish import randomize_model
from small_chain import (
    CONTEXT,
    SITES,
    Chain,
    all_rows,
    capture_params,
    cell,
    model_params,
    tiny_model,
    train_params,
)

SITE = SITES[1]
# Steps of 64 tokens, 16 to an epoch.
RECIPE = {
    **{"n_latents": 48, "k": 4, "batch_tokens": 64, "lr": 2e-2, "epochs": 2},
    **{"evaluate_every_steps": 50, "checkpoint_every_steps": 10, "heldout_tokens": 300},
    "dead_after_tokens": 300,
}
ON_CPU = Compute(threads=1, device="cpu")


@pytest.fixture(params=["the device", "one without float64"])
def compute(
    request: pytest.FixtureRequest, last_device: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Compute]:
    """On `mps` there is no float64, wherever these tests run."""
    if request.param == "the device":
        yield Compute(threads=1, device=last_device)
        return
    with without_float64(monkeypatch):
        yield Compute(threads=1, device="mps")


def test_a_device_without_float64_computes_what_it_is_asked_and_no_float64(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with without_float64(monkeypatch) as device:
        x = torch.ones(2, 3).to("meta")
        with pytest.raises(AssertionError, match="float64"):
            x.double()
        with pytest.raises(AssertionError, match="two devices"):
            x + torch.ones(3)
        needed = {torch.ops.aten.addmm.out, torch.ops.aten.topk.default}
        assert not needed & device.ran
        train(chain, Compute(threads=1, device="mps"), tmp_path, epochs=1)
        assert needed <= device.ran


@pytest.mark.parametrize("split", ["sae_train", "eval"])
def test_a_capture_equals_the_one_on_the_cpu(
    chain: Chain, compute: Compute, tmp_path: Path, split: str
) -> None:
    tokens = chain.train_tokens if split == "sae_train" else chain.eval_tokens
    cache_activations(
        capture_params(compute=compute),
        **{"split": split, "model": chain.recipe, "tokens": tokens, "output": tmp_path},
    )
    there = chain.train_activations if split == "sae_train" else chain.eval_activations
    for site in SITES:
        found, position = all_rows(tmp_path / "manifest.json", site)
        expected, same = all_rows(there, site)
        assert torch.equal(position, same)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def train(
    chain: Chain, compute: Compute, root: Path, progress: Any = None, **keys: Any
) -> tuple[int, Path]:
    """Steps made, and the SAE's `cfg.json`."""
    steps = train_sae(
        train_params(Sae.of(**{**RECIPE, **keys}), compute=compute),
        train_activations=chain.train_activations,
        eval_activations=chain.eval_activations,
        output=root / "sae",
        work=root / "work",
        progress=progress,
    )
    return steps, root / "sae/cfg.json"


def explained(chain: Chain, sae: Path) -> float:
    x, _ = all_rows(chain.eval_activations, SITE)
    return float(evaluate(load_sae(sae)[0], x)["heldout_explained_variance"])


def collected(chain: Chain, compute: Compute, sae: Path, folder: Path) -> Any:
    settings = Latents(n_sampled=8, min_firings=20, min_pool_windows=4, window_tokens=4)
    names = ("latents", "windows", "coverage")
    files: dict[str, Any] = {name: folder / f"{name}.parquet" for name in names}
    collect_latents(
        CollectLatentsParams(seed=0, keys=cell(SITE), latents=settings, compute=compute),
        **{"sae": sae, "activations": chain.eval_activations},
        **{"tokens": chain.eval_tokens, "firings": folder / "firings.safetensors", **files},
        model=chain.recipe,
    )
    return tables.read_table(files["latents"], tables.cell_schema("latents")).to_pandas()


def evaluated(chain: Chain, compute: Compute, sae: Path, folder: Path) -> dict[str, Any]:
    names = ("reconstruction", "documents", "geometry")
    files: dict[str, Any] = {name: folder / f"{name}.parquet" for name in names}
    evaluate_sae(
        EvaluateSaeParams(seed=3, fidelity_tokens=20 * CONTEXT, keys=cell(SITE), compute=compute),
        **{"sae": sae, **chain.inputs, **files},
    )
    table = tables.read_table(files["reconstruction"], tables.cell_schema("reconstruction"))
    (row,) = table.to_pylist()
    return dict(row)


def published_loss(chain: Chain, compute: Compute, _: Path, folder: Path) -> float:
    randomize_model(
        model_params(None, "rerandomized", compute=compute),
        **{"trained": chain.recipe, "eval_tokens": chain.eval_tokens, "output": folder},
    )
    return float(json.loads((folder / "gates.json").read_text())["heldout_loss_nats"])


def sampled(chain: Chain, compute: Compute, _: Path, folder: Path) -> Tensor:
    sample_gaussian(
        SampleGaussianParams(
            **{"keys": ModelKeys(subject="tiny", variant="gaussian", draw=0), "seed": 0},
            **{"sites": (SITE,), "dtype": "float32", "shard_tokens": 8 * CONTEXT},
            **{"compute": compute, "key": "own", "fitted_activations_key": "key"},
        ),
        **{"split": "eval", "fitted": chain.train_activations},
        **{"tokens": chain.eval_tokens, "output": folder},
    )
    return all_rows(folder / "manifest.json", SITE)[0]


def learned(chain: Chain, compute: Compute, _: Path, folder: Path) -> float:
    return explained(chain, train(chain, compute, folder)[1])


@pytest.fixture(scope="module")
def of_cpu(chain: Chain, tiny_sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What each stage gives on the CPU, by the stage."""
    folder = tmp_path_factory.mktemp("cpu")
    return {
        stage: stage(chain, ON_CPU, tiny_sae, folder / stage.__name__)
        for stage in (collected, evaluated, published_loss, sampled, learned)
    }


@pytest.fixture
def whole(chain: Chain, compute: Compute, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`cfg.json` of an SAE trained there, once."""
    root = tmp_path_factory.getbasetemp() / f"whole-{compute.device.replace(':', '')}"
    if not root.exists():
        steps, _ = train(chain, compute, root)
        assert steps == 32
    return root / "sae/cfg.json"


def test_a_training_learns_what_it_learns_on_the_cpu(
    chain: Chain, of_cpu: dict[Any, Any], whole: Path
) -> None:
    there = explained(chain, whole)
    assert there == pytest.approx(of_cpu[learned], abs=0.02)
    assert there > 0.6


def test_a_killed_training_resumes_to_the_same_bits(
    chain: Chain, compute: Compute, whole: Path, tmp_path: Path
) -> None:
    def killed(done: int, *_: Any) -> None:
        if done > 17:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(chain, compute, tmp_path, killed)
    steps, resumed = train(chain, compute, tmp_path)
    assert steps == 2 * 16 - 10
    expected = load_file(whole.with_name("sae.safetensors"))
    for name, tensor in load_file(resumed.with_name("sae.safetensors")).items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("architecture", ["topk", "standard"])
def test_a_stream_trains_the_sae_of_a_cache(
    chain: Chain, last_device: str, tmp_path: Path, architecture: str
) -> None:
    """To the same bits, though on a GPU passes run while others train."""
    compute = Compute(threads=1, device=last_device)
    cache_activations(
        capture_params(compute=compute),
        **{"split": "sae_train", "model": chain.recipe, "tokens": chain.train_tokens},
        output=tmp_path,
    )
    recipe = {**RECIPE, "epochs": 1, "evaluate_every_steps": 16}
    if architecture == "standard":
        del recipe["k"], recipe["dead_after_tokens"]
    sae = Sae.of(architecture=architecture, **recipe)
    settings: dict[str, Any] = {"dtype": "float32", "batch_contexts": 8}
    stream = StreamParams(max_tokens=64 * CONTEXT, shard_tokens=8 * CONTEXT, **settings)
    found = []
    for mode in (None, stream):
        train_sae(
            train_params(sae, compute=compute, stream=mode),
            train_activations=tmp_path / "manifest.json",
            eval_activations=chain.eval_activations,
            output=tmp_path / f"sae-{mode is None}",
            work=tmp_path / f"work-{mode is None}",
            **({"train_tokens": chain.train_tokens, "model": chain.recipe} if mode else {}),
        )
        found.append(load_file(tmp_path / f"sae-{mode is None}/sae.safetensors"))
    for name, tensor in found[0].items():
        assert torch.equal(tensor, found[1][name]), name


def test_latents_are_those_of_the_cpu(
    chain: Chain, of_cpu: dict[Any, Any], compute: Compute, tiny_sae: Path, tmp_path: Path
) -> None:
    there, here = collected(chain, compute, tiny_sae, tmp_path), of_cpu[collected]
    # A pre-activation at rank k and k + 1 may be equal in float32.
    assert (there["firings"] - here["firings"]).abs().sum() <= 4
    same = (there["firings"] == here["firings"]) & (here["firings"] > 0)
    names = ("max_activation", "mean_activation", "token_entropy_bits", "next_token_auroc")
    for name in (*names, "ablation_kl_nats", "addition_kl_nats"):
        np.testing.assert_allclose(there[name][same], here[name][same], rtol=1e-3, err_msg=name)


def test_metrics_are_those_of_the_cpu(
    chain: Chain, of_cpu: dict[Any, Any], compute: Compute, tiny_sae: Path, tmp_path: Path
) -> None:
    there, here = evaluated(chain, compute, tiny_sae, tmp_path), of_cpu[evaluated]
    for name in ("explained_variance", "cosine", "l0", "ce_clean", "ce_sae"):
        assert there[name] == pytest.approx(here[name], rel=1e-3), name


def test_a_variant_is_published_as_on_the_cpu(
    chain: Chain, of_cpu: dict[Any, Any], compute: Compute, tiny_sae: Path, tmp_path: Path
) -> None:
    there = published_loss(chain, compute, tiny_sae, tmp_path)
    assert there == pytest.approx(of_cpu[published_loss], rel=1e-5)


def test_gaussian_samples_are_those_of_the_cpu(
    chain: Chain, of_cpu: dict[Any, Any], compute: Compute, tiny_sae: Path, tmp_path: Path
) -> None:
    there = sampled(chain, compute, tiny_sae, tmp_path)
    torch.testing.assert_close(there, of_cpu[sampled], rtol=1e-5, atol=1e-5)


def test_log_odds_of_a_judge_are_those_of_the_cpu(last_device: str) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["the", "boat", "went", "down", "river", "a", "sea", "Topic", "?"]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    model = tiny_model("llama")
    here = LocalJudge(model, tokenizer, "llama", torch.device("cpu"))
    texts, prompt = ["the boat went down", "a river", "the sea"], load_likelihood_prompt()
    expected = Likelihood(here, prompt).log_odds("boat on a river", texts)
    there = replace(here, model=model.to(last_device), device=torch.device(last_device))
    found = Likelihood(there, prompt).log_odds("boat on a river", texts)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_activations_are_read_on_the_device_that_is_named(chain: Chain, last_device: str) -> None:
    from nullsae.core.devices import device_of
    from nullsae.subjects.loading import load_subject

    subject = load_subject(chain.recipe, device_of(last_device))
    ids: Tensor = torch.arange(2 * CONTEXT).view(2, CONTEXT)
    found = subject.activations(ids, split="eval", contexts=[0, 1], sites=SITES)
    assert {str(x.device) for x in found.values()} == {last_device}


def test_batches_that_are_sent_ahead_are_those_given(last_device: str) -> None:
    device = torch.device(last_device)
    batches = [torch.randn(64, 8).bfloat16() for _ in range(5)]
    found = [batch.cpu() for batch in sent((pinned(b, device) for b in batches), device)]
    assert all(map(torch.equal, found, batches))
    assert len(found) == 5
