from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nullsae.activations.blocks import CachedBlocks
from nullsae.activations.capture import cache_activations
from nullsae.activations.exclusion import Kept
from nullsae.activations.live import LiveBlocks, live_blocks
from nullsae.activations.sampling import sample_gaussian
from nullsae.activations.store import SiteReader
from nullsae.config.saes import Sae
from nullsae.core.errors import UserError
from nullsae.jobs.activations import SampleGaussianParams
from nullsae.jobs.keys import ModelKeys
from nullsae.jobs.saes import SaeCell, StreamParams, TrainSaeParams
from nullsae.subjects.publish import randomize_model
from refusing import refused
from small_chain import (
    COMPUTE,
    CONTEXT,
    SITES,
    Chain,
    capture_params,
    model_params,
    tokens_of,
    write_corpus,
)

RULES = {site: Kept() for site in ("resid_post.0", "resid_post.1")}


def stream_params(variant: Any = "trained", **keys: Any) -> TrainSaeParams:
    """Return a job in stream mode; its shards of 11 contexts are not a multiple of passes of 4."""
    plain: dict[str, Any] = {
        "max_tokens": 60 * CONTEXT,
        "shard_tokens": 11 * CONTEXT + 3,
        "dtype": "bfloat16",
        "batch_contexts": 4,
    }
    return TrainSaeParams(
        seed=0,
        keys=ModelKeys(subject="tiny", variant=variant, draw=0),
        saes={"topk": Sae.of(k=2, n_latents=8)},
        cells=(SaeCell(site=SITES[1], sae="topk", seed=0),),
        stream=StreamParams(**{**plain, **keys}),
        compute=COMPUTE,
    )


def readers(manifest: Path) -> dict[str, SiteReader]:
    return {site: SiteReader.open(manifest, site) for site in SITES}


def same_bits(live: LiveBlocks, cache: CachedBlocks) -> None:
    assert live.sizes == cache.sizes
    for index in range(len(live.sizes)):
        new, stored = live.block(index, SITES), cache.block(index, SITES)
        assert new.keys() == stored.keys()
        for site in SITES:
            assert new[site].dtype == stored[site].dtype == torch.bfloat16
            assert torch.equal(new[site], stored[site]), (index, site)


@pytest.fixture(scope="module")
def caches(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Return each variant's recipe and a cache equivalent to the stream of `stream_params`."""
    root = tmp_path_factory.mktemp("caches")
    randomize_model(
        model_params(chain.source, "noise_embeddings", embedding_noise_std=1.0),
        trained=chain.recipe,
        eval_tokens=chain.eval_tokens,
        output=root / "noise",
    )
    recipes = {"trained": chain.recipe, "noise_embeddings": root / "noise/recipe.json"}
    stream = stream_params().stream
    assert stream is not None
    settings = stream.model_dump(exclude={"fitted_activations_key"})
    found = {}
    for variant, recipe in recipes.items():
        output = root / "activations" / variant
        cache_activations(
            capture_params(**settings),
            split="sae_train",
            model=recipe,
            tokens=chain.train_tokens,
            output=output,
        )
        found[variant] = (recipe, output / "manifest.json")
    return found


@pytest.mark.parametrize("variant", ["trained", "noise_embeddings"])
def test_a_stream_has_the_same_bits_as_a_cache(
    chain: Chain, caches: dict[str, tuple[Path, Path]], variant: str
) -> None:
    recipe, manifest = caches[variant]
    sites = readers(manifest)
    blocks = live_blocks(
        stream_params(variant), sites=sites, tokens=chain.train_tokens, model=recipe, fitted=None
    )
    same_bits(blocks, CachedBlocks(0, sites))
    # 60 contexts in blocks of 11 and passes of 4.
    assert blocks.sizes == [11 * CONTEXT] * 5 + [5 * CONTEXT]
    assert blocks.work([0, 5]) == "2 blocks computed in 5 forward passes"
    # A block does not depend on earlier blocks or sites.
    (one,) = blocks.block(2, [SITES[0]]).values()
    assert torch.equal(one, blocks.block(2, SITES)[SITES[0]])


@pytest.mark.parametrize("variant", ["gaussian", "gaussian@noise_embeddings"])
def test_a_gaussian_stream_is_drawn_like_its_cache(
    chain: Chain, caches: dict[str, tuple[Path, Path]], tmp_path: Path, variant: str
) -> None:
    fitted = caches[variant.partition("@")[2] or "trained"][1]
    params = stream_params(variant)
    assert params.stream is not None
    sample_gaussian(
        SampleGaussianParams(
            sites=SITES,
            max_tokens=params.stream.max_tokens,
            seed=0,
            keys=params.keys,
            dtype="bfloat16",
            shard_tokens=params.stream.shard_tokens,
            compute=COMPUTE,
        ),
        split="sae_train",
        fitted=fitted,
        tokens=chain.train_tokens,
        output=tmp_path,
    )
    sites = readers(tmp_path / "manifest.json")
    blocks = live_blocks(params, sites=sites, tokens=chain.train_tokens, model=None, fitted=fitted)
    same_bits(blocks, CachedBlocks(0, sites))
    assert blocks.work([0, 5]) == "2 blocks sampled"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_activations_that_are_not_finite_are_refused(value: float) -> None:
    def source(contexts: range, sites: Any) -> dict[str, Tensor]:
        x = torch.ones(len(contexts) * 4, 3)
        if 5 in contexts:
            x[(5 - contexts.start) * 4 + 2, 1] = value
        return {site: x.clone() for site in sites}

    keys = ModelKeys(subject="tiny", variant="step0", draw=0)
    blocks = LiveBlocks(0, keys, 4, [range(0, 3), range(3, 6), range(6, 9)], 2, source, RULES)
    blocks.block(0, ["resid_post.1"])
    said = refused(blocks.block, 1, ["resid_post.1"])
    from nullsae.activations.layout import shard_order

    row = shard_order(0, "sae_train", 1, 12).tolist().index((5 - 3) * 4 + 2)
    assert said.startswith(
        f"live activations of subject tiny, variant step0, draw 0, site resid_post.1, block 1: "
        f"row {row} (token 22) is NaN or infinite; "
    )


def test_large_but_finite_activations_are_accepted() -> None:
    """Their sum overflows float32."""
    keys = ModelKeys(subject="tiny", variant="trained", draw=0)
    large = torch.full((8, 3), 3e38)

    def source(contexts: range, sites: Any) -> dict[str, Tensor]:
        return {"resid_post.0": large}

    blocks = LiveBlocks(0, keys, 4, [range(2)], 2, source, RULES)
    assert torch.equal(blocks.block(0, ["resid_post.0"])["resid_post.0"], large)


def test_inputs_that_do_not_fit_the_cached_part_are_refused(
    chain: Chain, caches: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    recipe, manifest = caches["trained"]
    other = write_corpus(tmp_path / "corpus", *tokens_of(64, seed=9))
    plain: dict[str, Any] = {
        "sites": readers(manifest),
        "tokens": chain.train_tokens,
        "model": recipe,
        "fitted": None,
    }
    refused = {
        "not the tokens from which site resid_post.0": {"tokens": other},
        "give --train-tokens": {"tokens": None},
        "give --model": {"model": None},
        r"config: activations\.sae_train_tokens: 2000 is not between": {"max_tokens": 2000},
    }
    for message, change in refused.items():
        params = stream_params(**{k: v for k, v in change.items() if k == "max_tokens"})
        options = {**plain, **{k: v for k, v in change.items() if k != "max_tokens"}}
        with pytest.raises(UserError, match=message):
            live_blocks(params, **options)
    for variant, fitted in (
        ("gaussian", "trained, draw 0"),
        ("gaussian@cascade", "cascade, draw 0"),
    ):
        message = f"variant {variant} in .* needs the activations of variant {fitted}: give --fitt"
        with pytest.raises(UserError, match=message):
            live_blocks(stream_params(variant), **plain)
    other_key = stream_params("gaussian", fitted_activations_key="another")
    with pytest.raises(UserError, match="made from another config"):
        live_blocks(other_key, **{**plain, "fitted": manifest})
