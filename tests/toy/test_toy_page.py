from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from nullsae import paths
from nullsae.config.compute import Compute
from nullsae.config.toy import (
    DATA,
    SharkeySource,
    Toy,
    ToyTraining,
    WordVectorsSource,
    toy_cells,
    toy_figures,
)
from nullsae.core.errors import UserError
from nullsae.jobs.keys import ToyKeys
from nullsae.jobs.toy import ReportToyParams, TrainToyParams
from nullsae.tables import read_table
from nullsae.tables.toy import SWEEP, TOY
from nullsae.toy.charts import VARIANCES, averages, pareto, recovery
from nullsae.toy.page import at_equal_l0, interpolated, mean_and_sd, of_data, report_toy
from nullsae.toy.sweep import sweep, train_toy

SOURCE = SharkeySource(
    kind="sharkey", n_samples=600, d_input=16, n_true_features=24, mean_active=2.0
)


def job(cell: dict[str, str], toy: Toy) -> TrainToyParams:
    return TrainToyParams(
        seed=0,
        keys=ToyKeys.model_validate(
            {**cell, "expansion": int(cell["expansion"]), "seed": int(cell["seed"])}
        ),
        source=toy.sources[cell["source"]],
        gaussian=toy.gaussian,
        mlp_hidden_factor=toy.mlp_hidden_factor,
        training=toy.training,
        compute=Compute(device="cpu"),
    )


def nothing(done: int, total: int, loss: float) -> None:
    """Progress callback that does nothing."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Toy]:
    """Return a finished sweep of two sources, and its page."""
    root = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    lines = [f"w{i} " + " ".join(f"{x:.4f}" for x in rng.normal(size=6)) for i in range(400)]
    (root / "v.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    toy = Toy(
        sources={
            "sharkey": SOURCE,
            "words": WordVectorsSource(kind="word_vectors", path=str(root / "v.txt")),
        },
        expansion_factors=(2,),
        seeds=(0, 1),
        training=ToyTraining(
            epochs=12,
            batch_samples=64,
            lr=3e-3,
            n_l1_coefficients=4,
            min_l1_coefficient=3e-4,
            max_l1_coefficient=0.3,
        ),
    )
    for cell in toy_cells(toy):
        train_toy(job(cell, toy), root / paths.TOY_SWEEP.format(**cell), progress=nothing)
    report_toy(ReportToyParams(toy=toy, figure_formats=("svg", "png")), root)
    return root, toy


def test_a_sweep_has_a_row_per_coefficient_and_its_own_columns(made: tuple[Path, Toy]) -> None:
    root, toy = made
    for cell in toy_cells(toy):
        rows = read_table(root / paths.TOY_SWEEP.format(**cell), SWEEP).to_pylist()
        assert [r["l1_coefficient"] for r in rows] == pytest.approx([3e-4, 3e-3, 3e-2, 0.3])
        d = 16 if cell["source"] == "sharkey" else 6
        assert {(r["d_input"], r["n_latents"]) for r in rows} == {(d, 2 * d)}
        n = 600 if cell["source"] == "sharkey" else 400
        assert {(r["n_train"], r["n_heldout"]) for r in rows} == {(n - n // 10, n // 10)}
        # A larger penalty makes codes sparser, and they explain less.
        assert (np.diff([r["l1"] for r in rows]) < 0).all()
        assert (np.diff([r["explained_variance"] for r in rows]) < 0).all()
        is_data, is_mlp = cell["data"] == "data", cell["data"] == "mlp_of_data"
        known = cell["source"] == "sharkey"
        for row in rows:
            assert (row["mmcs"] is not None) == (row["true_l0"] is not None) == (is_data and known)
            assert (row["image_mmcs"] is not None) == (is_mlp and known)


def test_a_middle_coefficient_recovers_the_true_features() -> None:
    # Without unit variance of the normals, true features are about equally common.
    source = SharkeySource(
        kind="sharkey",
        n_samples=3000,
        d_input=16,
        n_true_features=24,
        mean_active=2.0,
        normalize_covariance=False,
    )
    training = ToyTraining(
        epochs=60,
        batch_samples=64,
        lr=3e-3,
        n_l1_coefficients=3,
        min_l1_coefficient=3e-4,
        max_l1_coefficient=3.0,
    )
    toy = Toy(sources={"sharkey": source}, training=training)
    rows = sweep(job(next(toy_cells(toy)), toy))
    found = [row["mmcs"] for row in rows]
    assert rows[0]["mmcs_at_start"] < 0.6
    # Middle coefficients recover them, as in the paper's figure 4; neither end does.
    assert found[1] > 0.9
    assert max(found[0], found[2]) < 0.75


def test_a_job_run_twice_gives_the_same_numbers(made: tuple[Path, Toy]) -> None:
    root, toy = made
    cell = next(toy_cells(toy))
    found = read_table(root / paths.TOY_SWEEP.format(**cell), SWEEP).to_pylist()
    assert found == sweep(job(cell, toy))


def test_the_table_is_all_sweeps(made: tuple[Path, Toy]) -> None:
    root, toy = made
    table = read_table(root / paths.TOY_TABLE, TOY)
    assert table.num_rows == 2 * 4 * 2 * 4
    rows = table.to_pylist()
    for cell in toy_cells(toy):
        own = [
            {name: row[name] for name in SWEEP.names}
            for row in rows
            if all(str(row[key]) == value for key, value in cell.items())
        ]
        assert own == read_table(root / paths.TOY_SWEEP.format(**cell), SWEEP).to_pylist()


def test_the_page_needs_no_script_and_lacks_no_figure(made: tuple[Path, Toy]) -> None:
    root, toy = made
    page = (root / paths.TOY_PAGE).read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("<svg") == 5
    assert not re.findall(r"""(?:src|href)=["']https?:""", page)
    for figure in toy_figures(toy):
        svg = (root / paths.FIGURE.format(figure=figure, format="svg")).read_text(encoding="utf-8")
        assert svg.startswith("<svg")
        png = (root / paths.FIGURE.format(figure=figure, format="png")).read_bytes()
        assert png.startswith(b"\x89PNG")
    # All curves are labelled and have marks.
    pareto = (root / paths.FIGURE.format(figure="toy.sharkey", format="svg")).read_text()
    for label in ("input", "Gaussian input", "random MLP of input", "random MLP of Gaussian"):
        assert label in pareto


def test_the_charts_are_valid(made: tuple[Path, Toy]) -> None:
    """Drawing does not check them against Vega-Lite's schema."""
    root, _ = made
    rows = read_table(root / paths.TOY_TABLE, TOY).to_pylist()
    own = [row for row in rows if row["source"] == "sharkey"]
    for variance in VARIANCES:
        pareto(own, variance, title="kept").to_dict()
    recovery(own, title="found").to_dict()


def test_the_same_sweeps_give_the_same_page(made: tuple[Path, Toy], tmp_path: Path) -> None:
    root, toy = made
    before = (root / paths.TOY_PAGE).read_bytes(), (root / paths.TOY_TABLE).read_bytes()
    report_toy(ReportToyParams(toy=toy, figure_formats=("svg",)), root)
    assert before == ((root / paths.TOY_PAGE).read_bytes(), (root / paths.TOY_TABLE).read_bytes())


def test_a_missing_sweep_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sweep\.parquet: the file is missing; rebuild it with: "):
        report_toy(ReportToyParams(toy=Toy()), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_value_between_two_points_is_that_of_a_line_in_log_l0() -> None:
    l0, ev = [8.0, 2.0, 32.0, 0.0, 4.0], [0.6, 0.2, 1.0, -0.5, None]
    assert interpolated(l0, ev, 4.0) == pytest.approx(0.4)
    assert interpolated(l0, ev, 16.0) == pytest.approx(0.8)
    assert interpolated(l0, ev, 32.0) == pytest.approx(1.0)
    assert interpolated(l0, ev, 1.9) is None
    assert interpolated(l0, ev, 33.0) is None
    assert interpolated([0.0], [0.1], 1.0) is None


def rows_of(evs: dict[tuple[str, int], tuple[float, float]]) -> list[dict[str, Any]]:
    """Return sweeps of two coefficients with an L0 of 1 and 16."""
    return [
        {
            **{"data": data, "seed": seed, "expansion": 2, "n_latents": 32, "d_input": 16},
            **{"l1_coefficient": 1 / l0, "l0": l0, "explained_variance": ev},
        }
        for (data, seed), pair in evs.items()
        for l0, ev in zip((1.0, 16.0), pair, strict=True)
    ]


def test_gaps_are_taken_within_seeds() -> None:
    evs = {(data, seed): (0.0, 1.0) for data in DATA for seed in (0, 1)}
    evs["data", 0], evs["gaussian", 0] = (0.4, 0.8), (0.2, 0.6)
    evs["data", 1], evs["gaussian", 1] = (0.2, 0.8), (0.1, 0.7)
    found = {row["l0"]: row for row in at_equal_l0(rows_of(evs), "explained_variance")}
    assert list(found) == [1.0, 2.0, 4.0, 8.0]
    assert found[1.0]["data"] == pytest.approx(0.3)
    # Within seeds 0.2 and 0.1, so the standard error is 0.1 / sqrt(2).
    assert found[1.0]["gap"] == pytest.approx((0.15, 0.1 / 2**0.5))
    assert found[4.0]["gap"] == pytest.approx((0.15, 0.1 / 2**0.5))
    assert found[4.0]["mlp_gap"] == pytest.approx((0.0, 0.0))


def test_a_seed_without_a_value_leaves_no_mean() -> None:
    assert mean_and_sd([0.1, None]) == (None, None)
    assert mean_and_sd([]) == (None, None)
    assert mean_and_sd([0.1]) == (0.1, None)
    rows = [
        {"data": "data", "expansion": 2, "l1_coefficient": 0.1, "seed": seed, "hoyer": hoyer}
        for seed, hoyer in ((0, 0.5), (1, None))
    ]
    assert averages(rows, ["hoyer"])[0]["hoyer"] is None
    assert averages(rows[:1], ["hoyer"])[0]["hoyer"] == 0.5


def test_data_is_described_once_for_all_seeds(made: tuple[Path, Toy]) -> None:
    root, _ = made
    rows = [
        row
        for row in pq.ParquetFile(root / paths.TOY_TABLE).read().to_pylist()
        if row["source"] == "sharkey"
    ]
    found = of_data(rows)
    assert [row["data"] for row in found] == list(DATA)
    hoyers = {row["seed"]: row["data_hoyer"] for row in rows if row["data"] == "data"}
    assert found[0]["data_hoyer"] == pytest.approx(np.mean([hoyers[0], hoyers[1]]))


def test_a_split_that_leaves_nothing_to_train_on_is_named() -> None:
    toy = Toy(
        sources={"sharkey": SOURCE.model_copy(update={"n_samples": 20})},
        training=ToyTraining(heldout_share=0.99),
    )
    with pytest.raises(UserError, match=r"config: toy\.training\.heldout_share: 0\.99 of 20 sam"):
        sweep(job(next(toy_cells(toy)), toy))
