"""SAEs that share a pass over cached or live activations, and what a job leaves behind."""

from __future__ import annotations

import logging
import math
import weakref
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from nullsae import tables
from nullsae.activations.batches import Live
from nullsae.activations.blocks import CachedBlocks, ahead
from nullsae.activations.capture import cache_activations
from nullsae.activations.sampling import sample_gaussian
from nullsae.activations.store import SiteReader
from nullsae.config.saes import Sae
from nullsae.core.errors import UserError
from nullsae.core.files import checksum, read_json, write_json
from nullsae.jobs.activations import SampleGaussianParams
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.saes import SaeCell, StreamParams, TrainSaeParams
from nullsae.sae import train_sae as module
from nullsae.sae import training_run
from nullsae.sae.files import load_sae
from nullsae.sae.kernels import tensor_float
from nullsae.sae.shared_pass import works_ahead
from nullsae.sae.train_sae import train_sae
from nullsae.sae.trainer import Trainer, evaluate
from refusing import refused
from small_chain import COMPUTE, CONTEXT, SITES, Chain, all_rows, capture_params, flip_byte

TOKENS = 36 * CONTEXT
SHARD = 8 * CONTEXT
KEY = "activations"


def recipe(**keys: Any) -> Sae:
    plain: dict[str, Any] = {"k": 3, "n_latents": 40, "batch_tokens": 96, "lr": 5e-3}
    plain |= {"evaluate_every_steps": 3, "checkpoint_every_steps": 2, "heldout_tokens": 300}
    return Sae.of(**{**plain, **keys})


# Steps of 96 and 130 tokens, neither of which ends with a block of 128; one and two epochs.
RECIPES = {
    "topk": recipe(seeds=(0, 3)),
    "long": recipe(batch_tokens=130, epochs=2, dead_after_tokens=200, checkpoint_every_steps=5),
    "frozen": recipe(dictionary="soft_frozen_decoder", k=5),
    "pca": Sae.of(dictionary="pca", k=3, n_components=6),
    "lookup": Sae.of(dictionary="token_lookup"),
}
CELLS = [
    (site, name, seed)
    for site in SITES[:2]
    for name, sae in RECIPES.items()
    for seed in sae.seeds
    # Each site lacks one of them, because cells need not be a product.
    if (site, name, seed) not in ((SITES[0], "frozen", 0), (SITES[1], "topk", 3))
]
# Six steps of each that takes them, but four in each epoch of `long`.
STEPS = 6 * 4 + 2 * 2 * 4


class Job:
    """A variant's activations, and jobs on them."""

    def __init__(self, root: Path, chain: Chain, variant: str = "trained") -> None:
        self.root, self.chain, self.variant = root, chain, variant
        self.train = root / "train/manifest.json"
        self.heldout = root / "eval/manifest.json"
        self.fitted: Path | None = None
        settings = {"dtype": "bfloat16", "shard_tokens": SHARD, "key": KEY}
        splits = {"sae_train": (chain.train_tokens, TOKENS), "eval": (chain.eval_tokens, None)}
        for (split, (tokens, n)), manifest in zip(
            splits.items(), (self.train, self.heldout), strict=True
        ):
            common: dict[str, Any] = {"tokens": tokens, "output": manifest.parent, "split": split}
            if variant == "gaussian":
                self.fitted = chain.train_activations
                keys = ModelKeys(subject="tiny", variant="gaussian", draw=0)
                sampled = SampleGaussianParams(
                    sites=SITES, max_tokens=n, seed=0, keys=keys, compute=COMPUTE, **settings
                )
                sample_gaussian(sampled, fitted=self.fitted, **common)
            else:
                captured = capture_params(max_tokens=n, batch_contexts=5, **settings)
                cache_activations(captured, model=chain.recipe, **common)

    def run(
        self,
        output: str,
        cells: list[tuple[str, str, int]],
        recipes: dict[str, Sae] = RECIPES,
        *,
        stream: bool = False,
        **keys: Any,
    ) -> int:
        shard_tokens = keys.pop("shard_tokens", SHARD)
        pattern = keys.pop("pattern", "{site}/{sae}/{seed}")
        given = StreamParams(
            max_tokens=TOKENS, shard_tokens=shard_tokens, dtype="bfloat16", batch_contexts=5
        )
        params = TrainSaeParams(
            seed=0,
            keys=ModelKeys(subject="tiny", variant=self.variant, draw=0),
            saes={name: recipes[name] for _, name, _ in cells},
            cells=tuple(SaeCell(site=s, sae=name, seed=seed) for s, name, seed in cells),
            stream=given if stream else None,
            compute=COMPUTE,
            activations_key=KEY,
            eval_activations_key=KEY,
        )
        options: dict[str, Any] = {
            "train_tokens": self.chain.train_tokens,
            "eval_tokens": self.chain.eval_tokens,
        }
        if stream:
            gaussian = self.variant == "gaussian"
            options |= {"fitted": self.fitted} if gaussian else {"model": self.chain.recipe}
        return train_sae(
            params,
            train_activations=self.train,
            eval_activations=self.heldout,
            output=self.root / output / pattern,
            work=self.root / "work" / output,
            **{**options, **keys},
        )

    def folder(self, output: str, cell: tuple[str, str, int]) -> Path:
        return self.root.joinpath(output, *map(str, cell))

    def left(self, output: str) -> list[str]:
        return sorted(path.name for path in (self.root / "work" / output).glob("*"))


def content(folder: Path) -> dict[str, Any]:
    """Every file of an SAE's folder that it is made of: bytes, but for what a clock gave and the
    key of the mode.
    """
    found: dict[str, Any] = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        if file.name == "provenance.json":  # it also contains the key
            continue
        name = str(file.relative_to(folder))
        if file.suffix == ".parquet":
            table = tables.read_table(file, tables.cell_schema("history"))
            found[name] = table.drop_columns(list(tables.MEASURED["history"])).to_pylist()
        elif file.name == "cfg.json":
            found[name] = {k: v for k, v in read_json(file, rebuild="").items() if k != "key"}
        else:
            found[name] = file.read_bytes()
    return found


@pytest.fixture(scope="module")
def job(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Train all cells one by one into `alone`; tests write elsewhere."""
    job = Job(tmp_path_factory.mktemp("together"), chain)
    for cell in CELLS:
        job.run("alone", [cell])
    return job


@pytest.fixture
def fresh(job: Job, tmp_path: Path) -> Job:
    """Return the same activations with results elsewhere."""
    copied = object.__new__(Job)
    copied.__dict__.update(job.__dict__)
    copied.root = tmp_path
    return copied


def killed_after(n: int) -> Any:
    calls = 0

    def progress(*_: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > n:
            raise KeyboardInterrupt

    return progress


# --- the same bits, whatever is trained beside it ---------------------------------------------


@pytest.mark.parametrize("stream", [False, True], ids=["cache", "stream"])
def test_an_sae_does_not_depend_on_what_is_trained_beside_it(
    job: Job, fresh: Job, stream: bool
) -> None:
    assert fresh.run("together", CELLS, stream=stream) == STEPS
    for cell in CELLS:
        assert content(fresh.folder("together", cell)) == content(job.folder("alone", cell)), cell
    assert fresh.left("together") == []


def test_a_gaussian_stream_gives_the_same_saes_as_its_cache(chain: Chain, tmp_path: Path) -> None:
    job = Job(tmp_path, chain, "gaussian")
    cells = [(SITES[1], "long", 0), (SITES[0], "topk", 3)]
    job.run("cache", cells)
    job.run("stream", cells, stream=True)
    for cell in cells:
        assert content(job.folder("stream", cell)) == content(job.folder("cache", cell))


def test_a_stream_in_other_blocks_gives_the_same_sae_within_noise(job: Job, fresh: Job) -> None:
    """Held-out explained variance, compared with the effect of another seed."""
    cells = [(SITES[1], "many", seed) for seed in range(2)]
    rare = {"evaluate_every_steps": 100, "checkpoint_every_steps": 100}
    sae = recipe(epochs=5, lr=2e-2, batch_tokens=64, seeds=(0, 1), **rare)
    fresh.run("cache", cells, {"many": sae})
    fresh.run("stream", cells, {"many": sae}, stream=True, shard_tokens=20 * CONTEXT)
    x, _ = all_rows(job.heldout, SITES[1])
    found = {
        mode: [
            evaluate(load_sae(fresh.folder(mode, cell) / "cfg.json")[0], x)[
                "heldout_explained_variance"
            ]
            for cell in cells
        ]
        for mode in ("cache", "stream")
    }
    assert found["cache"] != found["stream"]
    assert min(found["cache"]) > 0.5
    spread = max(found["cache"]) - min(found["cache"])
    for cached, streamed in zip(found["cache"], found["stream"], strict=True):
        assert abs(cached - streamed) < max(0.02, 2 * spread)


@pytest.mark.parametrize(
    ("killed", "stream"),
    [(20, False), (10, True), (20, True), (37, True)],
    ids=["20-cache", "10-stream", "20-stream", "37-stream"],
)
def test_a_killed_job_goes_on_and_gives_the_same_saes(
    job: Job, fresh: Job, killed: int, stream: bool
) -> None:
    """Its SAEs are at different steps, some finished, some not started."""
    fitted = sum(TOKENS // 4096 + 1 for _, name, _ in CELLS if name in ("pca", "lookup"))
    with pytest.raises(KeyboardInterrupt):
        fresh.run("killed", CELLS, stream=stream, progress=killed_after(fitted + killed))
    assert not (fresh.root / "killed").exists()
    steps = fresh.run("killed", CELLS, stream=stream)
    # Each lost at most the steps since its checkpoint.
    assert STEPS - 1 - killed <= steps <= STEPS - killed + 5 * len(CELLS)
    assert steps < STEPS
    for cell in CELLS:
        assert content(fresh.folder("killed", cell)) == content(job.folder("alone", cell)), cell
    assert fresh.left("killed") == []


def test_finished_saes_are_not_trained_again_beside_new_ones(
    job: Job, fresh: Job, caplog: pytest.LogCaptureFixture
) -> None:
    old = [cell for cell in CELLS if cell[1] != "long"]
    fresh.run("grown", old)
    before = {cell: (fresh.folder("grown", cell) / "cfg.json").stat().st_ino for cell in old}
    caplog.set_level(logging.INFO)
    assert fresh.run("grown", CELLS) == 2 * 8
    assert sum("already there" in text for text in caplog.messages) == len(old)
    for cell in CELLS:
        assert content(fresh.folder("grown", cell)) == content(job.folder("alone", cell)), cell
    for cell, inode in before.items():
        assert (fresh.folder("grown", cell) / "cfg.json").stat().st_ino == inode
    flip_byte(fresh.folder("grown", CELLS[0]) / "sae.safetensors")
    assert fresh.run("grown", CELLS) == 6
    assert content(fresh.folder("grown", CELLS[0])) == content(job.folder("alone", CELLS[0]))


def test_one_folder_for_two_saes_is_refused(fresh: Job) -> None:
    params_of = [(SITES[0], "topk", 0), (SITES[0], "topk", 3)]
    with pytest.raises(UserError, match=r"--output: .* is one folder for several SAEs; put"):
        fresh.run("x/{site}", params_of, pattern="")


# --- intermediate SAEs ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "kills"), [(False, (1, 6, 11)), (True, (6,))], ids=["cache", "stream"]
)
def test_an_sae_along_training_is_what_training_was_at_then(
    fresh: Job, stream: bool, kills: tuple[int, ...]
) -> None:
    cell = (SITES[0], "along", 0)
    sae = recipe(checkpoints=(0.05, 0.34, 0.999), epochs=2)
    fresh.run("whole", [cell], {"along": sae}, stream=stream)
    folder = fresh.folder("whole", cell)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        *("0.05", "0.34", "0.999"),
    ]
    # With 12 steps, a share is reached at the next whole step.
    for share, step in (("0.05", 1), ("0.34", 5), ("0.999", 12)):
        found, config = load_sae(folder / "checkpoints" / share / "cfg.json")
        assert (config.n_steps, config.keys.sae) == (step, f"along@{share}")
        assert config.key == load_sae(folder / "cfg.json")[1].key
        rows = content(folder / "checkpoints" / share)["history.parquet"]
        assert [row["step"] for row in rows] == [
            *(s for s in (1, 3, 5, 6, 9, 12) if s <= step),
        ]
        x, _ = next(SiteReader.open(fresh.heldout, SITES[0]).batches(300))
        ev = evaluate(found, x)["heldout_explained_variance"]
        assert ev == pytest.approx(rows[-1]["heldout_explained_variance"], abs=1e-5)
    assert (
        content(folder / "checkpoints/0.999")["sae.safetensors"]
        == (content(folder)["sae.safetensors"])
    )
    assert (
        content(folder / "checkpoints/0.05")["sae.safetensors"]
        != (content(folder)["sae.safetensors"])
    )
    for killed in kills:
        name = f"killed {killed}"
        with pytest.raises(KeyboardInterrupt):
            fresh.run(name, [cell], {"along": sae}, stream=stream, progress=killed_after(killed))
        fresh.run(name, [cell], {"along": sae}, stream=stream)
        assert content(fresh.folder(name, cell)) == content(folder)


def test_a_lost_sae_along_training_is_made_again(fresh: Job) -> None:
    cell = (SITES[0], "along", 0)
    saes = {"along": recipe(checkpoints=(0.34,))}
    fresh.run("x", [cell], saes)
    whole = content(fresh.folder("x", cell))
    assert fresh.run("x", [cell], saes) == 0
    flip_byte(fresh.folder("x", cell) / "checkpoints/0.34/sae.safetensors")
    assert fresh.run("x", [cell], saes) == 6
    assert content(fresh.folder("x", cell)) == whole
    # It was lost between a kill and the resume, and the checkpoint is past it.
    with pytest.raises(KeyboardInterrupt):
        fresh.run("y", [cell], saes, progress=killed_after(4))
    (lost,) = (fresh.root / "work/y").glob("*/checkpoints/0.34/cfg.json")
    lost.unlink()
    assert fresh.run("y", [cell], saes) == 6
    assert content(fresh.folder("y", cell)) == whole


# --- what goes wrong --------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [0, 40, -1, None], ids=["length", "header", "data", "cut"])
def test_a_damaged_checkpoint_gives_a_warning_and_a_new_start(
    job: Job, fresh: Job, offset: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    cell = (SITES[0], "long", 0)
    with pytest.raises(KeyboardInterrupt):
        fresh.run("x", [cell], progress=killed_after(6))
    (file,) = (fresh.root / "work/x").glob("*.safetensors")
    if offset is None:
        file.write_bytes(file.read_bytes()[:-100])
    else:
        flip_byte(file, offset)
    caplog.set_level(logging.INFO)
    assert fresh.run("x", [cell]) == 8
    warnings = [text for text in caplog.messages if text.startswith("warning: ")]
    assert len(warnings) == 1
    assert f"{file}: damaged (" in warnings[0]
    assert "\n" not in warnings[0]
    assert content(fresh.folder("x", cell)) == content(job.folder("alone", cell))


def test_one_sae_that_diverges_leaves_the_others_finished(job: Job, fresh: Job) -> None:
    wild = recipe(lr=1e38, grad_clip_norm=1e30, warmup_share=0.0, epochs=2)
    cells = [(SITES[0], "wild", 0), *CELLS]
    with pytest.raises(UserError, match=r"^config: saes\.wild: the loss is (nan|inf) at step \d+;"):
        fresh.run("x", cells, {**RECIPES, "wild": wild})
    # Snakemake deletes the outputs of a failed job, so finished SAEs wait elsewhere.
    assert not (fresh.root / "x").exists()
    assert len([name for name in fresh.left("x") if "." not in name]) == len(CELLS)
    tame = {**RECIPES, "wild": recipe()}
    assert fresh.run("x", cells, tame) == 6
    for cell in CELLS:
        assert content(fresh.folder("x", cell)) == content(job.folder("alone", cell)), cell


@pytest.mark.parametrize("steps", [1, 1000])
def test_activations_that_are_not_finite_are_named_as_the_cause(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """The cause may be in an earlier block than the batch ends in, and losses may be read late."""
    if steps > 1:
        late(monkeypatch, steps)
    job = Job(tmp_path, chain)
    folder = job.train.parent / f"site={SITES[0]}"
    shard = folder / "shard-00003.safetensors"
    tensors = load_file(shard)
    tensors["activations"][126, 5] = math.nan
    save_file(tensors, shard)
    manifest = read_json(folder / "manifest.json", rebuild="")
    manifest["shards"][3]["checksum"] = checksum(shard)
    write_json(folder / "manifest.json", manifest)
    for name in ("topk", "long"):
        assert refused(job.run, "x", [(SITES[0], name, 0)]) == (
            f"{shard}: row 126 is NaN or infinite; SAEs cannot be trained on it"
        )


def late(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Read losses only every so many steps, as on a GPU."""
    monkeypatch.setattr(training_run.Run, "lags", True)
    monkeypatch.setattr(training_run, "STEPS_PER_READING", steps)


def test_losses_that_are_read_late_change_no_sae(
    job: Job, fresh: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    late(monkeypatch, 4)
    cells = [cell for cell in CELLS if cell[1] in ("topk", "long")]
    fresh.run("late", cells)
    for cell in cells:
        assert content(fresh.folder("late", cell)) == content(job.folder("alone", cell)), cell


@pytest.mark.parametrize("every", [1, 1000])
def test_a_loss_that_is_read_late_is_named_by_its_step_and_saved_in_no_checkpoint(
    fresh: Job, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    keys = {"lr": 1e38, "grad_clip_norm": 1e30, "warmup_share": 0.0, "evaluate_every_steps": 1000}
    wild = {"wild": recipe(**keys, checkpoint_every_steps=every)}
    found = []
    for name in ("at_once", "late"):
        if name == "late":
            late(monkeypatch, 1000)
        with pytest.raises(
            UserError, match=r"the loss is (nan|inf) at step \d+; lower lr"
        ) as error:
            fresh.run(name, [(SITES[0], "wild", 0)], wild)
        saved = sorted((fresh.root / "work" / name).glob("*.safetensors"))
        steps = []
        for file in saved:
            with safe_open(file, "pt") as checkpoint:
                steps.append(checkpoint.metadata()["step"])
        found.append((str(error.value), steps))
    assert found[0] == found[1]
    assert bool(found[0][1]) == (every == 1)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 7 bytes\nmore"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_gives_advice_and_keeps_the_work(
    job: Job, fresh: Job, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    real = Trainer.train_step

    def fails(self: Trainer, x: Tensor) -> Any:
        if self.recipe.batch_tokens == 130 and self.step == 6:
            raise error
        return real(self, x)

    cells = [(SITES[0], "topk", 0), (SITES[0], "long", 0)]
    monkeypatch.setattr(Trainer, "train_step", fails)
    text = refused(fresh.run, "x", cells)
    assert text.startswith("config: saes.topk, saes.long: out of memory (")
    parameters = 40 * 16 * 2 + 40 + 16
    n_bytes = 4 * sum(4 * parameters + batch * 40 for batch in (96, 130))
    assert f"{n_bytes / 2**30:.2f} GiB for the 2 SAEs" in text
    assert "lower n_latents, batch_tokens or activations.shard_tokens" in text
    monkeypatch.undo()
    assert fresh.run("x", cells) == 8 - 5
    for cell in cells:
        assert content(fresh.folder("x", cell)) == content(job.folder("alone", cell))


def test_another_error_does_not_pass_for_a_lack_of_memory(
    fresh: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Trainer, x: Tensor) -> Any:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(Trainer, "train_step", fails)
    with pytest.raises(RuntimeError, match="mat1"):
        fresh.run("x", CELLS[:1])


# --- before and along -------------------------------------------------------------------------


def test_the_line_before_the_work_counts_what_is_done(
    fresh: Job, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    fresh.run("x", CELLS, stream=True)
    (line,) = [text for text in caplog.messages if "SAEs at" in text]
    # 36 contexts are 4 blocks of 8 and one of 4, in passes of 5; `long` has two epochs.
    assert line.startswith("6 SAEs at 2 sites: 40 steps on 576 tokens, 10 blocks computed in ")
    assert "in 18 forward passes (" in line
    assert ", at most 128 tokens of 32 dimensions each; " in line
    assert sum("hours, from the time of the first block" in text for text in caplog.messages) == 1


def test_at_most_one_block_is_in_memory(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    class Watched(CachedBlocks):
        def block(self, index: int, sites: Collection[str]) -> dict[str, Tensor]:
            nonlocal most
            still = [ref for ref in alive if ref() is not None]
            most = max(most, len(still))
            # Views keep a tensor's memory alive, so its array is tracked instead.
            arrays = {
                site: x.float().numpy().copy() for site, x in super().block(index, sites).items()
            }
            alive[:] = [*still, *(weakref.ref(array) for array in arrays.values())]
            return {site: torch.from_numpy(array) for site, array in arrays.items()}

    monkeypatch.setattr(module, "CachedBlocks", Watched)
    job.run("watched", CELLS)
    assert most == 0


def test_blocks_read_in_the_background_come_in_order() -> None:
    seen: list[int] = []

    def get(i: int) -> int:
        seen.append(i)
        return i * i

    assert next(ahead(get, range(5), in_background=True)) == 0
    assert len(seen) <= 2
    for background in (False, True):
        assert list(ahead(get, range(50), in_background=background)) == [i * i for i in range(50)]
        assert list(ahead(get, [], in_background=background)) == []

    def fails(i: int) -> int:
        raise UserError("block 3")

    with pytest.raises(UserError, match="block 3"):
        list(ahead(fails, range(2), in_background=True))


def seen_elsewhere() -> str:
    """The precision of float32 products in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(torch.get_float32_matmul_precision).result()


def test_no_pass_runs_beside_training_in_tensorfloat(chain: Chain) -> None:
    """Which of its products would be rounded would depend on the moment."""
    with tensor_float():
        assert seen_elsewhere() == "high"
    reader = SiteReader.open(chain.train_activations, SITES[0])
    again = replace(reader, live=cast(Live, object()))
    read, computed = (CachedBlocks(0, {SITES[0]: each}) for each in (reader, again))
    gpu, runs = torch.device("cuda"), []
    for precision in ("bfloat16", "tf32"):
        run: Any = SimpleNamespace(trainer=SimpleNamespace(model=SimpleNamespace()))
        run.trainer.model.precision = precision
        runs.append(run)
        assert works_ahead(runs, read, gpu)
        assert works_ahead(runs, computed, gpu) == (precision == "bfloat16")
        assert not works_ahead(runs, read, torch.device("cpu"))


def test_tokens_per_second_leave_out_evaluation_and_other_saes(
    fresh: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uses a clock that runs one second per step of one SAE and a minute elsewhere."""
    clock = 0.0
    real_step, real_evaluate = Trainer.train_step, evaluate

    def step(self: Trainer, x: Tensor) -> Any:
        nonlocal clock
        clock += 1.0
        return real_step(self, x)

    def slow(*arguments: Any) -> Any:
        nonlocal clock
        clock += 60.0
        return real_evaluate(*arguments)

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr("nullsae.sae.training_run.evaluate", slow)
    monkeypatch.setattr("nullsae.sae.training_run.time.perf_counter", lambda: clock)
    fresh.run("x", [*CELLS[:2], (SITES[0], "long", 0)])
    for cell, rate in ((CELLS[0], 96.0), ((SITES[0], "long", 0), 130.0)):
        file = fresh.folder("x", cell) / "history.parquet"
        table = tables.read_table(file, tables.cell_schema("history"))
        assert set(table.column("tokens_per_second").to_pylist()) == {rate}
