"""One key of the config is edited; a dry run must list exactly the jobs that depend on it.

Counts are for the study of `workflow_study`: two variants, each with one SAE (a "cell"), two
explainers and two scorers.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from workflow_study import Edit, Study, cell, copy_of, replace

from nullsae import paths

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
END = {"aggregate": 1, "report": 1}
# One job for explaining and scoring without endpoints, and one for the metrics of all SAEs.
EXPLAIN_ON = {"explain_and_score": 2, **END}
COLLECT_ON = {"collect_latents": 2, **EXPLAIN_ON}
TRAIN_ON = {"train_sae": 2, "evaluate_sae": 2, "match_dictionaries": 1, **COLLECT_ON}
CAPTURE_ON = {"cache_activations": 4, **TRAIN_ON}
# One more cell in each of the two variants.
NEW_CELLS = TRAIN_ON
ALL = {"prepare_corpus": 1, "train_subject": 1, "randomize_model": 1, **CAPTURE_ON}


def put(*key: str, to: Any) -> Edit:
    """Return an edit that sets one (possibly new) key."""

    def edit(config: dict[str, Any]) -> None:
        for part in key[:-1]:
            config = config.setdefault(part, {})
        config[key[-1]] = to

    return edit


def both(*edits: Edit) -> Edit:
    return lambda config: [edit(config) for edit in edits]


CASES: dict[str, tuple[Edit, dict[str, int]]] = {
    "nothing": (lambda config: None, {}),
    "title": (put("report", "title", to="Another"), {"report": 1}),
    "figure_formats": (put("report", "figure_formats", to=["svg", "png"]), {"report": 1}),
    "n_resamples": (put("statistics", "n_resamples", to=300), END),
    "margin": (put("statistics", "equivalence_margins", "auroc", to=0.1), END),
    "add_scorer": (
        put("scorers", "strict", to={"kind": "fuzzing", "mark_threshold": 0.5}),
        EXPLAIN_ON,
    ),
    "scorer_option": (
        put("scorers", "fuzzing", "mark_threshold", to=0.5),
        EXPLAIN_ON,
    ),
    "drop_scorer": (lambda config: config["scorers"].pop("fuzzing"), EXPLAIN_ON),
    "add_explainer": (
        put("explainers", "short", to={"kind": "lexical", "top_tokens": 3}),
        EXPLAIN_ON,
    ),
    "explainer_option": (put("explainers", "lexical", "top_tokens", to=3), EXPLAIN_ON),
    "n_sampled": (put("latents", "n_sampled", to=3), COLLECT_ON),
    "fidelity_tokens": (put("evaluation", "fidelity_tokens", to=512), {"evaluate_sae": 2, **END}),
    "matching_latents": (
        put("evaluation", "matching_latents", to=16),
        {"match_dictionaries": 1, **END},
    ),
    "k": (put("saes", "topk", "k", to=5), TRAIN_ON),
    "add_sae": (
        put("saes", "wide", to={"k": 4, "n_latents": 64, "batch_tokens": 512}),
        NEW_CELLS,
    ),
    "add_seed": (put("saes", "topk", "seeds", to=[0, 1]), NEW_CELLS),
    "drop_variant": (put("variants", to=["trained"]), END),
    "add_variant": (
        put("variants", to=["trained", "rerandomized", "step0"]),
        # step0 is made when the subject is trained: no randomize_model.
        {
            "cache_activations": 2,
            **{"train_sae": 1, "evaluate_sae": 1, "collect_latents": 1, "match_dictionaries": 1},
            **{"explain_and_score": 1, **END},
        },
    ),
    "add_draw": (
        put("draws", to=2),
        {
            **{"randomize_model": 1, "cache_activations": 2},
            **{"train_sae": 1, "evaluate_sae": 1, "collect_latents": 1, "match_dictionaries": 1},
            **{"explain_and_score": 1, **END},
        },
    ),
    "norm_parameters": (
        put("randomization", "norm_parameters", to="keep"),
        {
            **{"randomize_model": 1, "cache_activations": 2},
            **{"train_sae": 1, "evaluate_sae": 1, "collect_latents": 1, "match_dictionaries": 1},
            **{"explain_and_score": 1, **END},
        },
    ),
    # No variant uses it; the report shows the whole config.
    "noise_std_unused": (put("randomization", "embedding_noise_std", to=2.0), {"report": 1}),
    "dtype": (put("activations", "dtype", to="float32"), CAPTURE_ON),
    "eval_tokens": (put("corpora", "docs", "eval_tokens", to=7_168), ALL),
    # An edit far upstream must not hide another one downstream.
    "dtype_and_k": (
        both(put("activations", "dtype", to="float32"), put("saes", "topk", "k", to=5)),
        CAPTURE_ON,
    ),
    "seed": (put("seed", to=1), {k: n for k, n in ALL.items() if k != "prepare_corpus"}),
}


@pytest.fixture(scope="module")
def dry_runs(
    study: Study, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[dict[str, int]]]]:
    """All cases' dry runs, each in a copy of the study, two at a time."""
    root = tmp_path_factory.mktemp("edits")

    def dry_run(name: str) -> dict[str, int]:
        return copy_of(study, root / name, linked=True).configure(CASES[name][0]).jobs()

    with ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(dry_run, name) for name in CASES}
        pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("case", CASES)
def test_a_config_edit_runs_what_depends_on_it_and_nothing_else(
    dry_runs: dict[str, Future[dict[str, int]]], case: str
) -> None:
    assert dry_runs[case].result() == CASES[case][1]


def test_fewer_training_tokens_retrain_every_sae(study: Study, tmp_path: Path) -> None:
    edit = put("activations", "sae_train_tokens", to=8_192)
    jobs = copy_of(study, tmp_path / "s", linked=True).configure(edit).jobs()
    assert jobs == {**CAPTURE_ON, "cache_activations": 2}, "eval is captured as before"


def test_a_comment_in_the_config_runs_nothing(study: Study, tmp_path: Path) -> None:
    commented = copy_of(study, tmp_path / "s", linked=True)
    file = commented.folder / "config.yaml"
    replace(file, "# a comment\n" + file.read_text() + "\n# and another\n")
    assert commented.jobs() == {}


def test_an_edited_text_file_is_read_again(study: Study, tmp_path: Path) -> None:
    edited_text = copy_of(study, tmp_path / "s", linked=True)
    file = edited_text.folder / "docs.jsonl"
    replace(file, file.read_text() + '{"text": "One more document."}\n')
    jobs = edited_text.jobs()
    assert jobs["prepare_corpus"] == 1
    assert jobs["train_sae"] == 2


def test_noise_std_remakes_the_variant_that_uses_it(study: Study, tmp_path: Path) -> None:
    noisy = put("variants", to=["trained", "noise_embeddings"])
    recipe = cell(paths.RECIPE, variant="noise_embeddings")
    copied = copy_of(study, tmp_path / "s").configure(noisy)
    copied.make(recipe)
    assert copied.jobs(recipe) == {}
    copied.configure(noisy, put("randomization", "embedding_noise_std", to=2.0))
    assert copied.jobs(recipe) == {"randomize_model": 1}
