"""A study with a language model: what runs again, what is paid for, what stays secret."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scripted_server import ScriptedServer
from workflow_study import Study, cell, copy_of, table

from nullsae import paths, tables

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
KEY = "sk-planted-0123456789"
N_CELLS = 2  # variants


@dataclass(frozen=True)
class Asking(Study):
    """A study whose jobs find a key in their environment."""

    @property
    def environment(self) -> dict[str, str]:
        return {**super().environment, "PLANTED_KEY": KEY}


@pytest.fixture(scope="module")
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(key=KEY, answers="judge_answers:plausible") as server:
        yield server


def with_model(server: ScriptedServer, **llm: Any) -> Any:
    def edit(config: dict[str, Any]) -> None:
        config["explainers"] |= {
            "gpt": {
                "kind": "openai",
                "model": "m",
                "base_url": server.url,
                "api_key_env": "PLANTED_KEY",
            },
            "gpt_swapped": {"kind": "swapped", "of": "gpt"},
        }
        price = {"input_usd_per_million_tokens": 1.0, "output_usd_per_million_tokens": 2.0}
        config["llm"] = {"prices": {"m": price}, **llm}

    return edit


@pytest.fixture(scope="module")
def asked(study: Study, tmp_path_factory: pytest.TempPathFactory, server: ScriptedServer) -> Asking:
    """The study with a language model added, run to its end."""
    copy = copy_of(study, tmp_path_factory.mktemp("asked") / "study")
    asking = Asking(copy.folder, copy.tree)
    asking.configure(with_model(server))
    jobs = asking.jobs()
    assert jobs == {
        "explain_latents": N_CELLS,
        "score_latents": 2 * 2 * N_CELLS,
        "explain_and_score": N_CELLS,  # the exchanged ones
        "aggregate": 1,
        "report": 1,
    }
    asking.make()
    return asking


def costs(study: Study) -> pd.DataFrame:
    frame = pd.read_parquet(study.folder / paths.COSTS)
    return frame[frame["model"].notna()]


def test_a_language_model_adds_its_explanations_and_scores(
    asked: Asking, server: ScriptedServer
) -> None:
    scores = table(asked, "scores")
    by = scores[scores["explainer"].isin(["gpt", "gpt_swapped"])]
    assert set(by["judge"]) == {"m"}
    assert (by["n_failed"] == 0).all()
    assert (by["n_labels"] == 0).all()  # log-probabilities
    # The windows are those that the formula judged.
    windows = [
        tables.read_table(
            asked.folder / cell(paths.PREDICTIONS, explainer=name),
            tables.cell_schema("predictions"),
        ).select(["latent", "window", "active"])
        for name in ("lexical", "gpt")
    ]
    assert windows[0].equals(windows[1])
    page = (asked.folder / paths.REPORT).read_text()
    assert "words of kind" in page


def test_costs_are_counted_and_agree_with_the_server(asked: Asking, server: ScriptedServer) -> None:
    found = costs(asked)
    stats = server.stats()
    assert found["calls"].sum() == stats["answered"] == stats["requests"]
    assert stats["repeated_answered"] == 0
    assert found["cost_usd"].sum() == pytest.approx(
        found["prompt_tokens"].sum() * 1e-6 + found["completion_tokens"].sum() * 2e-6
    )
    plan = asked.run(["nullsae", "plan"])
    assert plan.returncode == 0, plan.stdout
    # Besides the planned requests, a few test what the endpoint supports.
    planned = int(plan.stdout.split(" calls, about")[0].split()[-1].replace(",", ""))
    assert 0 <= stats["requests"] - planned <= 10
    assert f"{stats['answered']:,} replies are in" in plan.stdout


def test_nothing_runs_again_and_what_does_is_not_paid_again(
    asked: Asking, server: ScriptedServer
) -> None:
    assert asked.jobs() == {}
    # Settings for endpoints change no answer.
    asked.configure(with_model(server, concurrency=3, timeout_seconds=60.0))
    assert asked.jobs() == {}
    server.reset()
    before = table(asked, "scores")
    asked.make("--forcerun", "explain_latents", "score_latents")
    assert server.stats()["requests"] == 0
    after = table(asked, "scores")
    pd.testing.assert_frame_equal(before, after)
    assert (costs(asked)["calls"] == 0).all()
    assert costs(asked)["cost_usd"].sum() > 0


def add(section: str, name: str, **values: Any) -> Any:
    """Return an edit that adds an entry, or sets keys of an existing one."""

    def edit(config: dict[str, Any]) -> None:
        config[section][name] = config[section].get(name, {}) | values

    return edit


END = {"aggregate": 1, "report": 1}
# Another explainer without endpoint, or another prompt: what runs again, and who explains in a
# shared job.
EDITS: dict[str, tuple[Any, dict[str, int], str]] = {
    "free explainer": (
        add("explainers", "short", kind="lexical", top_tokens=3),
        {"explain_and_score": N_CELLS, **END},
        "lexical",
    ),
    "placebo of a free one": (
        add("explainers", "short", kind="swapped", of="lexical"),
        {"explain_and_score": N_CELLS, **END},
        "lexical",
    ),
    "prompt of a model": (
        add("explainers", "gpt", shown_windows=3),
        {
            # What the placebo is judged by follows what the model wrote.
            **{"explain_latents": N_CELLS, "score_latents": 2 * 2 * N_CELLS},
            **{"explain_and_score": N_CELLS, **END},
        },
        "gpt_swapped",
    ),
    "prompt of a judge": (
        add("scorers", "detection", windows_per_prompt=4),
        {"score_latents": 2 * N_CELLS, **END},
        "",
    ),
}


@pytest.mark.parametrize("case", EDITS)
def test_free_and_paid_explanations_run_again_separately(
    asked: Asking, server: ScriptedServer, tmp_path: Path, case: str
) -> None:
    edit, expected, made = EDITS[case]
    copy = copy_of(asked, tmp_path / "study", linked=True)
    edited = Asking(copy.folder, copy.tree).configure(with_model(server), edit)
    assert edited.jobs() == expected
    said = edited.make("--dry-run", "--printshellcmds")
    shared = [line for line in said.splitlines() if "nullsae explain_and_score " in line]
    assert len(shared) == expected.get("explain_and_score", 0)
    assert all(f'"{made}":' in line for line in shared)


def test_the_key_is_nowhere(asked: Asking) -> None:
    files = [f for f in asked.folder.rglob("*") if f.is_file()]
    assert any(f.name == "replies.sqlite" for f in files)
    assert [f for f in files if KEY.encode() in f.read_bytes()] == []


def test_a_spent_budget_stops_with_one_line_and_keeps_what_was_paid(
    asked: Asking, server: ScriptedServer, tmp_path: Path
) -> None:
    copy = copy_of(asked, tmp_path / "study")
    broke = Asking(copy.folder, copy.tree)

    def more(config: dict[str, Any]) -> None:
        config["scorers"]["many"] = {"kind": "detection", "windows_per_prompt": 3}

    paid = costs(asked)["cost_usd"].sum()
    broke.configure(with_model(server, max_cost_usd=float(paid) + 0.002), more)
    result = broke.snakemake()
    assert result.returncode != 0
    assert "llm.max_cost_usd" in result.stdout
    assert "Traceback" not in result.stdout
    broke.configure(with_model(server), more)
    server.reset()
    broke.make()
    assert server.stats()["repeated_answered"] == 0


def test_a_missing_key_is_one_line(asked: Asking, server: ScriptedServer, tmp_path: Path) -> None:
    copy = copy_of(asked, tmp_path / "study")

    def other(config: dict[str, Any]) -> None:
        config["explainers"]["gpt"]["api_key_env"] = "NOT_SET_ANYWHERE"
        config["explainers"]["gpt"]["base_url"] = "https://127.0.0.2.example.invalid/v1"

    missing = Asking(copy.folder, copy.tree)
    missing.configure(with_model(server), other)
    result = missing.snakemake()
    assert result.returncode != 0
    assert "NOT_SET_ANYWHERE" in result.stdout
    assert "Traceback" not in result.stdout
