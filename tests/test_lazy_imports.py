"""What a verb loads before it looks at its first file: seconds of each of thousands of jobs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nullsae.config.read import read_merged_config
from nullsae.jobs.rules import rule_params

REPOSITORY = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "transformers",
    "datasets",
    "openai",
    "altair",
    "pandas",
    "scipy",
    "huggingface_hub",
    "pydantic",
)
SAE = {
    **{"subject": "small", "variant": "trained", "draw": "0", "site": "resid_post.1"},
    **{"sae": "topk", "seed": "0"},
}
CELL = {**SAE, "explainer": "lexical", "scorer": "fuzzing"}
SPLIT = {"subject": "small", "variant": "gaussian", "draw": "0", "split": "eval"}
# Per verb: its job, the files that it is given, and what of HEAVY it may load. No file is there, so
# that a verb ends at the first one that it opens.
VERBS: dict[str, tuple[dict[str, str], str, set[str]]] = {
    "sample_gaussian": (SPLIT, "fitted tokens output", {"torch"}),
    "train_sae": (SAE, "train-activations eval-activations output", {"torch"}),
    "cross_evaluate": (SAE, "sae tokens output" + 6 * " activations", {"torch"}),
    "match_dictionaries": (SAE, "sae output", {"torch", "scipy"}),
    "collect_latents": (
        SAE,
        "sae activations tokens latents windows coverage firings",
        {"torch"},
    ),
    "explain_latents": (CELL, "windows tokenizer output", set()),
    "score_latents": (CELL, "windows tokenizer explanations predictions scores", set()),
}
# Each call in a process of its own, which begins with the same modules.
PROBE = """
import json, os, sys
given, calls = map(json.loads, sys.argv[1:])
for name in given:
    __import__(name)
for call in calls:
    sys.stdout.flush()
    if os.fork():
        os.wait()
        continue
    from nullsae.cli.main import main
    sys.argv = ["nullsae", *call]
    os.dup2(1, 2)
    try:
        main()
    except SystemExit as end:
        sys.stderr.flush()
        print("\\0" + json.dumps([end.code, sorted({m.partition(".")[0] for m in sys.modules})]))
    sys.stdout.flush()
    os._exit(0)
"""
Run = tuple[int, set[str], str]


def run_all(calls: list[list[str]], folder: Path, given: set[str]) -> list[Run]:
    """Of each call: exit code, top-level modules that were loaded, and what was said.

    `given` are loaded before: those that all of these calls may load.
    """
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([*given]), json.dumps(calls)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    *said, last = done.stdout.split("\0")
    found: list[Run] = []
    for text, after in zip(said, [*said[1:], last], strict=True):
        answer, _, _ = after.partition("\n")
        code, modules = json.loads(answer)
        found.append((code or 0, {*modules} & {*HEAVY}, text))
    assert len(found) == len(calls), done.stdout + done.stderr
    return found


def run(arguments: list[str], folder: Path) -> Run:
    return run_all([arguments], folder, set())[0]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """Each verb's; those that may load torch find it loaded, which takes it seconds."""
    config: Any = read_merged_config([REPOSITORY / "config.yaml"])
    config = config.model_copy(
        update={"evaluation": config.evaluation.model_copy(update={"cross_tokens": 1024})}
    )
    found: dict[str, Run] = {}
    for given in ({"torch"}, set()):
        verbs = [verb for verb, (_, _, allowed) in VERBS.items() if allowed & {"torch"} == given]
        calls = []
        for verb in verbs:
            keys, files, _ = VERBS[verb]
            call = [verb, "--params", rule_params(config, verb, keys)]
            call += [
                part for name in files.split() for part in (f"--{name}", f"absent/{name}.json")
            ]
            calls.append(call + ["--split", "eval"] * (verb == "sample_gaussian"))
        answers = run_all(calls, tmp_path_factory.mktemp("runs"), given)
        found |= dict(zip(verbs, answers, strict=True))
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_loads_only_what_its_stage_needs(verb: str, runs: dict[str, Run]) -> None:
    code, loaded, said = runs[verb]
    # It got as far as its files, not only as far as its params.
    assert code == 2, said
    assert "error: absent/" in said
    assert loaded <= VERBS[verb][2] | {"pydantic"}


def test_help_and_the_list_of_verbs_load_no_library(tmp_path: Path) -> None:
    assert run(["--help"], tmp_path)[:2] == (0, set())
    assert run(["train_sae", "--help"], tmp_path)[:2] == (0, {"pydantic"})  # describes params


def test_importing_the_package_loads_nothing() -> None:
    probe = """
import json, sys
before = {*sys.modules}
import nullsae
from nullsae import paths
print(json.dumps([m for m in sys.modules.keys() - before if m.startswith("nullsae.")]))
print(json.dumps(sorted({m.partition(".")[0] for m in sys.modules})))
print(json.dumps([n for n in nullsae.__all__ if n not in dir(nullsae)]))
print(json.dumps([n for n in nullsae.__all__ if getattr(nullsae, n).__name__ != n]))
print(hasattr(nullsae, "randomise"))
"""
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=120
    )
    own, modules, hidden, misnamed = (json.loads(line) for line in done.stdout.splitlines()[:4])
    assert own == ["nullsae.paths"]
    assert {*modules} & {*HEAVY, "numpy"} == set()
    assert hidden == misnamed == []
    assert done.stdout.splitlines()[4] == "False"


def test_a_plan_loads_nothing_that_computes(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((REPOSITORY / "config.yaml").read_text())
    code, loaded, said = run(["plan"], tmp_path)
    assert code == 0, said
    assert "transformers" not in loaded
    assert "torch" not in loaded


def test_parsing_a_config_loads_no_parser_of_replies_and_no_kernels_of_arrow() -> None:
    """Every dry run does it."""
    probe = """
import sys
from pathlib import Path
from nullsae.config.read import read_merged_config
config = read_merged_config([Path(sys.argv[1])])
assert config.explainers and config.scorers
late = {"torch", "pyarrow.compute", "nullsae.autointerp.replies"}
print(*late & sys.modules.keys(), *(m for m in sys.modules if m.endswith(".explanation_text")))
"""
    done = subprocess.run(
        [sys.executable, "-c", probe, str(REPOSITORY / "config.yaml")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == [], done.stdout + done.stderr
    assert done.returncode == 0, done.stderr
