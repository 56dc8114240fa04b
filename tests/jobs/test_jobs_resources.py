"""What jobs ask for, against bytes that are counted and the limits that were asked for before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nullsae.config.model_size import neox_size
from nullsae.config.read import read_merged_config
from nullsae.config.study import Config
from nullsae.jobs.grid import floor_cells, recipe_cells, sae_cells, scorer_cells, variant_cells
from nullsae.jobs.of_models import evaluation_rules
from nullsae.jobs.resources import OTHERWISE, Needs
from nullsae.jobs.work import NOT_PLANNED, WORK, job_work
from nullsae.jobs.work.amounts import sae_bytes

REPOSITORY = Path(__file__).parents[2]
LARGE = {"subject": "pythia-6.9b", "variant": "rerandomized", "draw": "0", "site": "resid_post.31"}


def study(*overlays: str) -> Config:
    return read_merged_config([REPOSITORY / file for file in ("config.yaml", *overlays)])


def jobs(config: Config) -> list[tuple[str, dict[str, str]]]:
    """One or more jobs of each rule that trains or measures, by rule and keys."""
    split = {"split": "sae_train"}
    found = [("prepare_corpus", {"corpus": name}) for name in config.corpora]
    for keys in variant_cells(config):
        found += [("randomize_model", keys), ("cache_activations", {**keys, **split})]
    found += [("train_subject", {"subject": name}) for name in config.subjects]
    for keys in (*sae_cells(config), *floor_cells(config)):
        found += [("train_sae", keys), ("evaluate_sae", keys), ("collect_latents", keys)]
    found += [("sample_gaussian", {**keys, **split}) for keys in floor_cells(config)]
    found += [("match_dictionaries", keys) for keys in recipe_cells(config)]
    for keys in scorer_cells(config):
        found += [("explain_latents", keys), ("score_latents", keys), ("explain_and_score", keys)]
    return [*found, ("aggregate", {}), ("report", {})]


@pytest.mark.parametrize("overlays", [[], ["config/quick.yaml"], ["config/replicated.yaml"]])
def test_small_studies_ask_for_no_more_than_a_laptop_has(overlays: list[str]) -> None:
    config = study(*overlays)
    needs = Needs(config)
    for rule, keys in jobs(config):
        asked = needs.asked(rule, [keys])
        assert asked.known, rule
        assert 500 <= asked.megabytes <= OTHERWISE[rule][0], rule
        assert 30 <= asked.minutes <= OTHERWISE[rule][1], rule


def test_every_rule_with_a_formula_says_what_its_jobs_hold() -> None:
    for overlay in ("config/quick.yaml", "config/all-controls.yaml"):
        config = study(overlay)
        needs = Needs(config)
        for rule, keys in jobs(config):
            assert WORK[rule](needs._study, keys).held_bytes > 0, rule
    assert set(OTHERWISE) - set(WORK) == set(NOT_PLANNED) - {"toy"}


def test_a_job_for_many_saes_starts_once_takes_their_time_and_holds_the_largest() -> None:
    config = study("config/paper-plus.yaml")
    needs, (rule, *_) = Needs(config), evaluation_rules(config)
    model = {"subject": "pythia-70m", "variant": "trained", "draw": "0"}
    cells = rule.cells_of(model)
    each = [needs.asked("evaluate_sae", [cell]) for cell in cells]
    together = needs.asked("evaluate_sae", cells)
    assert len(cells) == 21 + 20
    assert together.megabytes == max(asked.megabytes for asked in each)
    # Each writes its tables, and is asked at least half an hour for, which covers its start.
    work = [job_work(needs._study, "evaluate_sae", [cell]) for cell in cells]
    joined = job_work(needs._study, "evaluate_sae", cells)
    assert joined.flops == pytest.approx(sum(one.flops for one in work))
    assert joined.written_bytes == sum(one.written_bytes for one in work)
    assert together.minutes < sum(asked.minutes for asked in each)
    assert joined.imports == "transformers"


def test_the_largest_sae_of_the_paper_is_asked_room_for_its_checkpoint() -> None:
    config = study("config/paper.yaml")
    keys = {**LARGE, "sae": next(iter(config.saes)), "seed": "0"}
    asked = Needs(config).asked("train_sae", [keys])
    recipe = config.saes[keys["sae"]]
    width = recipe.width(4096)
    assert width is not None
    # Weights and two moments of it, 25.8 GB, which a checkpoint copies to the host at once.
    assert asked.megabytes * 1e6 > 3 * sae_bytes(4096, width) == pytest.approx(25.8e9, rel=0.01)
    assert asked.minutes > 240


def test_gates_of_the_largest_subject_are_asked_room_for_its_largest_tensor() -> None:
    asked = Needs(study("config/paper.yaml")).asked("randomize_model", [LARGE])
    size = neox_size(32, 4096, 50_432, "bfloat16")
    assert size.largest_tensor == 50_432 * 4096
    assert asked.megabytes * 1e6 > 2 * size.weight_bytes + 49 * size.largest_tensor


GATES = """
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from nullsae.subjects import gates
from nullsae.subjects.changes import randomize

def status(name):
    line = next(l for l in open("/proc/self/status") if l.startswith(name))
    return int(line.split()[1]) * 1024

torch.set_num_threads(1)
config = AutoConfig.for_model("gpt_neox", vocab_size=20_000, hidden_size=512, num_hidden_layers=2,
    num_attention_heads=4, intermediate_size=2048, tie_word_embeddings=False)
AutoModelForCausalLM.from_config(config)
start = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
model = AutoModelForCausalLM.from_config(config).eval()
before = gates.state(model)
changes = randomize(model, "rerandomized", seed=0, subject="s", draw=0)
after = {name: p.detach() for name, p in model.named_parameters()}
gates.moments(before, after, set(changes))
gates.uncorrelated(before, after, changes)
print(status("VmHWM") - start)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux counts its peaks")
def test_gates_of_a_small_model_hold_what_the_formula_counts() -> None:
    done = subprocess.run(
        [sys.executable, "-c", GATES], capture_output=True, text=True, check=True, timeout=300
    )
    size = neox_size(2, 512, 20_000, "float32")
    counted = 2 * size.weight_bytes + 49 * size.largest_tensor
    assert 0.6 * counted < int(done.stdout) < 1.3 * counted
