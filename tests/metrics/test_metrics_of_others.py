"""A metric is one file, even in another package and with its own column."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from nullsae.config.metrics import METRICS, Metric, all_metrics
from nullsae.config.variants import VARIANTS, is_positive_control

HERE = Path(__file__).parent
POINTS = """[nullsae.metrics]
kurtosis = kurtosis:Kurtosis
position_share = kurtosis:PositionShare
decoder_rank = kurtosis:EffectiveRank
"""


@pytest.mark.slow
def test_a_metric_of_another_package_goes_from_firings_to_the_page(tmp_path: Path) -> None:
    shutil.copy(HERE / "kurtosis.py", tmp_path)
    info = tmp_path / "kurtosis-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kurtosis\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    rooms = [HERE.parent / room for room in ("latents", "aggregation", "report")]
    path = [tmp_path, *rooms, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", HERE / "kurtosis_side.py"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path))},
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_metrics_of_the_package_stand_in_the_order_of_their_positions() -> None:
    found = all_metrics()
    assert [metric.name for metric in found] == list(METRICS)
    positions = [metric.position for metric in found]
    assert positions == sorted(set(positions))


def test_one_null_may_have_a_direction_of_its_own() -> None:
    metric = METRICS["peak_token_share"]()
    without_tokens = {"noise_embeddings", "gaussian"}
    for variant in VARIANTS:
        expected = 1 if variant in without_tokens else -1
        # A retrained model has no expected side.
        found = metric.direction_against(variant)
        assert found == (0 if is_positive_control(variant) else expected)

    class Other(type(metric)):  # type: ignore[misc]
        directions = {"step0": 1}  # noqa: RUF012

    assert Other().direction_against("step0") == 1
    assert Other().direction_against("rerandomized") == -1


def test_a_metric_that_lacks_something_says_so() -> None:
    with pytest.raises(TypeError, match=r"metric 'bare': lacks title, columns, floor, section"):
        type("Bare", (Metric,), {"name": "bare"})
    whole = dict.fromkeys(("title", "definition", "reading", "section"), "text")
    with pytest.raises(
        TypeError, match=r"metric 'odd': section 'text' is not one of effects, reconstruction"
    ):
        type("Odd", (Metric,), {"name": "odd", "columns": ("c",), "floor": 1.0, **whole})
