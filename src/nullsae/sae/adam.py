"""Adam (Kingma & Ba 2015) by PyTorch's fused kernel.

`torch.optim.Adam` calls the same kernel with bit-identical results. It also imports PyTorch's
compiler, which takes longer than all steps of a small training.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

STATE = ("step", "exp_avg", "exp_avg_sq")
"""The state of each parameter, with the names that `torch.optim.Adam` uses."""


class Adam:
    """The averages of gradients that determine the steps of some tensors."""

    def __init__(self, betas: tuple[float, float], epsilon: float = 1e-8) -> None:
        """Start before the first step; `betas` are the decays of the two averages, per step."""
        self.betas, self.epsilon = betas, epsilon
        self.state: dict[str, dict[str, Tensor]] = {}
        """By parameter name; a parameter has no entry before its first step."""

    @torch.no_grad()
    def step(
        self, parameters: Mapping[str, Tensor], gradients: Mapping[str, Tensor], lr: float
    ) -> None:
        """Update parameters in place: float tensors of one device and type, and their gradients."""
        for name, parameter in parameters.items():
            if name not in self.state:
                zero = torch.zeros((), dtype=torch.float32, device=parameter.device)
                own = (zero, torch.zeros_like(parameter), torch.zeros_like(parameter))
                self.state[name] = dict(zip(STATE, own, strict=True))
        steps, averages, squares = ([self.state[n][key] for n in parameters] for key in STATE)
        torch._foreach_add_(steps, 1)
        torch._fused_adam_(
            [*parameters.values()],
            [gradients[name] for name in parameters],
            averages,
            squares,
            [],
            steps,
            amsgrad=False,
            lr=lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=0.0,
            eps=self.epsilon,
            maximize=False,
        )
