"""Adam compared with PyTorch's own."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import Tensor

from nullsae.sae.adam import STATE, Adam


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (30, 20), "bias": (30,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_steps_and_averages_are_those_of_pytorch_to_the_bit() -> None:
    own, theirs = tensors(0), tensors(0)
    adam, betas = Adam((0.5, 0.95)), (0.5, 0.95)
    other = torch.optim.Adam([*theirs.values()], lr=1.0, betas=betas, fused=True)
    for step in range(5):
        gradients = tensors(step + 1)
        rate = 1e-2 / (step + 1)
        adam.step(own, gradients, rate)
        for name, parameter in theirs.items():
            parameter.grad = gradients[name].clone()
        other.param_groups[0]["lr"] = rate
        other.step()
    for name, parameter in theirs.items():
        assert torch.equal(own[name], parameter)
        for key in STATE:
            assert torch.equal(adam.state[name][key], other.state[parameter][key])


def test_training_an_sae_does_not_load_the_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from nullsae.config.saes import Sae\n"
        "from nullsae.sae.initialization import initialize\n"
        "from nullsae.sae.trainer import Trainer\n"
        "x = torch.randn(64, 8)\n"
        "start = initialize(x, n_latents=16, k=2, generator=torch.Generator())\n"
        "trainer = Trainer(Sae.of(k=2, n_latents=16, batch_tokens=64), 3, start, k=2)\n"
        "trainer.train_step(x)\n"
        "sys.exit('torch._dynamo' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
