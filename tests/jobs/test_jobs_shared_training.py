from __future__ import annotations

from pathlib import Path

from nullsae.config.read import read_merged_config
from nullsae.config.study import Config
from nullsae.jobs.shared_training import shared_jobs

REPOSITORY = Path(__file__).parents[2]


def study(tmp_path: Path, activations: str) -> Config:
    (tmp_path / "more.yaml").write_text(
        f"activations: {{fitted_tokens: 50_000, {activations}}}\n"
        "evaluation: {gaussian_floors: false}\nvariants: [trained, rerandomized]\n"
        "saes: {topk: {seeds: [0, 1]}}\n"
    )
    return read_merged_config([REPOSITORY / "config.yaml", tmp_path / "more.yaml"])


def test_sites_of_a_stream_train_apart_only_if_the_config_says_so(tmp_path: Path) -> None:
    together = shared_jobs(study(tmp_path, "mode: stream"), root=tmp_path)
    apart = shared_jobs(study(tmp_path, "mode: stream, sites_together: false"), root=tmp_path)
    assert [len(job.params.cells) for job in together] == [4, 4]
    assert [(job.keys["variant"], job.sites, len(job.params.cells)) for job in apart] == [
        (variant, [site], 2)
        for variant in ("trained", "rerandomized")
        for site in ("resid_post.1", "resid_post.2")
    ]
    # Neither the SAEs nor what they are known by depend on who trains them.
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
    found = shared_jobs(study(tmp_path, "shared_pass: true"), root=tmp_path)
    assert [job.sites for job in found] == 2 * [["resid_post.1"], ["resid_post.2"]]
    assert shared_jobs(study(tmp_path, "mode: cache"), root=tmp_path) == []
