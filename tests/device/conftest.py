"""The device that the tests of this folder compute on: `NULLSAE_TEST_DEVICE`, or the best here.

They hold what runs on it to a reference in float64 or on the CPU, so that they also say something
where there is no GPU. `benchmarks/gpu_check.sh` runs them.
"""

from __future__ import annotations

import os

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def device() -> torch.device:
    found = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(os.environ.get("NULLSAE_TEST_DEVICE", found))


@pytest.fixture(scope="session")
def last_device(device: torch.device) -> str:
    """The last GPU by its number, as `compute.device` names it: not the current one if several."""
    return f"cuda:{torch.cuda.device_count() - 1}" if device.type == "cuda" else str(device)
