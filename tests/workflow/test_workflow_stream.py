"""Several SAEs in one job, on live activations or a shared pass, run again like single ones."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from workflow_study import Study, cell, copy_of, new_study

from nullsae import paths
from nullsae.config.read import read_merged_config
from nullsae.planning.show import make_plan

pytestmark = [pytest.mark.workflow, pytest.mark.slow]
SITES, VARIANTS = ("resid_post.0", "resid_post.1"), ("trained", "gaussian")


def streamed(config: dict[str, Any]) -> None:
    """Two sites, a variant without a model, a fitted dictionary, and a checkpoint."""
    config["subjects"]["small"]["sites"] = list(SITES)
    config["variants"] = list(VARIANTS)
    config["activations"].update(mode="stream", fitted_tokens=8_192, shard_tokens=4_096)
    config["saes"]["topk"]["checkpoints"] = [0.5]
    config["saes"]["lookup"] = {"dictionary": "token_lookup"}


def shared_pass(config: dict[str, Any]) -> None:
    config["activations"]["shared_pass"] = True


def with_wide(config: dict[str, Any]) -> None:
    config["saes"]["wide"] = {"k": 4, "n_latents": 48, "batch_tokens": 512}


def other_k(config: dict[str, Any]) -> None:
    config["saes"]["topk"]["k"] = 5


def measured(*names: str) -> list[str]:
    """Return one file that needs each of these SAEs, in all cells."""
    return [
        cell(paths.RECONSTRUCTION, sae=name, site=site, variant=variant)
        for name in names
        for site in SITES
        for variant in VARIANTS
    ]


def jobs_of(study: Study, *targets: str) -> dict[str, int]:
    """Return what a dry run would run, with all jobs that train several SAEs as one entry."""
    found: dict[str, int] = {}
    for rule, n in study.jobs(*targets).items():
        name = "train_saes" if rule.startswith("train_saes_") else rule
        found[name] = found.get(name, 0) + n
    return found


def saes(study: Study) -> dict[str, tuple[int, int]]:
    """Return inode and time of each SAE's `cfg.json`."""
    folder = study.folder / "results/saes"
    files = [p for p in folder.rglob("cfg.json") if "checkpoints" not in p.parts]
    return {str(p.relative_to(folder)): (p.stat().st_ino, p.stat().st_mtime_ns) for p in files}


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Study:
    """A study in stream mode whose SAEs are made and measured."""
    study = new_study(tmp_path_factory.mktemp("stream") / "study", tree).configure(streamed)
    study.make(*measured("topk"), gpu=2)
    return study


def test_a_finished_stream_study_has_nothing_to_do(stream: Study) -> None:
    assert stream.jobs(*measured("topk")) == {}
    assert len(saes(stream)) == 2 * 2 * 3  # with those along their training
    # Only the tokens that something is fitted to are captured.
    manifest = stream.folder / cell(paths.SITE, split="sae_train") / "manifest.json"
    assert json.loads(manifest.read_text())["n_tokens"] == 8_192
    config = json.loads((stream.folder / cell(paths.SAE_CONFIG)).read_text())
    assert config["n_steps"] == 16_384 // 512
    log = stream.folder / "results/logs/train_sae/subject=small/variant=trained/draw=0.log"
    line = re.search(r"^2 SAEs at 2 sites: 64 steps on 16,384 tokens, .*", log.read_text(), re.M)
    assert line is not None
    # 512 contexts of 32 tokens, 128 in a block, 32 in a pass.
    assert "4 blocks computed in 16 forward passes" in line[0]
    assert list((stream.folder / paths.WORK).glob("*")) == [stream.folder / paths.EVALUATED]
    gaussian = cell(paths.SAE_CONFIG, variant="gaussian", site="resid_post.1")
    assert json.loads((stream.folder / gaussian).read_text())["n_steps"] == 32


def test_activations_take_the_disk_that_the_plan_says(stream: Study) -> None:
    plan = make_plan(read_merged_config([stream.folder / "config.yaml"]), stream.folder)
    rules = ("cache_activations", "sample_gaussian")
    planned = sum(row.written_bytes for row in plan.rows if row.rule in rules)
    # 12 bytes for each of 16,384 tokens at two sites of two variants.
    assert planned == 12 * 16_384 * 4
    files = [f for f in (stream.folder / "results/activations").rglob("*") if f.is_file()]
    assert sum(file.stat().st_size for file in files) == pytest.approx(planned, rel=0.1)


def test_a_later_stage_runs_again_alone_and_computes_its_activations(
    stream: Study, tmp_path: Path
) -> None:
    copied = copy_of(stream, tmp_path / "s")
    target = measured("topk")[0]
    whole = (copied.folder / target).read_bytes()
    (copied.folder / target).unlink()
    shutil.rmtree(copied.folder / paths.EVALUATED)
    assert copied.jobs(target) == {"evaluate_sae": 1}
    copied.make(target)
    assert (copied.folder / target).read_bytes() == whole


def test_adding_an_sae_to_a_stream_leaves_the_others_alone(stream: Study, tmp_path: Path) -> None:
    grown = copy_of(stream, tmp_path / "s").configure(streamed, with_wide)
    targets = measured("topk", "wide")
    assert jobs_of(grown, *targets) == {"train_saes": 2, "evaluate_sae": 2}
    before = saes(grown)
    new = cell(paths.SAE_CONFIG, sae="wide", site="resid_post.1")
    grown.make(new)
    after = saes(grown)
    assert before.items() <= after.items()
    assert {Path(path).parents[1].name for path in after.keys() - before.keys()} == {"sae=wide"}
    # The job's other site, which was not requested, is there too.
    assert len(after) == len(before) + 2


def test_editing_an_sae_of_a_stream_leaves_the_others_alone(stream: Study, tmp_path: Path) -> None:
    edited = copy_of(stream, tmp_path / "s").configure(streamed, other_k)
    targets = measured("topk", "topk@0.5")
    # Including the checkpoint, per variant and site.
    assert jobs_of(edited, *targets) == {"train_saes": 2, "take_checkpoint": 4, "evaluate_sae": 2}
    before = saes(edited)
    edited.make(cell(paths.SAE_CONFIG))
    after = saes(edited)
    assert before.keys() == after.keys()
    changed = {path for path in before if before[path] != after[path]}
    assert len(changed) == 2
    assert all("variant=trained" in path and "/sae=topk/" in path for path in changed)


def test_a_damaged_sae_of_a_stream_can_be_made_again(stream: Study, tmp_path: Path) -> None:
    copied = copy_of(stream, tmp_path / "s")
    weights = copied.folder / cell(paths.SAE_WEIGHTS)
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    target = cell(paths.SAE_CONFIG)
    # The command that a message about it shows.
    copied.make(target, "--forcerun", target)
    assert weights.read_bytes() == whole
    weights.unlink()
    copied.make(cell(paths.SAE_WEIGHTS))
    assert weights.read_bytes() == whole
    # A complete one may be named too, and is left as it is.
    before = saes(copied)
    copied.make(target)
    assert saes(copied) == before
    assert copied.jobs(*measured("topk")) == {}


def test_a_shared_pass_gives_the_same_bits_as_single_jobs(study: Study, tmp_path: Path) -> None:
    copied = copy_of(study, tmp_path / "s").configure(shared_pass)
    assert copied.jobs() == {"report": 1}, "the page shows the config; no SAE is another one"
    target = cell(paths.SAE_CONFIG)
    for name in ("sae.safetensors", "cfg.json", "history.parquet"):
        ((copied.folder / target).parent / name).unlink()
    copied.make(target)
    for pattern in (paths.SAE_WEIGHTS, paths.SAE_CONFIG):
        file = cell(pattern)
        assert (copied.folder / file).read_bytes() == (study.folder / file).read_bytes()
    more = jobs_of(copied.configure(shared_pass, with_wide), cell(paths.SAE_CONFIG, sae="wide"))
    assert more == {"train_saes": 1}


def whole_jobs(study: Study, *options: str) -> list[str]:
    """Return the rules of jobs that train several SAEs, as Snakemake lists them."""
    return re.findall(r"train_saes_\w+", study.make("--list-rules", *options))


def test_whole_saes_beside_a_new_one_can_be_forced_by_themselves(
    stream: Study, tmp_path: Path
) -> None:
    grown = copy_of(stream, tmp_path / "s", linked=True).configure(streamed, with_wide)
    names = whole_jobs(grown)
    assert [name for name in names if name.endswith("_whole")] == [f"{n}_whole" for n in names[::2]]
    forced = grown.jobs(names[1], "--forcerun", names[1])
    assert forced == {names[1]: 1}


def test_a_requeued_job_of_a_stream_finds_what_its_first_start_made(
    stream: Study, tmp_path: Path
) -> None:
    """SLURM starts the same command again, with an inner Snakemake that rereads the study."""
    copied = copy_of(stream, tmp_path / "s")
    (name, _) = whole_jobs(copied)
    folder = (copied.folder / cell(paths.SAE_CONFIG)).parent
    lost = [folder / file for file in ("cfg.json", "sae.safetensors", "history.parquet")]
    before = {file: file.read_bytes() for file in lost}
    for file in lost:
        file.unlink()
    inner = (
        *("--mode", "remote", "--target-jobs", f"{name}:", "--allowed-rules", name),
        *("--force", "--nolock", "--ignore-incomplete", "--executor", "local"),
    )
    for _ in range(2):
        copied.make(*inner)
        after = {file: file.read_bytes() for file in lost}
        assert {f: b for f, b in after.items() if f.suffix != ".parquet"} == {
            f: b for f, b in before.items() if f.suffix != ".parquet"
        }
    log = copied.folder / "results/logs/train_sae/subject=small/variant=trained/draw=0.log"
    assert log.read_text().count(": already there") == 4
