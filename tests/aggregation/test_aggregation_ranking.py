from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import yaml

from nullsae import tables
from nullsae.aggregation.cells import Units
from nullsae.aggregation.ranking import MIXED, is_ranked, rank_latents
from nullsae.config.metrics import all_metrics
from nullsae.config.parse import parse_config
from nullsae.config.study import Config
from nullsae.jobs.grid import sae_cells

CONFIG = Path(__file__).parents[2] / "config.yaml"
N_LATENTS = 130
NULLS = ("rerandomized", "noise_embeddings")
# Columns; side against each null. With two columns, the value is the first minus the second.
METRICS: dict[str, tuple[tuple[str, ...], tuple[int, int]]] = {
    "next_token_auroc": (("next_token_auroc",), (1, 1)),
    "peak_token_share": (("peak_token_share",), (-1, 1)),
    "autocorrelation": (("autocorrelation",), (0, 0)),
    "ablation_ce_gain_nats": (("ablation_ce_nats", "ablation_ce_nats_swapped"), (1, 1)),
}
SHIFT = {"trained": 2.5, "retrained": 2.5}
Row = dict[str, Any]


def study(**changes: Any) -> Config:
    data = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    data["subjects"]["small"]["sites"] = ["resid_post.1"]
    data["saes"]["topk"]["seeds"] = [0, 1]
    data |= {"variants": ["trained", "retrained", *NULLS], "draws": 2}
    return parse_config(data | changes)


def latents(keys: dict[str, str]) -> pa.Table:
    """Return a table of random latents, some of them null, NaN or filtered out."""
    rng = np.random.default_rng(list("/".join(keys.values()).encode()))
    n, columns = N_LATENTS, {name for names, _ in METRICS.values() for name in names}
    made: dict[str, Any] = {
        "latent": rng.permutation(n) + 1000,
        "firing_share": 10 ** rng.uniform(-3.2, -1.2, n),
        "passes_filter": rng.random(n) < 0.9,
        "sampled": rng.random(n) < 0.6,
    }
    for name in sorted(columns):
        # Values grow with the rate; they are rounded, so that some are equal.
        value = rng.normal(size=n) + SHIFT.get(keys["variant"], 0) + np.log10(made["firing_share"])
        made[name] = [
            None if x < 0.05 else v for x, v in zip(rng.random(n), value.round(1), strict=True)
        ]
        made[name][0] = float("nan")
    schema = tables.cell_schema("latents")
    return pa.table({f.name: pa.array(made.get(f.name, [None] * n), f.type) for f in schema})


def sources(config: Config) -> list[Units]:
    return [Units(keys, latents(keys), "latent") for keys in sae_cells(config)]


def values(keys: dict[str, Any], metric: str) -> list[tuple[int, float, int]]:
    """Return number, value and half-decade of a cell's latents that have a value."""
    columns, _ = METRICS[metric]
    found = []
    for row in latents({name: str(value) for name, value in keys.items()}).to_pylist():
        numbers = [row[name] for name in columns]
        counts = row["sampled" if metric.startswith("ablation") else "passes_filter"]
        if counts and None not in numbers and not np.isnan(numbers).any():
            value = numbers[0] - numbers[1] if len(numbers) > 1 else numbers[0]
            found.append((row["latent"], value, int(np.floor(2 * np.log10(row["firing_share"])))))
    return found


def adjusted(p: list[float]) -> list[float]:
    """Apply Benjamini-Hochberg by its definition: the smallest level that rejects each."""
    m = len(p)
    levels = [x * m / sum(y <= x for y in p) for x in p]
    return [min(level for level, y in zip(levels, p, strict=True) if y >= x) for x in p]


def comparison(rows: list[Row], **wanted: Any) -> list[Row]:
    return [row for row in rows if wanted.items() <= row.items()]


@pytest.fixture(scope="module")
def found() -> tuple[list[Row], list[Row]]:
    config = study()
    table, shares = rank_latents(config, {"latents": sources(config)})
    assert table.schema.equals(tables.SCHEMAS["latents_ranked"])
    return table.to_pylist(), shares


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("null", [*NULLS, "all"])
@pytest.mark.parametrize("seed", [0, 1])
def test_p_q_and_rank_equal_those_counted_latent_by_latent(
    found: tuple[list[Row], list[Row]], metric: str, null: str, seed: int
) -> None:
    keys = {"subject": "small", "variant": "trained", "draw": 0, "site": "resid_post.1"}
    keys |= {"sae": "topk", "seed": seed}
    rows = comparison(found[0], **keys, metric=metric, null=null)
    sides = dict(zip(NULLS, METRICS[metric][1], strict=True))
    names = NULLS if null == "all" else (null,)
    side = sides[names[0]] if len({sides[name] for name in names}) == 1 else None
    against = [
        one
        for name in names
        for draw in (0, 1)
        for one in values({**keys, "variant": name, "draw": draw}, metric)
    ]
    own = values(keys, metric)
    assert {row["latent"]: row["value"] for row in rows} == {n: v for n, v, _ in own}
    bins = {n: b for n, _, b in own}
    for row in rows:
        others = [v for _, v, b in against if b == bins[row["latent"]]]
        n, above = len(others), sum(v >= row["value"] for v in others)
        below = sum(v <= row["value"] for v in others)
        assert (row["direction"], row["n_null"]) == (side, n)
        if side is None or n < (19 if side else 39):
            assert (row["p"], row["q"]) == (None, None)
            text = f"{n} null latents at its firing rate, {19 if side else 39} needed"
            assert row["reason"] == (MIXED if side is None else text)
            continue
        tail = {1: above, -1: below, 0: min(above, below)}[side]
        p = min(1.0, (1 + tail) / (1 + n) * (1 if side else 2))
        assert row["p"] == pytest.approx(p, rel=1e-13)
        assert row["reason"] is None
    tested = [row for row in rows if row["p"] is not None]
    for row, q in zip(tested, adjusted([row["p"] for row in tested]), strict=True):
        assert row["q"] == pytest.approx(q, rel=1e-12)
    assert [row["rank"] for row in rows] == [*range(1, len(rows) + 1)]
    order = [
        (row["q"] is None, row["q"] or 0, -(side or 1) * row["value"], row["latent"])
        for row in rows
    ]
    assert order == sorted(order)
    (share,) = comparison(found[1], **keys, metric=metric, null=null)
    beating = sum(row["q"] <= 0.05 for row in tested)
    assert (share["direction"], share["n_latents"]) == (side, len(rows))
    assert (share["n_tested"], share["n_beating"]) == (len(tested), beating)
    assert share["share_beating_placebo"] == (beating / len(tested) if tested else None)


def test_the_random_study_has_all_kinds_of_latents(found: tuple[list[Row], list[Row]]) -> None:
    """The tests above cover latents that beat placebo, that do not, and without null latents."""
    rows = comparison(found[0], metric="next_token_auroc", null="rerandomized")
    beats = [row["q"] is not None and row["q"] <= 0.05 for row in rows]
    assert 10 < sum(beats) < len(rows) - 10
    reasons = {row["reason"] for row in found[0]}
    assert {None, MIXED} < reasons
    for fewest in (19, 39):
        assert any(f"{fewest} needed" in str(text) for text in reasons)


def test_latents_of_trained_are_listed_and_those_of_positive_controls_counted(
    found: tuple[list[Row], list[Row]],
) -> None:
    ranked = [metric.name for metric in all_metrics() if is_ranked(metric)]
    assert set(METRICS) < set(ranked)
    assert "single_token_share" not in ranked
    rows, shares = found
    assert {(row["variant"], row["draw"]) for row in rows} == {("trained", 0)}
    order = [
        (metric, seed, variant, draw, null)
        for metric in ranked
        for seed in (0, 1)
        for variant, draw in (("trained", 0), ("retrained", 0), ("retrained", 1))
        for null in (*NULLS, "all")
    ]
    names = ("metric", "seed", "variant", "draw", "null")
    assert [tuple(row[name] for name in names) for row in shares] == order
    # Metrics without a value have neither latents nor a share.
    (empty,) = comparison(
        shares, metric="token_entropy_bits", seed=0, variant="trained", null="all"
    )
    assert (empty["n_latents"], empty["n_tested"], empty["share_beating_placebo"]) == (0, 0, None)
    # Retrained latents resemble trained ones here, and beat placebo about as often.
    by_variant = {
        variant: np.mean(
            [
                row["share_beating_placebo"]
                for row in comparison(shares, metric="next_token_auroc", null="all")
                if row["variant"] == variant
            ]
        )
        for variant in SHIFT
    }
    assert by_variant["retrained"] == pytest.approx(by_variant["trained"], abs=0.2)


def test_the_order_of_cells_and_of_latents_changes_nothing(
    found: tuple[list[Row], list[Row]],
) -> None:
    config = study()
    cells = [
        Units(
            unit.keys,
            unit.table.take(random.Random(3).sample(range(N_LATENTS), N_LATENTS)),
            "latent",
        )
        for unit in random.Random(2).sample(sources(config), len(sources(config)))
    ]
    table, shares = rank_latents(config, {"latents": cells})
    assert table.to_pylist() == found[0]
    key = lambda row: str([*row.items()])  # noqa: E731
    assert sorted(shares, key=key) == sorted(found[1], key=key)


def test_saes_along_their_training_are_not_ranked() -> None:
    data = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config = study(saes={"topk": {**data["saes"]["topk"], "checkpoints": [0.1]}})
    cells = sources(config)
    assert {unit.keys["sae"] for unit in cells} == {"topk", "topk@0.1"}
    table, shares = rank_latents(config, {"latents": cells})
    assert {row["sae"] for row in shares} == set(table["sae"].to_pylist()) == {"topk"}


def test_a_study_without_nulls_has_empty_tables() -> None:
    config = study(variants=["trained", "retrained"])
    table, shares = rank_latents(config, {"latents": sources(config)})
    assert (table.num_rows, shares) == (0, [])
    assert table.schema.equals(tables.SCHEMAS["latents_ranked"])
