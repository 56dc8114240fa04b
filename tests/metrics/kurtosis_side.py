"""The other side of test_metrics_of_others.py: tests that run where `kurtosis` is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import report_study
import scipy.stats
import test_aggregation_study as study_of
import yaml
from test_latents_statistics import CONTEXT, N_LATENTS, firings_of, random_case

from nullsae import tables
from nullsae.aggregation import aggregate
from nullsae.config.latents import Latents
from nullsae.config.parse import config_schema, parse_config
from nullsae.config.study import Config
from nullsae.latents.describe import describe
from nullsae.latents.windows import Grid, deal_documents, pools_of
from nullsae.report.figures import draw_figure
from nullsae.report.names import figure_names, metric_group
from nullsae.report.study import load_study
from nullsae.tables.cells import CELL_TABLES

OWN = ("decoder_rank", "kurtosis", "position_share")


@pytest.mark.parametrize("piece_firings", [1, 2**19])
def test_the_column_is_scipys_however_firings_are_cut(
    piece_firings: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nullsae.latents.store.PIECE_FIRINGS", piece_firings)
    dense, split = random_case(3, n_contexts=8)
    firings = firings_of(dense)
    assert (len(list(firings.pieces(CONTEXT))) > N_LATENTS) == (piece_firings == 1)
    grid = Grid.cut(split.document.reshape(-1, CONTEXT), 4)
    dealt = deal_documents(grid, np.random.default_rng(0))
    pools = pools_of(grid.document, dealt)
    known = describe(firings, split, grid, pools, dealt, Latents(), tmp_path, split.n_tokens)
    found = known.statistics["kurtosis"]
    for latent, column in enumerate(dense.T[:-2].astype(np.float64)):
        expected = scipy.stats.kurtosis(column[column > 0])
        assert found[latent] == pytest.approx(expected, rel=1e-9)
    # Without spread, and without a firing.
    assert np.isnan(found[-2:]).all()


def test_the_column_ends_the_table_and_may_be_null(tmp_path: Path) -> None:
    schema = tables.cell_schema("latents")
    assert schema.names[-1] == "kurtosis" == tables.SCHEMAS["latents"].names[-1]
    assert schema.field("kurtosis").nullable
    assert schema.field("kurtosis").metadata == {b"unit": b"excess, over firings"}
    assert CELL_TABLES["latents"][1] is schema


def aggregated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Config) -> None:
    """Write a study with latents of kurtosis 1, 3 and 8, and 2 more per draw in the null."""
    before = study_of.rows_of

    def rows_of(table: str, keys: dict[str, str]) -> list[dict[str, Any]]:
        rows = before(table, keys)
        is_null = keys.get("variant") == "rerandomized"
        if table == "latents":
            for row, value in zip(rows, (1.0, 3.0, 8.0, None), strict=True):
                row["kurtosis"] = value and value + is_null * (2.0 + int(keys["draw"]))
                row |= {"mean_position_tokens": 6.0, "sd_position_tokens": 2.0 + row["latent"]}
        if table == "geometry":
            rows[0]["effective_rank"] = 30.0 + is_null * int(keys["draw"])
        return rows

    monkeypatch.setattr(study_of, "rows_of", rows_of)
    monkeypatch.setitem(study_of.FILLERS, pa.float64(), 0.5)
    study_of.write_tree(config, tmp_path)
    aggregate(config, tmp_path)


def test_metrics_of_others_have_contrasts_and_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = {"n_resamples": 400, "equivalence_margins": {"kurtosis": 0.75}}
    config = study_of.study(statistics=statistics)
    aggregated(tmp_path, monkeypatch, config)
    rows = {r["metric"]: r for r in study_of.read(tmp_path, "contrasts") if r["metric"] in OWN}
    assert tuple(rows) == OWN
    rank, kurtosis, share = rows.values()
    assert kurtosis["unit"] == "latent"
    assert kurtosis["real_value"] == pytest.approx(4.0)
    assert kurtosis["difference"] == pytest.approx(2.5)
    assert kurtosis["margin"] == 0.75
    assert kurtosis["p_value"] is not None
    # Computed from two existing columns.
    assert share["value"] == pytest.approx((3 + 2 + 1.5) / 3)
    # One number per cell, so only draws can vary.
    assert rank["unit"] == "cell"
    assert rank["value"] == pytest.approx(30.5)
    assert rank["n_units"] == 2
    assert rank["matched_reason"] == "cells have no firing rate"
    words = {row["metric"] for row in study_of.read(tmp_path, "verdicts")}
    assert {*OWN} <= words


def test_metrics_of_others_have_figures_with_captions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in OWN:
        monkeypatch.setitem(report_study.CENTRE, name, (3.0, 1.0))
    before = report_study._latents
    monkeypatch.setattr(
        report_study, "_latents", lambda *a: [row | {"kurtosis": 1.5} for row in before(*a)]
    )
    config = parse_config(yaml.safe_load(report_study.DEFAULT.read_text(encoding="utf-8")))
    assert {f"small.{name}" for name in OWN} <= set(figure_names(config))
    report_study.write_study(tmp_path, config)
    figure = draw_figure(load_study(config, tmp_path), "small", "kurtosis")
    assert figure.title == "Excess kurtosis of activations"
    assert figure.caption.startswith("m4 / m2² - 3 of the activations")
    assert "resampled over latents" in figure.svg
    assert metric_group("kurtosis") == "Token identity and entropy"
    assert metric_group("decoder_rank") == "Dictionaries"


def test_a_margin_of_another_package_is_a_key_of_the_config() -> None:
    sections = json.loads(config_schema())["$defs"]
    for section, default in (("MarginShares", 0.2), ("EquivalenceMargins", None)):
        margins = sections[section]["properties"]
        assert list(margins)[-3:] == ["decoder_rank", "kurtosis", "position_share"]
        assert margins["kurtosis"]["default"] == default
