"""Gates: what a variant must pass before anything is measured on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from nullsae.errors import UserError

# A gate that fails by chance once in some 10^9 normal draws.
STANDARD_ERRORS = 6.0
# Below this size a correlation says nothing.
MIN_CORRELATED_ENTRIES = 64


class Gate(TypedDict):
    """One gate's result."""

    gate: str
    passed: bool
    detail: str


def passed(gate: str, detail: str) -> Gate:
    """A gate that holds."""
    return {"gate": gate, "passed": True, "detail": detail}


def failed(gate: str, detail: str) -> Gate:
    """A gate that does not."""
    return {"gate": gate, "passed": False, "detail": detail}


def inventory(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> Gate:
    """The same tensors with the same shapes and dtypes."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None or new is None or old.shape != new.shape or old.dtype != new.dtype:
            return failed("inventory", f"{name}: not the same tensor in both")
    return passed("inventory", f"{len(before)} tensors")


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: set[str]) -> Gate:
    """Every tensor in `names` differs from the original (unless constant), no other does."""
    for name, old in before.items():
        same = torch.equal(old, after[name])
        constant = bool((old == old.flatten()[0]).all())
        if name in names and same and not constant:
            return failed("changed", f"{name}: should have changed and did not")
        if name not in names and not same:
            return failed("changed", f"{name}: changed and should not have")
    return passed("changed", f"{len(names)} of {len(before)} tensors")


def moments(before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: set[str]) -> Gate:
    """Mean and variance of each redrawn tensor lie within 6 standard errors of the original's.

    Standard errors of n normal draws: std / sqrt(n) for the mean, variance * sqrt(2 / n) for the
    variance.
    """
    largest = 0.0
    for name in sorted(names):
        old, new = before[name].double(), after[name].double()
        n, variance = old.numel(), float(old.var(correction=0))
        if n < 2 or variance == 0:
            continue
        mean_errors = abs(float(new.mean() - old.mean())) / math.sqrt(variance / n)
        # The variance of a sample about its own mean falls short by 1/n on average.
        expected = variance * (n - 1) / n
        spread = variance * math.sqrt(2 / n)
        variance_errors = abs(float(new.var(correction=0)) - expected) / spread
        # A few draws have a skewed variance: the normal bound holds from some dozens on.
        errors = max(mean_errors, variance_errors if n >= MIN_CORRELATED_ENTRIES else 0.0)
        if errors > STANDARD_ERRORS:
            return failed("moments", f"{name}: {errors:.1f} standard errors off")
        largest = max(largest, errors)
    return passed("moments", f"largest deviation {largest:.2f} standard errors")


def uncorrelated(
    before: Mapping[str, Tensor], after: Mapping[str, Tensor], names: set[str]
) -> Gate:
    """|correlation| of each redrawn tensor with the original is below 6 / sqrt(n)."""
    largest = 0.0
    for name in sorted(names):
        old, new = before[name].double().flatten(), after[name].double().flatten()
        if old.numel() < MIN_CORRELATED_ENTRIES or old.std() == 0 or new.std() == 0:
            continue
        correlation = abs(float(torch.corrcoef(torch.stack([old, new]))[0, 1]))
        if correlation > STANDARD_ERRORS / math.sqrt(old.numel()):
            return failed(
                "uncorrelated", f"{name}: correlation {correlation:.3f} with the original"
            )
        largest = max(largest, correlation)
    return passed("uncorrelated", f"largest |correlation| {largest:.4f}")


def repeatable(after: Mapping[str, Tensor], again: Mapping[str, Tensor]) -> Gate:
    """A second draw with the same key gives identical bits."""
    for name, tensor in after.items():
        if not torch.equal(tensor, again[name]):
            return failed("repeatable", f"{name}: a second draw with the same key differs")
    return passed("repeatable", f"{len(after)} tensors bit-identical")


def reloads(saved: Tensor, reloaded: Tensor) -> Gate:
    """Logits before the save and after the reload are identical."""
    if not torch.equal(saved, reloaded):
        worst = float((saved - reloaded).abs().max())
        return failed("reloads", f"logits differ by up to {worst:.3g} after save and reload")
    return passed("reloads", "logits identical after save and reload")


def finite(activations: Mapping[str, Tensor], logits: Tensor) -> Gate:
    """No NaN and no infinity at any site or in the logits."""
    for name, tensor in {**activations, "logits": logits}.items():
        if not bool(torch.isfinite(tensor).all()):
            return failed("finite", f"{name}: NaN or infinite values")
    return passed("finite", f"{len(activations)} sites and the logits")


def noise(first: Tensor, other_batch: Tensor, plain: Tensor, std: float) -> Sequence[Gate]:
    """The embedding noise is N(0, std^2), the same in any batch, and replaces the embedding.

    Args:
        first: [contexts, tokens, d] embeddings as the subject saw them.
        other_batch: the same contexts run in another order, put back in place.
        plain: the embeddings without noise.
        std: the configured standard deviation.
    """
    gates = []
    same = torch.equal(first, other_batch)
    gates.append(
        passed("noise repeatable", "identical in another batch")
        if same
        else failed("noise repeatable", "embedding: noise depends on the batch")
    )
    values, n = first.double().flatten(), first.numel()
    mean_errors = abs(float(values.mean())) / (std / math.sqrt(n))
    variance_errors = abs(float(values.var()) - std**2) / (std**2 * math.sqrt(2 / n))
    errors = max(mean_errors, variance_errors)
    text = f"embedding: {errors:.2f} standard errors from N(0, {std}^2)"
    gates.append(
        passed("noise moments", text)
        if errors <= STANDARD_ERRORS
        else failed("noise moments", text)
    )
    stacked = torch.stack([values, plain.double().flatten()])
    correlation = abs(float(torch.corrcoef(stacked)[0, 1]))
    text = f"embedding: correlation {correlation:.4f} with the trained one"
    limit = STANDARD_ERRORS / math.sqrt(n)
    gates.append(
        passed("noise replaces", text) if correlation <= limit else failed("noise replaces", text)
    )
    return gates


def require(gates: Sequence[Gate], where: str) -> None:
    """Stop at the first failed gate.

    Raises:
        UserError: names the folder, the gate and the tensor.
    """
    for gate in gates:
        if not gate["passed"]:
            raise UserError(f"{where}: gate {gate['gate']!r} failed: {gate['detail']}")


def state(model: Any) -> dict[str, Tensor]:
    """A copy of a model's parameters by name, on the CPU; tied tensors once."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}
