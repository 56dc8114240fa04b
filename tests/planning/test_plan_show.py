"""Estimates of a study's time and requests, before anything runs or is sent."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from nullsae.config.read import read_merged_config
from nullsae.core.errors import UserError
from nullsae.planning.bills import bills
from nullsae.planning.show import Plan, Row, make_plan, print_plan, print_rules

pytestmark = pytest.mark.usefixtures("warm")

REPOSITORY = Path(__file__).parents[2]
# Six variants at two sites, 20 latents each.
N_CELLS, N_LATENTS = 12, 20


def test_calls_of_the_study_with_an_api_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    config = read_merged_config([REPOSITORY / "config.yaml", REPOSITORY / "config/llm.yaml"])
    found, counted = bills(config, tmp_path)
    assert not counted
    scored = N_CELLS * N_LATENTS * (100 + 100) // 5
    expected = {("gpt", "", "gpt-4o-mini"): N_CELLS * N_LATENTS}
    for explainer in ("gpt", "gpt_swapped"):
        for scorer in ("detection", "fuzzing", "fuzzing_misplaced"):
            expected[explainer, scorer, "gpt-4o-mini"] = scored
    assert {key: bill.calls for key, bill in found.items()} == expected
    assert all(bill.jobs == N_CELLS for bill in found.values())


def test_more_windows_in_a_question_cost_fewer_tokens(tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text("scorers: {detection: {windows_per_prompt: 25}}\n")
    files = [REPOSITORY / "config.yaml", REPOSITORY / "config/llm.yaml"]
    key = ("gpt", "detection", "gpt-4o-mini")
    five = bills(read_merged_config(files), tmp_path)[0][key]
    many = bills(read_merged_config([*files, tmp_path / "more.yaml"]), tmp_path)[0][key]
    assert (five.calls, many.calls) == (9600, 1920)
    assert many.prompt_tokens < 0.6 * five.prompt_tokens


def test_the_plan_is_printed_with_its_money_and_sends_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    print_plan(folder, [REPOSITORY / "config/llm.yaml"])
    printed = capsys.readouterr().out
    assert "57,840 calls" in printed
    money = re.search(r"about \$([\d.]+); the limit is \$10.00", printed)
    assert money is not None
    assert 1 < float(money[1]) < 10
    assert not (folder / "results").exists()


def test_models_without_a_price_are_not_planned_as_free(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "{kind: detection, judge: {model: own, base_url: http://127.0.0.1:1/v1, api_key_env: K}}"
    (folder / "one.yaml").write_text(
        f"scorers: {{detection: {own}}}\nllm: {{max_cost_usd: null}}\n"
    )
    print_plan(folder, [REPOSITORY / "config/llm.yaml", folder / "one.yaml"])
    assert " and those without a price (llm.prices); no limit" in capsys.readouterr().out
    (folder / "none.yaml").write_text(
        "explainers: {gpt: {model: own}}\nllm: {max_cost_usd: null}\n"
    )
    print_plan(folder, [REPOSITORY / "config/llm.yaml", folder / "none.yaml"])
    printed = capsys.readouterr().out
    assert "57,840 calls, at unknown prices (llm.prices); no limit" in printed
    assert "$0.00" not in printed


@pytest.mark.parametrize(("calls", "gpus"), [(0, 0), (57_840, 8)])
def test_on_80_columns_no_word_of_a_plan_is_cut_or_wrapped(calls: int, gpus: int) -> None:
    row = Row("match_dictionaries", 1_234, 10**9, 7.3e14, 9e5, 9e5, 2.86e9, calls, 12, 30, 1, True)
    plan = Plan([row], "h100", "guessed", gpus, 16, 1.0, 1.0, 1.0, [], True, True)
    text = io.StringIO()
    print_rules(Console(file=text, width=80), plan)
    [line] = [line for line in text.getvalue().splitlines() if "match_" in line]
    asked = ["250"] * (2 if gpus else 1)
    shown = ["match_dictionaries", "1,234", *asked, "2.86 GB", *(["57,840"] if calls else [])]
    assert re.split(r"\s{2,}", line.strip()) == [*shown, "12 MB", "30 min"]


def test_an_overlay_that_is_no_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match=r"list\.yaml: not a config"):
        read_merged_config([tmp_path / "list.yaml"])


def test_a_plan_lists_every_rule_with_its_totals_and_writes_the_same_as_json(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study without endpoints says so."""
    plans: list[Plan] = []

    def kept(*args: Any, **options: Any) -> Plan:
        plans.append(make_plan(*args, **options))
        return plans[-1]

    monkeypatch.setattr("nullsae.planning.show.make_plan", kept)
    print_plan(folder, [], device="cpu", cores=2, json_file=folder / "plans/plan.json")
    (plan,) = plans
    printed = capsys.readouterr().out
    written = json.loads((folder / "plans/plan.json").read_text())
    assert written == json.loads(json.dumps(asdict(plan)))
    for row in plan.rows:
        assert re.search(rf"{row.rule} .* {row.jobs:,} ", printed), row.rule
    assert f" {sum(row.jobs for row in plan.rows):,} " in printed
    assert re.search(r"Time: [\d.]+ minutes on 2 cores", printed)
    assert re.search(r"Disk: at most [\d.]+ GB, of which [\d.]+ (GB|MB) stay", printed)
    assert "use no language model endpoint" in printed
    assert not (folder / "results").exists()


@pytest.mark.slow
def test_more_gpus_shorten_a_plan_and_not_its_longest_chain(folder: Path) -> None:
    config = read_merged_config([REPOSITORY / "config.yaml", REPOSITORY / "config/paper.yaml"])
    few, many = (make_plan(config, folder, device="a100", gpus=n) for n in (2, 8))
    assert many.seconds < 0.3 * few.seconds
    assert many.longest_chain_seconds == few.longest_chain_seconds <= many.seconds
    assert many.total("gpu_seconds") == few.total("gpu_seconds") > 0
    # SAEs in bfloat16, models, checkpoints of eight trainings, and no activations.
    assert many.disk_bytes < 0.5e12
    # No order of jobs keeps two GPUs busier than always.
    assert few.seconds >= few.total("gpu_seconds") / 2


def test_a_study_kept_on_the_cpu_is_not_planned_for_a_gpu(folder: Path) -> None:
    config = read_merged_config([folder / "config.yaml"])
    with pytest.raises(UserError, match=r"--device: 'a100', but the study uses only the CPU"):
        make_plan(config, folder, device="a100")
    plan = make_plan(config, folder)
    assert plan.total("gpu_seconds") == 0
    assert plan.gpus == 0


@pytest.mark.slow
def test_a_small_study_keeps_its_activations(folder: Path) -> None:
    config = read_merged_config([folder / "config.yaml"])
    assert config.activations.kept
    assert not config.activations.streams
    plan = make_plan(config, folder, device="cpu", cores=1)
    # Results of six variants at two sites: 264 bytes for each of 299,904 tokens.
    cached = next(row for row in plan.rows if row.rule == "cache_activations").written_bytes
    assert cached == pytest.approx(6 * 2 * (199_936 + 99_968) * 264, rel=0.02)


def test_a_study_of_ones_own_model_needs_less_than_10_gb(folder: Path) -> None:
    page = (REPOSITORY / "docs/models_and_saes.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(# mine.yaml\n.*?)```", page, re.DOTALL)
    (folder / "mine.yaml").write_text(block)
    config = read_merged_config([folder / "config.yaml", folder / "mine.yaml"])
    plan = make_plan(config, folder, device="a100", gpus=1)
    assert plan.disk_bytes < 10e9
    # Norms and positions of captured tokens: 12 bytes each, two splits of six variants and floors.
    rules = ("cache_activations", "sample_gaussian")
    captured = sum(row.written_bytes for row in plan.rows if row.rule in rules)
    n_tokens = 1_048_576 + 999_936
    assert captured == pytest.approx(12 * 2 * (6 + 6) * n_tokens, rel=0.01)


def plan_verb(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nullsae.cli.main", "plan", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stdout + done.stderr
    (line,) = done.stderr.strip().splitlines()
    return line


@pytest.mark.slow
def test_a_model_that_nobody_knows_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(folder / "hub"))
    (folder / "hub.yaml").write_text(
        "corpora: {sotu: {sae_train_tokens: 300_000, eval_tokens: 100_000}}\n"
        "subjects:\n  small: null\n  other:\n    corpus: sotu\n    sites: [resid_post.0..1]\n"
        "    source: {kind: pretrained, path: nobody/nothing, step0_revision: step0,\n"
        "      retrained: {path: null}}\n"
    )
    line = one_line(plan_verb(folder, "--configfile", "hub.yaml"))
    assert "subjects.other.source.path: a plan needs the size of 'nobody/nothing'" in line
    (folder / "hub.yaml").write_text(
        (folder / "hub.yaml").read_text().replace("nobody/nothing", "EleutherAI/pythia-70m-deduped")
    )
    assert plan_verb(folder, "--configfile", "hub.yaml").returncode == 0


@pytest.mark.slow
def test_bad_input_ends_in_one_line(folder: Path) -> None:
    line = one_line(plan_verb(folder, "--device", "b200"))
    assert line == (
        "nullsae plan: error: --device: 'b200' is not one of auto, cpu, gpu, a100, h100, l40s, "
        "rtx4090, a6000"
    )
    (folder / "file").write_text("")
    line = one_line(plan_verb(folder, "--json", "file/plan.json"))
    assert "--json: file/plan.json cannot be written" in line
    (folder / "hub.yaml").write_text(
        "corpora: {sotu: {source: {kind: hub, path: a/b, streaming: false}}}\n"
    )
    line = one_line(plan_verb(folder, "--configfile", "hub.yaml"))
    assert "corpora.sotu" in line
    done = plan_verb(folder, "--gpus", "0")
    assert done.returncode == 2
    assert "--gpus" in done.stderr


@pytest.mark.slow
def test_numbers_of_tokens_come_from_an_earlier_run(folder: Path) -> None:
    all_of_eval = {"corpora": {"sotu": {"eval_tokens": None}}}
    config = read_merged_config([folder / "config.yaml"], all_of_eval)
    assert not make_plan(config, folder).tokens_are_counted
    for split, n_tokens in (("sae_train", 1_000_064), ("eval", 50_048)):
        manifest = folder / f"results/corpus/corpus=sotu/split={split}/manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"n_tokens": n_tokens}))
    plan = make_plan(config, folder)
    assert plan.tokens_are_counted
    corpus = next(row for row in plan.rows if row.rule == "prepare_corpus")
    assert corpus.tokens == 1_050_112
    collect = next(row for row in plan.rows if row.rule == "collect_latents")
    causal = 2 * 50_048 + 50 * 16 * 64 * (2 * 4 + 1)
    # Including four null dictionaries.
    assert collect.tokens == (N_CELLS + 4) * (50_048 + causal)
