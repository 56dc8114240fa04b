"""Activations of any size are scaled to one mean norm before an SAE is trained on them."""

from __future__ import annotations

import pytest
import torch

from nullsae.core.randomness import torch_generator
from nullsae.sae.training_run import Sample


@pytest.mark.parametrize("size", [1e-25, 1e-12, 1.0, 1e19])
def test_the_mean_norm_becomes_the_root_of_the_width(size: float) -> None:
    x = torch.randn(64, 16, generator=torch_generator(0, "scale"))
    found = Sample.of(x * size, torch.device("cpu"))
    assert float(found.x.norm(dim=1).mean()) == pytest.approx(4.0, rel=1e-5)
    assert found.scale * size == pytest.approx(Sample.of(x, torch.device("cpu")).scale, rel=1e-5)


def test_a_first_block_of_zeros_stays_as_it_is() -> None:
    found = Sample.of(torch.zeros(8, 16), torch.device("cpu"))
    assert (found.scale, float(found.x.abs().max())) == (1.0, 0.0)
