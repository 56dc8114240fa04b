"""Activations that are computed when read, compared with the same ones on disk."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from nullsae.activations.capture import cache_activations
from nullsae.activations.passes import _live, batches_together, open_site
from nullsae.activations.sampling import sample_gaussian
from nullsae.activations.store import SiteReader
from nullsae.config.activations import Exclude
from nullsae.config.latents import Latents
from nullsae.config.saes import Sae
from nullsae.core.errors import UserError
from nullsae.core.files import read_json
from nullsae.jobs.activations import SampleGaussianParams
from nullsae.jobs.keys import CellKeys, ModelKeys
from nullsae.jobs.latents import CollectLatentsParams, SaeBeside
from nullsae.jobs.metrics import (
    CrossEvaluateParams,
    EvaluatedModel,
    EvaluatedSae,
    EvaluateSaesParams,
)
from nullsae.jobs.saes import SaeCell, TrainSaeParams
from nullsae.latents.collect_all import collect_all
from nullsae.metrics.cross import cross_evaluate
from nullsae.metrics.evaluate_all import evaluate_saes
from nullsae.sae.train_sae import train_sae
from nullsae.subjects.loading import Subject
from nullsae.subjects.publish import randomize_model
from small_chain import (
    COMPUTE,
    CONTEXT,
    CPU,
    SITES,
    Chain,
    all_rows,
    capture_params,
    cell,
    model_params,
    write_corpus,
)

SPLITS = ("sae_train", "eval")
TWO = SITES[:2]
# The first token of each context, and those of large norm.
LEFT_OUT = Exclude(start_tokens=1, norm_above_median=1.3)
SETTINGS: dict[str, Any] = {"dtype": "bfloat16", "shard_tokens": 11 * CONTEXT, "exclude": LEFT_OUT}
RECIPES = {
    "topk": Sae.of(k=3, n_latents=40, batch_tokens=96, heldout_tokens=300),
    "wide": Sae.of(k=2, n_latents=48, batch_tokens=96, heldout_tokens=300),
    "pca": Sae.of(dictionary="pca", k=3, n_components=6),
}


@dataclass(frozen=True)
class Captured:
    """Activations of three variants, on disk or recomputed."""

    chain: Chain
    root: Path
    recipes: dict[str, Path]
    """Recipes of the variants with weights."""

    def manifest(self, variant: str, split: str) -> Path:
        return self.root / variant / split / "manifest.json"


def capture(chain: Chain, root: Path, recipes: dict[str, Path], *, keep: bool) -> Captured:
    found = Captured(chain, root, recipes)
    tokens = dict(zip(SPLITS, (chain.train_tokens, chain.eval_tokens), strict=True))
    for variant, recipe in recipes.items():
        params = capture_params(keep=keep, sites=TWO, batch_contexts=4, **SETTINGS)
        for split in SPLITS:
            output = root / variant / split
            cache_activations(
                params, split=split, model=recipe, tokens=tokens[split], output=output
            )
    keys = ModelKeys(subject="tiny", variant="gaussian", draw=0)
    sampled = SampleGaussianParams(
        sites=TWO, seed=0, keys=keys, compute=COMPUTE, keep=keep, key="key", **SETTINGS
    )
    for split in SPLITS:
        fitted, output = found.manifest("trained", "sae_train"), root / "gaussian" / split
        sample_gaussian(sampled, split=split, fitted=fitted, tokens=tokens[split], output=output)
    return found


@pytest.fixture(scope="module")
def both(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> tuple[Captured, Captured]:
    """Return the same activations on disk, and recomputed."""
    root = tmp_path_factory.mktemp("passes")
    noise = root / "noise/recipe.json"
    randomize_model(
        model_params(chain.source, "noise_embeddings", embedding_noise_std=1.0),
        trained=chain.recipe,
        eval_tokens=chain.eval_tokens,
        output=noise.parent,
    )
    recipes = {"trained": chain.recipe, "noise_embeddings": noise}
    return (
        capture(chain, root / "kept", recipes, keep=True),
        capture(chain, root / "computed", recipes, keep=False),
    )


@pytest.fixture(scope="module")
def saes(
    both: tuple[Captured, Captured], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Return the folders of SAEs trained on each."""
    root = tmp_path_factory.mktemp("saes")
    folders = root / "kept", root / "computed"
    for of, folder in zip(both, folders, strict=True):
        for variant in ("trained", "gaussian"):
            train(of, variant, folder)
    return folders


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the number of contexts of each forward pass."""
    seen: list[int] = []
    plain = Subject.watch

    def watch(self: Subject, input_ids: Any, **keys: Any) -> None:
        seen.append(len(input_ids))
        plain(self, input_ids, **keys)

    monkeypatch.setattr(Subject, "watch", watch)
    return seen


@pytest.mark.parametrize("variant", ["trained", "noise_embeddings", "gaussian"])
@pytest.mark.parametrize("split", SPLITS)
def test_recomputed_activations_have_the_bits_of_stored_ones(
    both: tuple[Captured, Captured], variant: str, split: str
) -> None:
    kept, computed = (of.manifest(variant, split) for of in both)
    readers = {site: open_site(computed, site, key="key") for site in TWO}
    for site in TWO:
        plain, live = SiteReader.open(kept, site), readers[site]
        made, stated = dict(plain.manifest), dict(live.manifest)
        assert {"source", "tokens"} < set(stated.pop("made_from"))
        # Only the content of the files differs.
        sizes = [[shard.pop("checksum") for shard in one["shards"]] for one in (made, stated)]
        assert made == stated
        assert all(a != b for a, b in zip(*sizes, strict=True))
        assert plain.n_excluded > plain.n_tokens / CONTEXT / 2
        for index in range(plain.n_shards):
            for one, other in zip(plain.stored(index), live.stored(index), strict=True):
                assert torch.equal(one, other)
            assert "activations" not in load_file(live.file(index))
        for size in (None, 37):
            pairs = zip(plain.batches(size), live.batches(size), strict=True)
            assert all(torch.equal(a, b) for one in pairs for a, b in zip(*one, strict=True))
    # All sites at once, and both kinds of tokens.
    found: dict[tuple[str, bool], list[Any]] = {}
    pairs = {site: (reader, reader) for site, reader in readers.items()}
    for site, counts, x, same, position in batches_together(pairs):
        assert same is x
        found.setdefault((site, counts), []).append((x, position))
    for site in TWO:
        x, position = all_rows(kept, site)
        reader = SiteReader.open(kept, site)
        mask = torch.cat([reader.kept(index) for index in range(reader.n_shards)])
        for counts in (True, False):
            at = torch.cat([p for _, p in found[site, counts]])
            assert torch.equal(at, position[mask == counts])
            assert torch.equal(torch.cat([v for v, _ in found[site, counts]]), x[mask == counts])
        assert torch.equal(reader.excluded_positions(), position[~mask])


def train(of: Captured, variant: str, output: Path) -> None:
    cells = tuple(SaeCell(site=s, sae=name, seed=0) for s in TWO for name in RECIPES)
    params = TrainSaeParams(
        seed=0,
        keys=ModelKeys(subject="tiny", variant=variant, draw=0),
        saes=RECIPES,
        cells=cells,
        compute=COMPUTE,
        activations_key="key",
        eval_activations_key="key",
    )
    train_sae(
        params,
        train_activations=of.manifest(variant, "sae_train"),
        eval_activations=of.manifest(variant, "eval"),
        output=output / variant / "{site}/{sae}/{seed}",
        work=output / "work",
    )


def evaluate(of: Captured, variant: str, saes: Path, output: Path, **keys: Any) -> None:
    each = tuple(EvaluatedSae(site=s, sae=name, seed=0) for s in TWO for name in RECIPES)
    model = EvaluatedModel(
        variant=variant, saes=each, activations_key="key", eval_activations_key="key"
    )
    fidelity = 20 * CONTEXT if variant in of.recipes else None
    params = EvaluateSaesParams(
        seed=0,
        subject="tiny",
        draw=0,
        models=(model,),
        fidelity_tokens=fidelity,
        compute=COMPUTE,
        **keys,
    )
    evaluate_saes(
        params,
        sae=f"{saes}/{variant}/{{site}}/{{sae}}/{{seed}}/cfg.json",
        model=of.recipes.get(variant),
        train_activations=str(of.manifest(variant, "sae_train")),
        eval_activations=str(of.manifest(variant, "eval")),
        train_tokens=of.chain.train_tokens,
        eval_tokens=of.chain.eval_tokens,
        output=f"{output}/evaluated/{variant}/{{site}}/{{sae}}",
    )


def collect(
    of: Captured, variant: str, saes: Path, output: Path, *, apart: bool = False, **files: Any
) -> dict[str, bytes]:
    """Collect the latents of all SAEs, in one job or one per SAE; return all files' bytes."""
    first, *others = (SaeBeside(site=s, sae=name, seed=0) for s in TWO for name in RECIPES)
    few = Latents(n_sampled=8, min_firings=20, window_tokens=8, min_pool_windows=1)
    params = CollectLatentsParams(
        seed=0,
        keys=CellKeys(subject="tiny", variant=variant, draw=0, **first.model_dump()),
        beside=tuple(others),
        latents=few,
        compute=COMPUTE,
        eval_activations_key="key",
    )
    folder = output / "collected" / variant / "{site}/{sae}"
    tables = ("latents", "windows", "coverage")
    for one in params.each() if apart else (params,):
        collect_all(
            one,
            sae=saes / variant / "{site}/{sae}/{seed}/cfg.json",
            activations=of.manifest(variant, "eval"),
            tokens=of.chain.eval_tokens,
            firings=folder / "firings.safetensors",
            **{name: folder / f"{name}.parquet" for name in tables},
            **files,
        )
    made = [file for file in (output / "collected").rglob("*") if file.is_file()]
    return {str(file.relative_to(output)): file.read_bytes() for file in made}


def measure(of: Captured, saes: Path, output: Path) -> dict[str, bytes]:
    """Measure SAEs; return the bytes of all files made from activations."""
    for variant in ("trained", "gaussian"):
        evaluate(of, variant, saes, output)
        collect(of, variant, saes, output, model=of.recipes.get(variant))
    own = {"keys": cell(TWO[1]), "compute": COMPUTE}
    sae = saes / "trained" / TWO[1] / "topk/0/cfg.json"
    variants: tuple[Any, ...] = ("trained", "noise_embeddings")
    others = tuple(ModelKeys(subject="tiny", variant=variant, draw=0) for variant in variants)
    cross_evaluate(
        CrossEvaluateParams(variants=others, max_tokens=30 * CONTEXT, **own),
        sae=sae,
        activations=[of.manifest(variant, "eval") for variant in variants],
        tokens=of.chain.eval_tokens,
        output=output / "cross.parquet",
    )
    made = [file for file in output.rglob("*") if file.is_file()]
    return {str(f.relative_to(output)): f.read_bytes() for f in made}


def test_saes_and_all_tables_are_the_same_bytes(
    both: tuple[Captured, Captured], saes: tuple[Path, Path], tmp_path: Path
) -> None:
    found = []
    for of, own in zip(both, saes, strict=True):
        weights = {str(f.relative_to(own)): f.read_bytes() for f in own.rglob("sae.safetensors")}
        assert len(weights) == 2 * len(TWO) * len(RECIPES)
        found.append((weights, measure(of, own, tmp_path / own.name)))
    assert found[0] == found[1]
    assert len(found[0][1]) == (3 + 4) * 2 * len(TWO) * len(RECIPES) + 1


def test_one_pass_over_each_split_evaluates_all_saes_at_all_sites(
    both: tuple[Captured, Captured], saes: tuple[Path, Path], tmp_path: Path, passes: list[int]
) -> None:
    of, own = both[1], saes[1]
    passes.clear()
    evaluate(of, "trained", own, tmp_path / "together")
    assert sum(passes) == 64 + 60  # contexts of the two splits; fidelity asks for logits
    passes.clear()
    evaluate(of, "trained", own, tmp_path / "apart", sites_together=False)
    assert sum(passes) == len(TWO) * (64 + 60)
    tables = [
        {
            str(f.relative_to(tmp_path / name)): f.read_bytes()
            for f in (tmp_path / name).rglob("*.p*")
        }
        for name in ("together", "apart")
    ]
    assert tables[0] == tables[1]
    # With activations on disk, no pass runs.
    passes.clear()
    evaluate(both[0], "trained", own, tmp_path / "kept")
    assert passes == []


@pytest.mark.parametrize("variant", ["trained", "gaussian"])
def test_one_pass_over_eval_collects_the_latents_of_all_saes_at_all_sites(
    both: tuple[Captured, Captured],
    saes: tuple[Path, Path],
    variant: str,
    tmp_path: Path,
    passes: list[int],
) -> None:
    of, own = both[1], saes[1]
    found = []
    # Only this job runs the model. Gaussians are fitted in passes.
    n_eval, n_fitted = (60, 0) if variant == "trained" else (0, 64 * len(TWO))
    for name, n_passes in (("together", 1), ("apart", len(TWO) * len(RECIPES))):
        passes.clear()
        _live.cache_clear()
        found.append(collect(of, variant, own, tmp_path / name, apart=name == "apart"))
        assert sum(passes) == n_passes * n_eval + n_fitted
    assert found[0] == found[1]
    assert len(found[0]) == 4 * len(TWO) * len(RECIPES)
    passes.clear()
    collect(both[0], variant, own, tmp_path / "kept")
    assert passes == []


def test_results_can_be_moved_and_another_model_or_text_is_refused(
    chain: Chain, tmp_path: Path
) -> None:
    root = tmp_path / "one"
    shutil.copytree(chain.recipe.parent, root / "model")
    shutil.copytree(chain.eval_tokens.parent, root / "corpus")
    params = capture_params(sites=TWO, keep=False)
    output = root / "activations"
    cache_activations(
        params,
        split="eval",
        model=root / "model/recipe.json",
        tokens=root / "corpus/manifest.json",
        output=output,
    )
    (tmp_path / "deeper").mkdir()
    moved = tmp_path / "deeper/two"
    root.rename(moved)
    manifest = moved / "activations/manifest.json"
    x, _ = open_site(manifest, TWO[0], device=CPU).stored(1)
    assert torch.equal(x, SiteReader.open(chain.eval_activations, TWO[0]).stored(1)[0])
    with pytest.raises(UserError, match="'activations'; rebuild it with"):
        SiteReader.open(manifest, TWO[0]).stored(1)
    # Other weights in the same place.
    again = tmp_path / "again"
    shutil.copytree(moved, again)
    shutil.rmtree(again / "model")
    randomize_model(
        model_params(chain.source, "rerandomized"),
        trained=chain.recipe,
        eval_tokens=chain.eval_tokens,
        output=again / "model",
    )
    with pytest.raises(UserError, match="activations differ from those captured"):
        open_site(again / "activations/manifest.json", TWO[0]).stored(1)
    corpus = read_json(moved / "corpus/manifest.json", rebuild="")
    shutil.rmtree(moved / "corpus")
    ids = torch.zeros(60, CONTEXT, dtype=torch.int32).numpy()
    write_corpus(moved / "corpus", ids, ids)
    assert corpus["tokens_checksum"]
    with pytest.raises(UserError, match="not the tokens from which the activations in"):
        open_site(tmp_path / "deeper/../deeper/two/activations/manifest.json", TWO[0])
