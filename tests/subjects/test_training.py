from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from nullsae.config.subjects import TrainSource
from nullsae.core import locking
from nullsae.core.errors import UserError
from nullsae.core.files import read_json, write_json
from nullsae.core.stopping import StoppedError
from nullsae.corpus.store import Tokens
from nullsae.jobs.subjects import TrainSubjectParams
from nullsae.subjects.publish import train_subject
from nullsae.subjects.training import (
    LOG_ROWS,
    Muon,
    learning_rate_scale,
    orthogonalize,
    text_from,
    train_model,
)
from small_chain import COMPUTE, flip_byte, tokens_of, write_corpus

VOCAB, CONTEXT = 50, 16
CPU = torch.device("cpu")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine, threads wait for each other, which costs such small models minutes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tokens(n_contexts: int = 64) -> Tokens:
    """Return a noisy chain: the next token is the last plus one, three times in four."""
    rng = np.random.default_rng(0)
    steps = np.where(rng.random(n_contexts * CONTEXT) < 0.75, 1, rng.integers(1, VOCAB))
    ids = (np.cumsum(steps) % VOCAB).astype(np.int32).reshape(n_contexts, CONTEXT)
    manifest = {"vocab_size": VOCAB, "eos_token_id": 0}
    return Tokens(ids, np.zeros_like(ids), manifest)


def tiny(**keys: Any) -> TrainSource:
    plain = {"n_layers": 2, "d_model": 32, "n_heads": 4, "steps": 25, "batch_contexts": 8}
    return TrainSource(kind="train", **{**plain, **keys})


Trained = tuple[Any, dict[str, Tensor], list[dict[str, float]]]


def train(**keys: Any) -> Trained:
    arguments: dict[str, Any] = {"seed": 0, "subject": "small", "device": CPU, **keys}
    source = arguments.pop("source", tiny())
    with TemporaryDirectory() as folder:
        unused = Path(folder) / "state.safetensors"
        return train_model(source, tokens(), **{"checkpoint": unused, **arguments})


@pytest.fixture(scope="module")
def plain(one_thread: None) -> Trained:
    """One training, which tests only look at."""
    return train()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def test_two_trainings_with_one_key_are_equal_to_the_bit(plain: Trained) -> None:
    first, first_initial, first_log = plain
    torch.manual_seed(123)  # a global generator in another state
    before = torch.get_rng_state()
    second, second_initial, second_log = train()
    assert torch.equal(torch.get_rng_state(), before), "the global generator was moved"
    assert same(first.state_dict(), second.state_dict())
    assert same(first_initial, second_initial)
    assert first_log == second_log


@pytest.mark.parametrize("keys", [{"seed": 1}, {"subject": "other"}])
def test_another_key_gives_another_initialization(keys: dict[str, Any]) -> None:
    _, first, _ = train(source=tiny(steps=1))
    _, second, _ = train(source=tiny(steps=1), **keys)
    name = "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"
    assert abs(float(torch.corrcoef(torch.stack([first[name], second[name]]).flatten(1))[0, 1])) < (
        5 / math.sqrt(first[name].numel())
    )


def test_the_loss_falls_from_that_of_a_uniform_guess() -> None:
    _, _, log = train(source=tiny(steps=60))
    assert abs(log[0]["loss_nats"] - math.log(VOCAB)) < 0.3
    assert log[-1]["loss_nats"] < math.log(VOCAB) - 1


def test_the_log_and_the_progress_cover_every_step() -> None:
    seen: list[tuple[int, int, float]] = []
    _, _, log = train(
        progress=lambda step, steps, loss: seen.append((step, steps, loss)),
    )
    assert [(step, steps) for step, steps, _ in seen] == [(i, 25) for i in range(1, 26)]
    assert len(log) <= LOG_ROWS
    assert log[-1]["step"] == 25
    assert log[-1]["tokens"] == 25 * 8 * CONTEXT
    begin = 0
    for row in log:  # the rows' means cover every step once
        part = [loss for _, _, loss in seen[begin : int(row["step"])]]
        assert row["loss_nats"] == pytest.approx(sum(part) / len(part), rel=1e-12)
        begin = int(row["step"])


def test_the_initial_weights_are_those_that_training_started_from(plain: Trained) -> None:
    model, initial, log = train(source=tiny(steps=1, muon_lr=1e-12, adamw_lr=1e-12))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, initial[name], rtol=0, atol=1e-9)
    trained, again, _ = plain
    assert same(initial, again), "training wrote into the initial weights"
    for name, value in trained.state_dict().items():
        if name.endswith((".weight", ".bias")):
            assert not torch.equal(value, again[name]), f"{name} was not trained"
    assert len(log) == 1


def test_the_architecture_is_the_one_asked_for() -> None:
    model, initial, _ = train(source=tiny(steps=1, n_layers=3, rotary_share=0.25))
    config = model.config
    assert (config.vocab_size, config.hidden_size, config.num_hidden_layers) == (VOCAB, 32, 3)
    assert (config.intermediate_size, config.max_position_embeddings) == (128, CONTEXT)
    assert config.use_parallel_residual
    assert not config.tie_word_embeddings
    assert model.gpt_neox.embed_in.weight is not model.lm_head.weight
    assert (config.hidden_dropout, config.attention_dropout) == (0.0, 0.0)
    assert len(model.gpt_neox.rotary_emb.inv_freq) * 2 == 2  # a quarter of heads of 8
    assert not model.training
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    # untied embeddings, two LayerNorms a block and a last one, four matrices with biases a block
    block = 2 * 64 + (32 * 96 + 96) + (32 * 32 + 32) + (32 * 128 + 128) + (128 * 32 + 32)
    assert sum(value.numel() for value in initial.values()) == 2 * VOCAB * 32 + 3 * block + 64


def test_a_trained_model_does_not_read_the_future() -> None:
    model, _, _ = train(source=tiny(steps=1))
    ids = torch.from_numpy(tokens().input_ids[:2].astype(np.int64))
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 7) % VOCAB
    with torch.no_grad():
        first, second = model(input_ids=ids).logits, model(input_ids=changed).logits
    torch.testing.assert_close(first[:, :-1], second[:, :-1])


def test_the_learning_rate_rises_stays_and_falls_linearly() -> None:
    source = tiny(steps=100, warmup_share=0.1, decay_share=0.5)
    scale = [learning_rate_scale(step, source) for step in range(100)]
    expected = [(i + 1) / 10 for i in range(10)] + [1.0] * 40 + [(50 - i) / 50 for i in range(50)]
    assert scale == pytest.approx(expected, rel=1e-12)
    flat = tiny(steps=7, warmup_share=0.0, decay_share=0.0)
    assert [learning_rate_scale(step, flat) for step in range(7)] == [1.0] * 7


@pytest.mark.parametrize("shape", [(24, 24), (12, 40), (40, 12)])
def test_orthogonalizing_keeps_singular_vectors_and_evens_singular_values(
    shape: tuple[int, int],
) -> None:
    generator = torch.Generator().manual_seed(0)
    rank = min(shape)
    left, _ = torch.linalg.qr(torch.randn(shape[0], rank, generator=generator))
    right, _ = torch.linalg.qr(torch.randn(shape[1], rank, generator=generator))
    values = torch.linspace(1.0, 20.0, rank)
    inner = left.T @ orthogonalize(left * values @ right.T) @ right
    assert inner.diagonal().min() > 0.6
    assert inner.diagonal().max() < 1.3
    assert (inner - inner.diagonal().diag()).abs().max() < 1e-3


def test_muon_steps_where_the_one_of_torch_does() -> None:
    # torch's own runs the same iteration in bfloat16, which is accurate to about 1 %.
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(24, 40, generator=generator)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    mine = Muon([ours], lr=0.1, weight_decay=0.5)
    reference = torch.optim.Muon(
        [theirs], lr=0.1, weight_decay=0.5, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    for _ in range(5):
        ours.grad = torch.randn(24, 40, generator=generator)
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    moved, expected = (ours - start).flatten(), (theirs - start).flatten()
    assert torch.linalg.norm(moved - expected) < 0.03 * torch.linalg.norm(expected)


def test_a_diverging_training_stops() -> None:
    with pytest.raises(UserError, match=r"subjects\.small\.source: the loss is .* lower muon_lr"):
        train(source=tiny(muon_lr=1e30, adamw_lr=1e30))


def test_an_odd_rotary_width_is_refused_in_one_line() -> None:
    with pytest.raises(UserError, match=r"subjects\.small\.source\.rotary_share: 0\.4 of a head"):
        train(source=tiny(rotary_share=0.4))


# --- stopped and resumed ----------------------------------------------------------------------


def terminate_at(step: int) -> Any:
    return lambda done, *_: done == step and os.kill(os.getpid(), signal.SIGTERM)


def stop_at(step: int, checkpoint: Path, **keys: Any) -> None:
    with pytest.raises(StoppedError, match=rf"^stopped by SIGTERM at step {step} of [^\n]*$"):
        train(checkpoint=checkpoint, progress=terminate_at(step), **keys)


@pytest.mark.parametrize("last", [1, 9, 25])
def test_a_training_that_sigterm_stopped_resumes_to_the_same_bits(
    plain: Trained, tmp_path: Path, last: int
) -> None:
    """The log has a row for every two steps."""
    whole, whole_initial, whole_log = plain
    checkpoint = tmp_path / "work/state.safetensors"
    stop_at(last, checkpoint)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    torch.manual_seed(123)  # the global generator has another state in a new process
    steps: list[int] = []
    resumed, initial, log = train(
        checkpoint=checkpoint, progress=lambda step, *_: steps.append(step)
    )
    # Fails if resume is a no-op, since training all of it again could give the same bits.
    assert steps == list(range(last + 1, 26))
    assert same(whole.state_dict(), resumed.state_dict())
    assert same(whole_initial, initial)
    assert log == whole_log


def test_a_killed_training_loses_at_most_the_steps_since_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock by which a step takes 50 seconds, so that every third is kept."""
    clock = 0.0

    def kill(step: int, *_: Any) -> None:
        nonlocal clock
        clock += 50.0
        if step == 11:
            raise KeyboardInterrupt

    monkeypatch.setattr("nullsae.subjects.training.time.monotonic", lambda: clock)
    checkpoint = tmp_path / "state.safetensors"
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint=checkpoint, progress=kill)
    steps: list[int] = []
    train(checkpoint=checkpoint, progress=lambda step, *_: steps.append(step))
    assert steps[0] == 10


def test_a_finished_training_is_not_made_again_if_what_follows_failed(tmp_path: Path) -> None:
    checkpoint = tmp_path / "state.safetensors"
    first, _, first_log = train(checkpoint=checkpoint)
    steps: list[int] = []
    second, _, log = train(checkpoint=checkpoint, progress=lambda step, *_: steps.append(step))
    assert steps == []
    assert same(first.state_dict(), second.state_dict())
    assert log == first_log


def test_a_damaged_checkpoint_is_not_resumed(
    plain: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = tmp_path / "state.safetensors"
    stop_at(7, checkpoint)
    flip_byte(checkpoint)
    found, _, log = train(checkpoint=checkpoint)
    assert f"{checkpoint}: damaged (its content differs from its checksum)" in caplog.text
    whole, _, whole_log = plain
    assert same(whole.state_dict(), found.state_dict())
    assert log == whole_log


def test_a_subject_resumes_from_its_own_checkpoint_only_and_removes_it(
    tmp_path: Path,
) -> None:
    train_tokens = write_corpus(tmp_path / "sae_train", *tokens_of(12, seed=0))
    eval_tokens = write_corpus(tmp_path / "eval", *tokens_of(6, seed=1))
    manifest = read_json(train_tokens, rebuild="")
    write_json(train_tokens, {**manifest, "eos_token_id": 0})

    def run(name: str, steps: int, progress: Any = None) -> bytes:
        train_subject(
            TrainSubjectParams(seed=0, subject="small", source=tiny(steps=steps), compute=COMPUTE),
            train_tokens=train_tokens,
            eval_tokens=eval_tokens,
            trained=tmp_path / name / "trained",
            step0=tmp_path / name / "step0",
            work=tmp_path / "work",
            progress=progress,
        )
        return (tmp_path / name / "trained/model.safetensors").read_bytes()

    with pytest.raises(StoppedError):
        run("stopped", 8, terminate_at(5))
    assert not (tmp_path / "stopped").exists()
    left = list((tmp_path / "work").iterdir())
    steps: list[int] = []
    run("other", 9, lambda step, *_: steps.append(step))
    assert steps == list(range(1, 10))
    assert list((tmp_path / "work").iterdir()) == left
    steps.clear()
    resumed = run("stopped", 8, lambda step, *_: steps.append(step))
    assert steps == [6, 7, 8]
    assert list((tmp_path / "work").iterdir()) == []
    assert resumed == run("undisturbed", 8)


@pytest.mark.parametrize("n_bos", [0, 1, 2])
def test_a_training_context_is_text_from_anywhere_behind_bos(n_bos: int) -> None:
    length, bos = 6, [90, 91][:n_bos]
    text = np.arange(10 * length, dtype=np.int32)
    ids = np.hstack([np.tile(np.array(bos, np.int32), (10, 1)), text.reshape(10, length)])
    tokens = Tokens(ids, ids, {"prepend_bos": bool(bos), "bos_token_ids": bos or [90]})
    for start in range(len(text) - length + 1):
        (row,) = text_from(tokens, np.array([start]))
        assert row.dtype == np.int64
        assert row.tolist() == [*bos, *range(start, start + length)]


def test_a_subject_is_trained_by_one_process_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "WAIT_SECONDS", 0.0)
    train_tokens = write_corpus(tmp_path / "sae_train", *tokens_of(12, seed=0))
    eval_tokens = write_corpus(tmp_path / "eval", *tokens_of(6, seed=1))
    manifest = read_json(train_tokens, rebuild="")
    write_json(train_tokens, {**manifest, "eos_token_id": 0})
    params = TrainSubjectParams(seed=0, subject="small", source=tiny(steps=4), compute=COMPUTE)
    tried: list[int] = []

    def run(progress: Any = None) -> None:
        train_subject(
            params,
            train_tokens=train_tokens,
            eval_tokens=eval_tokens,
            trained=tmp_path / "trained",
            step0=tmp_path / "step0",
            work=tmp_path / "work",
            progress=progress,
        )

    def beside(step: int, *_: Any) -> None:
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* is already working"):
            run()
        [lock] = (tmp_path / "work").glob("*.lock")
        # A killed process was writing a checkpoint; now nobody is.
        lock.with_name(f".{lock.stem}.1.partial.safetensors").touch()
        tried.append(step)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(beside)
    assert tried == [1]
    assert list((tmp_path / "work").glob("*.partial.safetensors"))
    run()
    assert list((tmp_path / "work").iterdir()) == []
    assert (tmp_path / "trained/gates.json").is_file()
