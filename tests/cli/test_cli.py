from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from nullsae import __version__
from nullsae.cli.main import app, main
from nullsae.jobs.rules import rules
from small_chain import COMPUTE, SITES, Chain, all_rows, capture_params

RULES = Path(__file__).parents[2] / "workflow" / "rules"
RULE_TEXT = "\nrule :\n".join(file.read_text() for file in sorted(RULES.glob("*.smk")))
LINES = {
    match[1]: match[0]
    for file in sorted(RULES.glob("*.smk"))
    # A rule's shell line runs to the end of the block of strings.
    for match in re.finditer(r'"nullsae (\w+) (?:[^"]|"\s*\n\s*")*"', file.read_text())
}


def failure(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Return what the entry point prints when it exits with 2."""
    monkeypatch.setattr(sys, "argv", ["nullsae", *arguments])
    for variable in ("OMP_WAIT_POLICY", "HF_HUB_DISABLE_PROGRESS_BARS"):
        monkeypatch.setenv(variable, "PASSIVE" if variable.startswith("OMP") else "1")
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    return text


def test_a_place_that_cannot_be_written_to_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file/within"
    text = failure(["init", str(place), "--from", "quick"], monkeypatch, capsys)
    assert text.splitlines()[-1] == f"nullsae init: error: {place}: Not a directory"


def test_a_missing_profile_of_a_cluster_can_be_copied_from_where_the_error_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = failure(["check_cluster"], monkeypatch, capsys)
    command = re.search(r"`(cp -r .*)`", text)
    assert command is not None
    subprocess.run(command[1], shell=True, check=True)
    assert Path("profiles/slurm/profile.yaml").is_file()


@pytest.mark.parametrize(
    ("error", "place"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "results/work"), "results/work"),
        (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "results/, or TMPDIR"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "results/, or TMPDIR"),
    ],
)
def test_a_full_disk_is_one_line_wherever_it_is_noticed(
    error: Exception,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def work() -> None:
        raise error

    monkeypatch.setattr("nullsae.cli.main.app", work)
    said = "the disk is full; free some space and run again: finished work is kept"
    assert failure(["aggregate"], monkeypatch, capsys) == (
        f"nullsae aggregate: error: {place}: {said}\n"
    )


def test_every_rule_calls_a_verb_that_exists() -> None:
    assert set(LINES) == {
        *("prepare_corpus", "train_subject", "randomize_model", "cache_activations", "train_sae"),
        *("evaluate_sae", "collect_latents", "explain_latents", "score_latents", "aggregate"),
        *("report", "sample_gaussian", "cross_evaluate", "take_checkpoint", "prepare_judge"),
        "derive_sae",
        *("train_toy", "report_toy"),
        *("match_dictionaries", "explain_and_score", "retrain_subject"),
    }


@pytest.mark.parametrize("verb", [*sorted(LINES), "verdicts", "plan", "serve_gguf", "init"])
def test_every_verb_has_help(verb: str) -> None:
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


@pytest.mark.parametrize("verb", sorted(LINES))
def test_every_rule_gives_options_that_its_verb_has(verb: str) -> None:
    group = typer.main.get_command(app)
    parameters = group.commands[verb].params  # type: ignore[attr-defined]
    known = {option for parameter in parameters for option in parameter.opts}
    needed = {p.opts[0] for p in parameters if p.required}
    # Options that are repeated, or left out without a file, are in the params.
    blocks = re.split(r"^ *rule\b[^\n]*:$", RULE_TEXT, flags=re.MULTILINE)
    found = [block for block in blocks if f'"nullsae {verb} ' in block]
    assert found
    for block in found:
        used = set(re.findall(r"--[a-z][a-z0-9-]+", block))
        used |= {f"--{name}" for name in re.findall(r'option\(\s*"([a-z-]+)"', block)}
        assert used <= known
        assert needed <= used


def test_the_version_is_printed() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output.strip()) == (0, __version__)


def test_a_mistake_gives_one_line_in_a_real_process() -> None:
    line = [sys.executable, "-m", "nullsae.cli.main", "aggregate", "--params", "{"]
    found = subprocess.run(line, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith("nullsae aggregate: error: --params: not JSON (")
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ("{", "--params: not JSON (Expecting property name enclosed in double quotes: line 1 "),
        ("nowhere.json", "nowhere.json: No such file or directory\n"),
        ("null", "--params: None: input should be an object\n"),
        (
            json.dumps({"corpus": {}, "corpse": 1}),
            "--params: corpse: unknown key; did you mean 'corpus'?\n",
        ),
    ],
)
def test_bad_params_give_one_line_per_mistake(
    params: str,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = failure(["prepare_corpus", "--name", "c", "--params", params], monkeypatch, capsys)
    assert text.startswith("nullsae prepare_corpus: error: --params:") or line in text
    assert line in text
    if "corpse" not in params:  # that one has two mistakes, one line each
        assert text.count("\n") == 1


def test_a_params_file_is_read_and_its_errors_name_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "params.yaml"
    arguments = ["prepare_corpus", "--name", "c", "--params", str(file)]
    file.write_text("corpus: {sauce: 1}")
    text = failure(arguments, monkeypatch, capsys)
    assert f"{file}: corpus.sauce: unknown key; did you mean 'source'?" in text
    file.write_text("corpus: [")
    text = failure(arguments, monkeypatch, capsys)
    assert text.startswith(f"nullsae prepare_corpus: error: {file}: not YAML (")
    assert text.count("\n") == 1


def test_a_missing_input_gives_one_line(
    chain: Chain,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = tmp_path / "recipe.json"
    arguments = ["cache_activations", "--params", capture_params().model_dump_json()]
    arguments += ["--split", "eval", "--model", str(recipe), "--tokens", str(chain.eval_tokens)]
    text = failure([*arguments, "--output", str(tmp_path / "out")], monkeypatch, capsys)
    assert text.startswith(f"nullsae cache_activations: error: {recipe}: the file is missing; ")
    assert text.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_verb_by_hand_does_the_same_as_its_function(chain: Chain, tmp_path: Path) -> None:
    params = capture_params(sites=SITES[:1], compute=COMPUTE).model_dump_json()
    arguments = ["cache_activations", "--params", params, "--split", "eval"]
    arguments += ["--model", str(chain.recipe), "--tokens", str(chain.eval_tokens)]
    result = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    found, _ = all_rows(tmp_path / "out/manifest.json", SITES[0])
    assert found.equal(all_rows(chain.eval_activations, SITES[0])[0])


@pytest.mark.parametrize("verb", sorted(rules()))
def test_help_lists_the_params(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app([verb, "--help"], prog_name="nullsae")
    shown = capsys.readouterr().out.split("Fields of --params:")[1]
    model = rules()[verb].params
    missing = [name for name in model.model_fields if f"\n  {name}" not in shown]
    assert missing == []
