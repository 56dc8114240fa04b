"""The plugin's choice of a partition, from the project's file."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.slurm
PARTITIONS = Path(__file__).parents[2] / "profiles/slurm/partitions.yaml"


@pytest.mark.parametrize(
    ("asked", "partition"),
    [
        ({"gpu": 1, "mem_mb": 8_000, "runtime": 240}, "gpu"),
        ({"gpu": 1, "mem_mb": 256_000, "runtime": 10_080}, "gpu"),
        ({"gpu": 0, "mem_mb": 1_000, "runtime": 120}, "main"),
        ({"mem_mb": 256_000, "runtime": 10_080}, "main"),
    ],
)
def test_a_job_goes_where_it_belongs(asked: dict[str, Any], partition: str) -> None:
    partitions = pytest.importorskip("snakemake_executor_plugin_slurm.partitions")
    job = SimpleNamespace(name="job", threads=4, resources=asked)
    known = partitions.read_partition_file(PARTITIONS)
    assert partitions.get_best_partition(known, job, logging.getLogger()) == partition
