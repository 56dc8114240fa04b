"""What a study will ask, counted before anything is sent."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from nullsae.arguments import read_merged_config
from nullsae.errors import UserError
from nullsae.planning import bills, print_plan

REPOSITORY = Path(__file__).parent.parent
# Five variants at two sites, 20 latents each.
N_CELLS, N_LATENTS = 10, 20


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
    assert (five.calls, many.calls) == (8000, 1600)
    assert many.prompt_tokens < 0.6 * five.prompt_tokens


def test_the_plan_is_printed_with_its_money_and_sends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text((REPOSITORY / "config.yaml").read_text())
    print_plan(tmp_path, [REPOSITORY / "config/llm.yaml"])
    printed = capsys.readouterr().out
    assert "48,200 calls" in printed
    money = re.search(r"about \$([\d.]+); the limit is \$10.00", printed)
    assert money is not None
    assert 1 < float(money[1]) < 10
    assert not (tmp_path / "results").exists()


def test_a_study_that_asks_nobody_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text((REPOSITORY / "config.yaml").read_text())
    print_plan(tmp_path, [])
    assert "asks no language model" in capsys.readouterr().out


def test_an_overlay_that_is_no_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match=r"list\.yaml: not a config"):
        read_merged_config([tmp_path / "list.yaml"])
