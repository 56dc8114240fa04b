"""Excluded tokens: which, how many, their share of the variance, and that nothing reads them."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nullsae.activations.blocks import CachedBlocks
from nullsae.activations.capture import cache_activations
from nullsae.activations.exclusion import Kept, lower_median, row_norms
from nullsae.activations.store import SiteReader, SiteWriter
from nullsae.config.activations import Exclude
from nullsae.core.errors import UserError
from nullsae.core.files import write_json
from small_chain import CONTEXT, SITES, Chain, capture_params

SITE = "resid_post.1"


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def write(folder: Path, x: Tensor, exclude: Exclude, *, size: int = 40) -> SiteReader:
    """Write a site of `x` in shards of `size` rows, permuted within them."""
    writer = SiteWriter(folder / f"site={SITE}", dtype="float32", key="shards")
    for index, start in enumerate(range(0, len(x), size)):
        part = x[start : start + size]
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(index))
        writer.write(index, part, torch.arange(start, start + len(part)), order)
    writer.finish(key="key", context_tokens=CONTEXT, exclude=exclude)
    write_json(folder / "manifest.json", {"key": "key"})
    return SiteReader.open(folder / "manifest.json", SITE)


def sinks(n: int = 160, d: int = 6) -> Tensor:
    """Return activations whose first token of each context is a hundred times as large."""
    x = randn(n, d)
    x[::CONTEXT] = 100.0 * x[::CONTEXT].abs() + 100.0
    return x


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0.0, 2.0**100, width=32), max_size=60), st.integers(1, 7))
def test_the_median_is_exact_for_any_batch_size(numbers: list[float], size: int) -> None:
    x = torch.tensor(numbers, dtype=torch.float32)
    expected = float(x.sort().values[(len(x) - 1) // 2]) if len(x) else 0.0
    assert lower_median(lambda: x.split(size) if len(x) else ()) == expected


@pytest.mark.parametrize(
    "exclude",
    [
        Exclude(norm_above_median=10.0),
        Exclude(start_tokens=1, norm_above_median=None),
        Exclude(start_tokens=1, norm_above_median=10.0),
    ],
)
def test_excluded_tokens_enter_no_statistic(tmp_path: Path, exclude: Exclude) -> None:
    x = sinks()
    reader = write(tmp_path, x, exclude)
    is_first = np.arange(len(x)) % CONTEXT == 0
    rest = x[~is_first].double()
    found = torch.cat([b for b, _ in reader.batches(7)])
    position = torch.cat([p for _, p in reader.batches(7)])
    assert not (position % CONTEXT == 0).any()
    assert torch.equal(found[position.argsort()], x[~is_first])
    assert (reader.n_tokens, reader.n_excluded) == (len(rest), int(is_first.sum()))
    torch.testing.assert_close(reader.mean(), rest.mean(dim=0), rtol=0, atol=1e-11)
    assert reader.manifest["mean_norm"] == pytest.approx(float(rest.norm(dim=1).mean()), rel=1e-12)
    exact = x.double()
    deviation = (exact - exact.mean(dim=0)).square().sum(dim=1)
    share = float(deviation[is_first].sum() / deviation.sum())
    assert share > 0.9
    assert reader.manifest["excluded"]["variance_share"] == pytest.approx(share, rel=1e-6)
    assert sorted(reader.excluded_positions().tolist()) == np.flatnonzero(is_first).tolist()


def test_the_limit_is_a_multiple_of_the_median_without_the_start(tmp_path: Path) -> None:
    x = sinks()
    x[5] *= 50.0 / float(x[5].norm())
    rule = Exclude(start_tokens=1, norm_above_median=10.0)
    excluded = write(tmp_path, x, rule).manifest["excluded"]
    others = x[np.arange(len(x)) % CONTEXT != 0]
    median = float(row_norms(others).sort().values[(len(others) - 1) // 2])
    assert excluded["median_norm"] == median
    assert excluded["norm_limit"] == pytest.approx(10 * median)
    assert excluded["n_tokens"] == len(x) // CONTEXT + 1


def test_the_shard_size_does_not_change_the_exclusion(tmp_path: Path) -> None:
    x, found = sinks(), []
    for size in (16, 40, 160):
        manifest = dict(write(tmp_path / str(size), x, Exclude(), size=size).manifest)
        found.append({**manifest["excluded"], "n": manifest["n_tokens"]})
        del found[-1]["variance_share"]
    assert found[0] == found[1] == found[2]


def test_a_site_of_zeros_excludes_no_token_by_its_norm(tmp_path: Path) -> None:
    reader = write(tmp_path, torch.zeros(32, 3), Exclude())
    assert (reader.n_tokens, reader.n_excluded) == (32, 0)
    assert reader.manifest["excluded"]["norm_limit"] is None


@pytest.mark.parametrize(
    "exclude", [Exclude(start_tokens=CONTEXT), Exclude(start_tokens=CONTEXT // 2 + 1)]
)
def test_a_rule_that_excludes_more_than_half_is_refused(tmp_path: Path, exclude: Exclude) -> None:
    with pytest.raises(UserError, match=r"leaves out .* lower start_tokens"):
        write(tmp_path, randn(32, 3), exclude)
    assert not (tmp_path / f"site={SITE}/manifest.json").exists()


def test_training_sees_only_tokens_that_count_in_blocks_of_the_same_size(tmp_path: Path) -> None:
    x = sinks()
    reader = write(tmp_path, x, Exclude())
    blocks = CachedBlocks(0, {SITE: reader})
    rows = {tuple(row) for row in x[np.arange(len(x)) % CONTEXT != 0].tolist()}
    for index, size in enumerate(blocks.sizes):
        block = blocks.block(index, [SITE])[SITE]
        assert len(block) == size
        assert {tuple(row) for row in block.tolist()} <= rows
        kept = reader.kept(index)
        assert torch.equal(block[kept], reader.stored(index)[0][kept]), "others moved"


def test_a_block_whose_tokens_are_all_excluded_is_refused() -> None:
    rule = Kept(start_tokens=2, norm_limit=math.inf, context_tokens=2)
    with pytest.raises(UserError, match=r"block 3: no token is left; lower activations\.exclude"):
        rule.fill(torch.ones(2, 2), torch.zeros(2, dtype=torch.bool), 0, 3, "block 3")


def test_another_rule_captures_nothing_again(
    chain: Chain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Shards contain all tokens; only manifests change."""
    run = {"split": "eval", "model": chain.recipe, "tokens": chain.eval_tokens}
    params = capture_params(sites=SITES)
    cache_activations(params, **run, output=tmp_path)  # type: ignore[arg-type]
    shards = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    n_tokens = SiteReader.open(tmp_path / "manifest.json", SITES[0]).n_tokens
    update = {"exclude": Exclude(start_tokens=1), "key": "other", "shards_key": params.key}
    other = params.model_copy(update=update)
    with caplog.at_level(logging.WARNING):
        assert cache_activations(other, **run, output=tmp_path) == list(SITES)  # type: ignore[arg-type]
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == shards
    reader = SiteReader.open(tmp_path / "manifest.json", SITES[0])
    assert reader.n_tokens == n_tokens - n_tokens // CONTEXT
    told = caplog.text
    assert f"leaves out {n_tokens // CONTEXT:,} of {n_tokens:,} tokens" in told
    assert f"{n_tokens // CONTEXT:,} are the first of their context" in told
