"""`benchmarks/false_alarms.py` on the tables of a random study."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scipy.stats
import test_aggregation_study as study_of
import yaml

from nullsae import paths, tables
from nullsae.aggregation import aggregate
from nullsae.config.study import Config
from nullsae.jobs.grid import cell_files
from script_files import script_module

N_LATENTS = 20
# AUROC of each draw; trained's gives a margin of (0.9 - 0.5) / 10.
MEANS = {"trained": [0.9], "rerandomized": [0.60, 0.61, 0.62, 0.70, 0.80]}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return script_module("benchmarks/false_alarms.py")


def replicated() -> Config:
    config = study_of.study(draws=5, statistics={"n_resamples": 400})
    (topk,) = config.saes.values()
    seeds = topk.model_copy(update={"seeds": (0, 1, 2)})
    return config.model_copy(update={"saes": {"topk": seeds}})


def scores(keys: dict[str, str]) -> np.ndarray:
    """Return AUROCs of a cell's latents, symmetric about its mean; seeds differ by 0.01."""
    mean = MEANS[keys["variant"]][int(keys["draw"])] + 0.01 * int(keys["seed"])
    return mean + 0.05 * np.linspace(-1, 1, N_LATENTS)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root, config = tmp_path_factory.mktemp("replicated"), replicated()
    rng = np.random.default_rng(0)
    for table, files in cell_files(config).items():
        for file in files:
            keys = paths.partition_keys(file)
            rows: list[dict[str, Any]] = [study_of.filled(table)]
            if table in ("latents", "scores"):
                rows = [study_of.filled(table, latent=i) for i in range(N_LATENTS)]
            if table == "scores":
                rows = [
                    row | {"auroc": float(auroc)}
                    for row, auroc in zip(rows, scores(keys), strict=True)
                ]
            if table == "documents":
                # Draws differ by far more than documents explain, and by far less than a margin.
                own = 0.7 if keys["variant"] == "trained" else 0.3 + 0.002 * int(keys["draw"])
                rows = [
                    study_of.filled(
                        table,
                        document=i,
                        squared_error=1 - own + float(rng.normal(0, 1e-4)),
                        squared_deviation=1.0,
                    )
                    for i in range(12)
                ]
            tables.write_table(root / file, rows, tables.cell_schema(table))
    aggregate(config, root)
    (root / paths.RUN_CONFIG).write_text(yaml.safe_dump(config.model_dump(mode="json")))
    return root


def told_apart(one: np.ndarray, other: np.ndarray, margin: float) -> bool:
    """Decide by Welch's interval, computed with scipy."""
    interval = scipy.stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    return bool(interval.low > margin or interval.high < -margin)


def test_pairs_of_one_kind_are_told_apart_by_welchs_interval(
    script: ModuleType, root: Path
) -> None:
    config = replicated()
    found = {
        (f.metric, f.kind): f
        for f in script.false_alarms(config, script.read_sources(config, root))
    }
    # Margins come from the trained arm, the mean of its seeds: 0.91.
    margin = 0.1 * (0.91 - 0.5)
    cells = {
        (variant, draw, seed): scores({"variant": variant, "draw": str(draw), "seed": str(seed)})
        for variant, means in MEANS.items()
        for draw in range(len(means))
        for seed in range(3)
    }
    for kind, differing in (("draws", 1), ("seeds", 2)):
        pairs = [
            (cells[one], cells[other])
            for one, other in combinations(cells, 2)
            if [a != b for a, b in zip(one, other, strict=True)]
            == [i == differing for i in range(3)]
        ]
        expected = [told_apart(*pair, margin) for pair in pairs]
        of_auroc = found["auroc", kind]
        assert of_auroc.n_pairs == len(pairs) == {"draws": 30, "seeds": 18}[kind]
        assert of_auroc.n_apart == sum(expected) == {"draws": 21, "seeds": 0}[kind]
        # The test of no difference tells them apart; the margin does not.
        variance = found["explained_variance", kind]
        assert (variance.n_pairs, variance.n_apart) == (len(pairs), 0)


def test_a_contrast_of_replicated_arms_pools_seeds_over_all_draws(root: Path) -> None:
    """Trained has three seeds; those of five other draws add 12 degrees of freedom to its 2."""
    row = study_of.only(study_of.read(root, "contrasts"), metric="auroc")
    of_draws = float(np.var(MEANS["rerandomized"], ddof=1)) / 5
    of_seeds = float(np.var([0.0, 0.01, 0.02], ddof=1)) / 3
    assert row["standard_error"] ** 2 == pytest.approx(of_draws + of_seeds, rel=1e-9)
    df = (of_draws + of_seeds) ** 2 / (of_draws**2 / 4 + of_seeds**2 / 12)
    assert row["df"] == pytest.approx(df, rel=1e-9)
    low, high = (row[f"real_{end}"] for end in ("low", "high"))
    half = scipy.stats.t.ppf(0.975, 12) * np.sqrt(of_seeds)
    assert (low, high) == pytest.approx((0.91 - half, 0.91 + half), rel=1e-9)


def test_a_metric_that_tells_too_many_apart_is_named_with_exit_code_1(
    script: ModuleType, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(root)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["metric", "kind", "pairs", "apart", "share"]
    (auroc,) = [line for line in lines if line.split()[:2] == ["auroc", "draws"]]
    assert auroc.split()[2:] == ["30", "21", "70.0%", "more", "than", "7%"]
    assert [line for line in lines if "more than" in line] == [auroc]


def test_pairs_differ_in_only_one_thing(script: ModuleType) -> None:
    cells = [("trained", 0, 0), ("trained", 0, 1), ("retrained", 0, 1), ("rerandomized", 0, 1)]
    cells += [("rerandomized", 2, 1), ("rerandomized", 2, 0), ("permuted_weights", 0, 1)]
    cells += [("retrained", 3, 0)]
    found = {
        (kind, frozenset((one, other))) for kind, one, other in script.pairs_of_one_kind(cells)
    }
    assert found == {
        ("seeds", frozenset((cells[0], cells[1]))),
        ("retrained", frozenset((cells[1], cells[2]))),
        ("retrained", frozenset((cells[0], cells[7]))),
        ("draws", frozenset((cells[3], cells[4]))),
        ("seeds", frozenset((cells[4], cells[5]))),
    }


def test_a_study_without_pairs_or_tables_is_one_line(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert script.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    config = study_of.study(draws=1)
    study_of.write_tree(config, tmp_path)
    aggregate(config, tmp_path)
    (tmp_path / paths.RUN_CONFIG).write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert script.main([str(tmp_path)]) == 2
    assert "no two cells of one kind" in capsys.readouterr().err
