from __future__ import annotations

from itertools import permutations
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics.pairwise import cosine_similarity
from torch import Tensor

from nullsae import paths, tables
from nullsae.config.parse import parse_config
from nullsae.jobs.grid import matched_cells, recipe_cells
from nullsae.jobs.keys import CellKeys
from nullsae.jobs.metrics import MatchDictionariesParams, MatchedSae
from nullsae.metrics.geometry import unit_rows
from nullsae.metrics.overlap import match_dictionaries, matched_cosines, pairs
from nullsae.sae.autoencoder import Autoencoder
from refusing import refused
from small_chain import COMPUTE, flip_byte, write_sae

D = 24
Cell = tuple[str, int, int]


def random_rows(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def write_saes(root: Path, decoders: dict[Cell, Tensor]) -> str:
    """Write SAEs with these decoders; return the pattern of their configs."""
    for (variant, draw, seed), rows in decoders.items():
        own: dict[str, Any] = {"variant": variant, "draw": draw, "seed": seed}
        keys = CellKeys(subject="s", site="embed", sae="topk", **own)
        n, d = rows.shape
        coder = Autoencoder("topk", torch.ones(n, d), torch.zeros(n), rows, torch.zeros(d), k=1)
        write_sae(coder, root / f"{variant}/{draw}/{seed}", keys=keys)
    return str(root / "{variant}/{draw}/{seed}/cfg.json")


def run(root: Path, decoders: dict[Cell, Tensor], **keys: Any) -> list[dict[str, Any]]:
    """Return the rows of `overlap`; SAEs come in the order of `decoders`."""
    pattern = write_saes(root, decoders)
    cells = tuple(MatchedSae(variant=v, draw=d, seed=s) for v, d, s in decoders)  # type: ignore[arg-type]
    plain: dict[str, Any] = {"seed": 0, "matching_latents": 2048, "cells": cells}
    params = MatchDictionariesParams(
        subject="s", site="embed", sae="topk", compute=COMPUTE, **{**plain, **keys}
    )
    output = root / "overlap.parquet"
    match_dictionaries(params, sae=pattern, output=output)
    found: list[dict[str, Any]] = tables.read_table(
        output, tables.cell_schema("overlap")
    ).to_pylist()
    return found


def two(root: Path, a: Tensor, b: Tensor, **keys: Any) -> dict[str, Any]:
    """Return the row of two seeds."""
    (row,) = run(root, {("trained", 0, 0): a, ("trained", 0, 1): b}, **keys)
    return row


# Matching


@pytest.mark.parametrize(("n_a", "n_b"), [(4, 4), (3, 6), (6, 3), (1, 1)])
def test_no_other_matching_has_a_larger_sum(n_a: int, n_b: int) -> None:
    """Compared with all one-to-one matchings."""
    a, b = unit_rows(random_rows(n_a, 5, 1)), unit_rows(random_rows(n_b, 5, 2))
    cosines = cosine_similarity(a.double().numpy(), b.double().numpy())
    few, many = min(n_a, n_b), max(n_a, n_b)
    table = cosines if n_a <= n_b else cosines.T
    best = max(sum(table[i, j[i]] for i in range(few)) for j in permutations(range(many), few))
    assert matched_cosines(a, b).sum() == pytest.approx(best, abs=1e-6)


def test_networkx_finds_the_same_matching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Edmonds' blossom algorithm, which is independent of SciPy's."""
    monkeypatch.setattr("nullsae.metrics.overlap.BLOCK_COLUMNS", 7)
    a, b = unit_rows(random_rows(25, 6, 3)), unit_rows(random_rows(40, 6, 4))
    cosines = cosine_similarity(a.double().numpy(), b.double().numpy())
    graph = nx.Graph()
    for i, j in np.ndindex(*cosines.shape):
        graph.add_edge(("a", i), ("b", j), weight=2 + cosines[i, j])
    found = nx.max_weight_matching(graph, maxcardinality=True)
    expected = sorted(graph.edges[edge]["weight"] - 2 for edge in found)
    assert len(expected) == 25
    assert sorted(matched_cosines(a, b).tolist()) == pytest.approx(expected, abs=1e-6)


def test_no_two_latents_share_one_counterpart() -> None:
    """The nearest neighbour of both is the same row, which only one of them gets."""
    a = F.normalize(torch.tensor([[1.0, 0.1, 0], [1.0, 0, 0]]), dim=1)
    b = F.normalize(torch.tensor([[1.0, 0, 0], [0, 0, 1.0]]), dim=1)
    assert matched_cosines(a, b).tolist() == pytest.approx([0.0, 1.0], abs=2e-3)


# Rows


def test_a_dictionary_is_found_in_its_own_shuffled_copy(tmp_path: Path) -> None:
    rows = random_rows(60, D, 0)
    copy = rows[torch.randperm(60)] * torch.rand(60, 1).add(0.5)
    row = two(tmp_path, rows, copy)
    assert row["mean_cosine"] == pytest.approx(1.0, abs=1e-6)
    assert row["shared_share"] == 1.0
    assert (row["n_latents_a"], row["n_latents_b"], row["n_matched"]) == (60, 60, 60)
    assert 0 < row["mean_cosine_random"] < 0.6
    assert row["shared_share_random"] < 0.1


def test_an_opposite_direction_is_no_match(tmp_path: Path) -> None:
    row = two(tmp_path, torch.eye(D), -torch.eye(D))
    # In more than two dimensions there is a matching of orthogonal rows.
    assert row["mean_cosine"] == 0.0


def test_a_known_share_is_found(tmp_path: Path) -> None:
    a, b = random_rows(40, 512, 1), random_rows(40, 512, 2)
    # Ten of the forty rows again, with a cosine of 0.9, and ten more with a cosine of 0.6.
    for rows, cosine in ((slice(0, 10), 0.9), (slice(10, 20), 0.6)):
        unit = F.normalize(a[rows], dim=1)
        across = F.normalize(b[rows] - (b[rows] * unit).sum(1, keepdim=True) * unit, dim=1)
        b[rows] = 3 * (cosine * unit + (1 - cosine**2) ** 0.5 * across)
    row = two(tmp_path, a, b[torch.randperm(40)])
    assert row["shared_share"] == 0.25
    assert row["mean_cosine"] > (0.9 + 0.6) / 4
    assert row["shared_share_random"] == 0.0


@pytest.mark.parametrize(("n_a", "n_b", "most"), [(300, 300, 2048), (400, 400, 50), (40, 300, 60)])
def test_random_dictionaries_overlap_as_much_as_the_floor(
    tmp_path: Path, n_a: int, n_b: int, most: int
) -> None:
    row = two(tmp_path, random_rows(n_a, D, 1), random_rows(n_b, D, 2), matching_latents=most)
    assert row["n_matched"] == min(n_a, n_b, most)
    assert row["mean_cosine"] == pytest.approx(row["mean_cosine_random"], rel=0.04)


def test_the_rest_of_a_study_does_not_change_a_row(tmp_path: Path) -> None:
    decoders = {
        (variant, draw, seed): random_rows(30, D, 100 * draw + seed + len(variant))
        for variant, draw in (("trained", 0), ("rerandomized", 0), ("rerandomized", 1))
        for seed in (0, 1, 5)
    }
    all_rows = run(tmp_path / "all", decoders, matching_latents=10)
    backwards = dict(reversed(decoders.items()))
    assert len(all_rows) == 3 * 3 + 3 + 6
    for kept in (
        [("trained", 0, 1), ("rerandomized", 1, 1)],
        [("rerandomized", 0, 1), ("rerandomized", 0, 5), ("trained", 0, 1), ("trained", 0, 5)],
    ):
        name = str(len(kept))
        part = run(tmp_path / name, {cell: decoders[cell] for cell in kept}, matching_latents=10)
        assert part
        assert all(row in all_rows for row in part)
    again = run(tmp_path / "again", decoders, matching_latents=10)
    assert again == all_rows
    other_seed = run(tmp_path / "seed", decoders, matching_latents=10, seed=1)
    assert [row["mean_cosine"] for row in other_seed] != [row["mean_cosine"] for row in all_rows]
    # The config's order decides which of two seeds comes first; trained always comes second.
    turned = run(tmp_path / "turned", backwards, matching_latents=10)
    variants = [row for row in all_rows if row["kind"] == "variants"]
    assert all(row in turned for row in variants)


def test_rows_without_a_direction_are_not_matched(tmp_path: Path) -> None:
    a, b = random_rows(12, D, 1), random_rows(12, D, 1)
    a[:4] = 0
    row = two(tmp_path, a, b)
    assert (row["n_latents_a"], row["n_matched"]) == (12, 8)
    assert row["mean_cosine"] == pytest.approx(1.0, abs=1e-6)
    # The floor has as many rows.
    padded = two(tmp_path / "padded", a[4:], b)
    assert padded["mean_cosine_random"] == row["mean_cosine_random"]


def test_a_dictionary_of_zeros_gives_nulls(tmp_path: Path) -> None:
    row = two(tmp_path, torch.zeros(5, D), random_rows(5, D, 1))
    shares = ("mean_cosine", "shared_share", "mean_cosine_random", "shared_share_random")
    assert row["n_matched"] == 0
    assert [row[name] for name in shares] == [None] * 4


# Pairs


def test_all_comparable_pairs_are_there_and_no_others() -> None:
    """Compared with every pair of a study, sorted by what differs."""
    config = parse_config(
        {
            "corpora": {
                "c": {
                    "source": {"kind": "builtin"},
                    "tokenizer": {"kind": "train", "vocab_size": 300},
                }
            },
            "subjects": {"s": {"corpus": "c", "source": {"kind": "train"}, "sites": ["embed"]}},
            "variants": ["trained", "step0", "rerandomized", "gaussian"],
            "draws": 3,
            "activations": {"sae_train_tokens": 4096},
            "saes": {"topk": {"n_latents": 64, "seeds": [0, 7], "checkpoints": [0.5]}},
            "evaluation": {"gaussian_floors": True},
            "explainers": {},
            "scorers": {},
        }
    )
    cells = [MatchedSae(**cell) for cell in matched_cells(config, "s", "embed", "topk")]
    assert len(cells) == 2 * (1 + 1 + 3 + 3)
    found = {(kind, str(a), str(b)) for kind, a, b in pairs(cells)}
    expected = set()
    for i, a in enumerate(cells):
        for j, b in enumerate(cells):
            same = (a.variant == b.variant, a.draw == b.draw, a.seed == b.seed)
            if i < j and same == (True, True, False):
                expected.add(("seeds", str(a), str(b)))
            if i < j and same == (True, False, True):
                expected.add(("draws", str(a), str(b)))
            if a.variant != "trained" and b.variant == "trained" and a.seed == b.seed:
                expected.add(("variants", str(a), str(b)))
    assert found == expected
    assert len(list(pairs(cells))) == len(expected) == 8 + 2 * 2 * 3 + 14
    order = [cells.index(a) for _, a, _ in pairs(cells)]
    assert order == sorted(order)
    assert list(recipe_cells(config)) == [{"subject": "s", "site": "embed", "sae": "topk"}]
    assert paths.OVERLAP.format(**next(recipe_cells(config))) == (
        "results/overlap/subject=s/site=embed/sae=topk/overlap.parquet"
    )


def test_an_sae_alone_has_no_row(tmp_path: Path) -> None:
    assert run(tmp_path, {("trained", 0, 0): torch.eye(3)}) == []


# Bad input


def test_a_missing_a_damaged_or_a_foreign_sae_is_refused(tmp_path: Path) -> None:
    decoders = {("trained", 0, 0): torch.eye(3), ("step0", 0, 0): torch.eye(3)}
    run(tmp_path, decoders)
    (tmp_path / "overlap.parquet").unlink()
    params = MatchDictionariesParams(
        seed=0,
        subject="s",
        site="embed",
        sae="topk",
        cells=tuple(MatchedSae(variant=v, draw=d, seed=s) for v, d, s in decoders),  # type: ignore[arg-type]
        matching_latents=9,
        compute=COMPUTE,
    )

    def refusal() -> str:
        said = refused(
            match_dictionaries,
            params,
            sae=str(tmp_path / "{variant}/{draw}/{seed}/cfg.json"),
            output=tmp_path / "overlap.parquet",
        )
        assert not (tmp_path / "overlap.parquet").exists()
        return said

    flip_byte(tmp_path / "step0/0/0/sae.safetensors")
    assert "step0/0/0/sae.safetensors: damaged" in refusal()
    write_saes(tmp_path, {("step0", 0, 0): torch.eye(4)})
    assert refusal() == (
        f"{tmp_path}/trained/0/0/cfg.json: an SAE for 3 dimensions, but "
        f"{tmp_path}/step0/0/0/cfg.json is for 4; both must be of one site"
    )
    (tmp_path / "step0/0/0/cfg.json").unlink()
    assert refusal().startswith(f"{tmp_path}/step0/0/0/cfg.json: the file is missing; rebuild it")
