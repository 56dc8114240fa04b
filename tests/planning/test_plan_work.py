"""Formulas of single jobs, against what is counted by hand or by PyTorch."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from nullsae.config.model_size import PYTHIA, Size, described_size, model_size, neox_size
from nullsae.config.read import read_merged_config
from nullsae.config.saes import Sae
from nullsae.config.subjects import GgufSource, PretrainedSource
from nullsae.core.errors import UserError
from nullsae.jobs.work import NOT_PLANNED, WORK, job_work
from nullsae.jobs.work.amounts import CorpusSize, SizedStudy, encoding, forward, sae_bytes
from nullsae.jobs.work.making import train_saes, training
from nullsae.planning.dag import Job, by_rule, planned_jobs
from nullsae.planning.sizes import corpus_sizes, subject_sizes
from tiny_gguf import write_tiny_gguf

pytestmark = pytest.mark.usefixtures("warm")

REPOSITORY = Path(__file__).parents[2]
CONTEXT = 24
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_neox": {"intermediate_size": 128, "tie_word_embeddings": False},
    "gpt2": {},
    "llama": {"intermediate_size": 96, "num_key_value_heads": 2},
    "qwen3": {"intermediate_size": 96, "num_key_value_heads": 2, "head_dim": 16},
}


def model(family: str) -> Any:
    """A small model with random weights, and no attention that PyTorch would not count."""
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = (
        {"n_embd": 32, "n_layer": 3, "n_head": 4}
        if family == "gpt2"
        else {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    )
    config = AutoConfig.for_model(family, vocab_size=100, **sizes, **FAMILIES[family])
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_pass_has_the_operations_that_pytorch_counts(family: str) -> None:
    subject = model(family)
    size = described_size(subject.config.to_dict(), "float32")
    ids = torch.zeros(2, CONTEXT, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        subject(ids, use_cache=False)
    planned = forward(size, ids.numel(), CONTEXT, head=True).forward_flops
    # Rotary angles are a product too, of one entry per position and pair.
    assert planned == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_size_has_the_parameters_of_the_model(family: str) -> None:
    subject = model(family)
    size = described_size(subject.config.to_dict(), "float32")
    actual = sum(p.numel() for p in subject.parameters())
    # Biases are left out.
    assert size.n_parameters == pytest.approx(actual, rel=0.06)
    assert (size.n_layers, size.d_model, size.vocab_size) == (3, 32, 100)


def test_a_gguf_file_has_the_size_of_the_model_in_it(tmp_path: Path) -> None:
    subject = write_tiny_gguf(tmp_path / "tiny.gguf")
    source = GgufSource(kind="gguf", path=str(tmp_path / "tiny.gguf"))
    size = model_size(source, "config: subjects.s.source")
    expected = described_size(subject.config.to_dict(), "float32")
    assert (size.n_layers, size.d_model, size.vocab_size) == (3, 16, subject.config.vocab_size)
    assert size.block_weights == expected.block_weights
    actual = sum(p.numel() for p in subject.parameters())
    assert size.n_parameters == pytest.approx(actual, rel=0.06)


def test_a_config_json_that_does_not_state_the_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 8, "vocab_size": 10}')
    source = PretrainedSource(kind="pretrained", path=str(tmp_path))
    with pytest.raises(UserError, match=r"source\.path: .* does not state 'num_hidden_layers'"):
        model_size(source, "config: subjects.s.source")


def test_the_parameters_of_pythia_are_those_of_the_published_models() -> None:
    published = {
        "pythia-70m": 70_426_624,
        "pythia-160m": 162_322_944,
        "pythia-410m": 405_334_016,
        "pythia-1b": 1_011_781_632,
        "pythia-6.9b": 6_857_302_016,
    }
    for name, n_parameters in published.items():
        n_layers, d, _, vocab_size = PYTHIA[name]
        assert neox_size(n_layers, d, vocab_size, "bfloat16").n_parameters == n_parameters


def test_a_width_of_the_table_is_that_of_its_heads() -> None:
    assert all(d % heads == 0 for _, d, heads, _ in PYTHIA.values())


def test_a_pass_to_an_early_site_costs_that_share_of_the_blocks() -> None:
    size = neox_size(10, 64, 500, "float32")
    whole, part = forward(size, 1000, 128), forward(size, 1000, 128, blocks=3)
    assert part.forward_flops == pytest.approx(0.3 * whole.forward_flops)
    assert forward(size, 1000, 128, head=True).forward_flops == (
        whole.forward_flops + 1000 * 2 * 64 * 500
    )


def test_encoding_counts_one_product_and_training_no_second_one() -> None:
    recipe = Sae.of(
        k=8, n_latents=512, batch_tokens=256, evaluate_every_steps=10**9, heldout_tokens=1
    )
    once = encoding(recipe, 64, 512, 2560)
    assert once.product_flops == 2560 * 2 * 64 * 512
    # Initialization encodes its sample, here all tokens; one held-out token is evaluated.
    start = once.product_flops + 2 * 64 * 512
    steps = training(recipe, 64, 512, 2560)
    assert steps.product_flops == start + once.product_flops
    doubled = training(recipe.model_copy(update={"epochs": 2}), 64, 512, 2560)
    assert doubled.product_flops == start + 2 * once.product_flops


def test_an_sae_takes_the_bytes_of_its_file(tmp_path: Path) -> None:
    m, d = 300, 48
    weights = {
        "encoder.weight": torch.zeros(m, d),
        "encoder.bias": torch.zeros(m),
        "W_dec": torch.zeros(m, d),
        "b_dec": torch.zeros(d),
    }
    save_file(weights, tmp_path / "sae.safetensors")
    written = (tmp_path / "sae.safetensors").stat().st_size
    assert sae_bytes(d, m) == pytest.approx(written, rel=0.01)


def study(text: str, tmp_path: Path) -> SizedStudy:
    floors = "" if "evaluation" in text else "\nevaluation: {gaussian_floors: false}"
    (tmp_path / "more.yaml").write_text(text + floors)
    apart: dict[str, Any] = {"evaluation": {"null_dictionaries": []}}
    if "shared_pass" not in text:
        apart["activations"] = {"shared_pass": False}
    config = read_merged_config([REPOSITORY / "config.yaml", tmp_path / "more.yaml"], apart)
    corpora = {"sotu": CorpusSize(1_000_064, 99_968, 1_100_032, counted=True)}
    return SizedStudy(config, subject_sizes(config), corpora)


def planned(text: str, tmp_path: Path) -> dict[str, list[Job]]:
    return by_rule(planned_jobs(study(text, tmp_path), tmp_path))


@pytest.mark.slow
def test_a_stream_costs_its_forward_passes_and_no_disk(tmp_path: Path) -> None:
    cached = planned("seed: 0", tmp_path)
    streamed = planned("activations: {mode: stream, fitted_tokens: 50_000}", tmp_path)
    apart = planned(
        "activations: {mode: stream, fitted_tokens: 50_000, sites_together: false}", tmp_path
    )
    assert [len(rules["train_sae"]) for rules in (cached, streamed, apart)] == [12, 6, 12]
    flops = [sum(j.work.forward_flops for j in r["train_sae"]) for r in (cached, streamed, apart)]
    size = Size(3, 128, 2048, 12 * 128**2, 0, 128, 512, "float32")
    to_last = 6 * forward(size, 200_000, 128, blocks=3).forward_flops
    to_first = 6 * forward(size, 200_000, 128, blocks=2).forward_flops
    assert flops == [0, pytest.approx(to_last), pytest.approx(to_last + to_first)]
    products = [
        sum(j.work.product_flops for j in r["train_sae"]) for r in (cached, streamed, apart)
    ]
    assert products[0] == products[1] == products[2]


def test_a_shared_job_sums_its_saes(tmp_path: Path) -> None:
    found = study("saes: {topk: {seeds: [0, 1]}}", tmp_path)
    keys = {"subject": "small", "variant": "trained", "draw": "0", "site": "resid_post.1"}
    one = {**keys, "sae": "topk", "seed": "0"}
    single, both = train_saes(found, [one]), train_saes(found, [one, {**one, "seed": "1"}])
    assert both.product_flops == 2 * single.product_flops
    assert both.written_bytes == 2 * single.written_bytes


def test_latents_of_saes_that_share_a_pass_cost_it_once(tmp_path: Path) -> None:
    text = "activations: {mode: stream, fitted_tokens: 50_000, shared_pass: false}\n"
    found = study(text + "saes: {topk: {seeds: [0, 1], k: 16}}", tmp_path)
    size, n = Size(3, 128, 2048, 12 * 128**2, 0, 128, 512, "float32"), 99_968
    to_first, to_last = (forward(size, n, 128, blocks=b).forward_flops for b in (2, 3))
    keys = {"subject": "small", "variant": "trained", "draw": "0", "sae": "topk"}
    cells = [
        {**keys, "site": site, "seed": seed}
        for site in ("resid_post.1", "resid_post.2")
        for seed in "01"
    ]
    together = job_work(found, "collect_latents", cells)
    alone = [job_work(found, "collect_latents", [cell]) for cell in cells]
    saved = sum(one.forward_flops for one in alone) - together.forward_flops
    assert saved == pytest.approx(2 * to_first + to_last)
    assert together.product_flops == sum(one.product_flops for one in alone)
    # A pass for each site.
    apart = found.config.activations.model_copy(update={"sites_together": False})
    config = found.config.model_copy(update={"activations": apart})
    by_site = job_work(replace(found, config=config), "collect_latents", cells)
    assert by_site.forward_flops - together.forward_flops == pytest.approx(to_first)
    # The others wait with a run of firings while one is described, which takes most memory.
    waiting = sae_bytes(128, 1024) + 10 * 2**20
    assert together.held_bytes == alone[0].held_bytes + 3 * waiting
    # All firings are on disk, 8 bytes each, and those of one SAE twice.
    assert [one.work_bytes for one in (*alone[:1], together)] == [2 * 8 * 16 * n, 5 * 8 * 16 * n]


def test_every_rule_of_the_workflow_has_a_formula_or_is_named_as_having_none() -> None:
    # Rules made in a loop have the same name in their logs.
    named = r'^\s*(?:rule|checkpoint) (\w+):|paths\.LOG\.format\(rule="(\w+)"'
    rules = {
        name
        for file in (REPOSITORY / "workflow/rules").glob("*.smk")
        for found in re.findall(named, file.read_text(), re.M)
        for name in found
        if name
    }
    assert rules == {*WORK, *NOT_PLANNED}
    assert not {*WORK} & {*NOT_PLANNED}


def test_every_job_waits_for_earlier_ones(tmp_path: Path) -> None:
    text = (
        "variants: [trained, step0, rerandomized, gaussian]\ndraws: 2\n"
        "saes: {topk: {checkpoints: [0.5]}, pca: {dictionary: pca, k: 8}}\n"
        "evaluation: {cross_tokens: 2048, gaussian_floors: true}\n"
    )
    jobs = planned_jobs(study(text, tmp_path), tmp_path)
    for index, job in enumerate(jobs):
        assert all(need < index for need in job.needs)
    # Another job waits for each job except the report.
    waited_for = {need for job in jobs for need in job.needs}
    assert waited_for == set(range(len(jobs) - 1))


def test_the_size_of_the_builtin_corpus_is_estimated_within_a_tenth() -> None:
    config = read_merged_config([REPOSITORY / "config.yaml"])
    size = corpus_sizes(config, Path("/nonexistent"))["sotu"]
    # As counted by a run: results/corpus/corpus=sotu/split=*/manifest.json.
    assert size.sae_train_tokens == pytest.approx(3_240_576, rel=0.1)
    assert size.eval_tokens == pytest.approx(100_000, rel=0.1)
    assert not size.counted


@pytest.mark.parametrize("path", ["~/texts/a[1].txt", "~/texts/*.txt", "**/*.txt"])
def test_the_size_of_a_corpus_of_files_is_that_of_the_files_it_is_read_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a[1].txt").write_text("a text " * 10_000)
    source = {"kind": "files", "paths": [path]}
    more = {
        "corpora": {"mine": {"source": source, "tokenizer": {"kind": "train"}}},
        "subjects": {"small": {"corpus": "mine"}},
    }
    config = read_merged_config([REPOSITORY / "config.yaml"], more)
    assert corpus_sizes(config, tmp_path)["mine"].read_tokens > 10_000


def test_evaluation_goes_through_eval_once_and_four_times_through_a_part(tmp_path: Path) -> None:
    text = "evaluation: {fidelity_tokens: 8192, gaussian_floors: false}"
    found = planned(text, tmp_path)
    # Of a model's two sites, one after the other.
    assert {job.work.tokens for job in found["evaluate_sae"]} == {2 * (99_968 + 4 * 8192)}
    # Twice through contexts at most, and cut ones for 16 places of 50 latents: 4 directions at
    # firings and in silence, and a written token.
    causal = 2 * 99_968 + 50 * 16 * 64 * (2 * 4 + 1)
    assert {job.work.tokens for job in found["collect_latents"]} == {99_968 + causal}
