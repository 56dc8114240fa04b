from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from workflow_study import Study, copy_of

from nullsae.config.dictionaries import DICTIONARIES
from nullsae.config.explainers import EXPLAINERS
from nullsae.config.saes import ARCHITECTURES
from nullsae.config.scorers import SCORERS
from nullsae.config.variants import VARIANTS
from nullsae.core.registry import Registry
from nullsae.jobs.code_hash import PACKAGE, code_tokens, files_in, thing_files
from nullsae.jobs.rules import NO_RULES, rules

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
END = {"aggregate", "report"}
CASES: dict[str, set[str]] = {
    "metrics/reconstruction.py": {"evaluate_sae", *END},
    "metrics/overlap.py": {"match_dictionaries", *END},
    "metrics/evaluate_all.py": set(),
    "latents/windows.py": {"collect_latents", "explain_and_score", *END},
    "autointerp/score.py": {"explain_and_score", *END},
    "autointerp/explain.py": {"explain_and_score", *END},
    # No endpoint explains or judges in this study.
    "autointerp/prompting.py": set(),
    "sae/architectures/topk.py": {
        *("train_sae", "evaluate_sae", "collect_latents", "explain_and_score"),
        *("match_dictionaries", *END),
    },
    # The study has no checkpoints; its SAEs must not be trained again.
    "sae/checkpoints.py": set(),
    "activations/store.py": {
        *("cache_activations", "train_sae", "evaluate_sae", "collect_latents"),
        *("explain_and_score", "match_dictionaries", *END),
    },
    "statistics/effects.py": END,
    "report/templates/index.html.j2": {"report"},
    "report/style.py": {"report"},
    # The study's SAEs have another architecture, and none was made elsewhere.
    "sae/architectures/gated.py": set(),
    "sae/exchange/layouts/saelens.py": set(),
    "cli/study.py": set(),
    "core/errors.py": set(),
}
DOCSTRINGS = "docstrings and comments of all modules"


@pytest.fixture(scope="module")
def dry_runs(
    study: Study, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[set[str]]]]:
    """The rules of each case's dry run, in copies of sources and study, two at a time."""
    root = tmp_path_factory.mktemp("code")

    def dry_run(module: str) -> set[str]:
        folder = root / module.replace("/", "_")
        tree = folder / "tree"
        shutil.copytree(study.tree, tree, ignore=shutil.ignore_patterns("__pycache__"))
        package = tree / "src/nullsae"
        if module == DOCSTRINGS:
            for file in package.rglob("*.py"):
                text = file.read_text(encoding="utf-8").replace('"""', '"""Edited. ', 1)
                file.write_text(text + "\n# Edited.\n", encoding="utf-8")
        else:
            file = package / module
            edit = "EDITED = 1\n" if file.suffix == ".py" else "\n"
            file.write_text(file.read_text(encoding="utf-8") + edit, encoding="utf-8")
        return set(copy_of(study, folder / "study", linked=True, tree=tree).jobs())

    with ThreadPoolExecutor(2) as pool:
        yield {module: pool.submit(dry_run, module) for module in (*CASES, DOCSTRINGS)}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("module", CASES)
def test_an_edit_of_a_module_reruns_its_stage_and_what_follows(
    dry_runs: dict[str, Future[set[str]]], module: str
) -> None:
    assert dry_runs[module].result() == CASES[module]


def test_an_edit_of_docstrings_and_comments_reruns_nothing(
    dry_runs: dict[str, Future[set[str]]],
) -> None:
    assert dry_runs[DOCSTRINGS].result() == set()


def test_every_module_belongs_to_a_rule_or_is_listed_as_computing_for_none() -> None:
    owned = {file for rule in rules().values() for file in rule.files}
    kinds: tuple[Registry[Any], ...] = (VARIANTS, ARCHITECTURES, DICTIONARIES, EXPLAINERS, SCORERS)
    owned |= {file for kind in kinds for name in kind for file in thing_files(kind, name)}
    shared = set(files_in(NO_RULES))
    # Files left out of a rule's folder compute for another rule, or for none.
    apart = {file for rule in rules().values() for file in files_in(rule.but)}
    files = {
        file for file in files_in(["."]) if file.suffix != ".py" or code_tokens(file.read_text())
    }
    assert files - owned - shared - apart == set()
    assert owned & shared == set(files_in(["core/moments.py"]))


def test_every_listed_module_exists() -> None:
    listed = [name for rule in rules().values() for name in (*rule.owned, *rule.but)]
    assert [name for name in (*listed, *NO_RULES) if not (PACKAGE / name).exists()] == []


def test_every_rule_of_the_workflow_owns_code(study: Study) -> None:
    assert all(rule.files for rule in rules().values())
    assert set(study.make("--list-rules").split()) >= set(rules())
