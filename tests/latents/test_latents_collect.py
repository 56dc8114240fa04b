from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from firings import pool_of_cells
from numpy.typing import NDArray

from nullsae.activations.capture import cache_activations
from nullsae.activations.store import SiteReader
from nullsae.config.activations import Exclude
from nullsae.config.latents import Latents
from nullsae.core.errors import UserError
from nullsae.core.files import read_json, write_json
from nullsae.core.randomness import numpy_generator
from nullsae.corpus.store import load_tokens
from nullsae.jobs.latents import CollectLatentsParams
from nullsae.latents.collect import collect_latents
from nullsae.latents.sample import FiringReader
from nullsae.latents.skipped import Skipped
from nullsae.latents.sorting import Sorting
from nullsae.latents.split import Split
from nullsae.latents.windows import Grid
from nullsae.sae.autoencoder import Autoencoder
from nullsae.sae.files import SaeConfig, load_sae, save_sae
from run_stages import collected, rows_in
from small_chain import (
    COMPUTE,
    CONTEXT,
    Chain,
    all_rows,
    capture_params,
    cell,
    save_tiny_sae,
    write_corpus,
    write_site,
)

SITE = "resid_post.1"
LENGTH, MIN_FIRINGS, MIN_WINDOWS = 4, 20, 8
KINDS = ("random", "co_occurring", "nearest")
FILES = ("latents.parquet", "windows.parquet", "coverage.parquet", "firings.safetensors")
Rows = list[dict[str, Any]]


def settings(**keys: Any) -> Latents:
    plain: dict[str, Any] = {
        "n_sampled": 12,
        "min_firings": MIN_FIRINGS,
        "min_pool_windows": MIN_WINDOWS,
        "window_tokens": LENGTH,
        "n_quantiles": 3,
        "explain_active_windows": 6,
        "explain_silent_windows": 5,
        "score_active_windows": 6,
        "score_silent_windows": 5,
    }
    return Latents(**{**plain, **keys})


def described(config: SaeConfig) -> dict[str, Any]:
    """Return the keys of `cfg.json` that do not depend on the weights."""
    own = {"architecture", "d_model", "n_latents", "k", "weights_checksum", "keys"}
    return {**config.model_dump(exclude=own), "keys": config.keys}


def collect(
    chain: Chain,
    sae: Path,
    folder: Path,
    activations: Path | None = None,
    tokens: Path | None = None,
    **keys: Any,
) -> dict[str, Rows]:
    found = collected(
        folder,
        seed=keys.pop("seed", 0),
        latents=settings(**keys),
        eval_activations_key="key",
        sae=sae,
        activations=activations or chain.eval_activations,
        tokens=tokens or chain.eval_tokens,
    )
    assert {file.name for file in folder.glob(".*")} == set(), "temporary files stay"
    return found


def in_pools(found: dict[str, Rows]) -> Rows:
    """Return the windows that explainers and scorers see."""
    return [row for row in found["windows"] if row["pool"] != "top"]


@pytest.fixture(scope="module")
def tables_of_chain(
    chain: Chain, tiny_sae: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Rows]:
    return collect(chain, tiny_sae, tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def with_kinds(chain: Chain, tiny_sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tables with silent windows of all kinds."""
    folder = tmp_path_factory.mktemp("kinds")
    collect(chain, tiny_sae, folder, silent_windows=KINDS)
    return folder


@pytest.fixture(scope="module")
def dense(chain: Chain, tiny_sae: Path) -> NDArray[np.float64]:
    """Return activations [tokens, n_latents] by a dense scatter."""
    sae, _ = load_sae(tiny_sae)
    x, _ = all_rows(chain.eval_activations, SITE)
    pre = (x - sae.b_dec) @ sae.w_enc.T + sae.b_enc
    top = pre.topk(sae.k, dim=1)
    codes = torch.zeros_like(pre).scatter(1, top.indices, top.values.relu())
    found: NDArray[np.float64] = codes.double().numpy()
    return found


def test_latents_equal_a_dense_recomputation(
    chain: Chain, tiny_sae: Path, tables_of_chain: dict[str, Rows], dense: NDArray[np.float64]
) -> None:
    tokens = load_tokens(chain.eval_tokens)
    ids, documents = tokens.input_ids.ravel(), tokens.document_id.ravel()
    sae, _ = load_sae(tiny_sae)
    geometry = F.cosine_similarity(sae.w_enc, sae.w_dec, dim=1)
    rows = tables_of_chain["latents"]
    assert [row["latent"] for row in rows] == list(range(48))
    n_dead = 0
    for row in rows:
        column = dense[:, row["latent"]]
        on = column > 0
        assert row["n_tokens"] == len(column)
        assert row["firings"] == on.sum()
        assert row["firing_share"] == pytest.approx(on.mean())
        assert row["max_activation"] == pytest.approx(column.max(), rel=1e-5)
        assert row["n_documents"] == len(set(documents[on].tolist()))
        assert row["n_token_types"] == len(set(ids[on].tolist()))
        assert row["encoder_decoder_cosine"] == pytest.approx(
            float(geometry[row["latent"]]), abs=1e-6
        )
        if not on.any():
            n_dead += 1
            for name in ("mean_activation", "token_entropy_bits", "peak_token_share", "peak_token"):
                assert row[name] is None, name
            continue
        mass = np.bincount(ids, weights=column)
        entropy = scipy.stats.entropy(mass, base=2)
        correction = (row["n_token_types"] - 1) / (2 * on.sum() * np.log(2))
        assert row["mean_activation"] == pytest.approx(column[on].mean(), rel=1e-5)
        assert row["token_entropy_bits"] == pytest.approx(entropy, abs=1e-5)
        assert row["token_entropy_corrected_bits"] == pytest.approx(entropy + correction, abs=1e-5)
        assert row["peak_token_share"] == pytest.approx(mass.max() / mass.sum(), rel=1e-5)
        assert row["peak_token"] == mass.argmax()
    assert n_dead < 48


def test_windows_equal_a_dense_recomputation(
    chain: Chain, tables_of_chain: dict[str, Rows], dense: NDArray[np.float64]
) -> None:
    tokens = load_tokens(chain.eval_tokens)
    ids, documents = tokens.input_ids.ravel(), tokens.document_id.ravel()
    rows = in_pools(tables_of_chain)
    share = np.bincount(ids) / len(ids)
    sampled = [row["latent"] for row in tables_of_chain["latents"] if row["sampled"]]
    assert sorted({row["latent"] for row in rows}) == sampled
    for row in rows:
        span = slice(row["start"], row["start"] + LENGTH)
        assert row["start"] % CONTEXT % LENGTH == 0
        assert row["window"] == row["start"] // LENGTH  # windows fill the contexts here
        np.testing.assert_allclose(row["token_frequencies"], share[ids[span]], rtol=1e-6)
        assert set(documents[span].tolist()) == {row["document"]}, "a window across documents"
        assert row["token_ids"] == ids[span].tolist()
        np.testing.assert_allclose(row["activations"], dense[span, row["latent"]], rtol=1e-5)
        assert row["active"] == bool(dense[span, row["latent"]].any()), "a silent window fires"
        assert (row["quantile"] is None) != row["active"]
        assert row["silent_kind"] == (None if row["active"] else "random")
    keys = [(row["latent"], row["window"]) for row in rows]
    assert len(set(keys)) == len(keys), "a window is drawn twice, or explains and scores"
    explain = {row["document"] for row in rows if row["pool"] == "explain"}
    score = {row["document"] for row in rows if row["pool"] == "score"}
    assert explain
    assert score
    assert not explain & score, "explaining and scoring windows share a document"
    for row in tables_of_chain["latents"]:
        shown = [
            w
            for w in rows
            if (w["latent"], w["pool"], w["active"]) == (row["latent"], "explain", True)
        ]
        if not row["sampled"]:
            assert row["explain_token_entropy_bits"] is None
            continue
        mass = np.zeros(ids.max() + 1)
        for w in shown:
            np.add.at(mass, w["token_ids"], w["activations"])
        expected = scipy.stats.entropy(mass, base=2)
        assert len(shown) == 6
        assert row["explain_token_entropy_bits"] == pytest.approx(expected, abs=1e-5)


def test_other_kinds_of_silent_windows_are_silent_and_move_nothing_drawn(
    chain: Chain,
    with_kinds: Path,
    tables_of_chain: dict[str, Rows],
    dense: NDArray[np.float64],
) -> None:
    found = {name: rows_in(with_kinds / f"{name}.parquet") for name in tables_of_chain}
    rows, plain = in_pools(found), in_pools(tables_of_chain)
    assert found["latents"] == tables_of_chain["latents"]
    assert found["coverage"] == tables_of_chain["coverage"]
    hard = [row for row in rows if row["silent_kind"] not in (None, "random")]
    assert {row["silent_kind"] for row in hard} == {"co_occurring", "nearest"}
    keys = [(row["latent"], row["window"]) for row in rows]
    assert len(set(keys)) == len(keys), "two kinds share a window"
    explain = {row["document"] for row in rows if row["pool"] == "explain"}
    for row in hard:
        span = slice(row["start"], row["start"] + LENGTH)
        assert not dense[span, row["latent"]].any(), "a silent window fires"
        assert not any(row["activations"])
        assert (row["pool"], row["active"], row["quantile"]) == ("score", False, None)
        assert row["document"] not in explain
    # Latents with few silent windows divide them among the kinds; for others nothing changes.
    grid = Grid.cut(load_tokens(chain.eval_tokens).document_id, LENGTH)
    n_windows = int((pool_of_cells(grid, numpy_generator(0, "pools")) == 1).sum())
    ample = {
        row["latent"]
        for row in found["latents"]
        if row["sampled"] and n_windows - row["score_pool_active_windows"] >= 15
    }
    assert len(ample) > 5
    rest = [row for row in rows if row not in hard and row["latent"] in ample]
    assert rest == [row for row in plain if row["latent"] in ample]


def test_the_filter_and_the_coverage_are_counted_right(
    chain: Chain, tables_of_chain: dict[str, Rows], dense: NDArray[np.float64]
) -> None:
    documents = load_tokens(chain.eval_tokens).document_id.reshape(-1, LENGTH)
    whole = np.all(documents == documents[:, :1], axis=1)
    (coverage,) = tables_of_chain["coverage"]
    assert coverage["n_windows"] == whole.sum()
    assert coverage["n_windows_across_documents"] == (~whole).sum() > 0
    assert coverage["n_tokens"] == len(dense)
    assert (coverage["n_latents"], coverage["n_alive"]) == (48, int((dense > 0).any(axis=0).sum()))
    rows = tables_of_chain["latents"]
    # The pools are disjoint sets of whole windows, so their active windows add up.
    active = (dense.reshape(-1, LENGTH, 48).max(axis=1) > 0)[whole].sum(axis=0)
    for row in rows:
        both = row["explain_pool_active_windows"] + row["score_pool_active_windows"]
        assert both == active[row["latent"]]
        if row["passes_filter"]:
            assert row["firings"] >= MIN_FIRINGS
            assert row["explain_pool_active_windows"] >= MIN_WINDOWS
            assert row["score_pool_active_windows"] >= MIN_WINDOWS
        if row["firings"] < MIN_FIRINGS:
            assert not row["passes_filter"]
    passing = [row["latent"] for row in rows if row["passes_filter"]]
    sampled = [row["latent"] for row in rows if row["sampled"]]
    assert coverage["n_pass"] == len(passing)
    assert coverage["pass_share"] == len(passing) / 48
    assert coverage["n_sampled"] == len(sampled) == 12 < len(passing) < 48
    assert set(sampled) < set(passing)
    active = [
        min(row[f"{pool}_pool_active_windows"] for pool in ("explain", "score")) for row in rows
    ]
    rare = [row["firings"] < MIN_FIRINGS for row in rows]
    assert coverage["n_too_rare"] == sum(rare) > 0
    few = sum(n < MIN_WINDOWS and not r for n, r in zip(active, rare, strict=True))
    assert coverage["n_few_active_windows"] == few > 0
    reasons = ("n_too_rare", "n_few_active_windows", "n_few_silent_windows", "n_pass")
    assert sum(coverage[name] for name in reasons) == 48
    nothing = ("n_tokens_skipped", "n_firings_skipped", "n_windows_too_short")
    assert [coverage[name] for name in nothing] == [0, 0, 0]


@pytest.mark.parametrize("least", [1, 8, 40])
def test_the_filter_asks_for_both_pools_and_for_silent_windows(
    chain: Chain, tiny_sae: Path, tmp_path: Path, dense: NDArray[np.float64], least: int
) -> None:
    grid = Grid.cut(load_tokens(chain.eval_tokens).document_id, LENGTH)
    pools = pool_of_cells(grid, numpy_generator(0, "pools"))
    active = dense.reshape(-1, LENGTH, 48).max(axis=1) > 0
    enough = (dense > 0).sum(axis=0) >= MIN_FIRINGS
    by_kind = [
        (active[pools == pool] == fires).sum(axis=0) for pool in (0, 1) for fires in (True, False)
    ]
    expected = enough & (np.array(by_kind) >= least).all(axis=0)
    rows = collect(chain, tiny_sae, tmp_path, min_pool_windows=least)["latents"]
    assert [row["passes_filter"] for row in rows] == expected.tolist()
    if least == 40:  # some are too silent, some too busy
        assert (enough & (np.array(by_kind[1::2]) < least).any(axis=0)).any()
        assert (enough & (np.array(by_kind[::2]) < least).any(axis=0)).any()


@pytest.mark.parametrize("sizes", [[960], [1, 958, 1], [100] * 9 + [60]])
def test_other_shards_give_the_same_tables(
    chain: Chain, tiny_sae: Path, with_kinds: Path, tmp_path: Path, sizes: list[int]
) -> None:
    x, _ = all_rows(chain.eval_activations, SITE)
    manifest = write_site(tmp_path / "activations", x, sizes)
    collect(chain, tiny_sae, tmp_path, activations=manifest, silent_windows=KINDS)
    for name in FILES:
        assert (with_kinds / name).read_bytes() == (tmp_path / name).read_bytes(), name


@pytest.fixture(scope="module", params=["topk", "jumprelu"])
def plain(
    request: pytest.FixtureRequest,
    chain: Chain,
    tiny_sae: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with an SAE, and with what is collected from it in stored order."""
    folder = tmp_path_factory.mktemp(request.param)
    sae, config = load_sae(tiny_sae)
    sae = replace(sae, architecture=request.param)
    if request.param == "jumprelu":
        sae = replace(sae, k=None, own={"threshold": torch.linspace(0.01, 2.0, 48)})
    save_sae(sae, folder / "sae", **described(config))
    collect(chain, folder / "sae/cfg.json", folder, **PLAIN)
    return folder


PLAIN: dict[str, Any] = {"silent_windows": KINDS, "windows": "centred"}


def shuffled(chain: Chain, folder: Path, seed: int) -> Path:
    """The same activations in another order; returns their manifest."""
    x, _ = all_rows(chain.eval_activations, SITE)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    return write_site(folder / "activations", x[order], [500, 460], position=order)


@pytest.mark.parametrize("batch", [1, 7, 64, 10_000])
def test_batches_and_the_order_of_tokens_do_not_change_the_tables(
    chain: Chain, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr("nullsae.activations.store.BATCH_TOKENS", batch)
    monkeypatch.setattr("nullsae.latents.store.RUN_FIRINGS", 77)
    moved = shuffled(chain, tmp_path, batch)
    collect(chain, plain / "sae/cfg.json", tmp_path, activations=moved, **PLAIN)
    for name in FILES:
        assert (plain / name).read_bytes() == (tmp_path / name).read_bytes(), name


def test_pieces_change_the_tables_by_rounding_alone(
    chain: Chain, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They add up in another order, so the last bits may differ."""
    monkeypatch.setattr("nullsae.activations.store.BATCH_TOKENS", 64)
    monkeypatch.setattr("nullsae.latents.store.RUN_FIRINGS", 77)
    monkeypatch.setattr("nullsae.latents.store.PIECE_FIRINGS", 40)
    found = collect(chain, plain / "sae/cfg.json", tmp_path, **PLAIN)
    for name in ("windows", "coverage", "latents"):
        for one_row, two_row in zip(rows_in(plain / f"{name}.parquet"), found[name], strict=True):
            assert two_row == {
                key: pytest.approx(value, rel=1e-9, abs=1e-9) if isinstance(value, float) else value
                for key, value in one_row.items()
            }


def test_a_code_holds_at_most_k_latents(chain: Chain, tiny_sae: Path, tmp_path: Path) -> None:
    """In delphi PR#131 the forward output was cached instead of the latents."""
    sae, _ = load_sae(tiny_sae)
    reader = SiteReader.open(chain.eval_activations, SITE)
    split = Split.open(chain.eval_tokens)
    sorting = Sorting(sae, Skipped.of(split, settings(), reader), tmp_path)
    for x, at in reader.batches():
        sorting.add(x, at)
    firings = sorting.sorted()
    per_token = np.bincount(firings.position, minlength=reader.n_tokens)
    assert per_token.max() == sae.k
    assert (firings.value > 0).all()
    assert len(set(zip(firings.latent.tolist(), firings.position.tolist(), strict=True))) == len(
        firings.latent
    )


@pytest.mark.parametrize("architecture", ["jumprelu", "standard", "token_lookup"])
def test_an_architecture_fires_as_a_dense_recomputation_does(
    chain: Chain,
    tiny_sae: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
) -> None:
    """These codes are padded with zeros, or do not depend on the activations at all."""
    monkeypatch.setattr("nullsae.activations.store.BATCH_TOKENS", 100)
    plain, config = load_sae(tiny_sae)
    x, _ = all_rows(chain.eval_activations, SITE)
    ids = load_tokens(chain.eval_tokens).input_ids.ravel()
    pre = (x - plain.b_dec) @ plain.w_enc.T + plain.b_enc
    codes = pre.relu()
    sae = replace(plain, architecture=architecture, k=None)
    if architecture == "jumprelu":
        sae.own["threshold"] = torch.linspace(0.01, 2.0, 48)
        codes = codes * (pre > sae.own["threshold"])
    if architecture == "token_lookup":
        wide = torch.cat([sae.w_dec, sae.w_dec])  # a latent per token id: VOCAB is 96
        sae = replace(sae, w_enc=torch.zeros(0, 16), b_enc=torch.arange(96.0), w_dec=wide)
        codes = F.one_hot(torch.from_numpy(ids).long(), 96) * sae.b_enc
    save_sae(sae, tmp_path / "sae", **described(config))
    found = collect(chain, tmp_path / "sae/cfg.json", tmp_path)
    rows = found["latents"]
    assert [row["firings"] for row in rows] == (codes > 0).sum(dim=0).tolist()
    for row, column in zip(rows, codes.T.double(), strict=True):
        assert row["max_activation"] == pytest.approx(float(column.max()), rel=1e-5)
    if architecture == "token_lookup":
        assert {row["encoder_decoder_cosine"] for row in rows} == {None}
    assert found["windows"]
    for row in found["windows"]:
        span = slice(row["start"], row["start"] + LENGTH)
        np.testing.assert_allclose(row["activations"], codes[span, row["latent"]], rtol=1e-4)


def test_sampled_latents_are_drawn_evenly_from_those_that_pass(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    """delphi takes the first N ids."""
    n_runs, size = 40, 8
    counts = np.zeros(48)
    for seed in range(n_runs):
        # Windows take most of the time and do not matter here.
        rows = collect(
            chain,
            tiny_sae,
            tmp_path,
            seed=seed,
            n_sampled=size,
            min_pool_windows=1,
            explain_active_windows=1,
            explain_silent_windows=1,
            score_active_windows=1,
            score_silent_windows=1,
        )["latents"]
        counts += [row["sampled"] for row in rows]
    passing = np.array([row["passes_filter"] for row in rows])
    assert counts.sum() == n_runs * size
    assert not counts[~passing].any()
    n = int(passing.sum())
    p = size / n
    # Draws without replacement: chi-square over n latents with variance n_runs p (1 - p).
    statistic = ((counts[passing] - n_runs * p) ** 2).sum() / (n_runs * p * (1 - p)) * (n - 1) / n
    assert 1e-4 < scipy.stats.chi2.sf(statistic, n - 1) < 1 - 1e-4


def test_the_windows_of_a_latent_do_not_depend_on_which_others_are_sampled(
    chain: Chain, tiny_sae: Path, tmp_path: Path, tables_of_chain: dict[str, Rows]
) -> None:
    every = collect(chain, tiny_sae, tmp_path, n_sampled=48)["windows"]
    few = {row["latent"] for row in tables_of_chain["windows"]}
    assert [row for row in every if row["latent"] in few] == tables_of_chain["windows"]


def test_latents_that_fire_together_are_shown_different_windows(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    """delphi seeds the generator again, with the same seed, for each latent."""
    sae, config = load_sae(tiny_sae)
    w_enc, b_enc, w_dec = (torch.cat([t, t]) for t in (sae.w_enc, sae.b_enc, sae.w_dec))
    assert sae.k is not None
    twins = Autoencoder("topk", w_enc, b_enc, w_dec, sae.b_dec, k=2 * sae.k)
    save_sae(twins, tmp_path / "sae", **described(config))
    found = collect(chain, tmp_path / "sae/cfg.json", tmp_path, n_sampled=96)
    rows = found["latents"]
    pairs = [n for n in range(48) if rows[n]["sampled"]]
    assert len(pairs) > 10
    for n in pairs:
        assert rows[n]["firings"] == rows[n + 48]["firings"]
        one, two = (
            [row["window"] for row in in_pools(found) if row["latent"] == latent]
            for latent in (n, n + 48)
        )
        assert one != two


def test_another_sae_does_not_move_the_pools(
    chain: Chain, tiny_sae: Path, tmp_path: Path, tables_of_chain: dict[str, Rows]
) -> None:
    """Pools depend only on the corpus and the seed, so variants are judged on the same text."""
    other = save_tiny_sae(chain, tmp_path / "sae", n_latents=32, k=3)
    found = collect(chain, other, tmp_path)
    pool_of: dict[int, str] = {}
    for row in [*in_pools(tables_of_chain), *in_pools(found)]:
        assert pool_of.setdefault(row["document"], row["pool"]) == row["pool"]


def test_an_sae_that_never_fires_gives_no_windows(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    sae, config = load_sae(tiny_sae)
    sae.b_enc -= 1e6
    save_sae(sae, tmp_path / "sae", **described(config))
    found = collect(chain, tmp_path / "sae/cfg.json", tmp_path)
    assert found["windows"] == []
    assert found["coverage"][0]["n_alive"] == found["coverage"][0]["n_pass"] == 0
    assert all(row["token_entropy_bits"] is None for row in found["latents"])


def test_activations_of_another_config_are_refused(chain: Chain, tiny_sae: Path) -> None:
    params = CollectLatentsParams(
        seed=0, keys=cell(SITE), latents=settings(), compute=COMPUTE, eval_activations_key="other"
    )
    with pytest.raises(UserError, match="made from another config"):
        collect_latents(
            params,
            sae=tiny_sae,
            activations=chain.eval_activations,
            tokens=chain.eval_tokens,
            latents=Path("latents"),
            windows=Path("windows"),
            coverage=Path("coverage"),
            firings=Path("firings"),
        )


def test_the_top_windows_are_the_strongest_in_order(
    chain: Chain,
    tiny_sae: Path,
    tmp_path: Path,
    tables_of_chain: dict[str, Rows],
    dense: NDArray[np.float64],
) -> None:
    documents = load_tokens(chain.eval_tokens).document_id.reshape(-1, LENGTH)
    whole = np.flatnonzero(np.all(documents == documents[:, :1], axis=1))
    peaks = dense.reshape(-1, LENGTH, 48).max(axis=1)
    for latent in {row["latent"] for row in tables_of_chain["windows"]}:
        top = [
            row
            for row in tables_of_chain["windows"]
            if row["latent"] == latent and row["pool"] == "top"
        ]
        ranked = whole[np.argsort(-peaks[whole, latent], kind="stable")]
        expected = [int(w) for w in ranked[:10] if peaks[w, latent] > 0]
        assert [row["window"] for row in top] == expected
        assert [max(row["activations"]) for row in top] == pytest.approx(
            peaks[expected, latent].tolist()
        )
        assert {(row["active"], row["quantile"], row["silent_kind"]) for row in top} == {
            (True, None, None)
        }
    found = collect(chain, tiny_sae, tmp_path, top_windows=0)
    assert found["windows"] == in_pools(tables_of_chain)


def test_centred_windows_stay_in_their_document_and_share_no_tokens(
    chain: Chain, tiny_sae: Path, tmp_path: Path, dense: NDArray[np.float64]
) -> None:
    found = collect(chain, tiny_sae, tmp_path, windows="centred", silent_windows=KINDS)
    tokens = load_tokens(chain.eval_tokens)
    ids, documents = tokens.input_ids.ravel(), tokens.document_id.ravel()
    assert found["coverage"][0]["n_windows_too_short"] > 0
    aligned = 0
    pool_of: dict[int, str] = {}
    for row in found["windows"]:
        span = slice(row["start"], row["start"] + LENGTH)
        assert row["start"] // CONTEXT == (row["start"] + LENGTH - 1) // CONTEXT
        assert set(documents[span].tolist()) == {row["document"]}
        assert row["token_ids"] == ids[span].tolist()
        np.testing.assert_allclose(row["activations"], dense[span, row["latent"]], rtol=1e-5)
        assert row["active"] == bool(dense[span, row["latent"]].any())
        assert row["active"] or row["start"] == row["window"] * LENGTH
        aligned += row["start"] % LENGTH == 0
        if row["pool"] != "top":
            assert pool_of.setdefault(row["document"], row["pool"]) == row["pool"]
    assert aligned < len(found["windows"])
    for latent in {row["latent"] for row in found["windows"]}:
        mine = [row for row in in_pools(found) if row["latent"] == latent]
        starts = sorted(row["start"] for row in mine if row["active"])
        assert all(b - a >= LENGTH for a, b in pairwise(starts))
        keys = [row["window"] for row in mine]
        assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("start", "end"), [(1, False), (3, True), (0, True)])
def test_skipped_tokens_do_not_fire_and_are_counted(
    chain: Chain,
    tiny_sae: Path,
    tmp_path: Path,
    dense: NDArray[np.float64],
    start: int,
    end: bool,
) -> None:
    file = chain.eval_tokens.with_name("tokens.safetensors")
    (tmp_path / "tokens.safetensors").write_bytes(file.read_bytes())
    manifest = tmp_path / "manifest.json"
    write_json(manifest, {**read_json(chain.eval_tokens, rebuild=""), "separator_token_id": 2})
    ids = load_tokens(manifest).input_ids.ravel()
    skip = (np.arange(len(ids)) % CONTEXT < start) | (end & (ids == 2))
    found = collect(
        chain, tiny_sae, tmp_path, tokens=manifest, skip_start_tokens=start, skip_end_of_text=end
    )
    rest = np.where(skip[:, None], 0, dense)
    assert [row["firings"] for row in found["latents"]] == (rest > 0).sum(axis=0).tolist()
    for row in found["latents"]:
        assert row["max_activation"] == pytest.approx(rest[:, row["latent"]].max(), rel=1e-5)
    for row in found["windows"]:
        span = slice(row["start"], row["start"] + LENGTH)
        np.testing.assert_allclose(row["activations"], rest[span, row["latent"]], rtol=1e-5)
    (coverage,) = found["coverage"]
    assert coverage["n_tokens_skipped"] == skip.sum() > 0
    assert coverage["n_firings_skipped"] == (dense[skip] > 0).sum() > 0
    if start:
        assert {row["first_position_share"] for row in found["latents"]} <= {0.0, None}


@pytest.mark.parametrize(
    ("said", "is_bos"),
    [
        # Before each context; in place of a separator; a token that also ends documents.
        ({"prepend_bos": True, "bos_token_ids": [3]}, lambda at, ids: (at < 1) | (ids == 3)),
        (
            {"prepend_bos": False, "bos_token_ids": [2], "separator_token_id": 2},
            lambda at, ids: ids == 2,
        ),
        (
            {"prepend_bos": True, "bos_token_ids": [2], "eos_token_id": 2},
            lambda at, ids: at < 1,
        ),
        (
            {"prepend_bos": True, "bos_token_ids": [5, 7]},
            lambda at, ids: (at < 2) | (ids == 5) | (ids == 7),
        ),
    ],
)
@pytest.mark.parametrize("skip", [True, False])
def test_bos_fires_in_no_window_unless_asked_for(
    chain: Chain,
    tiny_sae: Path,
    tmp_path: Path,
    dense: NDArray[np.float64],
    said: dict[str, Any],
    is_bos: Any,
    skip: bool,
) -> None:
    file = chain.eval_tokens.with_name("tokens.safetensors")
    (tmp_path / "tokens.safetensors").write_bytes(file.read_bytes())
    manifest = tmp_path / "manifest.json"
    write_json(manifest, {**read_json(chain.eval_tokens, rebuild=""), **said})
    ids = load_tokens(manifest).input_ids.ravel()
    bos = is_bos(np.arange(len(ids)) % CONTEXT, ids)
    keys = {} if skip else {"skip_bos": False}
    found = collect(chain, tiny_sae, tmp_path, tokens=manifest, **keys)
    (coverage,) = found["coverage"]
    assert (dense[bos] > 0).sum() > 0
    if not skip:
        assert coverage["n_tokens_skipped"] == coverage["n_firings_skipped"] == 0
        bos[:] = False
    assert coverage["n_tokens_skipped"] == bos.sum()
    assert coverage["n_firings_skipped"] == (dense[bos] > 0).sum()
    rest = np.where(bos[:, None], 0, dense)
    assert [row["firings"] for row in found["latents"]] == (rest > 0).sum(axis=0).tolist()
    for row in found["windows"]:
        span = slice(row["start"], row["start"] + LENGTH)
        np.testing.assert_allclose(row["activations"], rest[span, row["latent"]], rtol=1e-5)
        assert row["skipped"] == bos[span].tolist()


def test_excluded_tokens_fire_no_latent_and_count_nowhere(
    chain: Chain, tiny_sae: Path, tmp_path: Path, dense: NDArray[np.float64]
) -> None:
    exclude = Exclude(start_tokens=1, norm_above_median=None)
    cache_activations(
        capture_params(exclude=exclude),
        split="eval",
        model=chain.recipe,
        tokens=chain.eval_tokens,
        output=tmp_path / "eval",
    )
    found = collect(chain, tiny_sae, tmp_path, activations=tmp_path / "eval/manifest.json")
    counts = np.arange(len(dense)) % CONTEXT > 0
    fires = (dense > 0) & counts[:, None]
    for row in found["latents"]:
        assert row["n_tokens"] == counts.sum()
        assert row["firings"] == fires[:, row["latent"]].sum()
        assert row["firing_share"] == pytest.approx(fires[counts, row["latent"]].mean())
    (coverage,) = found["coverage"]
    assert coverage["n_tokens"] == len(dense)
    assert coverage["n_tokens_excluded"] == (~counts).sum()
    for row in found["windows"]:
        shown = np.arange(row["start"], row["start"] + LENGTH)
        assert not np.array(row["activations"])[shown % CONTEXT == 0].any()
        assert row["skipped"] == (shown % CONTEXT == 0).tolist()


def test_skipping_an_unknown_end_of_text_is_refused(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError, match=r"has no separator_token_id, which latents.skip_end_of_text needs"
    ):
        collect(chain, tiny_sae, tmp_path, skip_end_of_text=True)
    assert list(tmp_path.iterdir()) == []


def test_the_firings_of_sampled_latents_equal_a_dense_recomputation(
    chain: Chain, tiny_sae: Path, tmp_path: Path, dense: NDArray[np.float64]
) -> None:
    rows = collect(chain, tiny_sae, tmp_path)["latents"]
    reader = FiringReader.open(tmp_path / "firings.safetensors")
    assert reader.latents.tolist() == [row["latent"] for row in rows if row["sampled"]]
    for latent in reader.latents.tolist():
        position, value = reader.of(latent)
        np.testing.assert_array_equal(position, np.flatnonzero(dense[:, latent]))
        np.testing.assert_allclose(value, dense[position, latent], rtol=1e-5)


def test_a_split_of_one_document_gives_no_windows(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    ids = load_tokens(chain.eval_tokens).input_ids
    tokens = write_corpus(tmp_path / "corpus", ids, np.zeros_like(ids))
    found = collect(chain, tiny_sae, tmp_path / "out", tokens=tokens, windows="centred")
    (coverage,) = found["coverage"]
    assert coverage["n_pass"] == coverage["n_sampled"] == 0
    assert coverage["n_few_active_windows"] > 0
    assert found["windows"] == []
    assert {row["document_share"] for row in found["latents"] if row["firings"]} == {1.0}
    assert FiringReader.open(tmp_path / "out/firings.safetensors").latents.tolist() == []


def test_more_quantiles_than_windows_leave_some_empty(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    found = collect(chain, tiny_sae, tmp_path, n_quantiles=500, score_active_windows=600)
    scored = [row for row in found["windows"] if row["pool"] == "score" and row["active"]]
    assert scored
    assert {row["quantile"] for row in scored} < set(range(500))


def test_activations_of_another_number_of_tokens_are_refused(
    chain: Chain, tiny_sae: Path, tmp_path: Path
) -> None:
    x, _ = all_rows(chain.eval_activations, SITE)
    short = write_site(tmp_path / "activations", x[:944], [944])
    with pytest.raises(UserError, match=r"activations of 944 tokens, but .* has 960"):
        collect(chain, tiny_sae, tmp_path, activations=short)


def test_documents_in_pieces_are_refused(chain: Chain, tiny_sae: Path, tmp_path: Path) -> None:
    ids = load_tokens(chain.eval_tokens).input_ids
    documents = (np.arange(ids.size) // 50 % 3).astype(np.int32).reshape(ids.shape)
    tokens = write_corpus(tmp_path / "corpus", ids, documents)
    with pytest.raises(UserError, match="the tokens of a document are not contiguous"):
        collect(chain, tiny_sae, tmp_path / "out", tokens=tokens)


def test_what_a_killed_run_left_is_removed(chain: Chain, tiny_sae: Path, tmp_path: Path) -> None:
    left = tmp_path / ".latents.partial/runs.value"
    left.parent.mkdir()
    left.write_bytes(b"1234")
    collect(chain, tiny_sae, tmp_path)
