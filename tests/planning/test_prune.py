"""What prune considers left over, what it never touches, and how it deletes."""

from __future__ import annotations

import errno
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from nullsae import paths
from nullsae.config.read import read_merged_config
from nullsae.config.study import Config
from nullsae.core.errors import UserError
from nullsae.core.locking import alone_at
from nullsae.jobs.saes import train_sae
from nullsae.planning import prune as module
from nullsae.planning.named import Named, named_by
from nullsae.planning.prune import delete, find, prune, size_text
from nullsae.planning.results_tree import ResultsTree, State
from refusing import refused

pytestmark = pytest.mark.usefixtures("warm")

REPOSITORY = Path(__file__).parents[2]
# Portions, floors, checkpoints, cross evaluation, shared latents, a judge, a sampled variant.
OVERLAY = """
variants: [trained, rerandomized, noise_embeddings, gaussian]
activations: {chunks: 2, shared_pass: false}
saes: {topk: {checkpoints: [0.5]}}
evaluation: {gaussian_floors: true, cross_tokens: 1024, null_dictionaries: []}
autointerp: {latents_per_job: 25}
explainers:
  gpt: {kind: openai, model: m, base_url: "http://127.0.0.1:9/v1", api_key_env: null}
scorers:
  likely: {kind: likelihood, model: {kind: pretrained, path: someone/judge}}
"""
MODEL = "subject=small/variant=rerandomized/draw=0"
CELL = f"{MODEL}/site=resid_post.1/sae=topk/seed=0"
OF_GPT = f"{CELL}/explainer=gpt"
# By tree, paths that the config names.
NAMED = (
    "results/corpus/corpus=sotu/split=eval/tokens.safetensors",
    "results/corpus/corpus=sotu/tokenizer/special_tokens_map.json",
    f"results/models/{MODEL}/model-00001-of-00002.safetensors",
    "results/models/subject=small/variant=noise_embeddings/draw=0/README.md",
    "results/models/subject=small/variant=step0/draw=0/recipe.json",  # made with the trained one
    f"results/activations/{MODEL}/split=eval/portion-1-of-2.json",
    f"results/activations/{MODEL}/split=eval/site=resid_post.2/shard-00007.safetensors",
    "results/activations/subject=small/variant=gaussian@rerandomized/draw=0/split=eval/"
    "site=resid_post.1/manifest.json",
    f"results/saes/{CELL}/sae.safetensors",
    f"results/saes/{CELL}/checkpoints/0.5/cfg.json",
    f"results/saes/{CELL.replace('topk', 'topk@0.5')}/history.parquet",
    f"results/saes/{CELL.replace('rerandomized', 'gaussian@rerandomized')}/cfg.json",
    f"results/metrics/{CELL}/cross_evaluation.parquet",
    f"results/metrics/{CELL.replace('rerandomized', 'gaussian@rerandomized')}/geometry.parquet",
    "results/overlap/subject=small/site=resid_post.1/sae=topk/overlap.parquet",
    f"results/latents/{CELL}/firings.safetensors",
    f"results/explanations/{OF_GPT}/explanations.parquet",
    f"results/work/explanations/{OF_GPT}/shard=1/explanations.parquet",
    f"results/scores/{OF_GPT}/scorer=likely/scores.parquet",
    "results/judges/scorer=likely/manifest.json",
    f"results/work/evaluated/{CELL}/documents.parquet",
    f"results/work/evaluated/{CELL.replace('rerandomized', 'gaussian@rerandomized')}/made.json",
    f"results/work/collected/{CELL}/firings.safetensors",
    f"results/activations/{MODEL}/split=eval/.manifest.json.lock",
    f"results/benchmarks/explain_latents/{OF_GPT.rpartition('/')[0]}/"
    ".explainer=gpt.asked.json.lock",
    "results/tables/verdicts.parquet",
    "results/figures/small.auroc.png",
    "results/report/index.html",
    "results/toy/sweeps/source=sharkey/data=data/expansion=2/seed=0/sweep.parquet",
    "results/toy/index.html",
    f"results/logs/train_sae/{CELL}.log",
    # A job that trained several SAEs, as another config split the work.
    f"results/logs/train_sae/{MODEL}/site=resid_post.1.log",
    f"results/benchmarks/explain_latents/{OF_GPT}.asked.json",
    "results/benchmarks/aggregate/all.tsv",
    "results/benchmarks/costs.parquet",
    "results/run_config.yaml",
    "results/README.md",
)
# The same, as another config would have them.
LEFT = (
    "results/corpus/corpus=pile/split=eval/tokens.safetensors",
    "results/corpus/corpus=pile/tokenizer/tokenizer.json",
    f"results/models/{MODEL.replace('draw=0', 'draw=1')}/model.safetensors",
    f"results/models/{MODEL.replace('small', 'large')}/config.json",
    f"results/activations/{MODEL}/split=eval/portion-1-of-4.json",
    f"results/activations/{MODEL}/split=eval/site=resid_post.0/shard-00007.safetensors",
    "results/activations/subject=small/variant=gaussian@cascade/draw=0/split=eval/"
    "site=resid_post.1/manifest.json",
    f"results/saes/{CELL.replace('topk', 'wide')}/sae.safetensors",
    f"results/saes/{CELL.replace('topk', 'topk@0.1')}/sae.safetensors",
    f"results/saes/{CELL.replace('seed=0', 'seed=1')}/checkpoints/0.5/cfg.json",
    f"results/metrics/{CELL.replace('resid_post.1', 'mlp_out.0')}/documents.parquet",
    "results/overlap/subject=small/site=resid_post.1/sae=wide/overlap.parquet",
    f"results/latents/{CELL.replace('topk', 'wide')}/.latents.partial/firings.position",
    f"results/explanations/{CELL}/explainer=claude/explanations.parquet",
    f"results/work/explanations/{OF_GPT}/shard=2/explanations.parquet",
    f"results/scores/{OF_GPT}/scorer=intruder/predictions.parquet",
    "results/judges/scorer=other/checkpoint/model.safetensors",
    "results/figures/large.auroc.png",
    "results/figures/small.auroc.svg",
    "results/toy/sweeps/source=glove/data=data/expansion=2/seed=0/sweep.parquet",
    f"results/logs/train_sae/{CELL.replace('topk', 'wide')}.log",
    f"results/benchmarks/explain_latents/{CELL}/explainer=claude.asked.json",
    "results/work/train_sae-0123456789abcdef.safetensors",
    "results/work/train_sae-0123456789abcdef.provenance.json",
    "results/work/train_sae-0123456789abcdef.lock",
    "results/work/train_sae-0123456789abcdef/checkpoints/0.5/cfg.json",
    "results/work/train_subject-0123456789abcdef.json",
    "results/work/train_subject-0123456789abcdef.lock",
    "results/work/prepare_corpus-0123456789abcdef.lock",
    f"results/work/evaluated/{CELL.replace('topk', 'wide')}/made.json",
    f"results/work/collected/{CELL.replace('topk', 'wide')}/windows.parquet",
    f"results/activations/{MODEL.replace('draw=0', 'draw=1')}/split=eval/.manifest.json.lock",
    "results/work/prepare_corpus-0123456789abcdef/documents/eval-0a.texts",
    # Of a stream.
    "results/work/prepare_corpus-0123456789abcdef/digests",
    "results/work/model.q4_0.0123456789abcdef.gguf",
    # Half-written, and of another machine's job.
    f"results/saes/{CELL.replace('topk', 'wide')}/.sae.123.partial.safetensors",
    f"results/saes/{CELL.replace('topk', 'wide')}/provenance.json",
)
PAID = (
    "results/cache/replies.sqlite",
    "results/cache/replies.sqlite-wal",
    "results/cache/replies.sqlite-01ab23cd.lock",
    f"results/work/batches/{'0' * 32}.json",
)
FOREIGN = (
    "results/notes.txt",
    "results/.gitkeep",
    f"results/models/{MODEL.replace('draw=0', 'draw=1')}/probe.py",
    f"results/saes/{CELL.replace('topk', 'wide')}/plot.png",
    f"results/saes/{CELL.replace('topk', 'wide')}/sae.safetensors.bak",
    "results/saes/other/sae.safetensors",
    f"results/activations/{MODEL.replace('draw=0', 'draw=x')}/split=eval/manifest.json",
    f"results/activations/{MODEL}/split=test/manifest.json",
    f"results/scores/{OF_GPT}/scorer=intruder/mine.parquet",
    "results/tables/mine.parquet",
    "results/figures/poster.png",
    f"results/logs/my_rule/{CELL}.log",
    "results/logs/nohup.out",
    "results/work/train_sae-short.safetensors",
    "results/work/batches/mine.json",
    "results/cache/other.sqlite",
    f"elsewhere/results/saes/{CELL}/cfg.json",
    "results/my_copy/saes/cfg.json",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("study")
    (root / "config.yaml").write_text((REPOSITORY / "config.yaml").read_text())
    (root / "more.yaml").write_text(OVERLAY)
    return root


@pytest.fixture(scope="module")
def config(root: Path) -> Config:
    return read_merged_config([root / "config.yaml", root / "more.yaml"])


@pytest.fixture(scope="module")
def named(config: Config, root: Path) -> Named:
    """What Snakemake's jobs name, computed once for all tests here."""
    found = named_by(config, root)
    assert not (root / "results").exists()
    return found


@pytest.fixture
def study(tmp_path: Path, root: Path, named: Named, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a file at each of the paths above."""
    for name in ("config.yaml", "more.yaml"):
        (tmp_path / name).write_text((root / name).read_text())
    for index, path in enumerate((*NAMED, *LEFT, *PAID, *FOREIGN)):
        if path.startswith("results/"):
            file = tmp_path / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"x" * (index + 1))
    last = "variants: [trained, cascade]\nsaes: {topk: {}, wide: {}}\nseed: 1\nscorers: null\n"
    (tmp_path / paths.RUN_CONFIG).write_text(last)
    monkeypatch.setattr(module, "named_by", lambda _config, _root: named)
    return tmp_path


def tree(study: Path) -> set[str]:
    results = study / "results"
    return {str(f.relative_to(study)) for f in results.rglob("*") if not f.is_dir()}


def test_what_each_file_is(config: Config, named: Named) -> None:
    found = ResultsTree(config, named)
    for state, given in (
        *((State.NAMED, NAMED), (State.LEFT, LEFT), (State.PAID, PAID), (State.FOREIGN, FOREIGN)),
    ):
        assert {path: found.state(path) for path in given} == dict.fromkeys(given, state)
    # Prune recognizes every file that a job makes.
    nobodys = Named(frozenset(), named.rules, frozenset())
    other = ResultsTree(config, nobodys)
    fixed = {file for file in named.files if other.state(file) is State.NAMED}
    assert {other.state(file) for file in named.files - fixed - {*_tables(named)}} == {State.LEFT}
    assert all("=" not in file for file in fixed)


def _tables(named: Named) -> list[str]:
    """Tables have the same names in every study."""
    return [file for file in named.files if file.startswith("results/tables/")]


def test_what_a_killed_training_left_is_kept_for_the_sae_that_the_config_names(
    config: Config, named: Named
) -> None:
    found = ResultsTree(config, named)
    keys = {"subject": "small", "variant": "gaussian@rerandomized", "draw": "0"}
    params = train_sae(config, {**keys, "site": "resid_post.1", "sae": "topk", "seed": "0"})
    (cell,) = params.cells
    own = params.cell_key(cell, params.code(cell))
    for name in (
        ".safetensors",
        "/cfg.json",
        "/checkpoints/0.5/sae.safetensors",
        "/.cfg.1.partial.json",
    ):
        assert found.state(f"results/work/train_sae-{own}{name}") is State.NAMED
        assert found.state(f"results/work/train_sae-{own[::-1]}{name}") is State.LEFT
        # A key of one rule does not count for another.
        assert found.state(f"results/work/prepare_corpus-{own}{name}") is not State.NAMED
    verbs = {name.rpartition("-")[0] for name in named.work}
    assert verbs == {"prepare_corpus", "train_sae"}  # no tokens to train the subject on


def test_a_copy_of_a_gguf_file_is_kept_where_a_job_starts_a_server(
    root: Path, named: Named
) -> None:
    (root / "server.yaml").write_text(
        "explainers: {own: {kind: openai, model: m, server: {command: [serve, '{port}']}}}\n"
    )
    config = read_merged_config([root / "config.yaml", root / "server.yaml"])
    copy = "results/work/model.q4_0.0123456789abcdef.gguf"
    assert ResultsTree(config, named).state(copy) is State.NAMED


def test_a_listing_deletes_nothing(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(study)
    prune(study, [study / "more.yaml"])
    said = capsys.readouterr().out
    assert tree(study) == before
    n_left = sum(path.startswith("results/") for path in LEFT)
    assert f"({n_left:,} files) are left over" in said.splitlines()[0]
    assert "Nothing was deleted; --yes deletes it." in said
    assert "kept, because it was paid for" in said
    assert "results/cache/" in said
    for name in ("notes.txt", "my_copy/", "figures/poster.png"):
        assert name in said.partition("not written by nullsae, and left alone:")[2]
    assert "The last run here also had variants cascade, saes wide: is a --configfile" in said


def test_what_a_run_renames_or_deletes_during_a_listing_is_passed_over(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir
    gone, folder = f"results/saes/{CELL}/cfg.json", f"results/models/{MODEL}"

    def scanned(place: Any) -> Any:
        if place == study / folder:
            shutil.rmtree(place)
        found = scan(place)
        if place == (study / gone).parent:
            (study / gone).write_text("{}")
            entries = [*found]
            (study / gone).unlink()
            return nullcontext(entries)
        return found

    config = read_merged_config([study / "config.yaml", study / "more.yaml"])
    monkeypatch.setattr(os, "scandir", scanned)
    found = find(config, study).files[State.NAMED]
    assert f"results/saes/{CELL}/sae.safetensors" in found
    assert not [path for path in found if path == gone or path.startswith(folder)]


@pytest.mark.parametrize("llm_cache", [False, True])
def test_yes_deletes_what_is_left_over_and_nothing_else(study: Path, llm_cache: bool) -> None:
    prune(study, [study / "more.yaml"], yes=True, llm_cache=llm_cache)
    wanted = {path for path in (*NAMED, *FOREIGN) if path.startswith("results/")}
    assert tree(study) == wanted | ({*PAID} if not llm_cache else set())
    empty = [f for f in (study / "results").rglob("*") if f.is_dir() and not any(f.iterdir())]
    assert empty == []
    assert not [*(study / ".snakemake/locks").iterdir()]
    again = find(read_merged_config([study / "config.yaml", study / "more.yaml"]), study)
    assert again.files[State.LEFT] == {}


@pytest.mark.parametrize("link", ["file", "folder", "tree"])
def test_no_link_is_followed_or_deleted(study: Path, link: str) -> None:
    outside = study / "outside"
    target = {"file": "model.safetensors", "folder": "draw=0", "tree": "variant=old/draw=0"}[link]
    (outside / target).parent.mkdir(parents=True, exist_ok=True)
    inside = study / "results/models/subject=small"
    if link == "file":
        (outside / target).write_text("outside")
        place = study / f"results/models/{MODEL.replace('draw=0', 'draw=9')}/model.safetensors"
    else:
        (outside / target).mkdir(parents=True)
        (outside / target / "recipe.json").write_text("outside")
        place = inside / ("variant=old/draw=0" if link == "folder" else "variant=old")
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(outside / (target if link != "tree" else "variant=old"))
    prune(study, [study / "more.yaml"], yes=True)
    assert place.is_symlink()
    assert [f.read_text() for f in outside.rglob("*") if f.is_file()] == ["outside"]


def test_a_link_that_comes_between_listing_and_deleting_is_not_followed(study: Path) -> None:
    cell = study / f"results/saes/{CELL.replace('topk', 'wide')}"
    outside = study / "outside"
    cell.rename(outside)
    cell.symlink_to(outside)
    path = f"results/saes/{CELL.replace('topk', 'wide')}/sae.safetensors"
    told = r"^1 files could not be deleted, such as .*: its path leads"
    with pytest.raises(UserError, match=told):
        delete(study, {path: 1})
    assert (outside / "sae.safetensors").exists()


def test_results_may_be_a_link_themselves(study: Path) -> None:
    """Many keep them on another disk."""
    disk = study / "disk"
    (study / "results").rename(disk)
    (study / "results").symlink_to(disk)
    prune(study, [study / "more.yaml"], yes=True)
    assert (disk / "notes.txt").exists()
    assert not (disk / "judges/scorer=other").exists()


@pytest.mark.parametrize("lock", ["0.input.lock", "0.output.lock", "17.output.lock"])
def test_nothing_is_deleted_while_snakemake_runs(
    study: Path, capsys: pytest.CaptureFixture[str], lock: str
) -> None:
    file = study / ".snakemake/locks" / lock
    file.parent.mkdir(parents=True)
    file.write_text("results/tables/scores.parquet\n")
    before = tree(study)
    assert "Snakemake is running here, so nothing was deleted" in refused(
        prune, study, [study / "more.yaml"], yes=True
    )
    assert capsys.readouterr().out == ""
    assert tree(study) == before
    assert [f.name for f in file.parent.iterdir()] == [lock]
    prune(study, [study / "more.yaml"])  # listing is allowed


def test_nothing_is_deleted_under_a_job_that_snakemake_left_behind(study: Path) -> None:
    before = tree(study)
    with alone_at([study / "results/work/train_sae-0123456789abcdef.lock"]):
        with pytest.raises(UserError, match=f"process {os.getpid()} on .* is already working"):
            prune(study, [study / "more.yaml"], yes=True)
        assert {path for path in before if not path.endswith(".lock")} <= tree(study)
    prune(study, [study / "more.yaml"], yes=True)
    assert not set(LEFT) & tree(study)


def test_snakemake_waits_for_a_prune(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Snakemake itself reads the lock, which names what is about to be deleted."""
    from snakemake.persistence.file import FilePersistence

    seen: list[tuple[str, str]] = []
    persistence = FilePersistence.__new__(FilePersistence)
    persistence._lockdir = str(study / ".snakemake/locks")
    real = module.delete

    def looked_at(root: Path, files: Any) -> int:
        seen.extend(persistence._read_locks())
        return real(root, files)

    monkeypatch.setattr(module, "delete", looked_at)
    prune(study, [study / "more.yaml"], yes=True)
    assert {*seen} == {("output", path) for path in LEFT if path.startswith("results/")}


def test_a_config_without_any_results_here_deletes_nothing(study: Path) -> None:
    for path in NAMED:
        (study / path).unlink()
    before = tree(study)
    with pytest.raises(UserError, match="nothing here belongs to this config, so nothing"):
        prune(study, [study / "more.yaml"], yes=True)
    assert tree(study) == before


def test_a_file_that_cannot_be_deleted_is_named_and_the_others_go(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, bad = Path.unlink, "results/judges/scorer=other/checkpoint/model.safetensors"

    def unlink(self: Path, missing_ok: bool = False) -> None:
        if str(self).endswith(bad):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    line = refused(prune, study, [study / "more.yaml"], yes=True)
    said = f"1 files could not be deleted, such as {bad}: Operation not permitted"
    assert line == said
    assert tree(study) & {*LEFT} == {bad}


def test_what_says_that_a_cell_is_whole_goes_first(
    study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []
    real = Path.unlink

    def unlink(self: Path, missing_ok: bool = False) -> None:
        gone.append(self.name)
        real(self, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    folder = study / f"results/saes/{CELL.replace('topk', 'wide')}"
    (folder / "cfg.json").write_text("{}")
    names = ("sae.safetensors", "cfg.json", "provenance.json")
    delete(study, {str((folder / name).relative_to(study)): 1 for name in names})
    assert gone[-1] == "sae.safetensors"
    assert gone[0] == "cfg.json"


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text((REPOSITORY / "config.yaml").read_text())
    with pytest.raises(UserError, match=r"results: no such folder; nothing was run in "):
        prune(tmp_path, [])


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0 B"), (999, "999 B"), (1_000, "1.0 kB"), (12_345_678, "12.3 MB"), (5e15, "5000.0 TB")],
)
def test_sizes_in_words(n_bytes: int, text: str) -> None:
    assert size_text(int(n_bytes)) == text


def test_many_folders_are_counted_by_their_last_key() -> None:
    cells = {f"results/scores/seed={n}/explainer=gpt/": 10 for n in range(30)}
    assert module._shortened(cells | {"results/scores/seed=7/explainer=other/": 5}) == {
        "30 x explainer=gpt": 300,
        "scores/seed=7/explainer=other/": 5,
    }
    many = module._shortened({f"results/scores/sae={n}/": n for n in range(40)})
    assert len(many) == module.MOST_LINES + 1
    assert many["and 20 more"] == sum(range(20))
    few = {"results/saes/sae=wide/": 3, "results/saes/sae=topk/seed=1/": 4}
    assert module._shortened(few) == {"saes/sae=wide/": 3, "saes/sae=topk/seed=1/": 4}
