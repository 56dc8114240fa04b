"""Explaining and judging over HTTP: each window is answered or counted, exactly once."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from asked_latents import N_WINDOWS, WORDS, asked, judge_of, told
from autointerp_cells import (
    KEYS,
    score_params,
    write_windows,
)
from judge_answers import EXAMPLES
from scripted_server import Options, ScriptedServer

from nullsae.autointerp.examples import examples_of, with_marks
from nullsae.autointerp.explain import explain_latents
from nullsae.autointerp.explainers.language_model import OpenAIExplainer
from nullsae.autointerp.explainers.lexical import LexicalExplainer
from nullsae.autointerp.explanation_text import explanation
from nullsae.autointerp.llm.messages import Reply
from nullsae.autointerp.prompting import load_prompt
from nullsae.autointerp.score import score_latents
from nullsae.autointerp.scorers.detection import DetectionScorer
from nullsae.autointerp.scorers.intruder import IntruderScorer, intruder_tasks
from nullsae.config.endpoints import Endpoint
from nullsae.config.llm import Llm
from nullsae.config.parse import parse_section
from nullsae.core import locking
from nullsae.core.errors import UserError
from nullsae.jobs.autointerp import ExplainLatentsParams, ScoreLatentsParams
from nullsae.tables import cell_schema, read_table, write_table

pytestmark = pytest.mark.usefixtures("warm")

Rows = list[dict[str, Any]]


@pytest.fixture
def server(process: ScriptedServer) -> ScriptedServer:
    process.set(**vars(Options(answers="judge_answers:oracle")))
    process.reset()
    return process


def explain(folder: Path, rows: Rows, tokenizer: Path, server: ScriptedServer) -> Rows:
    params = parse_section(
        ExplainLatentsParams,
        {"seed": 0, "keys": KEYS, "explainer": {"kind": "openai", **judge_of(server)}},
        where="params",
    )
    source = write_windows(folder / "windows.parquet", rows)
    output = folder / "explanations.parquet"
    explain_latents(params, source, tokenizer, output, None, asked(folder))
    return read_table(output, cell_schema("explanations")).to_pylist()


def score(
    folder: Path,
    rows: Rows,
    tokenizer: Path,
    server: ScriptedServer,
    table: pa.Table | None = None,
    settings: dict[str, Any] | None = None,
    **scorer: Any,
) -> tuple[Rows, Rows]:
    folder.mkdir(exist_ok=True)
    judge = judge_of(server)
    if scorer["kind"] == "intruder":
        scorer["judge"] = judge
    data = {"seed": 0, "keys": KEYS, "scorer": scorer, "judge": judge}
    explanations = None
    if scorer["kind"] != "intruder":
        explanations = folder / "explanations.parquet"
        write_table(explanations, table or told(), cell_schema("explanations"))
    score_latents(
        parse_section(ScoreLatentsParams, data, where="params"),
        windows=write_windows(folder / "windows.parquet", rows),
        explanations=explanations,
        tokenizer=tokenizer,
        predictions=folder / "predictions.parquet",
        scores=folder / "scores.parquet",
        session=asked(folder, **(settings or {})),
    )
    return (
        read_table(folder / "predictions.parquet", cell_schema("predictions")).to_pylist(),
        read_table(folder / "scores.parquet", cell_schema("scores")).to_pylist(),
    )


# Explaining --------------------------------------------------------------------------------


def test_each_latent_is_explained_by_its_own_windows(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer
) -> None:
    found = explain(tmp_path, rows, tokenizer_file, server)
    assert [row["explanation"] for row in found] == list(WORDS)
    assert {row["model"] for row in found} == {"m"}
    assert len({row["prompt_hash"] for row in found}) == 1
    assert {row["reason"] for row in found} == {None}


def test_a_model_that_explains_nothing_leaves_reasons(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer
) -> None:
    server.set(faults=[{"kind": "empty"}])
    found = explain(tmp_path, rows, tokenizer_file, server)
    assert [row["explanation"] for row in found] == [None] * 3
    assert {row["reason"] for row in found} == {"the model gave no explanation"}


@pytest.mark.parametrize("size", [5_000, 300_000, 5_000_000])
def test_an_endless_explanation_is_cut_and_the_cut_characters_are_counted(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer, size: int
) -> None:
    message = {"content": "Explanation: " + "cups " * (size // 5)}
    text = json.dumps({"choices": [{"message": message}], "usage": {"prompt_tokens": 600}})
    # The endpoint's abilities are probed first.
    explain(tmp_path / "before", rows, tokenizer_file, server)
    server.set(faults=[{"kind": "body", "text": text}])
    found = explain(tmp_path, rows, tokenizer_file, server)
    assert [row["explanation"] for row in found] == ["cups " * 800] * 3
    # Most of the 5 MB was cut before it was parsed.
    assert all(900 < row["n_characters_cut"] < 60_000 for row in found)


@pytest.mark.parametrize("example", range(2))
@pytest.mark.parametrize(("answers", "n"), [("parrot", 2), ("parrot_once", 1)])
def test_an_explanation_that_repeats_an_example_is_requested_once_more(
    tmp_path: Path,
    rows: Rows,
    tokenizer_file: Path,
    server: ScriptedServer,
    answers: str,
    n: int,
    example: int,
) -> None:
    text = explanation(Reply(load_prompt("explain").examples[example], (), "stop"))
    assert text == EXAMPLES[example]
    server.set(answers=f"judge_answers:{answers}_{example}")
    found = explain(tmp_path, rows, tokenizer_file, server)
    assert [row["n_example_repeats"] for row in found] == [n] * 3
    if n == 1:
        assert [row["explanation"] for row in found] == list(WORDS)
        assert {row["reason"] for row in found} == {None}
    else:
        assert [row["explanation"] for row in found] == [None] * 3
        assert {row["reason"] for row in found} == {"the model repeated an example of the prompt"}
    # Asked exactly twice, besides the probes.
    questions = json.loads((tmp_path / "asked.json").read_text())["calls"]
    assert 3 * 2 < questions <= 3 * 2 + 4


@pytest.mark.parametrize("status", [400, 500])
@pytest.mark.parametrize("kind", ["detection", "fuzzing", "intruder"])
def test_a_template_without_system_role_works_equally_well(
    tmp_path: Path,
    rows: Rows,
    tokenizer_file: Path,
    server: ScriptedServer,
    kind: str,
    status: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="nullsae")
    server.set(no_system_role={"status": status, "message": "System role not supported"})
    more = {"n_tasks": 3} if kind == "intruder" else {}
    _, scores = score(tmp_path, rows, tokenizer_file, server, kind=kind, **more)
    assert [row["auroc"] for row in scores] == [1.0] * 3
    assert [row["n_failed"] for row in scores] == [0] * 3
    assert caplog.text.count("m takes no system messages") == 1
    # Probed once.
    assert server.stats()["kinds"]["400" if status == 400 else "500"] == 1


@pytest.mark.parametrize("kind", ["detection", "intruder"])
def test_a_server_that_drops_system_messages_works_equally_well(
    tmp_path: Path,
    rows: Rows,
    tokenizer_file: Path,
    server: ScriptedServer,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", logger="nullsae")
    server.set(answers="judge_answers:instructed", drops_system=True)
    more = {"n_tasks": 3} if kind == "intruder" else {}
    _, scores = score(tmp_path, rows, tokenizer_file, server, kind=kind, **more)
    assert [row["auroc"] for row in scores] == [1.0] * 3
    assert [row["n_failed"] for row in scores] == [0] * 3
    assert caplog.text.count("m passes over system messages") == 1


THOUGHTS = ("think_closed", "think_both", "harmony", "bracketed", "untagged")


@pytest.mark.parametrize("answers", THOUGHTS)
@pytest.mark.parametrize("kind", ["detection", "intruder"])
def test_drafts_in_the_reasoning_of_a_judge_never_count(
    tmp_path: Path,
    rows: Rows,
    tokenizer_file: Path,
    server: ScriptedServer,
    kind: str,
    answers: str,
) -> None:
    server.set(answers=f"judge_answers:{answers}", json_schema="ignored")
    limit = {"max_completion_tokens": 1000}
    more = {"n_tasks": 3} if kind == "intruder" else {}
    shown, scores = score(tmp_path, rows, tokenizer_file, server, kind=kind, **limit, **more)
    assert [row["auroc"] for row in scores] == [1.0] * 3
    assert [row["n_failed"] for row in scores] == [0] * 3
    if kind == "detection":  # the scripted server has no alternatives to other numbers
        assert {row["evidence"] for row in shown} == {"logprobs"}


# Judging -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["detection", "fuzzing"])
def test_a_judge_who_knows_the_answers_is_right_about_every_window(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer, kind: str
) -> None:
    shown, scores = score(tmp_path, rows, tokenizer_file, server, kind=kind)
    assert [row["auroc"] for row in scores] == [1.0] * 3
    for row in scores:
        assert (row["n_active"], row["n_silent"], row["n_failed"]) == (N_WINDOWS, N_WINDOWS, 0)
        assert (row["judge"], row["n_labels"]) == ("m", 0)
    assert {row["evidence"] for row in shown} == {"logprobs"}
    # 30 windows of a latent, five per question.
    asked_for = json.loads((tmp_path / "asked.json").read_text())
    assert asked_for["calls"] - 3 * 6 <= 4  # in addition, the probes
    assert server.stats()["repeated_answered"] == 0


def test_marks_on_the_wrong_tokens_are_told_from_true_ones(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer
) -> None:
    shown, scores = score(
        tmp_path, rows, tokenizer_file, server, kind="fuzzing", negatives="misplaced"
    )
    # The only word in a window is marked in one of its two appearances.
    assert [row["auroc"] for row in scores] == [1.0] * 3
    assert {row["silent_kind"] for row in shown} == {None, "misplaced"}
    pairs = [(row["latent"], row["window"]) for row in shown]
    assert all(pairs.count(pair) == 2 for pair in pairs)
    marks: dict[tuple[int, int], set[int]] = {}
    for row in shown:
        marks.setdefault((row["latent"], row["window"]), set()).add(row["n_marked"])
    assert all(len(sizes) == 1 for sizes in marks.values())


def test_intruders_are_found_without_any_explanation(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer
) -> None:
    shown, scores = score(
        tmp_path, rows, tokenizer_file, server, kind="intruder", n_tasks=3, active_per_task=4
    )
    for row in scores:
        assert (row["n_active"], row["n_silent"], row["n_failed"]) == (12, 3, 0)
        assert row["auroc"] == 1.0
        assert row["placebo_auroc"] == 0.5  # all tokens are equally frequent
    assert len({(row["latent"], row["window"]) for row in shown}) == len(shown) == 45


@pytest.mark.parametrize(("answers", "auroc"), [("oracle", 1.0), ("hopeless", None)])
def test_the_placebo_of_intruders_answers_the_judges_questions_by_frequency(
    tmp_path: Path,
    rows: Rows,
    tokenizer_file: Path,
    server: ScriptedServer,
    answers: str,
    auroc: float | None,
) -> None:
    """Words are rare here, and silent windows contain no rare token: frequency tells them apart."""
    server.set(answers=f"judge_answers:{answers}", json_schema="ignored")
    shares = [[2**-9 if a > 0 else 2**-3 for a in row["activations"]] for row in rows]
    given = [{**row, "token_frequencies": s} for row, s in zip(rows, shares, strict=True)]
    _, scores = score(
        tmp_path, given, tokenizer_file, server, kind="intruder", n_tasks=3, active_per_task=4
    )
    assert [row["placebo_auroc"] for row in scores] == [auroc] * 3
    assert [row["auroc"] for row in scores] == [auroc] * 3


def test_a_question_about_an_intruder_shows_one_quantile_and_one_silent_window(rows: Rows) -> None:
    params = score_params(kind="intruder", judge={"model": "m"})
    assert isinstance(params.scorer, IntruderScorer)
    table = pa.Table.from_pylist(rows, schema=cell_schema("windows"))
    latents = pa.chunked_array([pa.array([0, 1, 2])])
    examples = examples_of(table, latents, negatives="random", source="w")
    examples = with_marks(examples, 0.3, "random", 0, "k")
    tasks = [
        t for latent in (0, 1, 2) for t in intruder_tasks(params, params.scorer, examples, latent)
    ]
    assert len(tasks) == 3 * 3  # five active windows in each of three quantiles, four per question
    places = set()
    for task in tasks:
        rows = task.rows
        assert examples.active[rows].sum() == 4
        (quantile,) = set(examples.quantile.take(pa.array(rows)).drop_null().to_pylist())
        assert len(set(examples.latent[rows])) == 1
        (place,) = np.flatnonzero(~examples.active[rows]).tolist()
        assert rows[place] == task.intruder
        places.add(place)
        # The fifth active window of the quantile is not shown, so the intruder's marks imitate it.
        (imitated,) = task.like.tolist()
        assert imitated not in rows
        assert examples.latent[imitated] == examples.latent[task.intruder]
        assert examples.quantile[imitated].as_py() == quantile
    assert len(places) > 1


def test_a_latent_without_an_explanation_is_counted_but_not_asked_about(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer
) -> None:
    table = told(("apple", None, "seven"))
    shown, scores = score(tmp_path, rows, tokenizer_file, server, table, kind="detection")
    assert [row["n_failed"] for row in scores] == [0, 2 * N_WINDOWS, 0]
    assert scores[1]["auroc"] is None
    assert {row["evidence"] for row in shown if row["latent"] == 1} == {None}


# Bad answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 5])
@pytest.mark.parametrize("answers", ["forgetful", "stubborn", "lists"])
def test_windows_without_an_answer_are_asked_about_again(
    tmp_path: Path,
    rows: Rows,
    tokenizer_file: Path,
    server: ScriptedServer,
    answers: str,
    size: int,
) -> None:
    server.set(answers=f"judge_answers:{answers}", json_schema="ignored")
    shown, scores = score(
        tmp_path, rows, tokenizer_file, server, kind="detection", windows_per_prompt=size
    )
    assert len(shown) == 6 * N_WINDOWS
    for row in scores:
        assert row["n_active"] + row["n_silent"] + row["n_failed"] == 2 * N_WINDOWS
    if not (answers == "lists" and size > 2):  # which never gives a useful answer
        assert [row["n_failed"] for row in scores] == [0] * 3
        assert [row["auroc"] for row in scores] == [1.0] * 3
    assert server.stats()["repeated_answered"] == 0


def test_missing_answers_are_counted(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer
) -> None:
    server.set(answers="judge_answers:hopeless", json_schema="ignored")
    shown, scores = score(tmp_path, rows, tokenizer_file, server, kind="detection")
    assert [row["n_failed"] for row in scores] == [2 * N_WINDOWS] * 3
    assert [row["auroc"] for row in scores] == [None] * 3
    assert {row["probability"] for row in shown} == {None}
    # Three attempts at each question, each with other words.
    assert server.stats()["repeated_answered"] == 0


FAULTS: dict[str, dict[str, Any]] = {
    "429 at once": {"kind": "status", "status": 429},
    "429 for a while": {"kind": "status", "status": 429, "retry_after": "0.2"},
    "500": {"kind": "status", "status": 500},
    "no time": {"kind": "hang"},
    "dropped": {"kind": "drop"},
    "cut": {"kind": "cut"},
    "nothing": {"kind": "empty"},
    "refusal": {"kind": "refusal"},
    "no choices": {"kind": "no_choices"},
    "no probabilities": {"kind": "no_logprobs"},
}


@pytest.mark.parametrize(("name", "every"), [*((name, 5) for name in FAULTS), ("500", 20)])
def test_every_window_gets_its_answer_despite_failures(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer, name: str, every: int
) -> None:
    # The first requests are probes.
    score(tmp_path, rows[-2:], tokenizer_file, server, kind="detection")
    server.reset()
    server.set(faults=[{**FAULTS[name], "every": every}])
    settings = {"timeout_seconds": 2.0} if name == "no time" else {}
    one = {"kind": "detection", "windows_per_prompt": 1}
    shown, scores = score(tmp_path, rows, tokenizer_file, server, settings=settings, **one)
    stats = server.stats()
    assert sum(stats["kinds"].values()) - stats["kinds"]["answer"] >= 90 // every - 1
    # After three useless answers, a question is counted as failed.
    lost = [row["n_failed"] for row in scores]
    assert sum(lost) <= (3 if name in ("nothing", "refusal") else 0)
    for row in scores:
        assert row["n_active"] + row["n_silent"] + row["n_failed"] == 2 * N_WINDOWS
    assert [row["auroc"] for row in scores] == [1.0] * 3
    assert len({(row["latent"], row["window"]) for row in shown}) == len(shown) == 90
    if name != "no time":  # on a busy machine an answer may come too late, and be requested again
        assert stats["repeated_answered"] == 0
    labels = sum(row["n_labels"] for row in scores)
    assert (labels > 0) == (name == "no probabilities")


def test_a_second_run_asks_nothing_and_gives_the_same(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer
) -> None:
    first = score(tmp_path, rows, tokenizer_file, server, kind="fuzzing")
    server.reset()
    assert score(tmp_path, rows, tokenizer_file, server, kind="fuzzing") == first
    assert server.stats()["requests"] == 0
    costs = json.loads((tmp_path / "asked.json").read_text())
    assert (costs["calls"], costs["cached_calls"]) == (0, 18)


def test_more_windows_in_a_question_are_fewer_questions(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer
) -> None:
    counts = []
    for size in (5, 10, 25):
        server.reset()
        folder = tmp_path / str(size)
        _, scores = score(
            folder, rows, tokenizer_file, server, kind="detection", windows_per_prompt=size
        )
        assert [row["auroc"] for row in scores] == [1.0] * 3
        counts.append(json.loads((folder / "asked.json").read_text())["calls"])
    probes = counts[0] - 18
    assert [n - probes for n in counts] == [18, 9, 6]


# Kill and start again ----------------------------------------------------------------------


def kept_replies(cache: Path) -> int:
    """Return how many replies are on disk."""
    if not cache.exists():
        return 0
    with closing(sqlite3.connect(f"file:{cache}?mode=ro", uri=True)) as file:
        try:
            return int(file.execute("SELECT count(*) FROM replies").fetchone()[0])
        except sqlite3.OperationalError:  # its tables are being created
            return 0


def test_a_killed_job_resumes_where_it_was(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer
) -> None:
    whole = score(tmp_path / "whole", rows, tokenizer_file, server, kind="detection")
    n_probes = server.stats()["requests"] - 18
    n_kept = kept_replies(tmp_path / "whole" / Llm().cache) - 9
    folder = tmp_path / "killed"
    folder.mkdir()
    server.reset()
    # Nine questions are answered; the job is killed while it waits for the others.
    server.set(faults=[{"kind": "hang", "after": n_probes + 9}], hang_seconds=100.0)
    source = write_windows(folder / "windows.parquet", rows)
    write_table(folder / "explanations.parquet", told(), cell_schema("explanations"))
    params = {"seed": 0, "keys": KEYS, "scorer": {"kind": "detection"}, "judge": judge_of(server)}
    command = [
        *(sys.executable, "-m", "nullsae.cli.main", "score_latents"),
        *("--params", json.dumps(params)),
        *("--windows", str(source), "--tokenizer", str(tokenizer_file)),
        *("--explanations", str(folder / "explanations.parquet")),
        *("--predictions", str(folder / "predictions.parquet")),
        *("--scores", str(folder / "scores.parquet")),
    ]
    process = subprocess.Popen(command, cwd=folder, start_new_session=True)
    deadline = time.monotonic() + 90
    while kept_replies(folder / Llm().cache) < n_kept or server.stats()["in_flight"] < 9:
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "scores.parquet").exists()
    server.set(faults=[])
    before = server.stats()
    subprocess.run(command, cwd=folder, check=True, timeout=60)
    after = server.stats()
    assert after["requests"] - before["requests"] == 9
    assert after["repeated_answered"] == 0
    found = tuple(
        read_table(folder / f"{name}.parquet", cell_schema(name)).to_pylist()
        for name in ("predictions", "scores")
    )
    assert found == whole


def test_only_one_process_at_a_time_asks_a_jobs_questions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: ScriptedServer
) -> None:
    """Two processes would pay for each answer twice."""
    monkeypatch.setattr(locking, "WAIT_SECONDS", 0.0)
    endpoint = parse_section(Endpoint, judge_of(server), where="judge")
    tried: list[int] = []

    async def question() -> int:
        return 1

    def beside(done: int, *_: Any) -> None:
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* is already working"):
            asked(tmp_path).all(endpoint, lambda _: [question()], 1)
        tried.append(done)

    session = asked(tmp_path)
    session.progress = beside
    assert session.all(endpoint, lambda _: [question()], 1) == [1]
    assert tried == [1]
    assert asked(tmp_path).all(endpoint, lambda _: [question()], 1) == [1]


def test_token_counts_can_be_judged_as_text_by_the_same_model(
    tmp_path: Path, rows: Rows, tokenizer_file: Path, server: ScriptedServer
) -> None:
    lexical = {"kind": "lexical", "judged_by": "text"}
    scorer = {"kind": "detection"}
    data = {"seed": 0, "keys": KEYS, "scorer": scorer, "judge": judge_of(server)}
    score_latents(
        parse_section(ScoreLatentsParams, data | {"explainers": [lexical]}, where="params"),
        windows=write_windows(tmp_path / "windows.parquet", rows),
        tokenizer=tokenizer_file,
        predictions=tmp_path / "predictions.parquet",
        scores=tmp_path / "scores.parquet",
        session=asked(tmp_path),
    )
    found = read_table(tmp_path / "scores.parquet", cell_schema("scores")).to_pylist()
    assert {row["judge"] for row in found} == {"m"}
    predictions = read_table(tmp_path / "predictions.parquet", cell_schema("predictions"))
    assert "statistics" not in predictions["evidence"].to_pylist()
    detection = parse_section(DetectionScorer, scorer, where="scorer")
    formula, text = (
        LexicalExplainer(kind="lexical", judged_by=by) for by in ("statistics", "text")
    )
    assert detection.asked(formula) is None
    with pytest.raises(
        ValueError, match="judge: missing; explanations of kind lexical are text, which"
    ):
        detection.asked(text)


# Bad input ---------------------------------------------------------------------------------


def test_explanations_in_words_need_a_judge(tmp_path: Path, rows: Rows) -> None:
    write_table(tmp_path / "e.parquet", told(), cell_schema("explanations"))
    with pytest.raises(UserError, match="judge: missing; these explanations are text"):
        score_latents(
            score_params(kind="detection"),
            windows=write_windows(tmp_path / "w.parquet", rows),
            explanations=tmp_path / "e.parquet",
            predictions=tmp_path / "p.parquet",
            scores=tmp_path / "s.parquet",
        )
    assert not (tmp_path / "p.parquet").exists()


def test_an_endpoint_has_a_complete_url_or_a_server_but_not_both() -> None:
    with pytest.raises(ValueError, match="has no scheme; write http://localhost"):
        Endpoint(model="m", base_url="localhost:8000/v1")
    with pytest.raises(ValueError, match="has no host"):
        Endpoint(model="m", base_url="http:///v1")
    with pytest.raises(ValueError, match="either base_url or server"):
        OpenAIExplainer(
            kind="openai", model="m", base_url="http://h/v1", server={"command": ("x",)}
        )


def test_a_jobs_own_server_gets_no_key_unless_it_is_named() -> None:
    server = {"command": ["x"]}
    own = parse_section(Endpoint, {"model": "m", "server": server}, where="judge")
    again = Endpoint.model_validate_json(own.model_dump_json())
    assert (own.api_key_env, again.api_key_env) == (None, None)
    named = {"model": "m", "server": server, "api_key_env": "MINE"}
    assert parse_section(Endpoint, named, where="judge").api_key_env == "MINE"
    assert Endpoint(model="m").api_key_env == "OPENAI_API_KEY"
