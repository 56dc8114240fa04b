from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
import threading
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nullsae.activations import capture as module
from nullsae.activations.capture import cache_activations
from nullsae.activations.passes import capture_contexts
from nullsae.activations.store import SiteReader, SiteWriter
from nullsae.core import locking
from nullsae.core.errors import UserError
from nullsae.corpus.store import load_tokens
from nullsae.subjects.families import Point
from nullsae.subjects.folders import save_subject
from nullsae.subjects.loading import Subject, load_subject
from small_chain import (
    CONTEXT,
    CPU,
    D_MODEL,
    N_LAYERS,
    SITES,
    Chain,
    all_rows,
    capture_params,
    flip_byte,
)

BATCH = 8


def capture(
    chain: Chain,
    output: Path,
    split: str = "eval",
    progress: Callable[[int, int], None] | None = None,
    **keys: Any,
) -> list[str]:
    return cache_activations(
        capture_params(**keys),
        split=split,
        model=chain.recipe,
        tokens=chain.train_tokens if split == "sae_train" else chain.eval_tokens,
        output=output,
        progress=progress,
    )


def live(chain: Chain, manifest: Path) -> tuple[list[Tensor], Tensor]:
    """Return what the model passes at each site, from Hugging Face's own output and hooks."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(chain.recipe.parent).eval()
    ids = torch.from_numpy(load_tokens(manifest).input_ids).long()
    last: list[Tensor] = []
    block = model.gpt_neox.layers[N_LAYERS - 1]
    block.register_forward_hook(
        lambda _m, _i, out: last.append(out[0] if isinstance(out, tuple) else out)
    )
    states: list[list[Tensor]] = [[] for _ in range(N_LAYERS)]
    with torch.inference_mode():
        for start in range(0, len(ids), BATCH):
            hidden = model(ids[start : start + BATCH], output_hidden_states=True).hidden_states
            for layer in range(N_LAYERS - 1):
                states[layer].append(hidden[layer + 1])
            # hidden_states[-1] is after the final norm; the block's own output is before it.
            states[-1].append(last[-1])
            assert not torch.allclose(hidden[-1], last[-1])
    return [torch.cat(parts).flatten(0, 1) for parts in states], ids


def test_eval_activations_equal_a_live_forward_pass(chain: Chain) -> None:
    """SAELens#83 was a cache runner that no test compared with the model."""
    expected, ids = live(chain, chain.eval_tokens)
    for layer, site in enumerate(SITES):
        found, position = all_rows(chain.eval_activations, site)
        assert torch.equal(position, torch.arange(ids.numel())), "eval is not in context order"
        assert torch.equal(found, expected[layer]), site


def test_a_training_row_is_the_activation_at_its_position(chain: Chain) -> None:
    expected, ids = live(chain, chain.train_tokens)
    for layer, site in enumerate(SITES):
        found, position = all_rows(chain.train_activations, site)
        assert torch.equal(position.sort().values, torch.arange(ids.numel()))
        assert torch.equal(found, expected[layer][position]), site


def test_training_tokens_lie_on_disk_in_a_shuffled_order(chain: Chain) -> None:
    """In SAELens#612, the copy on disk was never shuffled."""
    reader = SiteReader.open(chain.train_activations, SITES[1])
    assert reader.n_shards == 8
    pairs, orders = [], []
    for index in range(reader.n_shards):
        _, position = reader.stored(index)
        low = index * 8 * CONTEXT
        assert torch.equal(position.sort().values, torch.arange(low, low + 8 * CONTEXT))
        own = (position - low).double()
        pairs.append(torch.stack([own[:-1], own[1:]]))
        orders.append(tuple(own.tolist()))
    joined = torch.cat(pairs, dim=1)
    correlation = float(torch.corrcoef(joined)[0, 1])
    assert abs(correlation) < 5 / joined.shape[1] ** 0.5
    assert len(set(orders)) == len(orders), "every shard has the same permutation"


def test_sites_come_in_the_same_order(chain: Chain) -> None:
    positions = [all_rows(chain.train_activations, site)[1] for site in SITES]
    assert all(torch.equal(positions[0], other) for other in positions)


def test_the_pass_stops_after_the_last_site(chain: Chain) -> None:
    """In SAELens#245, it continued to the last block."""
    subject = load_subject(chain.recipe, CPU)
    calls = {"block 2": 0, "block 1": 0, "head": 0}

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    subject.blocks[2].register_forward_hook(count("block 2"))
    subject.blocks[1].register_forward_hook(count("block 1"))
    subject.model.get_output_embeddings().register_forward_hook(count("head"))
    ids = torch.from_numpy(load_tokens(chain.eval_tokens).input_ids[:2])
    found = subject.activations(ids, split="eval", contexts=[0, 1], sites=(SITES[1], SITES[0]))
    assert found.keys() == set(SITES[:2])
    assert calls == {"block 2": 0, "block 1": 1, "head": 0}
    # The hooks are removed, so a whole pass works afterwards.
    subject.logits(ids, split="eval", contexts=[0, 1])
    assert calls == {"block 2": 1, "block 1": 2, "head": 1}


def test_neither_batch_nor_shard_size_changes_the_activations(chain: Chain, tmp_path: Path) -> None:
    capture(chain, tmp_path, batch_contexts=5, shard_tokens=13 * CONTEXT + 7)
    for site in SITES:
        expected, _ = all_rows(chain.eval_activations, site)
        found, position = all_rows(tmp_path / "manifest.json", site)
        assert torch.equal(position, torch.arange(len(expected)))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    reader = SiteReader.open(tmp_path / "manifest.json", SITES[0])
    sizes = [shard["n_tokens"] for shard in reader.manifest["shards"]]
    assert sizes == [13 * CONTEXT] * 4 + [8 * CONTEXT]


def test_two_captures_give_the_same_bytes(chain: Chain, tmp_path: Path) -> None:
    capture(chain, tmp_path, "sae_train")
    files = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    assert len(files) == 1 + 3 * 10
    for file in files:
        first = (chain.train_activations.parent / file).read_bytes()
        assert (tmp_path / file).read_bytes() == first, file


def test_only_a_damaged_site_is_captured_again(chain: Chain, tmp_path: Path) -> None:
    assert capture(chain, tmp_path, sites=SITES[:2]) == list(SITES[:2])

    def times(site: str) -> list[int]:
        return [p.stat().st_mtime_ns for p in sorted((tmp_path / f"site={site}").iterdir())]

    before = times(SITES[0])
    manifest = (tmp_path / "manifest.json").read_bytes()
    assert capture(chain, tmp_path, sites=SITES[:2]) == []
    assert (tmp_path / "manifest.json").read_bytes() == manifest
    flip_byte(tmp_path / f"site={SITES[1]}/shard-00002.safetensors")
    others = times(SITES[1])[1:3]
    assert capture(chain, tmp_path) == [SITES[1], SITES[2]]
    assert times(SITES[0]) == before
    assert times(SITES[1])[1:3] == others, "whole shards of the damaged site were written again"
    expected, _ = all_rows(chain.eval_activations, SITES[1])
    assert torch.equal(all_rows(tmp_path / "manifest.json", SITES[1])[0], expected)
    # With another provenance, everything is captured again.
    assert capture(chain, tmp_path, key="other") == list(SITES)


def test_the_token_limit_is_respected(chain: Chain, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    limit = 10 * CONTEXT + CONTEXT - 1
    capture(
        chain,
        tmp_path,
        "sae_train",
        max_tokens=limit,
        sites=SITES[:1],
        progress=lambda done, total: seen.append((done, total)),
    )
    found, position = all_rows(tmp_path / "manifest.json", SITES[0])
    assert len(found) == 10 * CONTEXT
    assert seen == [(8 * CONTEXT, 10 * CONTEXT), (10 * CONTEXT, 10 * CONTEXT)]
    whole, at = all_rows(chain.train_activations, SITES[0])
    in_order = whole[at.argsort()]
    torch.testing.assert_close(found, in_order[position], rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"activations.sae_train_tokens: 15 is not between one"):
        capture(chain, tmp_path / "none", "sae_train", max_tokens=CONTEXT - 1)


def test_too_little_disk_space_is_noticed_before_writing(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    needed = int(60 * CONTEXT * 3 * (D_MODEL * 4 + 12) * 1.02)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, needed - 1))
    output = tmp_path / "deep" / "split"
    with pytest.raises(UserError, match=r"the activations need .* GB, the disk has .* GB free"):
        capture(chain, output)
    assert not output.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, needed))
    assert capture(chain, output) == list(SITES)


def test_existing_shards_and_those_to_delete_need_no_more_disk_space(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage, row = namedtuple("usage", "total used free"), D_MODEL * 4 + 12
    capture(chain, tmp_path, sites=SITES[:1])
    folder = tmp_path / f"site={SITES[0]}"
    (folder / "shard-00002.safetensors").unlink()
    needed = int(8 * CONTEXT * row * 1.02)
    left = (folder / "manifest.json").stat().st_size  # it is replaced
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, needed - left - 1))
    with pytest.raises(UserError, match="the disk has"):
        capture(chain, tmp_path, sites=SITES[:1])
    assert len(list(folder.glob("*.safetensors"))) == 7, "deleted although nothing comes of it"
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, needed - left))
    assert capture(chain, tmp_path, sites=SITES[:1]) == [SITES[0]]
    # Files of another provenance are replaced.
    stale = (file for file in folder.iterdir() if file.name != "provenance.json")
    left = sum(file.stat().st_size for file in stale)
    needed = int(60 * CONTEXT * row * 1.02)
    for free, fits in ((needed - left - 1, False), (needed - left, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(10**9, 0, free))
        if fits:
            assert capture(chain, tmp_path, sites=SITES[:1], key="other") == [SITES[0]]
        else:
            with pytest.raises(UserError, match="the disk has"):
                capture(chain, tmp_path, sites=SITES[:1], key="other")


def killed_at(chain: Chain, output: Path, event: int) -> bool:
    """Capture in a child process that is killed before the n-th rename or deletion of a file.

    Returns:
        Whether it was killed.
    """
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        left = iter(range(event))

        def count(call: Callable[..., Any]) -> Callable[..., Any]:
            def counted(*arguments: Any, **keys: Any) -> Any:
                if next(left, None) is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **keys)

            return counted

        os.replace, Path.unlink = count(os.replace), count(Path.unlink)  # type: ignore[method-assign]
        try:
            capture(chain, output, "sae_train", sites=SITES[:2], max_tokens=12 * CONTEXT)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL
    return os.WIFSIGNALED(status)


def content(folder: Path) -> dict[Path, bytes]:
    """Read all files below a split's folder, except leftovers of a killed manifest write."""
    return {
        file.relative_to(folder): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file() and not (file.parent == folder and file.name.startswith("."))
    }


def test_a_kill_loses_no_finished_shard_and_leaves_no_broken_one(
    chain: Chain, tmp_path: Path
) -> None:
    """Kill a capture at every point where something on disk changes, then run it again."""
    keys: dict[str, Any] = {"sites": SITES[:2], "max_tokens": 12 * CONTEXT}
    capture(chain, tmp_path / "whole", "sae_train", **keys)
    whole = content(tmp_path / "whole")
    assert len(whole) == 1 + 2 * (2 + 2)
    events = itertools.takewhile(
        lambda event: killed_at(chain, tmp_path / str(event), event), itertools.count()
    )
    n_events = 0
    for n_events, event in enumerate(events, start=1):  # noqa: B007
        output = tmp_path / str(event)
        finished = {}
        for shard in output.rglob("shard-*.safetensors"):
            assert shard.read_bytes() == whole[shard.relative_to(output)], "half a shard"
            if shard.with_suffix(".json").exists():
                finished[shard] = shard.stat().st_mtime_ns
        capture(chain, output, "sae_train", **keys)
        assert content(output) == whole, event
        assert {shard: shard.stat().st_mtime_ns for shard in finished} == finished, event
    # A shard and its record are renamed and their old names deleted, the record later: 2 x 2 x 5.
    assert n_events > 20


class BreakError(Exception):
    pass


@pytest.mark.parametrize("broken", [1, 7])
def test_an_error_of_the_writer_is_raised_and_stops_its_thread(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """Also in the last shard, after which no pass could notice."""
    plain, broke = SiteWriter.write, threading.Event()
    passes: list[int] = []

    def write(self: SiteWriter, index: int, *arguments: Any) -> None:
        if index == broken and self.folder.name.endswith(SITES[1]):
            broke.set()
            raise UserError("the disk broke")
        plain(self, index, *arguments)

    def progress(done: int, _: int) -> None:
        passes.append(done)
        if done > (broken + 1) * 8 * CONTEXT:
            assert broke.wait(30)
            time.sleep(0.1)

    monkeypatch.setattr(SiteWriter, "write", write)
    with pytest.raises(UserError, match=r"^the disk broke$"):
        capture(chain, tmp_path, batch_contexts=1, progress=progress)
    assert max(passes) <= ((broken + 1) * 8 + 1) * CONTEXT, "batches continued after the error"
    assert "writer" not in "".join(thread.name for thread in threading.enumerate())
    assert not list(tmp_path.rglob("manifest.json"))
    assert not list(tmp_path.rglob(".*"))
    monkeypatch.undo()
    kept = [tmp_path / f"site={site}/shard-00000.safetensors" for site in SITES]
    before = [file.stat().st_mtime_ns for file in kept]
    assert capture(chain, tmp_path, batch_contexts=1) == list(SITES)
    assert [file.stat().st_mtime_ns for file in kept] == before
    assert SiteReader.open(tmp_path / "manifest.json", SITES[1]).n_shards == 8


def test_an_error_of_the_pass_stops_the_writer(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Subject.watch

    def watch(self: Subject, *arguments: Any, **keys: Any) -> None:
        if keys["contexts"].start >= 24:
            raise BreakError
        plain(self, *arguments, **keys)

    monkeypatch.setattr(Subject, "watch", watch)
    with pytest.raises(BreakError):
        capture(chain, tmp_path)
    assert "writer" not in "".join(thread.name for thread in threading.enumerate())
    assert not list(tmp_path.rglob("manifest.json"))
    assert not list(tmp_path.rglob(".*"))


def test_the_pass_is_one_chunk_ahead_of_the_writer(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two shards are in memory, always in the same two buffers."""
    begun, written, ahead, rooms = [0], [0], [], set()
    plain_chunk, plain_write = capture_contexts, SiteWriter.write

    def chunk(*arguments: Any, **keys: Any) -> dict[str, Tensor]:
        begun[0] += 1
        ahead.append(begun[0] - written[0])
        found = plain_chunk(*arguments, **keys)
        rooms.add(found[SITES[0]].data_ptr())
        return found

    def write(self: SiteWriter, *arguments: Any) -> None:
        time.sleep(0.05)
        plain_write(self, *arguments)
        written[0] += 1

    monkeypatch.setattr(module, "capture_contexts", chunk)
    monkeypatch.setattr(SiteWriter, "write", write)
    capture(chain, tmp_path, sites=SITES[:1])
    assert begun == written == [8]
    assert max(ahead) == 2, ahead
    assert len(rooms) == 2


def test_the_cost_of_a_capture_is_logged(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="nullsae")

    def told() -> list[str]:
        found = [m for m in caplog.messages if "tokens at" in m]
        caplog.clear()
        return found

    capture(chain, tmp_path, batch_contexts=2)
    gigabytes = 960 * 3 * (D_MODEL * 4 + 12) / 1e9
    (line,) = told()
    wanted = rf"{tmp_path}: 960 tokens at 3 sites, {gigabytes:.3f} GB to write, about [0-9.]+ min"
    assert re.match(wanted, line)
    capture(chain, tmp_path)
    assert told() == [], "nothing was to be done"
    (tmp_path / f"site={SITES[2]}/shard-00003.safetensors").unlink()
    capture(chain, tmp_path)
    (line,) = told()
    assert f"{tmp_path}: 128 tokens at 1 site," in line


def test_a_chunk_equals_its_shard(chain: Chain, tmp_path: Path) -> None:
    """Live training must see what a cache would contain."""
    subject = load_subject(chain.recipe, CPU)
    ids = torch.from_numpy(load_tokens(chain.train_tokens).input_ids)
    sites = (SITES[2], SITES[0])
    seen: list[int] = []
    keys: dict[str, Any] = {"split": "sae_train", "batch_contexts": 3, "sites": sites}
    into = {site: torch.full((200, D_MODEL), torch.nan) for site in sites}
    plain = capture_contexts(
        subject, ids, contexts=range(16, 24), dtype=torch.float32, progress=seen.append, **keys
    )
    found = capture_contexts(
        subject, ids, contexts=range(16, 24), dtype=torch.float32, into=into, **keys
    )
    assert seen == [19, 22, 24]
    for site in sites:
        reader = SiteReader.open(chain.train_activations, site)
        x, position = reader.stored(2)
        assert torch.equal(plain[site], found[site])
        torch.testing.assert_close(found[site][position - 16 * CONTEXT], x, rtol=1e-5, atol=1e-6)
        assert bool(into[site][8 * CONTEXT :].isnan().all()), "wrote beyond the contexts"
    half = capture_contexts(subject, ids, contexts=range(16, 24), dtype=torch.bfloat16, **keys)
    assert torch.equal(half[SITES[0]], plain[SITES[0]].bfloat16())


def test_a_site_that_no_pass_reaches_is_refused(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = load_subject(chain.recipe, CPU)
    elsewhere = {"mlp_out.1": Point(torch.nn.Identity()), SITES[0]: subject.point(SITES[0])}
    monkeypatch.setattr(subject, "point", elsewhere.get)
    ids = torch.from_numpy(load_tokens(chain.eval_tokens).input_ids)
    with pytest.raises(UserError, match=r"^site mlp_out.1: nothing passes there"):
        capture_contexts(
            subject,
            ids,
            split="eval",
            contexts=range(2),
            batch_contexts=2,
            sites=("mlp_out.1", SITES[0]),
            dtype=torch.float32,
        )


def test_a_site_beyond_the_last_block_is_refused(chain: Chain, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"resid_post.3 is beyond the last block; .* has 3 blocks"):
        capture(chain, tmp_path, sites=("resid_post.3",))
    assert not list(tmp_path.iterdir())


def test_the_stored_dtype_is_the_configured_one(chain: Chain, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    capture(chain, tmp_path, sites=SITES[:1], dtype="bfloat16")
    stored = load_file(tmp_path / f"site={SITES[0]}/shard-00000.safetensors")
    expected, _ = all_rows(chain.eval_activations, SITES[0])
    assert torch.equal(stored["activations"], expected[: 8 * CONTEXT].bfloat16())
    assert stored["position"].dtype == torch.int64


def test_every_kind_of_site_stores_its_own_activations(chain: Chain, tmp_path: Path) -> None:
    sites = ("embed", "attn_out.1", "resid_post.1", "mlp_out.1", "resid_pre.1")
    assert capture(chain, tmp_path, sites=sites) == list(sites)
    stored = {site: all_rows(tmp_path / "manifest.json", site)[0] for site in sites}
    kinds = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    before, attention, mlp, after = (stored[f"{kind}.1"] for kind in kinds)
    assert torch.equal(after, all_rows(chain.eval_activations, "resid_post.1")[0])
    assert torch.equal(before, all_rows(chain.eval_activations, "resid_post.0")[0])
    torch.testing.assert_close(before + attention + mlp, after)
    model = load_subject(chain.recipe, CPU).model
    ids = torch.from_numpy(load_tokens(chain.eval_tokens).input_ids).long()
    block = model.gpt_neox.layers[1]
    assert torch.equal(stored["embed"], model.gpt_neox.embed_in(ids).flatten(0, 1))
    # In this family the MLP reads the block's input: the residual branches are parallel.
    expected = block.mlp(block.post_attention_layernorm(before))
    torch.testing.assert_close(mlp, expected)


def other_subject(folder: Path, kind: str, **keys: Any) -> Path:
    """Return the `recipe.json` of a subject of another family with the chain's vocabulary."""
    from transformers import AutoModelForCausalLM, GraniteConfig, OPTConfig

    plain = {"vocab_size": 96, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {"opt": OPTConfig, "granite": GraniteConfig}[kind](**{**plain, **keys})
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    save_subject(model, folder, {"seed": 0, "draw": 0, "source": {}})
    return folder / "recipe.json"


def test_embeddings_narrower_than_the_blocks_are_stored(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = other_subject(tmp_path / "model", "opt", word_embed_proj_dim=8, ffn_dim=32)
    usage, rows = namedtuple("usage", "total used free"), 60 * CONTEXT
    needed = int(rows * (8 * 4 + 12 + 16 * 4 + 12) * 1.02)
    for free, fits in ((needed - 1, False), (needed, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(10**9, 0, free))
        run = {"model": recipe, "tokens": chain.eval_tokens, "output": tmp_path / "out"}
        params = capture_params(sites=("embed", "mlp_out.1"))
        if not fits:
            with pytest.raises(UserError, match="the disk has"):
                cache_activations(params, split="eval", **run)
        else:
            cache_activations(params, split="eval", **run)
    manifest = tmp_path / "out/manifest.json"
    assert all_rows(manifest, "embed")[0].shape == (rows, 8)
    assert all_rows(manifest, "mlp_out.1")[0].shape == (rows, 16)
    assert SiteReader.open(manifest, "embed").manifest["d_model"] == 8


def test_parts_that_do_not_add_up_are_refused(chain: Chain, tmp_path: Path) -> None:
    recipe = other_subject(tmp_path / "model", "granite", residual_multiplier=0.5)
    run = {"model": recipe, "tokens": chain.eval_tokens, "output": tmp_path / "out"}
    with pytest.raises(UserError, match=r"--params: sites: attn_out.0 .* model_type 'granite'"):
        cache_activations(capture_params(sites=("embed", "attn_out.0")), split="eval", **run)
    assert not (tmp_path / "out").exists()
    cache_activations(capture_params(sites=("embed", "resid_post.0")), split="eval", **run)


def test_a_split_is_captured_by_one_process_at_a_time(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "WAIT_SECONDS", 0.0)
    tried: list[int] = []

    def beside(done: int, _: int) -> None:
        with pytest.raises(UserError, match=rf"process {os.getpid()} on .* is already working"):
            capture(chain, tmp_path)
        tried.append(done)

    assert capture(chain, tmp_path, progress=beside) == list(SITES)
    assert tried
    assert capture(chain, tmp_path) == []
    assert not list(tmp_path.rglob(".*"))
