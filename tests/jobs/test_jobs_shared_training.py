from __future__ import annotations

from pathlib import Path

import pytest

from nullsae import paths
from nullsae.config.read import read_merged_config
from nullsae.config.study import Config
from nullsae.core.files import write_json
from nullsae.jobs.shared_training import NO_RESULTS, WHOLE_SAES, shared_jobs, whole_once

REPOSITORY = Path(__file__).parents[2]


def study(tmp_path: Path, activations: str) -> Config:
    (tmp_path / "more.yaml").write_text(
        f"activations: {{fitted_tokens: 50_000, {activations}}}\n"
        "evaluation: {gaussian_floors: false, null_dictionaries: []}\n"
        "variants: [trained, rerandomized]\n"
        "saes: {topk: {seeds: [0, 1]}}\n"
    )
    return read_merged_config([REPOSITORY / "config.yaml", tmp_path / "more.yaml"])


def test_sites_of_a_stream_train_apart_only_if_the_config_says_so(tmp_path: Path) -> None:
    together = shared_jobs(study(tmp_path, "mode: stream"))
    apart = shared_jobs(study(tmp_path, "mode: stream, sites_together: false"))
    assert [len(job.params.cells) for job in together] == [4, 4]
    assert [(job.keys["variant"], job.sites, len(job.params.cells)) for job in apart] == [
        (variant, [site], 2)
        for variant in ("trained", "rerandomized")
        for site in ("resid_post.1", "resid_post.2")
    ]
    # Neither the SAEs nor their keys depend on the job that trains them.
    first, second = (
        {
            (cell.site, cell.seed, job.params.keys.variant): job.params.cell_key(cell, "code")
            for job in jobs
            for cell in job.params.cells
        }
        for jobs in (together, apart)
    )
    assert first == second
    # Each job is a rule with a log of its own.
    assert len({job.name for job in apart}) == len({str(job.keys) for job in apart}) == 4


def test_sites_of_a_cache_train_apart_whatever_is_said_of_streams(tmp_path: Path) -> None:
    found = shared_jobs(study(tmp_path, "mode: cache, shared_pass: true"))
    assert [job.sites for job in found] == 2 * [["resid_post.1"], ["resid_post.2"]]
    assert shared_jobs(study(tmp_path, "mode: cache, shared_pass: false")) == []


def test_all_sites_of_a_model_train_together_if_the_config_says_so(tmp_path: Path) -> None:
    found = shared_jobs(study(tmp_path, "mode: cache, shared_pass: model"))
    assert [(job.sites, len(job.params.cells)) for job in found] == 2 * [
        (["resid_post.1", "resid_post.2"], 4)
    ]


def test_the_jobs_of_a_run_keep_to_what_was_complete_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(WHOLE_SAES, raising=False)
    config = study(tmp_path, "mode: stream")
    assert whole_once(config, is_main=True) == [0, 0]
    first, _ = shared_jobs(config)
    for cell in first.params.cells[1:3]:
        keys = first.params.cell_keys(cell).model_dump()
        key = first.params.cell_key(cell, first.params.code(cell))
        write_json(Path(paths.SAE_CONFIG.format(**keys)), {"key": key})
        for pattern in (paths.SAE_WEIGHTS, paths.HISTORY):
            Path(pattern.format(**keys)).touch()
    # A job's second attempt, after the first made half of its SAEs.
    assert whole_once(config, is_main=False) == [0, 0]
    # Another study in the same process, such as a second module, is its own.
    other = study(tmp_path, "mode: stream, sites_together: false")
    assert whole_once(other, is_main=False) == [0b10, 0b01, 0, 0]
    assert whole_once(config, is_main=True) == [0b0110, 0]
    jobs = shared_jobs(config, whole_once(config, is_main=False))
    assert [(job.name.removeprefix(first.name), len(job.params.cells)) for job in jobs[:2]] == [
        ("", 2),
        ("_whole", 2),
    ]
    # A plan sees a study without results.
    monkeypatch.setenv(NO_RESULTS, "1")
    assert whole_once(config, is_main=True) == []
