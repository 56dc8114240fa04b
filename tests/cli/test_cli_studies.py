"""Verbs for people that take the folder of a study."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from nullsae import __version__, paths, tables
from nullsae.cli.main import PANELS, STUDIES, app
from nullsae.cli.print_difference import (
    are_apart,
    changed_keys,
    print_difference,
    why_none_is_common,
)
from nullsae.cli.run_study import arguments
from nullsae.config.read import study_files
from nullsae.core.errors import UserError
from nullsae.core.files import write_text
from nullsae.jobs.rules import rules
from nullsae.tables.study import PROVENANCE, VERDICTS

REPOSITORY = Path(__file__).parents[2]


def help_text() -> str:
    result = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "100"})
    assert result.exit_code == 0, result.output
    return result.output


def test_help_shows_verbs_for_people_first_and_rules_in_a_separate_panel() -> None:
    text = help_text()
    starts = [text.index(f"─ {panel} ─") for panel in PANELS]
    assert starts == sorted(starts)
    studies, _, of_rules = (
        re.findall(r"^│ (\w+) ", text[start:end], re.MULTILINE)
        for start, end in zip(starts, [*starts[1:], len(text)], strict=True)
    )
    assert studies == [verb for verb in STUDIES if verb in studies]
    assert {"init", "plan", "run", "verdicts", "report", "diff", "prune", "fetch"} <= {*studies}
    assert {*of_rules} <= rules().keys()
    assert {*of_rules}.isdisjoint(studies)


def test_help_loads_no_library() -> None:
    probe = (
        "import sys, contextlib, io\n"
        "from nullsae.cli.main import app\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    app(['--help'], standalone_mode=False)\n"
        "print(*{m.partition('.')[0] for m in sys.modules})\n"
    )
    command = [sys.executable, "-c", probe]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert {"pydantic", "numpy", "pyarrow", "yaml", "torch"}.isdisjoint(said.split())


def test_the_module_and_the_shell_s_completion_know_the_verbs() -> None:
    module = [sys.executable, "-m", "nullsae"]
    said = subprocess.run([*module, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == __version__
    script = "from nullsae.cli.main import main; import sys; sys.argv = ['nullsae']; main()"
    asked = {"_NULLSAE_COMPLETE": "complete_bash", "COMP_WORDS": "nullsae ver", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, **asked}
    )
    assert done.stdout.split() == ["verdicts"], done.stderr


def test_a_study_has_its_own_config_or_that_of_nullsae_and_then_its_overlay(
    tmp_path: Path,
) -> None:
    assert study_files(tmp_path) == [REPOSITORY / "config.yaml"]
    more = [Path("more.yaml")]
    (tmp_path / "study.yaml").touch()
    assert study_files(tmp_path, more) == [
        REPOSITORY / "config.yaml",
        tmp_path / "study.yaml",
        *more,
    ]
    (tmp_path / "config.yaml").touch()
    assert study_files(tmp_path) == [tmp_path / "config.yaml", tmp_path / "study.yaml"]


def test_snakemake_gets_the_caller_s_options_and_the_defaults_that_they_leave_open() -> None:
    screen = ["--logger", "nullsae"]
    place = [*screen, "--snakefile", str(REPOSITORY / "Snakefile"), "--directory", "s"]
    defaults = ["--cores", "all", "--resources", "gpu=1", "--quiet", "host", "reason"]
    assert arguments(Path("s"), []) == [*defaults, *place]
    given = ["results/a.txt", "--cores=2", "-q", "all"]
    assert arguments(Path("s"), given) == ["--resources", "gpu=1", *place, *given]
    given = ["--profile", "cluster", "--resources", "llm=2"]
    assert arguments(Path("s"), given) == ["--quiet", "host", "reason", *place, *given]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (["run", "s"], r"s: no study.yaml here; `nullsae init s --model PATH_OR_ID` writes one"),
        (["plan", "s"], r"s: no such folder; `nullsae init s` writes a study there"),
        (["prune", "s"], r"s: no such folder"),
        (["fetch", "s"], r"s: no such folder"),
        (["report"], r".*/results/report/index.html: does not exist; `nullsae run .` writes it"),
        (["report", "s"], r".*s/results/report/index.html: does not exist; s is no study; `nulls"),
        (["diff", "s", "s"], r"s/results/run_config.yaml: does not exist; s is no study; `nulls"),
        (
            ["verdicts", "s"],
            r"s/results/tables/verdicts.parquet: does not exist; s is no study; `nu",
        ),
        (["watch", "s"], r"s: no run here yet; s is no study; `nullsae init s` writes one there"),
        (["init", "."], r"study.yaml: exists already; edit it, or choose another folder"),
        (["init", "study.yaml"], r"study.yaml: is a file; name a folder to create"),
        (["plan", "a b"], r"a b: no such folder; `nullsae init 'a b'` writes a study there"),
        (
            ["export", "sae", "--sae", "s", "--layout", "saelens", "--output", "o"],
            r"--sae: s is no",
        ),
        (["init", "s", "--from", "../config"], r"--from: '../config' is not one of all-controls, "),
        (["init", "s", "--from", "quick", "--corpus", "sotu"], r"--from: such a study has its "),
        (["init", "s", "--sae", "x"], r"--model: missing; --sae, --corpus and --site need it"),
    ],
)
def test_a_mistake_in_a_verb_for_people_is_one_line(
    line: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.yaml").touch()
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, line)
    assert isinstance(result.exception, UserError)
    assert re.match(said, str(result.exception)), result.exception
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize("verb", ["plan", "prune", "fetch"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("saes: [", r"s/study.yaml: not YAML \(.*line 2"),
        ("seed: 0\nseed: 1\n", "s/study.yaml: 'seed' is given twice"),
        ("saes: {topk: {lr: 3e-4}}", "s/study.yaml: saes.topk.lr: '3e-4' is text, not a number"),
        ("sead: 1", "s/study.yaml: sead: unknown key; did you mean 'seed'"),
        ("subjects: {small: {sites: [resid_post.9]}}", r"s/study.yaml: subjects.small.sites: "),
    ],
)
def test_a_mistake_in_a_study_s_config_names_the_file_with_its_folder(
    verb: str, text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(Path("s/study.yaml"), text)
    error = CliRunner().invoke(app, [verb, "s"]).exception
    assert isinstance(error, UserError)
    assert re.match(said, str(error)), error


def test_a_mistake_in_an_overlay_names_the_overlay_and_one_in_place_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_text(Path("s/study.yaml"), "saes: {a.b: {k: 16, n_latents: 64}}")
    write_text(Path("more.yaml"), "saes: {a.b: {k: 0}}")
    error = CliRunner().invoke(app, ["plan", "s", "--configfile", "more.yaml"]).exception
    assert str(error).startswith(f"{tmp_path / 'more.yaml'}: saes.a.b.k: ")
    monkeypatch.chdir("s")
    error = CliRunner().invoke(app, ["plan", "--configfile", "../more.yaml"]).exception
    assert str(error).startswith("config: saes.a.b.k: ")


def test_a_config_that_cannot_be_read_is_named_before_snakemake_begins(tmp_path: Path) -> None:
    write_text(tmp_path / "study.yaml", "saes: [")
    error = CliRunner().invoke(app, ["run", str(tmp_path)]).exception
    assert str(error).startswith(f"{tmp_path / 'study.yaml'}: not YAML")


@pytest.mark.parametrize("line", [["plan", "s"], ["run", "s"], ["prune", "s"], ["init", "s"]])
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_config_that_is_no_file_is_not_passed_over(
    line: list[str], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it, the default study would be planned, or a new one written over the link."""
    monkeypatch.chdir(tmp_path)
    file = Path("s/study.yaml")
    file.parent.mkdir()
    file.mkdir() if kind == "folder" else file.symlink_to("nowhere")
    error = CliRunner().invoke(app, line).exception
    assert isinstance(error, UserError)
    assert re.match("s/study.yaml: (not a file, or a broken link|exists already)", str(error))
    assert file.is_dir() or file.is_symlink()


@pytest.mark.parametrize(
    "line",
    [
        ["init", "q", "--model", "~nobody-of-this-name/m"],
        ["init", "q", "--model", "a/b", "--corpus", "~nobody-of-this-name/t"],
        ["check", "~nobody-of-this-name/s", "--model", "m"],
        ["plan", "s", "--configfile", "~nobody-of-this-name/c.yaml"],
    ],
)
def test_the_home_of_a_user_who_does_not_exist_is_one_line(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    write_text(Path("s/study.yaml"), "seed: 1")
    error = CliRunner().invoke(app, line).exception
    assert isinstance(error, UserError), error
    assert "\n" not in str(error)
    assert not Path("q").exists()


def test_a_study_that_cannot_be_written_to_does_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "study.yaml").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # root may write anywhere
    result = CliRunner().invoke(app, ["run", str(tmp_path)])
    assert str(result.exception).startswith(f"{tmp_path}: not writable, but results go there")


def test_the_page_is_opened_in_the_browser(tmp_path: Path) -> None:
    page = tmp_path / "s" / paths.REPORT
    write_text(page, "<p>A page.</p>")
    seen = tmp_path / "seen"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {seen}\n')
    browser.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-m", "nullsae", "report", "s", "--open"],
        cwd=tmp_path,
        env={**os.environ, "BROWSER": str(browser)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout.strip()) == (0, str(page)), done.stderr
    assert seen.read_text().strip() == page.as_uri()


def made(root: Path, config: dict[str, Any], torch: str, verdicts: dict[str, Any]) -> None:
    """Write a finished study: config, provenance, and (verdict, low, high) of metrics."""
    write_text(root / paths.RUN_CONFIG, yaml.safe_dump(config))
    row = dict.fromkeys(PROVENANCE.names) | {"kind": "sae", "job": 0, "torch": torch}
    row |= dict.fromkeys(("verb", "nullsae", "python", "device", "device_kind", "host"), "x")
    tables.write_table(root / paths.PROVENANCE, [row], PROVENANCE)
    rows = [
        {
            **dict.fromkeys(VERDICTS.names),
            **{"stage": "model", "subject": "small", "site": "embed", "sae": "topk"},
            **{"metric": metric, "variant": "step0", "real": "trained", "null": "step0"},
            **{"verdict": verdict, "scope": "s", "is_replicated": False, "reason": "because"},
            **{"difference": (low + high) / 2, "difference_low": low, "difference_high": high},
        }
        for metric, (verdict, low, high) in verdicts.items()
    ]
    tables.write_table(root / paths.TABLE.format(table="verdicts"), rows, VERDICTS)


def test_two_studies_differ_in_what_is_printed_and_in_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    same = {"auroc": ("separates", 0.1, 0.3)}
    a = {**same, "l0": ("equivalent", -0.1, 0.1), "cosine": ("separates", 0.2, 0.4)}
    b = {**same, "l0": ("separates", 0.05, 0.35), "f1": ("separates", 0.5, 0.7)}
    one = {"seed": 0, "saes": {"topk": {"k": 16}}, "draws": 1}
    other = {"seed": 0, "saes": {"topk": {"k": 32}, "wide": {"k": 4}}, "draws": 1}
    made(Path("one"), one, "2.13.0", a)
    made(Path("other"), other, "2.14.0", b)
    print_difference(Path("one"), Path("other"))
    rows = [
        re.split(r"\s*[│┃]\s*", line.strip("│┃ ")) for line in capsys.readouterr().out.splitlines()
    ]
    cells = {row[0]: tuple(row[1:]) for row in rows if len(row) == 3}
    assert cells == {
        **dict.fromkeys(("Config", "Provenance", "Verdicts"), ("one", "other")),
        "saes.topk.k": ("16", "32"),
        "saes.wide.k": ("absent", "4"),
        "torch": ("2.13.0", "2.14.0"),
        "model, small, embed, topk, l0, step0, trained": ("equivalent +0", "separates +0.2"),
    }
    said = [row[0] for row in rows if len(row) == 1]
    assert said[-3:] == [
        "1 of 2 comparisons of both have the same verdict; the intervals of 0 do not overlap.",
        "Only in one: 1 comparison, such as model, small, embed, topk, cosine, step0, trained.",
        "Only in other: 1 comparison, such as model, small, embed, topk, f1, step0, trained.",
    ]
    print_difference(Path("one"), Path("one"))
    assert capsys.readouterr().out.splitlines() == [
        *("Config: the same.", "Provenance: the same.", "Verdicts: the same."),
        "3 of 3 comparisons of both have the same verdict; the intervals of 0 do not overlap.",
    ]


def test_studies_without_a_comparison_in_common_are_not_called_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    made(Path("one"), {}, "2.13.0", {"auroc": ("separates", 0.1, 0.3)})
    made(Path("other"), {}, "2.13.0", dict.fromkeys("abcde", ("separates", 0.1, 0.3)))
    made(Path("none"), {}, "2.13.0", {})

    def told(a: str, b: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["diff", a, b])
        return result.exit_code, result.output.splitlines()[-1]

    nothing = "Verdicts: nothing to compare, as no comparison is in both. "
    assert told("one", "other") == (
        1,
        f"{nothing}metric: auroc in one and a, b, c, 2 more in other.",
    )
    assert told("none", "other") == (1, f"{nothing}none has none.")
    assert told("one", "one")[0] == 0


def test_comparisons_may_differ_only_in_combinations_of_keys() -> None:
    def of(*sites_and_saes: tuple[str, str]) -> dict[tuple[str, ...], dict[str, str]]:
        rest = ("metric", "step0", "trained", "step0")
        return {("model", "s", *one, "", "", *rest): {} for one in sites_and_saes}

    a, b = of(("x", "topk"), ("y", "wide")), of(("x", "wide"), ("y", "topk"))
    (said,) = why_none_is_common(["one", "other"], [a, b])
    assert said.startswith("No single key (stage, subject, site, sae, ")
    b = {tuple("step1" if v == "step0" else v for v in key): row for key, row in a.items()}
    found = why_none_is_common(["one", "other"], [a, b])
    assert found == ["variant: step0 in one and step1 in other"]


def test_intervals_are_apart_only_if_no_value_is_in_both() -> None:
    def row(low: float | None, high: float | None) -> dict[str, float | None]:
        return {"difference_low": low, "difference_high": high}

    assert are_apart(row(0.0, 1.0), row(1.5, 2.0))
    assert are_apart(row(1.5, 2.0), row(0.0, 1.0))
    assert not are_apart(row(0.0, 1.0), row(1.0, 2.0))
    assert not are_apart(row(0.0, 3.0), row(1.0, 2.0))
    assert not are_apart(row(None, None), row(1.0, 2.0))


def test_keys_of_configs_are_compared_one_by_one() -> None:
    a = {"x": {"y": [1, 2], "z": {}}, "w": None}
    b = {"x": {"y": [1, 3]}, "w": None}
    assert changed_keys(a, b) == {"x.y": ("[1, 2]", "[1, 3]"), "x.z": ("{}", "absent")}
