from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from workflow_study import Study, copy_of

from nullsae.jobs import code_hash

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
END = {"aggregate", "report"}
CASES: dict[str, set[str]] = {
    "metrics/reconstruction.py": {"evaluate_sae", *END},
    "metrics/overlap.py": {"match_dictionaries", *END},
    "latents/windows.py": {"collect_latents", "explain_latents", "score_latents", *END},
    "autointerp/score.py": {"score_latents", *END},
    "autointerp/explain.py": {"explain_latents", "score_latents", *END},
    "sae/architectures/topk.py": {
        *("train_sae", "evaluate_sae", "collect_latents", "explain_latents", "score_latents"),
        *("match_dictionaries", *END),
    },
    # The study has no SAEs along their training; those that it has must not be trained again.
    "sae/checkpoints.py": set(),
    "activations/store.py": {
        *("cache_activations", "train_sae", "evaluate_sae", "collect_latents"),
        *("explain_latents", "score_latents", "match_dictionaries", *END),
    },
    "statistics/effects.py": END,
    "report/templates/index.html.j2": {"report"},
    "report/style.py": {"report"},
    "cli.py": set(),
    "errors.py": set(),
}


@pytest.fixture(scope="module")
def dry_runs(
    study: Study, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[set[str]]]]:
    """The rules of each case's dry run, in a copy of sources and study, two at a time."""
    root = tmp_path_factory.mktemp("code")

    def dry_run(module: str) -> set[str]:
        folder = root / module.replace("/", "_")
        tree = folder / "tree"
        shutil.copytree(study.tree, tree, ignore=shutil.ignore_patterns("__pycache__"))
        file = tree / "src/nullsae" / module
        text = file.read_text(encoding="utf-8")
        # A longer docstring: no instruction changes.
        edited = text.replace('"""', '"""Edited. ', 1) if file.suffix == ".py" else text + "\n"
        assert edited != text
        file.write_text(edited, encoding="utf-8")
        return set(copy_of(study, folder / "study", linked=True, tree=tree).jobs())

    with ThreadPoolExecutor(2) as pool:
        yield {module: pool.submit(dry_run, module) for module in CASES}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("module", CASES)
def test_an_edit_of_a_module_reruns_its_stage_and_what_follows(
    dry_runs: dict[str, Future[set[str]]], module: str
) -> None:
    assert dry_runs[module].result() == CASES[module]


def test_every_module_belongs_to_a_rule_or_is_listed_as_shared() -> None:
    files = {
        path.relative_to(code_hash.PACKAGE).as_posix()
        for path in code_hash.PACKAGE.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    owned = {
        path.relative_to(code_hash.PACKAGE).as_posix()
        for rule in code_hash.OWNED
        for path in code_hash.modules(rule)
    }
    shared = {file for file in files if {file, file.split("/")[0]} & set(code_hash.SHARED)}
    assert files - owned - shared == set()
    assert owned & shared == set()


def test_every_listed_module_exists() -> None:
    listed = [name for names in code_hash.OWNED.values() for name in names] + list(code_hash.SHARED)
    assert [name for name in listed if not (code_hash.PACKAGE / name).exists()] == []


def test_every_rule_of_the_workflow_owns_code(study: Study) -> None:
    rules = set(study.make("--list-rules").split())
    assert rules >= set(code_hash.OWNED)
