"""Gates: what a variant must pass before anything is measured on it."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, TypedDict

import torch
import xxhash
from torch import Tensor

from nullsae.core.errors import UserError

# A gate that fails by chance about once in 10^9 normal draws.
STANDARD_ERRORS = 6.0
# The same for a product of two independent normals: P(|xy| > t) falls like exp(-t).
PRODUCT_ERRORS = 20.0
# With fewer entries a correlation is meaningless.
MIN_CORRELATED_ENTRIES = 64
# Rows of a rotated embedding whose inner products are compared.
SAMPLED_ROWS = 256
# Relative rounding error of float64 in a factorization or product.
FLOAT64_SLACK = 1e-10

State = Mapping[str, Tensor]
"""Tensors by name."""


class Gate(TypedDict):
    """One gate's result."""

    gate: str
    passed: bool
    detail: str


class Chance(Protocol):
    """What a `nullsae.subjects.changes.Change` knows about the correlation with the original."""

    @property
    def by_row(self) -> bool: ...

    def limit(self, a: Tensor, b: Tensor) -> float: ...


def judged(gate: str, holds: bool, detail: str) -> Gate:
    """Return a gate with this outcome."""
    return {"gate": gate, "passed": holds, "detail": detail}


def passed(gate: str, detail: str) -> Gate:
    """Return a passed gate."""
    return judged(gate, True, detail)


def failed(gate: str, detail: str) -> Gate:
    """Return a failed gate."""
    return judged(gate, False, detail)


def inventory(before: State, after: State) -> Gate:
    """Check that the tensors have the same names, shapes and dtypes."""
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None or new is None or old.shape != new.shape or old.dtype != new.dtype:
            return failed("inventory", f"{name}: not the same tensor in both")
    return passed("inventory", f"{len(before)} tensors")


def changed(before: State, after: State, names: set[str]) -> Gate:
    """Check that every tensor in `names` differs from the original (unless constant), and no other.

    At least one must differ, or the variant would be the original under another name.
    """
    same = {name: torch.equal(old, after[name]) for name, old in before.items()}
    for name, old in before.items():
        if name in names and same[name] and not _is_constant(old):
            return failed("changed", f"{name}: should have changed and did not")
        if name not in names and not same[name]:
            return failed("changed", f"{name}: changed and should not have")
    if all(same.values()):
        return failed("changed", "no tensor differs from the original's")
    return passed("changed", f"{len(names)} of {len(before)} tensors")


def untrained(initial: State, trained: State) -> Gate:
    """Check that some initial tensor differs from the trained subject's, by name."""
    for name, tensor in initial.items():
        other = trained.get(name)
        if other is None or not torch.equal(tensor.to(other.device, other.dtype), other):
            return passed("untrained", f"{name} differs from the trained one")
    return failed("untrained", "every tensor equals the trained one: these are the trained weights")


def moments(before: State, after: State, names: set[str]) -> Gate:
    """Check that mean and variance of each redrawn tensor are within 6 standard errors.

    They are compared with the original's. Standard errors of n normal draws: std / sqrt(n) for the
    mean, variance * sqrt(2 / n) for the variance. The possible effect of rounding to the tensor's
    dtype is subtracted first.
    """
    largest = 0.0
    for name in sorted(names):
        old, new = before[name].double(), after[name].double()
        n, variance = old.numel(), float(old.var(correction=0))
        if not _is_finite(new):
            return failed("moments", f"{name}: NaN or infinite values")
        if _is_constant(old):
            continue
        # The variance of a sample about its own mean is too small by 1/n on average.
        spread = variance * math.sqrt(2 / n)
        errors = _moment_errors(new, old, variance * (n - 1) / n, spread, before[name].dtype)
        if errors > STANDARD_ERRORS:
            return failed("moments", f"{name}: {errors:.1f} standard errors off")
        largest = max(largest, errors)
    return passed("moments", f"largest deviation {largest:.2f} standard errors")


def _moment_errors(
    new: Tensor, like: Tensor, expected_variance: float, variance_error: float, dtype: torch.dtype
) -> float:
    """Return the larger deviation of a sample's mean and variance, in standard errors."""
    n, variance, step = new.numel(), float(like.var(correction=0)), rounding_step(like, dtype)
    # Rounding moves a mean by at most half a step, and much less if std exceeds the step: the
    # remainder (Euler-Maclaurin) comes from powers of 2, above which the step is twice as wide. The
    # variance about the mean moves by at most step^2 / 4, that of a fair coin between neighbours.
    mean_slack = min(step / 2, step**2 / (16 * math.sqrt(variance)))
    mean_off = max(0.0, abs(float(new.mean()) - float(like.mean())) - mean_slack)
    mean_errors = mean_off / math.sqrt(variance / n)
    variance_off = abs(float(new.var(correction=0)) - expected_variance) - step**2 / 4
    # The variance of few draws is skewed; the normal bound holds from some dozens on.
    if n < MIN_CORRELATED_ENTRIES:
        return mean_errors
    return max(mean_errors, max(0.0, variance_off) / variance_error)


def rounding_step(values: Tensor, dtype: torch.dtype) -> float:
    """Return the distance between neighbouring numbers of a dtype at the size of the entries."""
    limits = torch.finfo(dtype)
    root_mean_square = float(torch.linalg.vector_norm(values)) / math.sqrt(values.numel())
    return limits.eps * max(root_mean_square, limits.tiny)


def drawn_again(after: State, other: State) -> set[str]:
    """Return the names of tensors that are equal in two draws, without constant ones."""
    return {
        name
        for name, new in after.items()
        if not _is_constant(new) and torch.equal(new, other[name].to(new.dtype))
    }


def initializer(after: State, other: State, without_chance: Collection[str] = ()) -> Gate:
    """Check that initializer draws differ from the next draw, with the same moments.

    What the initializer does not draw, constants and the tensors in `without_chance`, must be the
    same. Mean and variance are uncertain in both draws, hence the factor sqrt(2); an initializer
    need not be normal, hence the fourth moment.
    """
    largest, n_drawn = 0.0, 0
    for name in sorted(after):
        new, another = after[name].double(), other[name].to(after[name].dtype).double()
        n, variance = another.numel(), float(another.var(correction=0))
        if not _is_finite(new):
            return failed("initializer", f"{name}: NaN or infinite values")
        if _is_constant(another) or name in without_chance:
            if not torch.equal(new, another):
                return failed("initializer", f"{name}: not the initializer's constant")
            continue
        if torch.equal(new, another):
            return failed("initializer", f"{name}: the same in another draw")
        fourth = float((another - another.mean()).pow(4).mean())
        spread = math.sqrt(max(fourth - variance**2, 2 * variance**2) / n)
        errors = _moment_errors(new, another, variance, spread, after[name].dtype) / math.sqrt(2)
        if errors > STANDARD_ERRORS:
            return failed("initializer", f"{name}: {errors:.1f} standard errors off another draw")
        largest, n_drawn = max(largest, errors), n_drawn + 1
    return passed(
        "initializer",
        f"{n_drawn} of {len(after)} tensors drawn, largest deviation from another draw "
        f"{largest:.2f} standard errors",
    )


def entries(before: State, after: State, names: set[str]) -> Gate:
    """Check that each permuted tensor contains exactly the original's entries."""
    for name in sorted(names):
        old, new = (_bits(state[name]).flatten().sort().values for state in (before, after))
        if not torch.equal(old, new):
            return failed("entries", f"{name}: not a permutation of the original's entries")
    return passed("entries", f"{len(names)} tensors contain the original's entries")


def spectrum(before: State, after: State, names: set[str]) -> Gate:
    """Check that the singular values of each matrix are the original's, to rounding.

    Rounding adds a matrix of norm up to u |W|, u the unit roundoff, and so moves the sorted
    singular values by no more than that, root sum square (Mirsky 1960). The bound is exact, not an
    estimate.
    """
    largest = 0.0
    for name in sorted(names):
        if not _is_finite(after[name]):
            return failed("spectrum", f"{name}: NaN or infinite values")
        old, new = (torch.linalg.svdvals(state[name].double()) for state in (before, after))
        size = float(old.norm())
        if size == 0:
            continue
        limits = torch.finfo(before[name].dtype)
        smallest_step = limits.eps * limits.tiny * math.sqrt(before[name].numel()) / size
        limit = (limits.eps + smallest_step) / 2 + FLOAT64_SLACK
        error = float((new - old).norm()) / size
        if error > limit:
            return failed(
                "spectrum",
                f"{name}: singular values off by {error:.3g} of their norm; rounding explains "
                f"{limit:.3g}",
            )
        largest = max(largest, error)
    return passed("spectrum", f"largest deviation of singular values {largest:.3g} of their norm")


def rows_permuted(before: State, after: State, names: set[str]) -> Gate:
    """Check that each embedding contains exactly the original's rows."""

    def keys(tensor: Tensor) -> list[bytes]:
        rows = tensor.contiguous().view(torch.uint8).numpy()
        return sorted(xxhash.xxh3_128_digest(row) for row in rows)

    for name in sorted(names):
        if keys(before[name]) != keys(after[name]):
            return failed("rows", f"{name}: not a permutation of the original's rows")
    return passed("rows", "the rows are the original's")


def rows_rotated(before: State, after: State, names: set[str]) -> Gate:
    """Check that norms of all rows, and inner products of a sample, are the original's, to
    rounding.

    Rounding moves a row by up to u times its norm, u the unit roundoff.
    """
    for name in sorted(names):
        old, new = before[name].double(), after[name].double()
        limits = torch.finfo(before[name].dtype)
        norms = old.norm(dim=1)
        smallest_step = limits.eps * limits.tiny * math.sqrt(old.shape[1])
        moved = (limits.eps * norms + smallest_step) / 2 + FLOAT64_SLACK * norms
        wrong = ~((new.norm(dim=1) - norms).abs() <= moved)  # also catches NaN
        if bool(wrong.any()):
            return failed("rows", f"{name}: the norm of row {int(wrong.nonzero()[0])} changed")
        sample = torch.linspace(0, len(old) - 1, min(len(old), SAMPLED_ROWS)).long()
        a, b, n, e = old[sample], new[sample], norms[sample], moved[sample]
        limit = torch.outer(n, e) + torch.outer(e, n) + torch.outer(e, e)
        wrong = ((b @ b.T) - (a @ a.T)).abs() > limit + FLOAT64_SLACK * torch.outer(n, n)
        if bool(wrong.any()):
            i, j = (int(sample[index]) for index in wrong.nonzero()[0])
            return failed("rows", f"{name}: the inner product of rows {i} and {j} changed")
    return passed("rows", "norms and inner products of the rows are the original's")


def uncorrelated(before: State, after: State, changes: Mapping[str, Chance]) -> Gate:
    """Check that each changed tensor's |correlation| with the original is within chance."""
    largest = 0.0
    for name in sorted(changes):
        old, new = before[name], after[name]
        if old.numel() < MIN_CORRELATED_ENTRIES or _is_constant(old) or _is_constant(new):
            continue
        # Only two float64 copies, because those of a subject's largest tensor take some gigabytes.
        a, b = (x.to(torch.float64, copy=True) for x in (old, new))
        if not changes[name].by_row:
            a, b = a.reshape(-1, 1), b.reshape(-1, 1)
        for x in (a, b):
            x -= x.mean(dim=0)
            x /= x.norm()
        found = abs(float(a.flatten() @ b.flatten()))
        if not found <= changes[name].limit(a, b):
            return failed("uncorrelated", f"{name}: correlation {found:.3f} with the original")
        largest = max(largest, found)
    return passed("uncorrelated", f"largest |correlation| {largest:.4f}")


def repeatable(first: Mapping[str, str], again: Mapping[str, str]) -> Gate:
    """Check that a second draw with the same key is bit-identical; both are `fingerprints`."""
    for name in first:
        if first[name] != again[name]:
            return failed("repeatable", f"{name}: a second draw with the same key differs")
    return passed("repeatable", f"{len(first)} tensors bit-identical")


def reloads(saved: Tensor, reloaded: Tensor) -> Gate:
    """Check that logits before the save and after the reload are identical."""
    if not torch.equal(saved, reloaded):
        worst = float((saved - reloaded).abs().max())
        return failed("reloads", f"logits differ by up to {worst:.3g} after save and reload")
    return passed("reloads", "logits identical after save and reload")


def finite(activations: State, logits: Tensor) -> Gate:
    """Check that no site and no logit has NaN or infinite values."""
    for name, tensor in {**activations, "logits": logits}.items():
        if not _is_finite(tensor):
            return failed("finite", f"{name}: NaN or infinite values")
    return passed("finite", f"{len(activations)} sites and the logits")


def noise(first: Tensor, other_batch: Tensor, plain: Tensor, std: float) -> list[Gate]:
    """Check that embedding noise is N(0, std^2), equal in any batch, and replaces the embedding.

    Args:
        first: [contexts, tokens, d] embeddings as the subject saw them.
        other_batch: the same contexts run in another order, put back in place.
        plain: the embeddings without noise.
        std: the configured standard deviation.
    """
    same = torch.equal(first, other_batch)
    repeats = "identical in another batch" if same else "embedding: noise depends on the batch"
    values, n = first.double().flatten(), first.numel()
    mean_errors = abs(float(values.mean())) / (std / math.sqrt(n))
    variance_errors = abs(float(values.var()) - std**2) / (std**2 * math.sqrt(2 / n))
    errors = max(mean_errors, variance_errors)
    moments = f"embedding: {errors:.2f} standard errors from N(0, {std}^2)"
    stacked = torch.stack([values, plain.double().flatten()])
    correlation = abs(float(torch.corrcoef(stacked)[0, 1]))
    replaces = f"embedding: correlation {correlation:.4f} with the trained one"
    return [
        judged("noise repeatable", same, repeats),
        judged("noise moments", errors <= STANDARD_ERRORS, moments),
        judged("noise replaces", correlation <= STANDARD_ERRORS / math.sqrt(n), replaces),
    ]


def require(gates: Sequence[Gate], where: str) -> None:
    """Stop at the first failed gate with a `UserError` that names the folder, gate and tensor."""
    for gate in gates:
        if not gate["passed"]:
            raise UserError(f"{where}: gate {gate['gate']!r} failed: {gate['detail']}")


def state(model: Any) -> dict[str, Tensor]:
    """Copy a model's parameters by name to the CPU; tied tensors once."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}


def fingerprints(tensors: State) -> dict[str, str]:
    """Return a checksum of each tensor's bits, instead of a copy of a whole model."""
    return {n: xxhash.xxh3_128_hexdigest(_bits(x).numpy().data) for n, x in tensors.items()}


def _is_constant(tensor: Tensor) -> bool:
    return bool((tensor == tensor.flatten()[0]).all())


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def _bits(tensor: Tensor) -> Tensor:
    """Return the same memory read as integers, on the CPU."""
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().cpu().contiguous().view(integers)
