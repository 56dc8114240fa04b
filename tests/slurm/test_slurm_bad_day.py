"""A disturbed study on a real SLURM gives the same tables as an undisturbed one."""

from __future__ import annotations

import re
from itertools import combinations

import psutil
import pytest
from slurm_study import MAX_MEGABYTES, SAE_STEPS, SUBJECT_STEPS, BadDay, Ended
from workflow_study import Study, cell

from nullsae import paths, tables

pytestmark = pytest.mark.slurm


def test_tables_equal_those_of_a_run_without_slurm(bad_day: BadDay, local: Study) -> None:
    names = [paths.TABLE.format(table=table) for table in tables.AGGREGATED]
    names += [cell(paths.SAE_WEIGHTS, variant=v) for v in ("trained", "rerandomized")]
    differing = [
        name
        for name in names
        if (bad_day.study.folder / name).read_bytes() != (local.folder / name).read_bytes()
    ]
    assert differing == []


def test_jobs_share_no_gpu_and_run_where_they_belong(bad_day: BadDay) -> None:
    ended = bad_day.study.ended()
    spans = []
    for begun in bad_day.study.started():
        # A job that was restarted has more than one end.
        end = min((e for e in ended if e.job == begun.job and e.end + 1 > begun.at), key=_end)
        assert (end.partition == "gpu") == (begun.device != "none"), begun.line
        assert begun.device in ("none", "0", "1"), "more than one device in a job"
        if begun.device != "none":
            spans.append((begun.at, end.end, begun))
    at_once = [
        (first, second)
        for (start, end, first), (other_start, other_end, second) in combinations(spans, 2)
        if start < other_end and other_start < end
    ]
    assert at_once, "no two GPU jobs ran at a time; nothing was tested"
    assert [pair for pair in at_once if pair[0].device == pair[1].device] == []
    verbs = {begun.verb for _, _, begun in spans}
    assert verbs >= {"train_subject", "randomize_model", "cache_activations", "train_sae"}


def _end(ended: Ended) -> float:
    return ended.end


def asked(bad_day: BadDay, verb: str, holds: str = "") -> list[tuple[str, int, int]]:
    """Return how each job of a rule ended, and the megabytes and minutes that it requested."""
    jobs = {s.job for s in bad_day.study.started(verb) if holds in s.line}
    ended = [e for e in bad_day.study.ended() if e.job in jobs]
    return [(e.state, e.megabytes, e.limit_minutes) for e in ended]


def test_a_job_starved_of_memory_succeeds_with_more(bad_day: BadDay) -> None:
    """The first run sets the memory; in the second it is the rule's own, and not the profile's
    default.
    """
    assert asked(bad_day, "train_subject") == [
        ("FAILED", 300, 30),
        ("CANCELLED", 1_800, 60),
        ("COMPLETED", 4_300, 30),
    ]


def test_a_further_attempt_asks_for_more_up_to_the_cap(bad_day: BadDay) -> None:
    assert asked(bad_day, "train_sae", "variant=trained/") == [
        ("TIMEOUT", 4_140, 1),
        ("COMPLETED", MAX_MEGABYTES, 60),
    ]


def test_what_scancel_ended_says_so_and_resumes(bad_day: BadDay) -> None:
    said = re.search(
        rf"stopped by SIGTERM at step (\d+) of {SUBJECT_STEPS}; run again",
        bad_day.logs["train_subject, cancelled"],
    )
    assert said is not None, bad_day.logs
    again = bad_day.logs["train_subject, resumed"]
    assert f"resumed at step {said[1]} of {SUBJECT_STEPS}" in again
    assert 0 < int(said[1]) < SUBJECT_STEPS


def test_what_its_time_limit_ended_says_so_and_resumes(bad_day: BadDay) -> None:
    ended = bad_day.logs["train_sae, out of time"]
    said = re.search(rf"stopped by SIGTERM at step (\d+) of {SAE_STEPS};", ended)
    assert said is not None, ended
    log = bad_day.study.folder / paths.LOG.format(rule="train_sae", keys=cell(paths.CELL_KEYS))
    assert f"resumed at step {said[1]} of {SAE_STEPS}" in log.read_text()


def test_jobs_of_a_node_that_went_down_are_started_again(bad_day: BadDay) -> None:
    for begun in bad_day.interrupted:
        again = [s for s in bad_day.study.started(begun.verb, since=begun.at) if s.job == begun.job]
        assert len(again) == 2, "SLURM did not start it again"
        assert again[0].line == again[1].line


def test_a_second_run_in_one_folder_is_refused(bad_day: BadDay) -> None:
    assert "Directory cannot be locked" in bad_day.beside
    assert "snakemake --unlock" in bad_day.beside or "--unlock" in bad_day.beside


def test_no_jobs_are_left_behind(bad_day: BadDay) -> None:
    assert bad_day.left_in_queue == []
    here = str(bad_day.study.folder)
    alive = [p for p in psutil.process_iter(["cwd", "name"]) if p.info["cwd"] == here]
    assert alive == []
    sent = re.findall(
        r"has been submitted with SLURM jobid (\d+)", bad_day.first_log + bad_day.second_log
    )
    assert sorted({e.job for e in bad_day.study.ended()}) == sorted(sent)


def test_tables_and_report_are_one_job_of_slurm(bad_day: BadDay) -> None:
    jobs = {s.verb: s.job for s in bad_day.study.started() if s.verb in ("aggregate", "report")}
    assert jobs["aggregate"] == jobs["report"] != "local"
