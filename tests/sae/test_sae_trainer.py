from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from nullsae import tables
from nullsae.activations.blocks import CachedBlocks
from nullsae.config.saes import Sae
from nullsae.core import provenance
from nullsae.core.errors import UserError
from nullsae.core.stopping import StoppedError
from nullsae.jobs.saes import SaeCell
from nullsae.sae import shared_pass
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import load_sae
from nullsae.sae.initialization import initialize
from nullsae.sae.train_sae import train_sae
from nullsae.sae.trainer import Trainer, evaluate, learning_rate, schedule
from small_chain import flip_byte, train_params, write_site

D, N_PLANTED, K = 24, 32, 3


def recipe(**keys: Any) -> Sae:
    plain: dict[str, Any] = {"k": K, "n_latents": 64, "batch_tokens": 256, "lr": 1e-2}
    return Sae.of(**{**plain, **keys})


def planted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return sums of K of N_PLANTED unit directions, weights in [1, 2]: (x [n, D], directions)."""
    directions = F.normalize(
        torch.randn(N_PLANTED, D, generator=torch.Generator().manual_seed(0)), dim=1
    )
    g = torch.Generator().manual_seed(seed)
    chosen = torch.rand(n, N_PLANTED, generator=g).argsort(dim=1)[:, :K]
    weights = torch.zeros(n, N_PLANTED).scatter(1, chosen, 1 + torch.rand(n, K, generator=g))
    return weights @ directions + 0.5, directions


def trainer_on(x: Tensor, sae: Sae, n_steps: int = 100) -> Trainer:
    assert sae.n_latents is not None
    start = initialize(
        x, n_latents=sae.n_latents, k=sae.kept, generator=torch.Generator().manual_seed(1)
    )
    return Trainer(sae, n_steps, start, k=sae.kept)


# --- schedule ---------------------------------------------------------------------------------


def test_the_schedule_follows_its_closed_form() -> None:
    sae = recipe(warmup_share=0.05, decay_share=0.3)
    factors = [schedule(step, 100, sae) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[4:71] == [1.0] * 67
    assert factors[71:] == pytest.approx([(100 - step) / 30 for step in range(71, 100)])
    assert factors[-1] > 0


@given(
    n_steps=st.integers(1, 400),
    warmup=st.floats(0, 0.99),
    decay=st.floats(0, 1),
)
def test_the_schedule_stays_between_zero_and_one(n_steps: int, warmup: float, decay: float) -> None:
    sae = recipe(warmup_share=warmup, decay_share=decay)
    factors = [schedule(step, n_steps, sae) for step in range(n_steps)]
    assert all(0 < factor <= 1 for factor in factors)


def test_the_schedule_counts_optimizer_steps(tmp_path: Path) -> None:
    """If micro-batches or tokens were counted, the rate would end elsewhere."""
    x, _ = planted(1000, 1)
    sae = recipe(batch_tokens=100, lr=1.0e-3, epochs=2, evaluate_every_steps=1, heldout_tokens=50)
    rows = history(run(tmp_path, x, sae))
    assert [row["step"] for row in rows] == list(range(1, 21))
    assert [row["tokens"] for row in rows] == [100 * step for step in range(1, 21)]
    expected = [1e-3 * schedule(step, 20, sae) for step in range(20)]
    assert [row["lr"] for row in rows] == pytest.approx(expected)


def test_the_default_learning_rate_follows_the_rule_of_gao_et_al() -> None:
    assert learning_rate(recipe(lr=None, base_lr=2e-4), 2**14) == pytest.approx(2e-4)
    assert learning_rate(recipe(lr=None, base_lr=2e-4), 2**12) == pytest.approx(4e-4)
    assert learning_rate(recipe(lr=0.5), 2**12) == 0.5


# --- one step ---------------------------------------------------------------------------------


def test_decoder_rows_keep_unit_norm_and_have_no_gradient_along_themselves() -> None:
    x, _ = planted(512, 2)
    trainer = trainer_on(x, recipe())
    for _ in range(5):
        before = trainer.sae.w_dec.clone()
        trainer.train_step(x)
        gradient = trainer.sae.w_dec.grad
        assert gradient is not None
        along = (gradient * before).sum(dim=1).abs()
        assert float(along.max()) < 1e-6 * float(gradient.norm(dim=1).max())
        torch.testing.assert_close(trainer.sae.w_dec.norm(dim=1), torch.ones(64))


def test_the_gradient_is_clipped_to_the_configured_norm() -> None:
    x, _ = planted(512, 2)
    for limit, clipped in ((1e-3, True), (1e3, False)):
        trainer = trainer_on(x, recipe(grad_clip_norm=limit))
        trainer.train_step(x)
        grads = [p.grad for p in trainer.sae.parameters().values()]
        norm = math.sqrt(sum(float(g.square().sum()) for g in grads if g is not None))
        assert norm == pytest.approx(limit, rel=1e-2) if clipped else norm < limit / 2


def test_dead_latents_are_those_unfired_for_enough_tokens() -> None:
    x = torch.eye(4)[torch.tensor([0, 0, 1, 2] * 4)]
    rows = torch.cat([torch.eye(4), -torch.eye(4)])
    sae = Autoencoder("topk", rows.clone(), torch.zeros(8), rows.clone(), torch.zeros(4), k=1)
    settings_ = recipe(k=1, n_latents=8, dead_after_tokens=32, lr=1e-9)
    trainer = Trainer(settings_, 10, sae, k=1)
    trainer.train_step(x)
    assert trainer.unfired_tokens.tolist() == [0, 0, 0, 16, 16, 16, 16, 16]
    assert not bool(trainer.dead.any())
    trainer.train_step(x)
    assert trainer.dead.tolist() == [False] * 3 + [True] * 5
    trainer.train_step(torch.eye(4)[torch.tensor([0, 3, 3, 3])])
    assert trainer.unfired_tokens.tolist() == [0, 4, 4, 0, 36, 36, 36, 36]


@pytest.mark.parametrize("seed", [3, 4])
def test_auxk_revives_dead_latents(seed: int) -> None:
    x, _ = planted(4096, seed)
    dead, loss = {}, {}
    for coefficient in (0.0, 1 / 32):
        aux = {"auxk_coefficient": coefficient, "auxk_k": 12, "dead_after_tokens": 1024}
        sae = recipe(n_latents=32, lr=2e-2, **aux)
        trainer = trainer_on(x, sae, n_steps=80)
        # Half of the latents see the data, but too faintly to enter the top k.
        trainer.sae.w_enc[16:] *= 0.01
        for step in range(80):
            loss[coefficient] = trainer.train_step(x[(step * 256) % 4096 :][:256]).fvu
        dead[coefficient] = float(trainer.dead.double().mean())
    assert dead[0.0] >= 0.4
    assert dead[1 / 32] <= 0.1
    assert loss[1 / 32] < loss[0.0] / 1.5


def test_held_out_numbers_follow_their_definitions() -> None:
    x, _ = planted(300, 4)
    sae = trainer_on(x, recipe()).sae
    found = evaluate(sae, x)
    output = sae.decode(*sae.encode(x)).double()
    exact = x.double()
    error = (exact - output).pow(2).sum() / (exact - exact.mean(dim=0)).pow(2).sum()
    assert found["heldout_explained_variance"] == pytest.approx(1 - float(error), rel=1e-9)
    cosine = F.cosine_similarity(exact, output, dim=1).mean()
    assert found["heldout_cosine"] == pytest.approx(float(cosine), rel=1e-6)
    values, indices = sae.encode(x)
    alive = len(set(indices[values > 0].tolist())) / sae.n_latents
    assert found["heldout_alive_share"] == alive


# --- whole trainings --------------------------------------------------------------------------


def run(folder: Path, x: Tensor, sae: Sae, **keys: Any) -> Path:
    """Write the activations (once) and train; return the SAE's folder."""
    train, heldout = folder / "train/manifest.json", folder / "eval/manifest.json"
    if not train.exists():
        write_site(folder / "train", x, [len(x) // 3, len(x) - len(x) // 3])
        write_site(folder / "eval", planted(400, 99)[0], [400])
    output = folder / str(keys.pop("output", "sae"))
    seed = keys.pop("seed", 0)
    arguments: dict[str, Any] = {"work": folder / "work", **keys}
    cells = (SaeCell(site="resid_post.1", sae="topk", seed=seed),)
    params = train_params(sae, cells=cells, activations_key="key")
    train_sae(
        params,
        train_activations=train,
        eval_activations=heldout,
        output=output,
        **arguments,
    )
    return output


def history(folder: Path) -> list[dict[str, Any]]:
    """Return the training curve without timings."""
    table = tables.read_table(folder / "history.parquet", tables.cell_schema("history"))
    rows: list[dict[str, Any]] = table.to_pylist()
    assert all(row.pop("tokens_per_second") > 0 for row in rows)
    return rows


def test_training_finds_a_planted_dictionary(tmp_path: Path) -> None:
    x, directions = planted(20_000, 5)
    sae = recipe(epochs=2, lr=2e-2, evaluate_every_steps=30, dead_after_tokens=5000)
    output = run(tmp_path, x, sae)
    curve = [row["heldout_explained_variance"] for row in history(output)]
    assert curve[-1] > curve[0] + 0.05
    assert curve[-1] > 0.9
    found, config = load_sae(output / "cfg.json")
    cosine = directions @ F.normalize(found.w_dec, dim=1).T
    assert float(cosine.max(dim=1).values.mean()) > 0.9
    assert config.n_steps == 2 * (20_000 // 256)
    # The SAE on disk is for activations as captured, not for the scaled ones it trained on.
    heldout = planted(400, 99)[0]
    own = evaluate(found, heldout)["heldout_explained_variance"]
    assert own == pytest.approx(curve[-1], abs=1e-4)
    torch.testing.assert_close(found.w_dec.norm(dim=1), torch.ones(64))


RESUMED = {
    **{"batch_tokens": 128, "epochs": 2, "checkpoint_every_steps": 5},
    **{"evaluate_every_steps": 4, "dead_after_tokens": 300},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an SAE whose training was not interrupted."""
    return run(tmp_path_factory.mktemp("whole"), planted(1500, 6)[0], recipe(**RESUMED))


def assert_same(resumed: Path, whole: Path) -> None:
    for file in ("sae.safetensors", "cfg.json"):
        assert (whole / file).read_bytes() == (resumed / file).read_bytes(), file
    assert history(resumed) == history(whole)


@pytest.mark.parametrize("killed_at", [7, 13, 20])
def test_a_resumed_training_equals_an_uninterrupted_one(
    whole: Path, tmp_path: Path, killed_at: int
) -> None:
    x, _ = planted(1500, 6)
    sae = recipe(**RESUMED)

    def kill(step: int, _steps: int, _loss: float) -> None:
        if step == killed_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, x, sae, output="resumed", progress=kill)
    assert not (tmp_path / "resumed").exists()
    steps: list[int] = []
    torch.manual_seed(killed_at)  # the global generator has another state in a new process
    run(tmp_path, x, sae, output="resumed", progress=lambda step, *_: steps.append(step))
    # Fails if resume is a no-op, since training all of it again could give the same bits.
    checkpoint = killed_at // 5 * 5
    assert steps == list(range(checkpoint + 1, 23))
    assert_same(tmp_path / "resumed", whole)
    assert not list((tmp_path / "work").iterdir()), "a finished training leaves a checkpoint"


def test_a_kill_costs_no_more_than_the_time_between_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many steps the recipe asks for between checkpoints."""
    monkeypatch.setattr(shared_pass, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(shared_pass, "PAUSE_PER_SAVING", 0.0)
    x, _ = planted(1500, 6)
    sae = recipe(batch_tokens=128, epochs=2)
    assert sae.checkpoint_every_steps > 22

    def kill(step: int, *_: Any) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, x, sae, output="resumed", progress=kill)
    steps: list[int] = []
    run(tmp_path, x, sae, output="resumed", progress=lambda step, *_: steps.append(step))
    assert steps == list(range(8, 23))
    run(tmp_path, x, sae, output="whole")
    one, other = (tmp_path / name / "sae.safetensors" for name in ("resumed", "whole"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("within", ["a step", "a block", "the first block"])
def test_no_steps_are_lost_by_a_warning_or_ctrl_c(
    whole: Path,
    tmp_path: Path,
    within: str,
    kind: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Steps of 128 tokens on blocks of 500 and 1000, which end steps 3, 8, 11, 14, ..."""
    x, _ = planted(1500, 6)
    sae = recipe(**RESUMED)

    def terminate(*_: Any) -> None:
        os.kill(os.getpid(), kind)

    fetched: list[int] = []
    real = CachedBlocks.block

    def block(self: CachedBlocks, index: int, sites: Any) -> Any:
        fetched.append(index)
        # The initial one, then the third that is trained on, or the first.
        if len(fetched) == (4 if within == "a block" else 2):
            terminate()
            raise AssertionError("the block was got all the same")
        return real(self, index, sites)

    if within == "a step":
        last = 12
        asked: dict[str, Any] = {"progress": lambda step, *_: step == last and terminate()}
    else:
        monkeypatch.setattr(CachedBlocks, "block", block)
        last, asked = (11 if within == "a block" else 0), {}
    with pytest.raises(
        StoppedError, match=rf"^stopped by {kind.name} at step {last} of 22; [^\n]*$"
    ):
        run(tmp_path, x, sae, output="resumed", **asked)
    monkeypatch.undo()
    assert not (tmp_path / "resumed").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    steps: list[int] = []
    with caplog.at_level(logging.INFO):
        run(tmp_path, x, sae, output="resumed", progress=lambda step, *_: steps.append(step))
    assert steps == list(range(last + 1, 23))
    assert f"resumed at step {last} of 22" in caplog.text
    assert "damaged" not in caplog.text
    assert_same(tmp_path / "resumed", whole)


def test_sigterm_after_the_last_step_leaves_a_finished_sae(tmp_path: Path) -> None:
    x, _ = planted(1500, 6)
    terminate = [lambda: os.kill(os.getpid(), signal.SIGTERM)]
    sae = recipe(batch_tokens=128)
    run(tmp_path, x, sae, progress=lambda step, steps, _: step == steps and terminate[0]())
    load_sae(tmp_path / "sae/cfg.json")


def test_a_missing_folder_of_checkpoints_does_not_end_a_run(tmp_path: Path) -> None:
    x, _ = planted(1500, 6)
    sae = recipe(batch_tokens=128, checkpoint_every_steps=2)

    def remove(step: int, *_: Any) -> None:
        if step == 5:
            shutil.rmtree(tmp_path / "work")

    run(tmp_path, x, sae, output="one", progress=remove)
    run(tmp_path, x, sae, output="other")
    one, other = (tmp_path / name / "sae.safetensors" for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("second", ["a", "b"])
def test_a_resumed_training_has_one_provenance_with_each_machine_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, second: str
) -> None:
    x, _ = planted(1500, 6)
    sae = recipe(batch_tokens=128, checkpoint_every_steps=5, checkpoints=(0.2,))

    def kill(step: int, _steps: int, _loss: float) -> None:
        if step == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(socket, "gethostname", lambda: "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, x, sae, progress=kill)
    monkeypatch.setattr(socket, "gethostname", lambda: second)
    output = run(tmp_path, x, sae)
    (file,) = output.glob("provenance.json")
    found = provenance.read(file)
    assert found is not None
    assert [job.host for job in found.jobs] == (["a"] if second == "a" else ["a", "b"])
    assert found.tokens_seen == 11 * 128
    # The SAE after three steps was complete before the kill.
    along = provenance.read(output / "checkpoints/0.2/provenance.json")
    assert along is not None
    assert [job.host for job in along.jobs] == ["a"]
    assert along.tokens_seen == 3 * 128


def test_a_checkpoint_of_other_params_is_not_resumed(tmp_path: Path) -> None:
    x, _ = planted(1500, 6)
    sae = recipe(batch_tokens=128, checkpoint_every_steps=5)

    def kill(step: int, _steps: int, _loss: float) -> None:
        if step == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, x, sae, progress=kill)
    assert len(list((tmp_path / "work").glob("*.safetensors"))) == 1
    steps: list[int] = []
    other = sae.model_copy(update={"lr": 5e-3})
    run(tmp_path, x, other, progress=lambda step, *_: steps.append(step))
    assert steps[0] == 1


def test_two_seeds_give_two_saes(tmp_path: Path) -> None:
    x, _ = planted(1000, 7)
    outputs = [
        run(tmp_path, x, recipe(), output=f"s{name}", seed=seed)
        for name, seed in (("0", 0), ("0 again", 0), ("1", 1))
    ]
    bits = [(output / "sae.safetensors").read_bytes() for output in outputs]
    assert bits[0] == bits[1]
    assert bits[0] != bits[2]


def test_too_few_tokens_and_damaged_shards_are_refused(tmp_path: Path) -> None:
    x, _ = planted(300, 8)
    with pytest.raises(UserError, match=r"^config: saes\.topk\.batch_tokens: 301 is more than the"):
        run(tmp_path, x, recipe(batch_tokens=301))
    shard = tmp_path / "train/site=resid_post.1/shard-00001.safetensors"
    flip_byte(shard)
    with pytest.raises(UserError, match=r"shard-00001.safetensors: damaged"):
        run(tmp_path, x, recipe())
    assert not (tmp_path / "sae").exists()


def test_an_sae_whose_loss_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    x, _ = planted(1000, 9)
    with pytest.raises(UserError, match=r"config: saes\.topk: the loss is (nan|inf) at step"):
        run(tmp_path, x, recipe(batch_tokens=100, lr=1e38, grad_clip_norm=1e30, warmup_share=0.0))
    assert not (tmp_path / "sae").exists()
